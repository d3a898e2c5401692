"""The test films of a run whose training left them alone: looked at when the run has been chosen.

This loads the model, and with it torch.
"""

import logging

import numpy as np
import torch

from pneumonia.settings import UserError
from pneumonia.training.checkpoint import load_classifier
from pneumonia.workflows.predictions import row, summarize, write_predictions
from pneumonia.workflows.record import read_json, write_json
from pneumonia.workflows.shortcuts import films_in_batches, logits
from pneumonia.workflows.sources import Source, read_run, read_table

log = logging.getLogger(__name__)


def with_test_films(source: Source) -> Source:
    """The run with its manifest's test films predicted, which predictions.csv and metrics.json have from now on.

    Those that are predicted already stay as they are. Raises UserError where the manifest has none, or one is gone.
    """
    if "test" in source.splits:
        log.info("test=true: %s has the test films already", source.file.name)
        return source
    records = [record for record in source.manifest if record.split == "test"]
    if not records:
        raise UserError(
            f"test=true: no film of split test stands in {source.folder / 'manifest.csv'}. For other films type python "
            f"-m pneumonia.predict run={source.folder} images=<folder>."
        )
    classifier = load_classifier(source.folder / "checkpoints" / "best.ckpt")
    classifier.to("cuda" if torch.cuda.is_available() else "cpu")
    batches = films_in_batches(source, [record.path for record in records], "test=true")
    found = np.concatenate([logits(classifier, batch) for batch in batches])
    made = [row(record, logit) for record, logit in zip(records, found.tolist(), strict=True)]
    rows, columns = read_table(source.file)
    metrics = source.folder / "metrics.json"
    write_json(metrics, read_json(metrics) | summarize(made))
    lines = [{name: line.get(name, "") for name in columns} for line in [*rows, *made]]
    write_predictions(source.file, lines, columns)  # last: what is cut short is done again
    log.info("%d test films predicted, which training left alone; shortcuts=true looks for shortcuts there", len(made))
    return read_run(source.folder)

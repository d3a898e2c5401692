"""The test films of a run whose training left them alone: looked at when the run has been chosen.

This loads the model, and with it torch.
"""

import logging
from collections.abc import Sequence

import numpy as np

from pneumonia.data.records import Record, fingerprint_films
from pneumonia.errors import UserError
from pneumonia.training.checkpoint import load_to_predict
from pneumonia.workflows.predictions import row, summarize, write_predictions
from pneumonia.workflows.record import read_json, write_json
from pneumonia.workflows.shortcuts import films_in_batches, logits
from pneumonia.workflows.sources import Source, read_run, read_table

log = logging.getLogger(__name__)


def with_test_films(source: Source) -> Source:
    """The run with its manifest's test films predicted, which predictions.csv and metrics.json have from now on.

    Those that are predicted already stay as they are. Raises UserError where the manifest has none, one is gone or
    another film than it was, or the folder takes no file.
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
    refuse_other_films(source, records)
    classifier = load_to_predict(source.folder / "checkpoints" / "best.ckpt")
    batches = films_in_batches(source, [record.path for record in records], "test=true")
    found = np.concatenate([logits(classifier, batch) for batch in batches])
    made = [row(record, logit) for record, logit in zip(records, found.tolist(), strict=True)]
    rows, columns = read_table(source.file)
    lines = [{name: line.get(name, "") for name in columns} for line in [*rows, *made]]
    metrics = source.folder / "metrics.json"
    try:
        write_json(metrics, read_json(metrics) | summarize(made))
        write_predictions(source.file, lines, columns)  # last: what is cut short is done again
    except OSError as error:
        raise UserError(f"test=true: {source.folder} takes no file ({error}).") from error
    log.info("%d test films predicted, which training left alone; shortcuts=true looks for shortcuts there", len(made))
    return read_run(source.folder)


def refuse_other_films(source: Source, records: Sequence[Record]) -> None:
    """Raise UserError unless these films lie where they did, with the hashes of the manifest."""
    if source.root is None:
        return  # told by what reads them
    _, bad = fingerprint_films(source.root, records)
    if bad:
        path, reason = bad[0]
        raise UserError(
            f"test=true needs the test films of the manifest: {len(bad)} are not there ({path}: {reason}). Put them "
            f"back in {source.root}, or name their folder as data_root in {source.folder / 'run.json'}."
        )

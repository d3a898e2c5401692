"""Whether the class is told by something else than the lungs: the file's metadata, marks in the corners, or films with
the lungs hidden.

This loads the model, and with it torch; nothing else of the evidence does.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from pneumonia.data.decode import BadFilm, read_film
from pneumonia.errors import UserError
from pneumonia.evaluation.checks import Floats
from pneumonia.evaluation.shortcuts import FILMS_AT_ONCE, Images, metadata_auroc, metadata_features, shortcut_table
from pneumonia.launch import usable_cores
from pneumonia.report.verdict import METADATA_OF
from pneumonia.settings import EvaluateConfig
from pneumonia.training.checkpoint import load_to_predict
from pneumonia.training.classifier import Classifier
from pneumonia.training.precision import full_float32
from pneumonia.workflows.audit import class_marks
from pneumonia.workflows.sources import Source
from pneumonia.workflows.stressed import SAME

log = logging.getLogger(__name__)

BATCH = 32


def shortcuts_of(source: Source, judged: str, config: EvaluateConfig) -> dict[str, Any]:
    """AUROC of metadata alone (over all films of the manifest) and of the model on changed films of `judged`; the marks
    of training and validation films."""
    seed, level, resamples = config.seed, config.level, config.resamples
    records = source.manifest
    if not records:
        raise UserError(f"shortcuts=true needs the sizes of the films: there is no {source.folder / 'manifest.csv'}.")
    columns = [[getattr(record, name) for record in records] for name in ("width", "height", "bytes", "mode")]
    label, patient = [record.label for record in records], [record.patient for record in records]
    known = all(record.width and record.height for record in records)
    differ = [name for name, column in zip(METADATA_OF, columns, strict=True) if len(set(column)) > 1]
    rows = [metadata_auroc(metadata_features(*columns), label, patient, seed, level, resamples)] if known else []
    classifier = load_to_predict(source.folder / "checkpoints" / "best.ckpt")
    films = source.splits[judged].films
    images = read_all(source, judged, classifier)
    rows += shortcut_table(
        lambda batch: probabilities(classifier, batch), images, films.label, films.patient, seed, level, resamples
    )
    return {
        "level": level,
        "seed": seed,
        "resamples": resamples,
        "rows": [asdict(row) for row in rows],
        "metadata": differ,
        "marks": marks_of(source, films.path.tolist() if judged == "test" else []),
    }


def marks_of(source: Source, judged: Sequence[str]) -> dict[str, Any] | None:
    """Marks that come with one class in the films that the run learnt from, and which of the `judged` paths have them;
    None where the films are no longer there."""
    assert source.root is not None  # else the judged films could not have been read
    try:
        return class_marks(source.root, source.manifest, judged)
    except BadFilm as error:
        log.warning(
            "marks in the corners were not looked for: that needs the films that the run learnt from (%s)", error
        )
        return None


def read_all(source: Source, split: str, classifier: Classifier) -> Images:
    """The films of a split as the run saw them, uint8 [N, S, S]. Raises UserError as `films_as_judged`."""
    return np.concatenate(list(films_as_judged(source, split, classifier, "shortcuts=true")))


def films_as_judged(source: Source, split: str, classifier: Classifier, option: str) -> Iterator[Images]:
    """The films of a split as the run saw them, uint8 [n, S, S]. Raises UserError that names the `option` when one is
    no longer there, or the net says of one what predictions.csv does not."""
    films, done = source.splits[split].films, 0
    for images in films_in_batches(source, films.path.tolist(), option):
        told, found = films.probability[done : done + len(images)], probabilities(classifier, images)
        other = int(np.argmax(np.abs(found - told)))
        if abs(found[other] - told[other]) > SAME:
            raise UserError(
                f"{option}: the probability of {films.path[done + other]} is {found[other]:.3f}, and {told[other]:.3f} "
                f"in {source.file}: {source.root} holds other films than those, or {source.folder / 'checkpoints'} "
                "other weights. Put the run's own back."
            )
        done += len(images)
        yield images


def films_in_batches(source: Source, paths: Sequence[str], option: str) -> Iterator[Images]:
    """The films as the run saw them, uint8 [n, S, S]. Raises UserError that names the `option` which needs them."""
    root, data = source.root, source.data
    if root is None:
        raise UserError(f"{option} needs the films: {source.folder / 'run.json'} does not say where they are.")
    try:
        with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
            for start in range(0, len(paths), FILMS_AT_ONCE):
                part = paths[start : start + FILMS_AT_ONCE]
                films = pool.map(lambda path: read_film(root / path, data.image_size, data.resize), part)
                yield np.stack(list(films))
    except BadFilm as error:
        raise UserError(
            f"{option} needs the films that the run was judged on ({error}): put them back, or name their folder as "
            f"data_root in {source.folder / 'run.json'}."
        ) from error


def probabilities(classifier: Classifier, images: Images) -> Floats:
    """uint8 [N, S, S] -> probability of pneumonia [N]."""
    return np.asarray(expit(logits(classifier, images)))


@full_float32()
@torch.inference_mode()
def logits(classifier: Classifier, images: Images, batch_size: int = BATCH) -> Floats:
    """uint8 [N, S, S] -> logit [N], in batches, where the classifier is."""
    parts = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(images[start : start + batch_size])[:, None].to(classifier.device)
        parts.append(classifier(batch).float().cpu().numpy().astype(np.float64))
    return np.concatenate(parts)

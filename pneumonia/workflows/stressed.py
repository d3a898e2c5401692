"""stress.csv: a run's validation films under every corruption, a row a film; read and written without torch.

Columns   path, as_is, then a probability for each corruption. It lies beside the predictions.csv that it belongs to.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia.errors import UserError
from pneumonia.evaluation.checks import Floats
from pneumonia.evaluation.stress import stress_table
from pneumonia.files import written
from pneumonia.settings import EvaluateConfig
from pneumonia.workflows.sources import Source

SAME = 0.01  # the most by which a film's probability, computed again, may differ from that of predictions.csv


def write_stress(folder: Path, path: Sequence[str], scores: Mapping[str, Floats]) -> None:
    """{corruption: probability [N]} of the films `path` [N]. Raises UserError where the folder takes no file."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["path", *scores])
    for name, *row in zip(path, *scores.values(), strict=True):
        writer.writerow([name, *(f"{value:.6g}" for value in row)])
    try:
        with written(folder / "stress.csv") as temporary:
            temporary.write_text(stream.getvalue(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder / 'stress.csv'} can't be written ({error}).") from error


def read_stress(source: Source) -> dict[str, Floats] | None:
    """{corruption: probability [N]} of the validation films in their order; None where there is no such file, or one
    that was made from other predictions."""
    if "val" not in source.splits:
        return None
    films = source.splits["val"].films
    try:
        with (source.folder / "stress.csv").open(newline="", encoding="utf-8") as stream:
            names, *rows = csv.reader(stream)
        path = [row[0] for row in rows]
        values = np.array([row[1:] for row in rows], np.float64)
    except (OSError, ValueError, IndexError):
        return None
    if names[:2] != ["path", "as_is"] or path != films.path.tolist() or values.shape != (len(path), len(names) - 1):
        return None
    if not ((values >= 0) & (values <= 1)).all() or np.abs(values[:, 0] - films.probability).max() > SAME:
        return None
    return dict(zip(names[1:], values.T, strict=True))


def needed_stress(source: Source) -> dict[str, Floats]:
    """The same; raises UserError where it is not there."""
    scores = read_stress(source)
    if scores is None:
        way = f"evaluate run={source.folder} stress=true first"
        if not source.config:  # a vote, which has no net of its own
            way = "evaluate run=<each> stress=true, then compare operating_point.stressed=true, first"
        raise UserError(
            f"operating_point.stressed=true: {source.folder} holds no stress.csv of these predictions; type "
            f"python -m pneumonia.{way}."
        )
    return scores


def same_stress(shown: Mapping[str, Mapping[str, Floats]]) -> None:
    """Raise UserError unless all of {run: {corruption: ...}} are under the same corruptions."""
    (first, ways), *others = shown.items()
    for name, other in others:
        if other.keys() != ways.keys():
            raise UserError(
                f"operating_point.stressed=true: {name} and {first} hold other corruptions in their stress.csv; type "
                "python -m pneumonia.evaluate run=<each> stress=true again."
            )


def stress_evidence(source: Source, threshold: float, config: EvaluateConfig) -> dict[str, Any] | None:
    """The suite's figures at `threshold`, as plain values, with the options that they were computed with."""
    scores = read_stress(source)
    if scores is None:
        return None
    films = source.splits["val"].films
    found = stress_table(scores, films.label, threshold, films.patient, config.seed, config.level, config.resamples)
    return asdict(found) | {"level": config.level, "seed": config.seed, "resamples": config.resamples}

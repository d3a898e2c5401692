"""Which training films are hard: normal ones that nets which never saw them take for pneumonia. No torch.

The nets are those of nested folds, so each film is judged by one that was not trained on its patient, and no patient
that validates or tests here was shown to any of them. Films that a first training gets wrong are drawn more often in a
second one (Just Train Twice, Liu et al. 2021, arXiv:2107.09044), here by how wrong they are out of fold, and of normal
ones alone: a film with pneumonia that looks normal may show nothing to learn, the label being of the patient.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pneumonia.data.records import Record
from pneumonia.errors import UserError
from pneumonia.evaluation.calibration import calibrate, fit_platt
from pneumonia.evaluation.checks import Floats
from pneumonia.files import written
from pneumonia.settings import TrainConfig
from pneumonia.workflows.films import films_of
from pneumonia.workflows.resume import settings_of
from pneumonia.workflows.sources import Source, jobs_of, read_run

WAY = (
    "expected the sweep of -m data.nested=true data.folds=2 data.fold=0,1 with the seed and the settings of data typed "
    "here, or with data.manifest=<manifest.csv of a run that has these training films>"
)
TABLE = "hard_films.csv"
Film = tuple[str, int]  # SHA-256, label


def hard_of(config: TrainConfig, records: Sequence[Record]) -> Floats | None:
    """`mistaken` by the sweep that `hard_films=` names; a run that is gone on with keeps what it began with, whatever
    became of that sweep, unless force=true names another one. None without `hard_films=`."""
    if config.hard_films is None:
        return None
    if config.resume is not None and settings_of(Path(config.resume)).get("hard_films") == config.hard_films:
        kept = read_hard(Path(config.resume), records)
        if kept is not None:
            return kept
    return mistaken(Path(config.hard_films).expanduser(), records)


def write_hard(folder: Path, records: Sequence[Record], hard: Floats) -> None:
    """hard_films.csv of a run: its training films, and how sure others were that each is pneumonia though it is
    normal."""
    with written(folder / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["path", "label", "sha256", "probability"])
        train = (record for record in records if record.split == "train")
        rows.writerows([r.path, r.label, r.sha256, float(p)] for r, p in zip(train, hard, strict=True))


def read_hard(folder: Path, records: Sequence[Record]) -> Floats | None:
    """What `write_hard` wrote of the training films; None where a run was ended before that. Raises UserError."""
    if not (folder / TABLE).is_file():
        return None
    try:
        with (folder / TABLE).open(newline="", encoding="utf-8") as stream:
            told = {(row["sha256"], int(row["label"])): float(row["probability"]) for row in csv.DictReader(stream)}
        return np.array([told[record.sha256, record.label] for record in records if record.split == "train"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / TABLE} is not what the run wrote ({error!r}): remove it, and the sweep of hard_films= is read."
        ) from error


def mistaken(sweep: Path, records: Sequence[Record]) -> Floats:
    """How sure nets that never saw it are that a training film is pneumonia though it is normal: probability [N] of the
    training films among `records`, calibrated on the films that each net judges; 0 for those with pneumonia.

    Raises UserError where a film was not judged, and where a net was trained on a patient that judges here.
    """
    told: dict[Film, list[float]] = defaultdict(list)
    for folder in jobs_of(sweep, "hard_films", " of nested folds")[0]:
        source = read_run(folder)
        refuse_known(source, records)
        for film, probability in judged(source):
            told[film].append(probability)
    train = [record for record in records if record.split == "train"]
    if lacking := [record.path for record in train if (record.sha256, record.label) not in told]:
        raise UserError(
            f"hard_films={sweep}: {len(lacking):,} of {len(train):,} training films were judged by no run of it "
            f"({lacking[0]}, ...): {WAY}."
        )
    return np.array([0.0 if r.label else np.mean(told[r.sha256, r.label]) for r in train])


def judged(source: Source) -> Iterator[tuple[Film, float]]:
    """Each validation film of a run, with its calibrated probability."""
    if "val" not in source.splits:
        raise UserError(f"hard_films: {source.file} has no validation films; {WAY}.")
    known = {record.path: (record.sha256, record.label) for record in source.manifest}
    films, logit = source.splits["val"].films, source.splits["val"].logit
    temperature, bias = fit_platt(films.label, logit) or (1.0, 0.0)
    for path, probability in zip(films.path.tolist(), calibrate(logit, temperature, bias).tolist(), strict=True):
        if path in known:
            yield known[path], probability


def refuse_known(source: Source, records: Sequence[Record]) -> None:
    """Raise UserError where the run was shown a patient, or the bytes of a film, that validates or tests among
    `records` and does not train there too."""
    shown = [record for record in source.manifest if record.split != "test"]
    if not shown or not all(record.sha256 for record in shown):
        raise UserError(f"hard_films: {source.folder}/manifest.csv does not tell which films it was shown; {WAY}.")
    for name in ("patient", "sha256"):
        train = {getattr(record, name) for record in records if record.split == "train"}
        known = {getattr(record, name) for record in shown} - train
        if both := [record.path for record in records if record.split != "train" and getattr(record, name) in known]:
            raise UserError(
                f"hard_films: {source.folder} was shown {both[0]} or its patient, one of {len(both):,} that judge here,"
                f" and would carry that label into this training; {WAY}."
            )


def check_hard(config: TrainConfig) -> None:
    """Raise UserError where `hard_films=` can't be what it must be."""
    if config.hard_films is not None:
        hard_of(config, films_of(config.data, config.seed).records)

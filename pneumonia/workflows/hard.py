"""Which training films are hard: normal ones that nets which never saw them take for pneumonia. No torch.

The nets are those of nested folds, so each film is judged by one that was not trained on its patient, and no film that
validates or tests here was shown to any of them. Films that a first training gets wrong are drawn more often in a
second one (Just Train Twice, Liu et al. 2021, arXiv:2107.09044), here by how wrong they are out of fold, and of normal
ones alone: a film with pneumonia that looks normal may show nothing to learn, the label being of the patient.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pneumonia.data.records import Record
from pneumonia.evaluation.calibration import calibrate, fit_platt
from pneumonia.evaluation.checks import Floats
from pneumonia.settings import UserError
from pneumonia.workflows.comparison import jobs_of
from pneumonia.workflows.sources import Source, read_run

MOST = 4.0  # how many times more a normal film is drawn that the nets are sure is pneumonia


def weight_of_hard(sweep: Path, records: Sequence[Record]) -> Floats:
    """Factor [N] by which the training films among `records` are drawn more often: 1 with pneumonia, 1 to 1 + MOST for
    normal ones. Raises UserError as `taken_for_pneumonia` does."""
    normal = np.array([record.label == 0 for record in records if record.split == "train"])
    return 1 + MOST * normal * taken_for_pneumonia(sweep, records)


def taken_for_pneumonia(sweep: Path, records: Sequence[Record]) -> Floats:
    """Probability [N] of pneumonia of the training films among `records`, each by the run of `sweep` that it validates,
    calibrated there. Raises UserError where a film was not judged, or one that judges here was trained on there."""
    told: dict[str, float] = {}
    for folder in jobs_of(sweep, "hard_films", " of nested folds")[0]:
        source = read_run(folder)
        refuse_known(source, records)
        told |= judged(source)
    train = [record.path for record in records if record.split == "train"]
    if lacking := [path for path in train if path not in told]:
        raise UserError(
            f"hard_films={sweep}: {len(lacking):,} of {len(train):,} training films were judged by no run of it "
            f"({lacking[0]}, ...): expected all folds of the same training films, as by "
            "-m data.nested=true data.folds=2 data.fold=0,1 with the settings of data that are typed here."
        )
    return np.array([told[path] for path in train])


def judged(source: Source) -> dict[str, float]:
    """{path: calibrated probability} of a run's validation films."""
    films = source.splits["val"].films
    logit = source.splits["val"].logit
    temperature, bias = fit_platt(films.label, logit) or (1.0, 0.0)
    return dict(zip(films.path.tolist(), calibrate(logit, temperature, bias).tolist(), strict=True))


def refuse_known(source: Source, records: Sequence[Record]) -> None:
    """Raise UserError where the run was trained on a film that validates or tests among `records`."""
    trained = {record.sha256 for record in source.manifest if record.split == "train"}
    known = [record.path for record in records if record.split != "train" and record.sha256 in trained]
    if known or not trained:
        what = f"{known[0]} and {len(known) - 1:,} more films that judge here" if known else "nobody knows which films"
        raise UserError(
            f"hard_films: {source.folder} was trained on {what}: its judgement would carry their labels into this "
            "training. Expected runs with data.nested=true and the same data settings, which leave them out."
        )

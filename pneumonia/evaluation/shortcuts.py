"""Does the model read the lungs? What the file alone gives away, and what is left when parts of the film are hidden.

Layout  features float [N, F]; images uint8 [N, H, W], 0 black .. 255 white; predict maps uint8 [n, H, W] -> probability
        [n] of class 1.
Source  DeGrave, Janizek & Lee 2021, doi:10.1038/s42256-021-00338-7; the lungs-out test of Maguolo & Nanni 2021,
        arXiv:2004.12823.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold

from pneumonia.evaluation.bootstrap import bootstrap_draws
from pneumonia.evaluation.checks import Floats, Interval, checked_label, checked_patient
from pneumonia.evaluation.frame import BORDER, inside
from pneumonia.evaluation.intervals import auroc_interval
from pneumonia.evaluation.metrics import point_metrics

Images = NDArray[np.uint8]
FOLDS = 5
FILMS_AT_ONCE = 256
FILL = 128  # one grey for all films: a film's own mean would still tell its exposure
CORNER = 0.2  # side of a masked corner, where "R" and "L" markers sit
BLUR = 0.05  # standard deviation over the height: 11 px of 224, textures gone, shapes left


@dataclass(frozen=True)
class Audit:
    """AUROC of one probe with its patient-clustered interval; both None where undefined, and `reason` says why."""

    name: str
    auroc: float | None
    interval: Interval | None
    reason: str | None = None


def metadata_features(width: ArrayLike, height: ArrayLike, size: ArrayLike, mode: ArrayLike) -> Floats:
    """[N, 4 + modes]: width and height in pixels, aspect, file size in bytes, then one column per colour mode."""
    wide, high, bytes_ = (np.asarray(values, dtype=np.float64) for values in (width, height, size))
    modes = np.asarray(mode).astype(np.str_)
    one_hot = (modes[:, None] == np.unique(modes)).astype(np.float64)
    return np.column_stack([wide, high, wide / high, bytes_, one_hot])


def metadata_auroc(
    features: ArrayLike, label: ArrayLike, patient: ArrayLike, seed: int = 0, level: float = 0.95,
    resamples: int = 2000,
) -> Audit:  # fmt: skip
    """AUROC of a classifier (boosted trees) that sees metadata only, out of fold, no patient on both sides of a fold.

    Near 0.5 is quiet; where the interval lies above 0.5, the class can be told without looking at the film.
    """
    truth = checked_label(label)
    table = np.asarray(features, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != truth.size:
        raise ValueError(f"features has shape {table.shape}: expected ({truth.size}, F), one row per film of label.")
    keys = checked_patient(patient, truth.size)
    folds = min(FOLDS, *(np.unique(keys[truth == y]).size for y in (0, 1)))
    if folds < 2:
        return Audit("metadata", None, None, "fewer than two patients in a class")
    if (table == table[0]).all():
        return Audit("metadata", None, None, "all films have the same metadata")
    score = np.empty(truth.size)
    for train, test in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(table, truth, keys):
        model = HistGradientBoostingClassifier(max_iter=50, early_stopping=False, random_state=seed)
        score[test] = model.fit(table[train], truth[train]).predict_proba(table[test])[:, -1]
    return _audit("metadata", truth, score, keys, seed, level, resamples)


def shortcut_table(
    predict: Callable[[Images], ArrayLike],
    images: Images,
    label: ArrayLike,
    patient: ArrayLike,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
) -> list[Audit]:
    """AUROC of the model on films as they are, then on each of `variants`, in batches of FILMS_AT_ONCE.

    A high figure for border_only, common_centre (that of the mean film) or blurred says that something else than the
    lungs is enough.
    """
    truth = checked_label(label)
    if images.ndim != 3 or images.dtype != np.uint8 or images.shape[0] != truth.size:
        raise ValueError(
            f"images are {images.dtype} {images.shape}: expected uint8 ({truth.size}, H, W), one film per label. "
            "Pass the pixels of the cache."
        )
    keys = checked_patient(patient, truth.size)
    batches = [slice(k, k + FILMS_AT_ONCE) for k in range(0, truth.size, FILMS_AT_ONCE)]
    mean = np.asarray(np.rint(images.mean(0)), dtype=np.uint8)
    rows = []
    for name, variant in {"as_is": as_is, **variants(mean)}.items():
        score = np.concatenate([np.asarray(predict(variant(images[batch])), dtype=np.float64) for batch in batches])
        rows.append(_audit(name, truth, score, keys, seed, level, resamples))
    return rows


def as_is(images: Images) -> Images:
    return images


def border_only(images: Images) -> Images:
    """The outer BORDER of each side kept, the centre blanked."""
    return np.where(inside(images.shape[1:], BORDER), np.uint8(FILL), images)


def centre_only(images: Images) -> Images:
    """The centre kept, the outer BORDER of each side blanked."""
    return np.where(inside(images.shape[1:], BORDER), images, np.uint8(FILL))


def corners_masked(images: Images) -> Images:
    """Squares of CORNER of each side blanked in the four corners, where markers sit."""
    height, width = images.shape[1:]
    row, column = max(1, round(CORNER * height)), max(1, round(CORNER * width))
    masked = images.copy()
    for rows in (slice(None, row), slice(height - row, None)):
        for columns in (slice(None, column), slice(width - column, None)):
            masked[:, rows, columns] = FILL
    return masked


def blurred(images: Images) -> Images:
    """Gaussian blur within each film, standard deviation BLUR of the height."""
    sigma = BLUR * images.shape[1]
    smooth = gaussian_filter(images, sigma=(0, sigma, sigma), mode="nearest", output=np.float32)
    return np.asarray(np.rint(smooth), dtype=np.uint8)


def common_centre(images: Images, common: NDArray[np.uint8]) -> Images:
    """The outer BORDER of each side kept around the centre of `common` [H, W]."""
    return np.where(inside(images.shape[1:], BORDER), common, images)


def variants(common: NDArray[np.uint8]) -> dict[str, Callable[[Images], Images]]:
    """What hides parts of films [N, H, W]; hidden pixels are FILL, or those of the film `common` [H, W].

    A net that was trained on blanked centres (`lungs_out`) has learnt that nothing is to be said of those, whatever the
    border tells it around real lungs. common_centre asks such a net too: all films have the same lungs there.
    """
    return {
        "border_only": border_only,
        "common_centre": partial(common_centre, common=common),
        "centre_only": centre_only,
        "corners_masked": corners_masked,
        "blurred": blurred,
    }


def _audit(
    name: str, label: ArrayLike, score: Floats, patient: ArrayLike, seed: int, level: float, resamples: int
) -> Audit:
    auroc = point_metrics(label, score, 0.5)["auroc"]
    drawn = bootstrap_draws(label, score, patient, 0.5, resamples, seed, ("auroc",)).values["auroc"]
    interval = auroc_interval(drawn, label, score, level)
    return Audit(name, auroc, interval, None if auroc is not None else "one class only")

"""Intervals that know films of one child belong together: patients are drawn with replacement, films follow.

Method  percentile interval over resamples of patients (cluster bootstrap: Davison & Hinkley 1997, section 3.8;
        for diagnostic tests Rutter 2000, Academic Radiology 7:413).
Memory  resamples come in chunks of about a million weights: some 100 MB whatever N is.
Left out  a resample that contains a single class has no AUROC, sensitivity or specificity: it is left out of every
        metric, and counted. With one class in the data nothing remains, and every interval is None.
ECE     the calibration error of a resample is larger than that of its films on average (a sum of absolute gaps, each
        with the noise of a second drawing: Kumar 2019, arXiv:1909.10155). `unbiased_interval` shifts the draws by their
        mean minus the estimate; without it the interval of a well-calibrated model lies above its own estimate.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pneumonia.evaluation.checks import Floats, Interval, Ints, Strings, checked, checked_patient
from pneumonia.evaluation.metrics import METRICS
from pneumonia.evaluation.weighted import WeightedMetrics

WEIGHTS_PER_CHUNK = 2**20
PERCENT = np.arange(101)
GRID = PERCENT / 100  # 7/100 here is exactly 7 of 100 films; a linspace is off by a rounding


@dataclass(frozen=True)
class Draws:
    """Each metric over the resamples that hold both classes, [B]; NaN where that resample leaves it undefined."""

    values: dict[str, Floats]
    left_out: int
    seed: int

    def intervals(self, level: float = 0.95) -> dict[str, Interval | None]:
        """{metric: (low, high)}; None where no resample defines the metric."""
        return {name: percentile_interval(values, level) for name, values in self.values.items()}


@dataclass(frozen=True)
class Band:
    """A curve on GRID: the estimate and its pointwise interval, [101] each."""

    grid: Floats
    estimate: Floats
    low: Floats
    high: Floats


def percentile_interval(values: Floats, level: float) -> Interval | None:
    """The central share `level` of the defined values [B]; None where there are none."""
    defined = values[np.isfinite(values)]
    if not defined.size:
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def width_or_none(interval: Interval | None) -> Interval | None:
    """None where all resamples agree (but for rounding), as those of a perfect ranking or of one patient do: nothing
    tells the width."""
    return None if interval and interval[1] - interval[0] < 1e-9 else interval


def unbiased_interval(values: Floats, estimate: float | None, level: float) -> Interval | None:
    """The percentile interval of draws [B] shifted so that their mean is the estimate, cut off at 0; for ECE.

    It always holds the estimate: where the shifted draws are skewed so much that they would not, it is widened to it.
    """
    defined = values[np.isfinite(values)]
    if estimate is None or not defined.size:
        return None
    low, high = percentile_interval(np.maximum(defined - (defined.mean() - estimate), 0), level) or (estimate, estimate)
    return min(low, estimate), max(high, estimate)


def patient_weights(patients: int, resamples: int, seed: int, per_chunk: int) -> Iterator[Floats]:
    """Chunks [<= per_chunk, patients]: how often each patient is drawn; rows sum to `patients` (multinomial)."""
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: expected at least 1. Set resamples=2000.")
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, per_chunk):
        rows = min(per_chunk, resamples - start)
        picks = rng.integers(patients, size=(rows, patients)) + np.arange(rows)[:, None] * patients
        yield np.bincount(picks.ravel(), minlength=rows * patients).reshape(rows, patients).astype(np.float64)


def bootstrap_draws(
    label: ArrayLike,
    probability: ArrayLike,
    patient: ArrayLike,
    threshold: float,
    resamples: int = 2000,
    seed: int = 0,
    metrics: tuple[str, ...] = METRICS,
) -> Draws:
    """Each metric over resamples of patients. The same patients and seed give the same resamples (paired tests)."""
    truth, score = checked(label, probability)
    unit, patients = _units(patient, truth.size)
    kernel = WeightedMetrics(truth, score, threshold, unit, metrics)
    positives, films = np.bincount(unit, weights=truth), np.bincount(unit)
    kept: list[dict[str, Floats]] = []
    for weights in patient_weights(patients, resamples, seed, _rows(truth.size)):
        drawn_positives, drawn = weights @ positives, weights @ films
        both = (drawn_positives > 0) & (drawn_positives < drawn)
        kept.append(kernel(weights if both.all() else weights[both]))
    values = {name: np.concatenate([chunk[name] for chunk in kept]) for name in metrics}
    remaining = next(iter(values.values())).size
    return Draws(values, left_out=resamples - remaining, seed=seed)


def curve_bands(
    label: ArrayLike,
    probability: ArrayLike,
    patient: ArrayLike,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Band, Band] | None:
    """(ROC, precision-recall) with pointwise bands over resamples of patients; None where there is one class only.

    ROC: sensitivity at each false positive rate of GRID, linear between thresholds. Precision-recall: precision at the
    highest threshold whose recall reaches each value of GRID, no interpolation (Davis & Goadrich 2006: it flatters).
    """
    truth, score = checked(label, probability)
    if not 0 < truth.sum() < truth.size:
        return None
    unit, patients = _units(patient, truth.size)
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.flatnonzero(np.diff(score[order], append=-1.0))
    chunks = patient_weights(patients, resamples, seed, _rows(truth.size))
    tie = np.searchsorted(last_of_tie, np.arange(truth.size))
    edges = np.append(-1, last_of_tie)[tie], last_of_tie[tie]
    point = next(_curves(np.ones((1, truth.size)), truth[order], edges))
    drawn = [curves for w in chunks for curves in _curves(np.take(w, unit[order], axis=1), truth[order], edges)]
    tail = [(1 - level) / 2, (1 + level) / 2]
    bands = [
        Band(GRID, point[k], *np.quantile(np.stack([curves[k] for curves in drawn]), tail, axis=0)) for k in (0, 1)
    ]
    return bands[0], bands[1]


def _curves(weights: Floats, label: Ints, edges: tuple[Ints, Ints]) -> Iterator[tuple[Floats, Floats]]:
    """Per row of weights [B, N] (films by falling score) sensitivity and precision on GRID; no single-class rows.

    `edges`: of each film's tie the film before its first (-1: there is none), and its last.
    """
    before, last = edges
    for hit, called in zip(np.cumsum(weights * label, axis=1), np.cumsum(weights, axis=1), strict=True):
        false = called - hit
        positives, negatives = hit[-1], false[-1]
        if positives == 0 or negatives == 0:
            continue
        above = np.searchsorted(false, np.floor(PERCENT[:-1] * negatives / 100), side="right")  # first film beyond GRID
        left, right = before[above], last[above]
        x, y = (np.where(left < 0, 0, count[left] / total) for count, total in ((false, negatives), (hit, positives)))
        slope = (hit[right] / positives - y) / (false[right] / negatives - x)
        sensitivity = np.append(slope * (GRID[:-1] - x) + y, 1.0)
        reached = last[np.searchsorted(hit, np.maximum(np.ceil(PERCENT * positives / 100), 1))]
        yield sensitivity, hit[reached] / called[reached]


def _units(patient: ArrayLike, n: int) -> tuple[Ints, int]:
    keys: Strings = checked_patient(patient, n)
    unique, unit = np.unique(keys, return_inverse=True)
    return unit.astype(np.int64), unique.size


def _rows(films: int) -> int:
    return max(1, WEIGHTS_PER_CHUNK // films)

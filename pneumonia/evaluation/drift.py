"""How far test is from validation: every metric, the scores themselves, and what the locked threshold costs.

The oracle threshold is chosen on test, so its accuracy is no result, and its gap to the locked one is above 0 without
any drift: `chance_gap` says how large, and only a larger one says something. Without drift it was larger than that and
.03 in 1 to 5 of 100 simulations (60, 200 and 1,043 validation films, 30, 100 and 312 test films; AUROC .92 to .99); .03
alone would have been called a drift in up to 78.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import ks_2samp

from pneumonia.evaluation.bootstrap import Draws, percentile_interval, width_or_none
from pneumonia.evaluation.checks import Floats, Interval
from pneumonia.evaluation.films import Films
from pneumonia.evaluation.intervals import auroc_interval, wilson
from pneumonia.evaluation.metrics import METRICS, confusion, point_metrics, proportions
from pneumonia.evaluation.operating_point import choose_threshold


@dataclass(frozen=True)
class MetricDrift:
    """A metric on both splits at one threshold; difference is test minus val, None where either is undefined."""

    metric: str
    val: float | None
    test: float | None
    difference: float | None
    interval: Interval | None


@dataclass(frozen=True)
class ScoreDrift:
    """Two-sample Kolmogorov-Smirnov test on probabilities; None where a split has no such film.

    The p-value takes films as independent: with several films per child it is too small.
    """

    films: str
    n_val: int
    n_test: int
    statistic: float | None
    p_value: float | None


@dataclass(frozen=True)
class OracleGap:
    """Accuracy on test at the locked threshold and at the best one in hindsight; gap is oracle minus locked, which the
    choice on these very films flatters."""

    locked_threshold: float
    locked_accuracy: float
    oracle_threshold: float
    oracle_accuracy: float
    gap: float


def metric_drift(
    val: Films, test: Films, threshold: float, val_draws: Draws, test_draws: Draws, level: float = 0.95
) -> list[MetricDrift]:
    """Every metric, test minus val, with the interval of the difference of two independent bootstraps.

    None for ECE, whose resamples lie too high, the more so the fewer the films: the difference would be called drift
    where both splits are calibrated. Where all resamples of a split agree, as those of a perfect ranking do, they would
    tell it as known exactly: there the difference is of both splits' own intervals (Zou and Donner 2008,
    doi:10.1002/sim.3095).
    ValueError where both bootstraps used one seed: their resamples may then move together.
    """
    if val_draws.seed == test_draws.seed:
        raise ValueError(
            f"Both bootstraps used seed={val_draws.seed}: expected two, since val and test are independent. "
            "Draw the test one with seed + 1."
        )
    before, after = (point_metrics(films.label, films.probability, threshold) for films in (val, test))
    rows = []
    for name in METRICS:
        a, b = before[name], after[name]
        if a is None or b is None:
            rows.append(MetricDrift(name, a, b, None, None))
            continue
        drawn_val, drawn_test = val_draws.values[name], test_draws.values[name]
        both = ((val, drawn_val), (test, drawn_test))
        n = min(drawn_val.size, drawn_test.size)
        interval = percentile_interval(drawn_test[:n] - drawn_val[:n], level)
        if interval and not all(width_or_none(percentile_interval(draws, level)) for _, draws in both):
            own = (_own_interval(name, films, threshold, draws, level) for films, draws in both)
            interval = _of_difference(a, b, *own)
        rows.append(MetricDrift(name, a, b, b - a, None if name == "ece" else interval))
    return rows


def _own_interval(name: str, films: Films, threshold: float, drawn: Floats, level: float) -> Interval | None:
    """Of one split: over patients; where all resamples agree DeLong's or Wilson's, None for other metrics."""
    if name == "auroc":
        return auroc_interval(drawn, films.label, films.probability, level)
    if found := width_or_none(percentile_interval(drawn, level)):
        return found
    of = proportions(confusion(films.label, films.probability, threshold))
    return wilson(*of[name], level) if name in of else None


def _of_difference(before: float, after: float, own: Interval | None, other: Interval | None) -> Interval | None:
    """The interval of `after - before` from that of each; None where one is not known."""
    if own is None or other is None:
        return None
    down, up = math.hypot(after - other[0], own[1] - before), math.hypot(other[1] - after, before - own[0])
    return after - before - down, after - before + up


def score_drift(val: Films, test: Films) -> list[ScoreDrift]:
    """The test over all films, then within each class (a shift there is not a change of prevalence)."""
    return [
        _kolmogorov_smirnov("all", val.probability, test.probability),
        *(
            _kolmogorov_smirnov(name, val.probability[val.label == k], test.probability[test.label == k])
            for k, name in enumerate(("normal", "pneumonia"))
        ),
    ]


def oracle_gap(test: Films, threshold: float) -> OracleGap | None:
    """What a threshold chosen on test would have gained; None where test has one class only."""
    if not 0 < test.label.sum() < test.label.size:
        return None
    oracle = choose_threshold(test.label, test.probability, "accuracy")
    locked = float(np.mean((test.probability >= threshold) == test.label))
    return OracleGap(float(threshold), locked, oracle.threshold, oracle.accuracy, oracle.accuracy - locked)


def chance_gap(val: Films, patients: int, draws: int = 200, seed: int = 0) -> float | None:
    """The gap that 99 of 100 draws without drift stay below; None where validation has one class only.

    A draw takes patients of validation with replacement, twice: as many as there are, to lock a threshold, and
    `patients` of them as the test films in which one is chosen with hindsight.
    """
    if not 0 < val.label.sum() < val.label.size:
        return None
    names, unit = np.unique(val.patient, return_inverse=True)
    order = np.argsort(-val.probability, kind="stable")
    score, sign = val.probability[order], 2 * val.label[order] - 1
    ends = np.append(0, np.flatnonzero(np.diff(score, append=-1.0)) + 1)  # films that a threshold may call: whole ties
    distance = np.abs((np.append(1, score)[ends] + np.append(score, 0)[ends]) / 2 - 0.5)
    rng = np.random.default_rng(seed)

    def right(count: int) -> Floats:
        """Films right at each threshold, but for a constant, and how many there are at last."""
        weight = np.bincount(rng.integers(names.size, size=count), minlength=names.size)[unit[order]]
        return np.append(np.append(0, np.cumsum(weight * sign))[ends], weight.sum())

    gaps = []
    for _ in range(draws):
        *locks, _ = right(names.size)
        *judges, films = right(patients)
        best = np.flatnonzero(np.equal(locks, max(locks)))
        gaps.append((max(judges) - judges[best[distance[best].argmin()]]) / films)
    return float(np.quantile(gaps, 0.99))


def _kolmogorov_smirnov(films: str, val: Floats, test: Floats) -> ScoreDrift:
    if not val.size or not test.size:
        return ScoreDrift(films, val.size, test.size, None, None)
    found = ks_2samp(val, test)
    return ScoreDrift(films, val.size, test.size, float(found.statistic), float(found.pvalue))

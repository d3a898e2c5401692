"""How far test is from validation: every metric, the scores themselves, and what the locked threshold costs.

The oracle threshold is chosen on test, so its accuracy is no result: only the gap to the locked one says something.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import ks_2samp

from pneumonia.evaluation.bootstrap import Draws, percentile_interval
from pneumonia.evaluation.checks import Floats, Interval
from pneumonia.evaluation.films import Films
from pneumonia.evaluation.metrics import METRICS, point_metrics
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
    """Accuracy on test at the locked threshold and at the best one in hindsight; gap is oracle minus locked."""

    locked_threshold: float
    locked_accuracy: float
    oracle_threshold: float
    oracle_accuracy: float
    gap: float


def metric_drift(
    val: Films, test: Films, threshold: float, val_draws: Draws, test_draws: Draws, level: float = 0.95
) -> list[MetricDrift]:
    """Every metric, test minus val, with the interval of the difference of two independent bootstraps.

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
        n = min(drawn_val.size, drawn_test.size)
        rows.append(MetricDrift(name, a, b, b - a, percentile_interval(drawn_test[:n] - drawn_val[:n], level)))
    return rows


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


def _kolmogorov_smirnov(films: str, val: Floats, test: Floats) -> ScoreDrift:
    if not val.size or not test.size:
        return ScoreDrift(films, val.size, test.size, None, None)
    found = ks_2samp(val, test)
    return ScoreDrift(films, val.size, test.size, float(found.statistic), float(found.pvalue))

"""Several runs over the same films: who leads on validation, and is the difference on test more than chance?

Rank        by one metric on validation; test figures never choose.
Tests       every run against the leader, on test: paired DeLong for AUROC, paired patient-clustered bootstrap for the
            ranking metric. Each family of p-values is corrected by Holm 1979 (Scand J Statist 6:65).
Folds       runs of different folds have different validation films: then only films of one fold must agree. Runs that
            left test alone are tested on validation, and then only against a leader of their own fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pneumonia.evaluation.bootstrap import bootstrap_draws, percentile_interval
from pneumonia.evaluation.checks import Floats, Interval
from pneumonia.evaluation.films import Films, check_same_films
from pneumonia.evaluation.intervals import delong_paired
from pneumonia.evaluation.metrics import METRICS, point_metrics

LOWER_IS_BETTER = ("brier", "log_loss", "ece")


@dataclass(frozen=True, eq=False)
class Run:
    """One run at its locked threshold; runs of one group differ in seed or fold only; val None: not to be ranked.

    stressed: {corruption: probability [N]} of the validation films, where the threshold is chosen on them.
    """

    name: str
    val: Films | None
    test: Films
    threshold: float
    group: str = ""
    fold: int | None = None
    stressed: dict[str, Floats] | None = None


@dataclass(frozen=True)
class Against:
    """A run minus the leader on test; p-values two-sided, `holm` corrected over the runs compared; None: undefined."""

    auroc_difference: float | None
    delong_p: float | None
    delong_holm: float | None
    difference: float | None
    interval: Interval | None
    bootstrap_p: float | None
    bootstrap_holm: float | None


@dataclass(frozen=True)
class Entry:
    """One line of the leaderboard, rank from 1; `against` is None for the leader, and where the films are others."""

    rank: int
    run: Run
    val: dict[str, float | None] | None
    test: dict[str, float | None]
    against: Against | None


def check_comparable(runs: Sequence[Run]) -> None:
    """ValueError unless names differ and films agree: test in all runs, validation in all runs of a fold, and so what
    stands for test in runs without."""
    names = [run.name for run in runs]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"runs={names}: expected at least one run, with names that differ. List each folder once.")
    if not all(run.test is run.val for run in runs):
        check_same_films([(f"{run.name} (test)", run.test) for run in runs])
    for fold in {run.fold for run in runs}:
        named = [(f"{run.name} (val)", run.val) for run in runs if run.fold == fold and run.val is not None]
        if named:
            check_same_films(named)


def leaderboard(
    runs: Sequence[Run], metric: str = "auroc", resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> list[Entry]:
    """Runs by falling merit of `metric` on validation (undefined last, ties by name), each tested against the first if
    it has the same films."""
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r}: expected one of {', '.join(METRICS)}.")
    check_comparable(runs)
    val = {run.name: None if run.val is None else metrics_of(run.val, run.threshold) for run in runs}
    ranked = sorted(runs, key=lambda run: (_merit(val[run.name], metric), run.name))
    first = ranked[0]
    alike = [run for run in ranked if np.array_equal(run.test.path, first.test.path)]
    tested = dict(zip(alike[1:], _against_first(alike, metric, resamples, seed, level), strict=True))
    return [
        Entry(k + 1, run, val[run.name], metrics_of(run.test, run.threshold), tested.get(run))
        for k, run in enumerate(ranked)
    ]


def metrics_of(films: Films, threshold: float) -> dict[str, float | None]:
    """`point_metrics` of one split at a locked threshold."""
    return point_metrics(films.label, films.probability, threshold)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction, in the order given; None stays None and does not count as a test."""
    defined = [k for k, p in enumerate(p_values) if p is not None]
    corrected: list[float | None] = [None] * len(p_values)
    worst = 0.0
    for step, k in enumerate(sorted(defined, key=lambda k: p_values[k] or 0.0)):
        worst = max(worst, min(1.0, (len(defined) - step) * (p_values[k] or 0.0)))
        corrected[k] = worst
    return corrected


def _against_first(ranked: Sequence[Run], metric: str, resamples: int, seed: int, level: float) -> list[Against]:
    """Each run after the first, on test; all bootstraps share their resamples, so differences are paired."""
    first, *others = ranked
    if not others:
        return []
    label = first.test.label
    drawn = [_draws(run, metric, resamples, seed) for run in ranked]
    point = [metrics_of(run.test, run.threshold)[metric] for run in ranked]
    paired = [delong_paired(label, run.test.probability, first.test.probability) for run in others]
    changes = [draws - drawn[0] for draws in drawn[1:]]
    tails = [_bootstrap_p(change) for change in changes]
    delong_holm, bootstrap_holm = holm([pair.p_value for pair in paired]), holm(tails)
    return [
        Against(
            paired[k].difference, paired[k].p_value, delong_holm[k],
            _minus(point[k + 1], point[0]), percentile_interval(changes[k], level), tails[k], bootstrap_holm[k],
        )
        for k in range(len(others))
    ]  # fmt: skip


def _draws(run: Run, metric: str, resamples: int, seed: int) -> Floats:
    films = run.test
    drawn = bootstrap_draws(
        films.label, films.probability, films.patient, run.threshold, resamples, seed, metrics=(metric,)
    )
    return drawn.values[metric]


def _bootstrap_p(change: Floats) -> float | None:
    """Twice the smaller share of resamples on either side of 0, the data counted as one (Davison & Hinkley 1997)."""
    defined = change[np.isfinite(change)]
    if not defined.size:
        return None
    side = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (defined.size + 1))


def _merit(metrics: dict[str, float | None] | None, metric: str) -> float:
    """Sort key: the better the smaller, undefined last."""
    value = None if metrics is None else metrics[metric]
    if value is None:
        return np.inf
    return value if metric in LOWER_IS_BETTER else -value


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b

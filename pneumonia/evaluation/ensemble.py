"""Runs that belong together: their soft vote as one more run, and their spread over seeds and folds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pneumonia.evaluation.checks import Floats
from pneumonia.evaluation.comparison import Run, check_comparable, metrics_of
from pneumonia.evaluation.films import Films
from pneumonia.evaluation.operating_point import choose_pooled


@dataclass(frozen=True)
class Spread:
    """A metric over the runs of a group where it is defined; sd has n - 1 below and is None for one run."""

    group: str
    split: str
    n: int
    mean: float
    sd: float | None
    low: float
    high: float


def soft_vote(
    runs: Sequence[Run],
    name: str = "ensemble",
    rule: str = "accuracy",
    minimum: float | None = None,
    cost_ratio: float | None = None,
) -> Run:
    """The mean probability of the runs as one more run; its threshold is chosen on its own validation, as it is or, if
    every run has been, under stress.

    Over several folds there is none (each film was trained on by some member): val is None, the threshold the mean.
    """
    check_comparable(runs)
    test = _mean([run.test for run in runs])
    members = [run.val for run in runs if run.val is not None]
    if len(members) < len(runs) or len({run.fold for run in runs}) > 1:
        return Run(name, None, test, float(np.mean([run.threshold for run in runs])), group=name)
    val = _mean(members)
    stressed = _mean_stressed(runs)
    shown = list(stressed.values()) if stressed else [val.probability]
    chosen = choose_pooled(val.label, shown, rule, minimum, cost_ratio)
    return Run(name, val, test, chosen.threshold, group=name, stressed=stressed)


def spread(runs: Sequence[Run], metric: str = "auroc") -> list[Spread]:
    """Mean and spread of `metric` over seeds and folds, per group and split; groups in order of appearance."""
    rows = []
    for group in dict.fromkeys(run.group for run in runs):
        for split in ("val", "test"):
            films = [(getattr(run, split), run.threshold) for run in runs if run.group == group]
            found = [metrics_of(part, threshold)[metric] for part, threshold in films if part is not None]
            values = np.array([value for value in found if value is not None])
            if values.size:
                sd = float(values.std(ddof=1)) if values.size > 1 else None
                low, high = float(values.min()), float(values.max())
                rows.append(Spread(group, split, values.size, float(values.mean()), sd, low, high))
    return rows


def _mean(films: Sequence[Films]) -> Films:
    probability = np.mean([part.probability for part in films], axis=0)
    return Films(films[0].path, films[0].label, probability, films[0].patient)


def _mean_stressed(runs: Sequence[Run]) -> dict[str, Floats] | None:
    parts = [run.stressed for run in runs if run.stressed is not None]
    if len(parts) < len(runs):
        return None
    return {name: np.mean([part[name] for part in parts], axis=0) for name in parts[0]}

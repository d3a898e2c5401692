"""Choose the threshold on validation, once; it is then locked and applied to test.

Rules       accuracy     most films right
            youden       largest sensitivity + specificity - 1 (Youden 1950)
            sensitivity  largest specificity among thresholds with sensitivity >= minimum
            specificity  largest sensitivity among thresholds with specificity >= minimum
            cost         smallest cost_ratio * fn + fp; cost_ratio says how many false alarms a missed case is worth
Candidates  the middle between each two neighbouring scores (so that a small shift changes no call), below the lowest
            (everything positive) and, unless a score is 1, above the highest (everything negative); all in [0, 1].
            Where two scores are so close that float32 has no middle, the upper one. Applying probability >= threshold
            to the same films, in float64 or as float32 scores, gives the counts of the choice exactly.
Ties        1. under sensitivity and specificity: the better other rate, then the better named one; 2. the candidate
            closest to 0.5; 3. the lower one (fewer missed).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumonia.evaluation.checks import Floats, Ints, checked

Rule = Literal["accuracy", "youden", "sensitivity", "specificity", "cost"]


@dataclass(frozen=True)
class OperatingPoint:
    """A locked threshold, the rule that chose it, and what it did on the n films it was chosen on."""

    rule: Rule
    threshold: float
    minimum: float | None
    cost_ratio: float | None
    n: int
    tn: int
    fp: int
    fn: int
    tp: int

    @property
    def accuracy(self) -> float:
        return (self.tn + self.tp) / self.n


def choose_threshold(
    label: ArrayLike,
    probability: ArrayLike,
    rule: Rule,
    minimum: float | None = None,
    cost_ratio: float | None = None,
) -> OperatingPoint:
    """The best candidate under `rule`, ties as above.

    ValueError: one class only; a rule without its argument, or with one it does not take; a minimum out of reach.
    """
    _check_arguments(rule, minimum, cost_ratio)
    truth, score = checked(label, probability)
    if not 0 < truth.sum() < truth.size:
        raise ValueError(
            f"All {truth.size} films have label {truth[0]}: expected both classes to choose a threshold on. "
            "Choose it on a split with both, or set the threshold yourself."
        )
    threshold, fp, tp = _candidates(truth, score)
    positives, negatives = int(truth.sum()), int((1 - truth).sum())
    best = _allowed(rule, minimum, fp / negatives, tp / positives)
    for gain in _gains(rule, fp, tp, positives, negatives, cost_ratio):
        best = best[gain[best] >= gain[best].max() - 1e-12 * max(1.0, abs(gain[best].max()))]
    distance = np.abs(threshold[best] - 0.5)
    k = best[distance <= distance.min() + 1e-12].min()
    counts = {"tn": negatives - int(fp[k]), "fp": int(fp[k]), "fn": positives - int(tp[k]), "tp": int(tp[k])}
    return OperatingPoint(rule, float(threshold[k]), minimum, cost_ratio, truth.size, **counts)


def choose_pooled(
    label: ArrayLike, scores: Sequence[ArrayLike], rule: str, minimum: float | None, cost_ratio: float | None
) -> OperatingPoint:
    """The same on films [N] that were seen in several ways, as under corruptions: probability [N] for each way."""
    return choose_threshold(
        np.tile(np.asarray(label), len(scores)), np.concatenate([np.asarray(score) for score in scores]),
        rule, minimum, cost_ratio,  # type: ignore[arg-type]  # checked there
    )  # fmt: skip


def _candidates(label: Ints, score: Floats) -> tuple[Floats, Ints, Ints]:
    """Thresholds [K], rising, with the false and true positives of each."""
    unique, inverse = np.unique(score, return_inverse=True)
    middle = unique[:-1] + (unique[1:] - unique[:-1]) / 2
    single = middle.astype(np.float32)
    split = (middle > unique[:-1]) & (single > unique[:-1]) & (single <= unique[1:])
    between = np.where(split, middle, unique[1:])
    top = [(unique[-1] + 1) / 2] if np.float32((unique[-1] + 1) / 2) > unique[-1] else []
    threshold = np.concatenate([[unique[0] / 2], between, top])
    true = np.bincount(inverse, weights=label, minlength=unique.size)
    false = np.bincount(inverse, weights=1 - label, minlength=unique.size)
    fp, tp = (np.append(np.cumsum(count[::-1])[::-1], 0).astype(np.int64) for count in (false, true))
    return threshold, fp[: threshold.size], tp[: threshold.size]


def _gains(
    rule: Rule, fp: Ints, tp: Ints, positives: int, negatives: int, cost_ratio: float | None
) -> list[NDArray[Any]]:
    """What to make as large as possible, in turn, [K] each; whole numbers where that avoids false ties."""
    if rule == "accuracy":
        return [tp - fp]
    if rule == "youden":
        return [tp * negatives - fp * positives]
    if rule == "sensitivity":
        return [-fp, tp]
    if rule == "specificity":
        return [tp, -fp]
    return [(cost_ratio or 0.0) * (tp - positives) - fp]


def _allowed(rule: Rule, minimum: float | None, false_rate: Floats, true_rate: Floats) -> Ints:
    """Indices of the candidates that reach the minimum; all of them under a rule without one."""
    if minimum is None:
        return np.arange(true_rate.size)
    reached = true_rate if rule == "sensitivity" else 1 - false_rate
    allowed = np.flatnonzero(reached >= minimum - 1e-12)
    if not allowed.size:
        raise ValueError(
            f"operating_point.minimum={minimum}: no threshold in [0, 1] reaches this {rule}; the best reachable is "
            f"{reached.max():.4f}. Set operating_point.minimum to at most that."
        )
    return allowed


def _check_arguments(rule: Rule, minimum: float | None, cost_ratio: float | None) -> None:
    if rule not in get_args(Rule):
        raise ValueError(f"operating_point.rule={rule!r}: expected one of {', '.join(get_args(Rule))}.")
    if (minimum is not None) != (rule in ("sensitivity", "specificity")):
        raise ValueError(
            f"operating_point.minimum={minimum} with rule={rule}: the rules sensitivity and specificity need it "
            "(operating_point.minimum=0.95), the others take none."
        )
    if minimum is not None and not 0 < minimum <= 1:
        raise ValueError(f"operating_point.minimum={minimum}: expected a share in (0, 1], such as 0.95.")
    if (cost_ratio is not None) != (rule == "cost"):
        raise ValueError(
            f"operating_point.cost_ratio={cost_ratio} with rule={rule}: the rule cost needs it "
            "(operating_point.cost_ratio=5: one missed case weighs as five false alarms), the others take none."
        )
    if cost_ratio is not None and not 0 < cost_ratio < np.inf:
        raise ValueError(f"operating_point.cost_ratio={cost_ratio}: expected a positive number, such as 5.")

"""When to say "I don't know": prediction sets with a promised coverage, and risk against coverage.

Sets   split-conformal, class-conditional (Mondrian): Vovk, Gammerman & Shafer 2005, chapter 4; Angelopoulos & Bates
       2021, arXiv:2107.07511, section 4.2. If val and test were exchangeable within a class, the set of a film of class
       y would hold y with probability >= 1 - alpha; drift breaks the promise, and the measured coverage shows it.
Curve  selective prediction, Geifman & El-Yaniv 2017, arXiv:1705.08500; area (AURC) as in arXiv:1805.08206.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumonia.evaluation.checks import Floats, Interval, checked, checked_probability
from pneumonia.evaluation.intervals import wilson
from pneumonia.evaluation.metrics import ratio


@dataclass(frozen=True)
class Conformal:
    """Class y is in the set iff 1 - probability of y <= limit[y]; infinite where too few films were there to tell."""

    alpha: float
    limit: tuple[float, float]

    def sets(self, probability: ArrayLike) -> NDArray[np.bool_]:
        """[N] -> [N, 2]: is class 0, is class 1 in the set of the film."""
        score = checked_probability(probability, np.asarray(probability).size)
        return np.stack([score <= self.limit[0], 1 - score <= self.limit[1]], axis=1)


@dataclass(frozen=True)
class Coverage:
    """How sets did on films of known class: counts of the four sets, and per class the share that holds the truth."""

    counts: dict[str, int]
    covered: tuple[float | None, float | None]
    interval: tuple[Interval | None, Interval | None]


@dataclass(frozen=True)
class RiskCoverage:
    """coverage [N] rising to 1: share of films kept, surest first; risk [N]: share of errors among them; aurc: mean."""

    coverage: Floats
    risk: Floats
    aurc: float


def fit_conformal(label: ArrayLike, probability: ArrayLike, alpha: float = 0.1) -> Conformal:
    """Limits from validation: per class the ceil((n + 1)(1 - alpha))-th smallest 1 - probability of the true class."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: expected a share in (0, 1). Set alpha=0.1 for sets that hold 9 in 10.")
    truth, score = checked(label, probability)
    return Conformal(alpha, (_limit(score[truth == 0], alpha), _limit(1 - score[truth == 1], alpha)))


def coverage(conformal: Conformal, label: ArrayLike, probability: ArrayLike, level: float = 0.95) -> Coverage:
    """Sets of the test films against their classes; None for a class without films, Wilson intervals."""
    truth, score = checked(label, probability)
    sets = conformal.sets(score)
    normal, pneumonia = sets[:, 0], sets[:, 1]
    counts = {
        "empty": int((~normal & ~pneumonia).sum()),
        "0": int((normal & ~pneumonia).sum()),
        "1": int((~normal & pneumonia).sum()),
        "both": int((normal & pneumonia).sum()),
    }
    hits, totals = [int(sets[truth == y, y].sum()) for y in (0, 1)], [int((truth == y).sum()) for y in (0, 1)]
    return Coverage(
        counts,
        (ratio(hits[0], totals[0]), ratio(hits[1], totals[1])),
        (wilson(hits[0], totals[0], level), wilson(hits[1], totals[1], level)),
    )


def risk_coverage(label: ArrayLike, probability: ArrayLike, threshold: float) -> RiskCoverage:
    """Risk of the calls at `threshold` when only the surest films are called.

    Sureness is the distance from the threshold over the room on that side, so both calls can be fully sure; at 0.5 it
    orders films as the largest class probability does. Equally sure films enter together, each with their mean error.
    """
    truth, score = checked(label, probability)
    called = score >= threshold
    room = np.where(called, 1 - threshold, threshold)
    sureness = np.abs(score - threshold) / np.maximum(room, np.finfo(np.float64).tiny)
    _, block = np.unique(-sureness, return_inverse=True)
    mean_error = np.bincount(block, weights=called != truth) / np.bincount(block)
    kept = np.arange(1, truth.size + 1)
    risk = np.cumsum(mean_error[np.sort(block)]) / kept
    return RiskCoverage(kept / truth.size, risk, float(risk.mean()))


def _limit(nonconformity: Floats, alpha: float) -> float:
    """The conformal quantile; infinite (the class is always in the set) where n < 1 / alpha - 1."""
    rank = int(np.ceil((nonconformity.size + 1) * (1 - alpha) - 1e-9))  # 150 * 0.82 is 123.00..01, not rank 124
    return float(np.sort(nonconformity)[rank - 1]) if rank <= nonconformity.size else float("inf")

"""What one set of predictions is worth: counts at a threshold, rates, ranking and calibration.

Layout     label int [N] in {0, 1}; probability float [N] in [0, 1], of class 1 (pneumonia).
Threshold  a film is called positive iff probability >= threshold.
Undefined  a quantity with no definition (one class only, zero denominator) is None, never 0 or NaN.
Errors     every function raises ValueError on an empty split, NaN, values out of range or unequal lengths.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, matthews_corrcoef, roc_auc_score

from pneumonia.evaluation.checks import Floats, Ints, checked

ECE_BINS = 15  # Guo et al. 2017, arXiv:1706.04599, table 1
ECE_EDGES = np.linspace(0, 1, ECE_BINS + 1)
DRAWS = 200  # of labels, for the ECE of chance

METRICS = (
    "accuracy", "balanced_accuracy", "auroc", "average_precision", "sensitivity", "specificity",
    "ppv", "npv", "f1", "mcc", "brier", "log_loss", "ece",
)  # fmt: skip
IN_SUMMARY = ("accuracy", "auroc", "average_precision", "sensitivity", "specificity", "f1")


class ReliabilityBin(NamedTuple):
    """One bin (low, high] of predicted probability; the means are None where the bin is empty."""

    low: float
    high: float
    films: int
    mean_probability: float | None
    positive_rate: float | None


def ratio(numerator: float, denominator: float) -> float | None:
    """Numerator over denominator, None where the denominator is zero."""
    return float(numerator / denominator) if denominator else None


def confusion(label: ArrayLike, probability: ArrayLike, threshold: float) -> dict[str, int]:
    """Counts {"tn", "fp", "fn", "tp"}; positive iff probability >= threshold."""
    truth, score = checked(label, probability)
    called = score >= float(threshold)
    return {
        "tn": int(np.sum(~called & (truth == 0))),
        "fp": int(np.sum(called & (truth == 0))),
        "fn": int(np.sum(~called & (truth == 1))),
        "tp": int(np.sum(called & (truth == 1))),
    }


def proportions(counts: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """{metric: (films, of how many)} of the metrics that are a share of films, from the counts of `confusion`."""
    tn, fp, fn, tp = (counts[name] for name in ("tn", "fp", "fn", "tp"))
    return {
        "accuracy": (tp + tn, tn + fp + fn + tp), "sensitivity": (tp, tp + fn), "specificity": (tn, tn + fp),
        "ppv": (tp, tp + fp), "npv": (tn, tn + fn),
    }  # fmt: skip


def confident_mistakes(label: ArrayLike, probability: ArrayLike, threshold: float) -> Ints:
    """Which films are called wrongly, the one with the highest probability of the other class first; ties in order."""
    truth, score = checked(label, probability)
    wrong = np.flatnonzero((score >= float(threshold)) != (truth == 1))
    return wrong[np.argsort(np.where(truth == 1, score, 1 - score)[wrong], kind="stable")]


def rates(counts: Mapping[str, int]) -> dict[str, float | None]:
    """The metrics that follow from the counts of `confusion` alone."""
    found = {name: ratio(*films) for name, films in proportions(counts).items()}
    sensitivity, specificity = found["sensitivity"], found["specificity"]
    both = sensitivity is not None and specificity is not None
    return found | {
        "balanced_accuracy": (sensitivity + specificity) / 2 if both else None,  # type: ignore[operator]
        "f1": ratio(2 * counts["tp"], 2 * counts["tp"] + counts["fp"] + counts["fn"]),
    }


def point_metrics(label: ArrayLike, probability: ArrayLike, threshold: float) -> dict[str, float | None]:
    """Every metric of METRICS, in that order; log loss in nats, the others without unit.

    AUROC, average precision and balanced accuracy need both classes; MCC also needs both calls.
    """
    truth, score = checked(label, probability)
    counts = confusion(truth, score, threshold)
    called = (score >= float(threshold)).astype(np.int64)
    two = 0 < truth.sum() < truth.size
    both_calls = 0 < called.sum() < called.size
    found: dict[str, float | None] = {
        **rates(counts),
        "auroc": float(roc_auc_score(truth, score)) if two else None,
        "average_precision": float(average_precision_score(truth, score)) if two else None,
        "mcc": float(matthews_corrcoef(truth, called)) if two and both_calls else None,
        "brier": float(brier_score_loss(truth, score, labels=[0, 1])),
        "log_loss": float(log_loss(truth, score, labels=[0, 1])),
        "ece": ece(truth, score),
    }
    return {name: found[name] for name in METRICS}


def summary(label: ArrayLike, probability: ArrayLike, threshold: float) -> dict[str, float | int | None]:
    """What train writes per split to metrics.json: n, positives, six metrics, the four counts, the threshold."""
    truth, score = checked(label, probability)
    found = point_metrics(truth, score, threshold)
    return {
        "n": int(truth.size),
        "positives": int(truth.sum()),
        **{name: found[name] for name in IN_SUMMARY},
        **confusion(truth, score, threshold),
        "threshold": float(threshold),
    }


def bin_index(probability: Floats) -> Ints:
    """Number of the equal-width bin ((m-1)/M, m/M] that holds each probability [N]; 0 falls in the first."""
    return np.searchsorted(ECE_EDGES[1:-1], probability, side="left").astype(np.int64)


def reliability_bins(label: ArrayLike, probability: ArrayLike) -> list[ReliabilityBin]:
    """The reliability diagram: per bin of the predicted probability of class 1, its mean and the share of positives."""
    truth, score = checked(label, probability)
    index = bin_index(score)
    count, positives, total = (
        np.bincount(index, weights=weights, minlength=ECE_BINS) for weights in (np.ones(truth.size), truth, score)
    )
    edges = ECE_EDGES.tolist()
    return [
        ReliabilityBin(edges[m], edges[m + 1], int(count[m]), ratio(total[m], count[m]), ratio(positives[m], count[m]))
        for m in range(ECE_BINS)
    ]


def ece(label: ArrayLike, probability: ArrayLike) -> float:
    """Expected calibration error: mean of |share of positives - mean probability| over bins, weighted by films.

    Guo et al. 2017, equation 3, with the probability of class 1 in place of the winner's (as torchmetrics' binary one):
    for two classes it also sees errors that cancel between "surely normal" and "surely pneumonia".
    """
    truth, score = checked(label, probability)
    gap = np.bincount(bin_index(score), weights=truth - score, minlength=ECE_BINS)
    return float(np.abs(gap).sum() / truth.size)


def chance_ece(probability: ArrayLike, seed: int = 0) -> Floats:
    """ECE [DRAWS] where every probability [N] is true: labels are drawn by it. So much is chance on so few films."""
    score = np.asarray(probability, np.float64)
    index, rng = bin_index(score), np.random.default_rng(seed)
    gaps = [np.bincount(index, weights=(rng.random(score.size) < score) - score) for _ in range(DRAWS)]
    return np.array([np.abs(gap).sum() for gap in gaps]) / score.size


def at_prevalence(
    sensitivity: float | None, specificity: float | None, prevalence: float
) -> tuple[float | None, float | None]:
    """(PPV, NPV) where a share `prevalence` of the patients is ill, by Bayes' theorem; ValueError outside [0, 1]."""
    if not 0 <= prevalence <= 1:
        raise ValueError(f"prevalence={prevalence}: expected a share in [0, 1]. Set prevalence=0.1 for one in ten.")
    if sensitivity is None or specificity is None:
        return None, None
    ill, well = prevalence, 1 - prevalence
    ppv = ratio(sensitivity * ill, sensitivity * ill + (1 - specificity) * well)
    npv = ratio(specificity * well, specificity * well + (1 - sensitivity) * ill)
    return ppv, npv

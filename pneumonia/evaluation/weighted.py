"""Every metric under many film weightings at once: the kernel of the bootstrap.

Layout  weights float [B, U]: row b says how often each of U units (patients) was drawn; all films of a unit share its
        weight. With unit = arange(N) the weights are per film, and the result equals sklearn's with sample_weight.
How     films are sorted once; a weighting then costs one cumulative sum over the negatives, one over the positives and
        one matrix product for all that is a plain sum (counts, Brier, log loss, calibration gaps). O(N) per weighting.
Undefined values are NaN here, in arrays; they become None in `bootstrap`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumonia.evaluation.checks import Floats, Ints
from pneumonia.evaluation.metrics import ECE_BINS, METRICS, bin_index


class WeightedMetrics:
    """Call with weights [B, U] for {metric: [B]}, the metrics of `point_metrics`; label, probability, unit are [N].

    `wanted` names the metrics to compute: the ranking ones cost ten times the others.
    """

    def __init__(
        self, label: Ints, probability: Floats, threshold: float, unit: Ints, wanted: tuple[str, ...] = METRICS
    ) -> None:
        self.wanted = wanted
        self.sums = _sum_matrix(label, probability, threshold, unit)
        order = np.argsort(probability, kind="stable")
        negative, positive = order[label[order] == 0], order[label[order] == 1]
        low_score, high_score = probability[negative], probability[positive]
        self.negative_unit, self.positive_unit = unit[negative], unit[positive]
        self.negatives_below = np.searchsorted(low_score, high_score, side="left")
        self.negatives_upto = np.searchsorted(low_score, high_score, side="right")
        self.positives_below = np.searchsorted(high_score, high_score, side="left")

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = _from_sums(weights @ self.sums)
            if {"auroc", "average_precision"} & set(self.wanted):
                found["auroc"], found["average_precision"] = self._ranking(weights)
        return {name: found[name] for name in self.wanted}

    def _ranking(self, weights: Floats) -> tuple[Floats, Floats]:
        """AUROC (ties count half) and average precision (all tied films enter together, as sklearn does), each [B]."""
        of_positive = np.take(weights, self.positive_unit, axis=1)
        negatives = _running_total(np.take(weights, self.negative_unit, axis=1))
        positives = _running_total(of_positive)
        below = np.take(negatives, self.negatives_below, axis=1)
        total_negative, total_positive = negatives[:, -1], positives[:, -1]

        won = np.einsum("bi,bi->b", of_positive, below)
        tied = np.flatnonzero(self.negatives_upto > self.negatives_below)
        at_or_below = np.take(negatives, self.negatives_upto[tied], axis=1)
        drawn = np.einsum("bi,bi->b", of_positive[:, tied], at_or_below - below[:, tied])
        auroc = (won + drawn / 2) / (total_negative * total_positive)

        true_calls = total_positive[:, None] - np.take(positives, self.positives_below, axis=1)
        calls = true_calls + (total_negative[:, None] - below)
        np.divide(true_calls, calls, out=true_calls, where=calls > 0)  # no calls: the film's own weight is zero
        average_precision = np.einsum("bi,bi->b", of_positive, true_calls) / total_positive
        return auroc, np.where(total_negative > 0, average_precision, np.nan)


def _running_total(values: Floats) -> Floats:
    """[B, N] -> [B, N + 1]: sum of the first 0, 1, .. N columns."""
    total = np.empty((values.shape[0], values.shape[1] + 1))
    total[:, 0] = 0
    np.cumsum(values, axis=1, out=total[:, 1:])
    return total


def _sum_matrix(label: Ints, probability: Floats, threshold: float, unit: Ints) -> Floats:
    """[U, 6 + ECE_BINS]: what a unit adds to tn, fp, fn, tp, squared error, log loss, and the gap of each bin."""
    called = probability >= threshold
    clipped = np.clip(probability, np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)  # as sklearn's log_loss
    columns: list[NDArray[Any]] = [
        ~called & (label == 0),
        called & (label == 0),
        ~called & (label == 1),
        called & (label == 1),
        (probability - label) ** 2,
        -np.log(np.where(label == 1, clipped, 1 - clipped)),
    ]
    index = bin_index(probability)
    columns += [np.where(index == m, label - probability, 0.0) for m in range(ECE_BINS)]
    return np.stack([np.bincount(unit, weights=column) for column in columns], axis=1)


def _from_sums(sums: Floats) -> dict[str, Floats]:
    """Sums [B, 6 + ECE_BINS] -> every metric but the ranking ones, [B] each."""
    tn, fp, fn, tp, squared, log_loss = sums[:, :6].T
    n = tn + fp + fn + tp
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    return {
        "accuracy": (tn + tp) / n,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": tp / (tp + fp),
        "npv": tn / (tn + fn),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "mcc": (tp * tn - fp * fn) / np.sqrt(tp + fp) / np.sqrt(tp + fn) / np.sqrt(tn + fp) / np.sqrt(tn + fn),
        "brier": squared / n,
        "log_loss": log_loss / n,
        "ece": np.abs(sums[:, 6:]).sum(axis=1) / n,
    }

"""Confidence intervals: Wilson for proportions, DeLong for AUROC; the clustered bootstrap is in `bootstrap`.

DeLong     DeLong, DeLong & Clarke-Pearson 1988, doi:10.2307/2531595, by the midranks of Sun & Xu 2014,
           doi:10.1109/LSP.2014.2337313: O(N log N).
Films      Wilson and DeLong both take films as independent; where films of a child are alike they are too narrow. Share
           of 95 % intervals that hold a true AUROC of 0.90 (300 films, 200 children, 1,000 draws, 2,000 resamples; rho
           is the correlation of two films of one child; tests/evaluation/test_coverage.py):

           rho         0     0.2   0.5   0.9
           DeLong      .960  .940  .904  .869
           clustered   .949  .949  .935  .932
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import binomtest, norm, rankdata

from pneumonia.evaluation.bootstrap import percentile_interval, width_or_none
from pneumonia.evaluation.checks import Floats, Interval, Ints, checked_label, checked_score


class Delong(NamedTuple):
    """AUROC of one score; None where undefined (one class; variance and interval also with one film in a class)."""

    auroc: float | None
    variance: float | None
    interval: Interval | None


class Paired(NamedTuple):
    """AUROC of a minus AUROC of b, with a two-sided p-value; None where undefined."""

    difference: float | None
    p_value: float | None


def wilson(successes: int, n: int, level: float = 0.95) -> Interval | None:
    """Wilson's score interval for a proportion (Wilson 1927), by scipy; None where n is 0."""
    if n == 0:
        return None
    interval = binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def delong(label: ArrayLike, score: ArrayLike, level: float = 0.95) -> Delong:
    """AUROC, its variance, and its interval; any finite score [N], higher meaning class 1.

    The interval is built on the logit scale and mapped back (Pepe 2003, chapter 5): it stays inside (0, 1) and is
    skewed where AUROC is near 1; on the plain scale it would have to be cut off at 1. An AUROC of exactly 0 or 1 has
    variance 0 and no logit: there the interval is Wilson's on k = min(positives, negatives) disjoint, so independent,
    pairs, all ranked the same way: (k / (k + 3.84), 1) at 95 %. A constant score gives (0.5, 0.5).
    """
    truth = checked_label(label)
    positive, negative = _components(truth, checked_score("score", score, truth.size))
    pairs = min(positive.size, negative.size)
    if pairs == 0:
        return Delong(None, None, None)
    auroc = float(positive.mean())
    if pairs == 1:
        return Delong(auroc, None, None)
    variance = float(positive.var(ddof=1) / positive.size + negative.var(ddof=1) / negative.size)
    if auroc in (0.0, 1.0):
        return Delong(auroc, variance, wilson(round(auroc * pairs), pairs, level))
    half = norm.ppf((1 + level) / 2) * np.sqrt(variance) / (auroc * (1 - auroc))
    low, high = expit(logit(auroc) + np.array([-half, half]))
    return Delong(auroc, variance, (float(low), float(high)))


def auroc_interval(drawn: Floats, label: ArrayLike, score: ArrayLike, level: float = 0.95) -> Interval | None:
    """Of an AUROC with resamples `drawn` [B]: over patients; DeLong's where all agree, as of a perfect ranking."""
    return width_or_none(percentile_interval(drawn, level)) or delong(label, score, level).interval


def delong_paired(label: ArrayLike, score_a: ArrayLike, score_b: ArrayLike) -> Paired:
    """Are two AUROCs over the same films different? p is 1 where both rank every film alike.

    p is None where the difference has no variance but is not zero (one score perfect, the other perfectly wrong), or a
    class has one film.
    """
    truth = checked_label(label)
    a = _components(truth, checked_score("score_a", score_a, truth.size))
    b = _components(truth, checked_score("score_b", score_b, truth.size))
    if min(a[0].size, a[1].size) == 0:
        return Paired(None, None)
    difference = float(a[0].mean() - b[0].mean())
    if min(a[0].size, a[1].size) == 1:
        return Paired(difference, None)
    variance = sum((x - y).var(ddof=1) / x.size for x, y in zip(a, b, strict=True))
    if variance == 0:
        return Paired(difference, 1.0 if difference == 0 else None)
    return Paired(difference, float(2 * norm.sf(abs(difference) / np.sqrt(variance))))


def _components(label: Ints, score: Floats) -> tuple[Floats, Floats]:
    """Structural components: for each positive the share of negatives it beats, for each negative the reverse.

    [positives] and [negatives]; ties count half. Midrank among all minus midrank among one's own (Sun & Xu 2014).
    """
    positive, negative = score[label == 1], score[label == 0]
    m, n = positive.size, negative.size
    if m == 0 or n == 0:
        return positive, negative
    overall = rankdata(score)
    beaten = (overall[label == 1] - rankdata(positive)) / n
    beats = 1 - (overall[label == 0] - rankdata(negative)) / m
    return beaten, beats

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from pneumonia.evaluation.intervals import delong, delong_paired, wilson


def direct_components(label, score):
    """The structural components of DeLong et al. 1988, pair by pair."""
    positive, negative = score[label == 1], score[label == 0]
    won = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return won.mean(axis=1), won.mean(axis=0)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_published_examples(successes, n, low, high):
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_no_films_is_undefined():
    assert wilson(0, 0) is None


@pytest.mark.parametrize("decimals", [12, 1])
def test_variance_equals_the_direct_sum(draw, decimals):
    label, score, _ = draw(200, decimals=decimals)
    v10, v01 = direct_components(label, score)
    found = delong(label, score)
    assert found.auroc == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    variance = v10.var(ddof=1) / v10.size + v01.var(ddof=1) / v01.size
    assert found.variance == pytest.approx(variance, abs=1e-12)
    half = norm.ppf(0.975) * np.sqrt(variance) / (found.auroc * (1 - found.auroc))
    assert found.interval == pytest.approx(expit(logit(found.auroc) + np.array([-half, half])), abs=1e-9)


@pytest.mark.parametrize("decimals", [12, 1])
def test_paired_equals_the_direct_covariance(draw, decimals):
    label, a, _ = draw(200, decimals=decimals)
    b = np.round(0.7 * a + 0.3 * draw(200, seed=1)[1], decimals)
    (a10, a01), (b10, b01) = direct_components(label, a), direct_components(label, b)
    covariance = np.cov(a10, b10) / a10.size + np.cov(a01, b01) / a01.size
    z = (a10.mean() - b10.mean()) / np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = delong_paired(label, a, b)
    assert found.difference == pytest.approx(roc_auc_score(label, a) - roc_auc_score(label, b), abs=1e-12)
    assert found.p_value == pytest.approx(2 * norm.sf(abs(z)), abs=1e-9)


def test_only_the_ranking_matters(draw):
    label, score, _ = draw(100)
    assert delong(label, 3 * logit(score) - 7)[:2] == pytest.approx(delong(label, score)[:2], abs=1e-12)
    assert delong_paired(label, score, score**2) == (0.0, 1.0)


def test_a_perfect_score_is_not_certain():
    label = np.repeat([0, 1], [10, 30])
    found = delong(label, label * 0.9)
    assert (found.auroc, found.variance) == (1.0, 0.0)
    assert found.interval == wilson(10, 10)
    assert found.interval[0] < 0.75
    assert delong(label, -label * 0.9).interval == wilson(0, 10)


def test_undefined_is_none():
    assert delong([1, 1], [0.1, 0.2]) == (None, None, None)
    assert delong([0, 1, 1], [0.15, 0.1, 0.2]) == (0.5, None, None)
    assert delong_paired([1, 1], [0.1, 0.2], [0.1, 0.2]) == (None, None)
    assert delong_paired([0, 1, 1], [0.15, 0.1, 0.2], [0.1, 0.2, 0.3]) == (-0.5, None)
    assert delong_paired([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]) == (1.0, None)
    assert delong([0, 0, 1, 1], [0.5] * 4) == (0.5, 0.0, (0.5, 0.5))

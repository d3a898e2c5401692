import numpy as np
import pytest
from scipy.special import expit

from pneumonia.evaluation.conformal import Conformal, coverage, fit_conformal, risk_coverage
from pneumonia.evaluation.intervals import wilson


def simulate(rng, n):
    label = (rng.random(n) < 0.7).astype(int)
    return label, expit(2 * label - 1 + rng.normal(0, 1.5, n))


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_each_class_is_covered_as_promised(alpha):
    """Over calibration sets coverage is between 1 - alpha and 1 - alpha + 1 / (n + 1), within each class."""
    rng = np.random.default_rng(0)
    found = np.array(
        [coverage(fit_conformal(*simulate(rng, 200), alpha), *simulate(rng, 500)).covered for _ in range(300)]
    )
    error = found.std(axis=0) / np.sqrt(300)
    assert (found.mean(axis=0) >= 1 - alpha - 3 * error).all()
    assert (found.mean(axis=0) <= 1 - alpha + 1 / 50 + 3 * error).all()


def test_the_limit_is_the_next_larger_rank():
    """n = 19, alpha = 0.1: the 18th smallest of 19, (19 + 1) * 0.9 = 18; n = 19, alpha = 0.05: the 19th."""
    label, probability = np.repeat([0, 1], 19), np.tile(np.arange(1, 20) / 20, 2)
    assert fit_conformal(label, probability, 0.1).limit == pytest.approx((18 / 20, 18 / 20))
    assert fit_conformal(label, probability, 0.05).limit == pytest.approx((19 / 20, 19 / 20))
    assert fit_conformal(label, probability, 0.04).limit == (np.inf, np.inf)
    rounded = fit_conformal(np.zeros(149, int), np.arange(1, 150) / 150, 0.18)  # 150 * 0.82 = 123.00..01 in floats
    assert rounded.limit[0] == 123 / 150


def test_a_class_never_seen_is_in_every_set():
    fitted = fit_conformal([1] * 30, np.linspace(0.5, 1, 30), 0.1)
    assert fitted.sets([0.0, 0.5, 1.0])[:, 0].all()


def test_the_four_sets_are_counted():
    found = coverage(Conformal(0.1, (0.4, 0.4)), [0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9])
    assert found.counts == {"empty": 2, "0": 1, "1": 1, "both": 0}
    assert found.covered == (0.5, 0.5)
    assert found.interval == (wilson(1, 2), wilson(1, 2))
    wide = coverage(Conformal(0.1, (0.6, 0.6)), [1, 1], [0.5, 0.1])
    assert wide.counts == {"empty": 0, "0": 1, "1": 0, "both": 1}
    assert (wide.covered, wide.interval[0]) == ((None, 0.5), None)


def test_a_level_in_percent_is_refused():
    with pytest.raises(ValueError, match="alpha=10: expected a share"):
        fit_conformal([0, 1], [0.1, 0.9], 10)


def test_risk_coverage_by_hand():
    """Surest first: 0.95 right, 0.1 right, 0.8 wrong, 0.45 wrong."""
    found = risk_coverage([1, 0, 0, 1], [0.95, 0.1, 0.8, 0.45], 0.5)
    np.testing.assert_allclose(found.coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found.risk, [0, 0, 1 / 3, 1 / 2])
    assert found.aurc == pytest.approx((1 / 3 + 1 / 2) / 4)


def test_equal_sureness_is_the_mean_over_all_orders():
    found = risk_coverage([1, 0, 1, 0], [0.5, 0.5, 0.5, 0.5], 0.5)
    np.testing.assert_allclose(found.risk, 0.5)
    label, probability = [1, 0, 1, 0, 0], [0.9, 0.9, 0.7, 0.7, 0.2]
    flipped = risk_coverage(label[::-1], probability[::-1], 0.5)
    np.testing.assert_allclose(risk_coverage(label, probability, 0.5).risk, flipped.risk)


def test_full_coverage_is_the_error_rate_and_knowing_helps(draw):
    label, probability, _ = draw(2000)
    for threshold in (0.5, 0.2, 0.0, 1.0):
        found = risk_coverage(label, probability, threshold)
        assert found.risk[-1] == pytest.approx(np.mean((probability >= threshold) != label))
        assert np.isfinite(found.risk).all()
    found = risk_coverage(label, probability, 0.5)
    assert found.aurc < 0.7 * found.risk[-1]

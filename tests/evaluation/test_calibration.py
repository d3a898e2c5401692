import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from pneumonia.evaluation.calibration import calibrate, fit_platt, fit_temperature
from pneumonia.evaluation.metrics import ece, point_metrics


@pytest.mark.parametrize("planted", [0.4, 1.0, 3.0])
def test_a_planted_temperature_is_recovered(planted):
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, 40_000)
    label = (rng.random(40_000) < expit(honest)).astype(int)
    assert fit_temperature(label, honest * planted) == pytest.approx(planted, rel=0.03)


def test_the_fit_is_logistic_regression_without_intercept(draw):
    """1 / T is the only coefficient; an independent solver finds the same one."""
    label, _, _ = draw(500)
    logit = 4 * np.random.default_rng(1).normal(label - 0.5, 1)
    solver = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(logit[:, None], label)
    assert fit_temperature(label, logit) == pytest.approx(1 / solver.coef_[0, 0], rel=1e-5)


def test_scaling_calibrates_and_keeps_the_ranking():
    rng = np.random.default_rng(2)
    honest = rng.normal(0, 1.5, 5000)
    label = (rng.random(5000) < expit(honest)).astype(int)
    logit = 4 * honest
    after = calibrate(logit, fit_temperature(label, logit))
    assert ece(label, after) < 0.03 < 0.1 < ece(label, expit(logit))
    before = point_metrics(label, expit(honest), 0.5)
    assert point_metrics(label, after, 0.5)["auroc"] == pytest.approx(before["auroc"], abs=1e-9)


def test_a_planted_slope_and_level_are_recovered_where_a_temperature_alone_stays_off():
    rng = np.random.default_rng(3)
    honest = rng.normal(0, 2, 40_000)
    label = (rng.random(40_000) < expit(honest)).astype(int)
    logit = (honest + 1.5) * 0.5
    temperature, bias = fit_platt(label, logit)
    assert temperature == pytest.approx(0.5, rel=0.03) and bias == pytest.approx(-1.5, abs=0.05)
    alone = calibrate(logit, fit_temperature(label, logit))
    assert ece(label, calibrate(logit, temperature, bias)) < 0.01 < 0.05 < ece(label, alone)


@pytest.mark.parametrize("bias", [-2.0, 0.0, 1.2])
def test_a_planted_temperature_is_recovered_beside_a_known_bias(bias):
    rng = np.random.default_rng(4)
    honest = rng.normal(0, 2, 40_000)
    label = (rng.random(40_000) < expit(honest + bias)).astype(int)
    assert fit_temperature(label, honest * 0.5, bias) == pytest.approx(0.5, rel=0.03)
    assert fit_temperature(label, -honest, bias) is None
    same_mean = honest - honest.mean() + 0.1 * (label - label.mean())  # hardly any slope: what is left is the bias
    assert fit_temperature(label, same_mean - 5 * label, bias) is None


def test_hardly_any_slope_is_no_fit():
    rng = np.random.default_rng(0)
    label = (np.arange(4000) % 2).astype(int)
    assert fit_platt(label, 100 * rng.normal(0, 1, 4000) + label) is None


def test_extreme_logits_do_not_overflow():
    with np.errstate(all="raise", under="ignore"):
        assert calibrate([-1e6, 0.0, 1e6], 0.01).tolist() == [0.0, 0.5, 1.0]
        assert fit_temperature([0, 1, 1], [1e6, 1e6, 1e6]) == pytest.approx(100, rel=1e-3)  # the bound


@pytest.mark.parametrize(
    ("label", "logit"),
    [([1, 1], [0.3, -0.2]), ([0, 1], [-1.0, 2.0]), ([0, 1, 1], [3.0, -1.0, 0.5])],
    ids=["one class", "separated", "wrong way"],
)
def test_no_best_temperature_is_none(label, logit):
    assert fit_temperature(label, logit) is None
    assert fit_platt(label, logit) is None


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="temperature=0: expected a positive"):
        calibrate([0.1], 0)
    with pytest.raises(ValueError, match="logit holds 1 value"):
        fit_temperature([0, 1], [0.1, np.nan])

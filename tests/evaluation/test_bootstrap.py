import time
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sk

from pneumonia.evaluation import bootstrap
from pneumonia.evaluation.bootstrap import (
    GRID,
    bootstrap_draws,
    curve_bands,
    patient_weights,
    unbiased_interval,
)
from pneumonia.evaluation.metrics import METRICS, point_metrics
from pneumonia.evaluation.weighted import WeightedMetrics


def sklearn_weighted(label, probability, threshold, weight):
    called = (probability >= threshold).astype(int)
    by = {"sample_weight": weight}
    return {
        "accuracy": sk.accuracy_score(label, called, **by),
        "balanced_accuracy": sk.balanced_accuracy_score(label, called, **by),
        "auroc": sk.roc_auc_score(label, probability, **by),
        "average_precision": sk.average_precision_score(label, probability, **by),
        "sensitivity": sk.recall_score(label, called, **by),
        "specificity": sk.recall_score(label, called, pos_label=0, **by),
        "ppv": sk.precision_score(label, called, **by),
        "npv": sk.precision_score(label, called, pos_label=0, **by),
        "f1": sk.f1_score(label, called, **by),
        "mcc": sk.matthews_corrcoef(label, called, **by),
        "brier": sk.brier_score_loss(label, probability, **by),
        "log_loss": sk.log_loss(label, probability, **by),
    }


@pytest.mark.parametrize("decimals", [12, 1, 0])
def test_kernel_equals_sklearn_with_sample_weight(draw, decimals):
    label, probability, _ = draw(120, decimals=decimals)
    weights = np.random.default_rng(1).integers(0, 4, (20, 120)).astype(float)
    found = WeightedMetrics(label, probability, 0.4, np.arange(120))(weights)
    for row, weight in enumerate(weights):
        expected = sklearn_weighted(label, probability, 0.4, weight)
        assert {name: found[name][row] for name in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("decimals", [12, 1])
def test_kernel_equals_the_metrics_of_repeated_films(draw, decimals):
    """Whole patients drawn w times are the same as a data set with their films written w times."""
    label, probability, patient = draw(150, decimals=decimals, patients=40)
    _, unit = np.unique(patient, return_inverse=True)
    weights = next(patient_weights(unit.max() + 1, 10, seed=3, per_chunk=10))
    found = WeightedMetrics(label, probability, 0.5, unit)(weights)
    for row, weight in enumerate(weights):
        rows = np.repeat(np.arange(150), weight[unit].astype(int))
        expected = point_metrics(label[rows], probability[rows], 0.5)
        assert {name: found[name][row] for name in METRICS} == pytest.approx(expected, abs=1e-9)


def test_patients_are_drawn_with_replacement():
    weights = np.concatenate(list(patient_weights(50, 2000, seed=0, per_chunk=300)))
    assert weights.shape == (2000, 50)
    assert (weights.sum(axis=1) == 50).all()
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.02)  # binomial(50, 1/50)


def test_draws_depend_on_the_seed_only_not_on_chunks_or_the_order_of_films(draw, monkeypatch):
    label, probability, patient = draw(100, patients=60)
    first = bootstrap_draws(label, probability, patient, 0.5, resamples=50, seed=7)
    order = np.random.default_rng(0).permutation(100)
    shuffled = bootstrap_draws(label[order], probability[order], patient[order], 0.5, resamples=50, seed=7)
    monkeypatch.setattr(bootstrap, "WEIGHTS_PER_CHUNK", 700)
    in_chunks = bootstrap_draws(label, probability, patient, 0.5, resamples=50, seed=7)
    other = bootstrap_draws(label, probability, patient, 0.5, resamples=50, seed=8)
    for name in METRICS:
        np.testing.assert_allclose(in_chunks.values[name], first.values[name], rtol=0, atol=1e-12)
        np.testing.assert_allclose(shuffled.values[name], first.values[name], rtol=0, atol=1e-12)
    assert not np.allclose(other.values["brier"], first.values["brier"])


def test_without_clusters_the_interval_is_the_known_standard_error(draw):
    label, probability, _ = draw(600)
    drawn = bootstrap_draws(label, probability, np.arange(600), 0.5)
    accuracy = point_metrics(label, probability, 0.5)["accuracy"]
    assert drawn.values["accuracy"].std() == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 600), rel=0.05)
    brier = ((probability - label) ** 2).std() / np.sqrt(600)
    assert drawn.values["brier"].std() == pytest.approx(brier, rel=0.05)


def test_copies_of_a_film_add_no_certainty_when_clustered(draw):
    label, probability, _ = draw(150)
    child = np.arange(150)
    four = [np.repeat(values, 4) for values in (label, probability, child)]
    once = bootstrap_draws(label, probability, child, 0.5).intervals()
    clustered = bootstrap_draws(*four, 0.5).intervals()
    naive = bootstrap_draws(four[0], four[1], np.arange(600), 0.5).intervals()
    for name in ("auroc", "accuracy", "log_loss", "average_precision"):
        width, honest, fooled = (np.ptp(found[name]) for found in (once, clustered, naive))
        assert honest == pytest.approx(width, rel=1e-9)
        assert fooled == pytest.approx(width / 2, rel=0.15)
    for one, copied in zip(curve_bands(label, probability, child, 100), curve_bands(*four, 100), strict=True):
        np.testing.assert_allclose([copied.low, copied.high], [one.low, one.high], atol=1e-12)


def test_resamples_of_one_class_are_left_out_and_counted():
    """Two of three patients are normal: a resample has one class with probability (2/3)^3 + (1/3)^3 = 1/3."""
    drawn = bootstrap_draws([0, 0, 1], [0.1, 0.6, 0.4], ["a", "b", "c"], 0.5, resamples=3000)
    assert drawn.left_out == pytest.approx(1000, abs=80)
    assert all(values.size == 3000 - drawn.left_out for values in drawn.values.values())
    assert np.isfinite(drawn.values["auroc"]).all()


def test_one_class_has_no_intervals():
    drawn = bootstrap_draws([1, 1, 1], [0.1, 0.6, 0.4], ["a", "b", "c"], 0.5, resamples=20)
    assert drawn.left_out == 20
    assert drawn.intervals() == dict.fromkeys(METRICS)
    assert curve_bands([1, 1, 1], [0.1, 0.6, 0.4], ["a", "b", "c"]) is None


def test_curves_leave_one_class_resamples_out():
    """One positive at the top: every resample that holds it is perfect, the others have no curve."""
    roc, precision_recall = curve_bands([0, 0, 1], [0.1, 0.6, 0.9], ["a", "b", "c"], resamples=100)
    for band in (roc, precision_recall):
        assert (band.low == 1).all()
        assert (band.high == 1).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_of_ece_holds_its_estimate_on_calibrated_films(seed):
    rng = np.random.default_rng(seed)
    probability = rng.uniform(size=600)
    label = (rng.uniform(size=600) < probability).astype(int)
    estimate = point_metrics(label, probability, 0.5)["ece"]
    drawn = bootstrap_draws(label, probability, np.arange(600), 0.5, resamples=400, metrics=("ece",)).values["ece"]
    low, high = unbiased_interval(drawn, estimate, 0.95)
    assert 0 <= low < estimate < high < drawn.max()
    assert np.maximum(drawn - drawn.mean() + estimate, 0).mean() == pytest.approx(estimate, abs=1e-3)


def test_no_resamples_are_refused():
    with pytest.raises(ValueError, match="resamples=0: expected at least 1"):
        bootstrap_draws([0, 1], [0.1, 0.2], ["a", "b"], 0.5, resamples=0)


def test_a_metric_without_denominator_has_no_interval():
    drawn = bootstrap_draws([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], list("abcd"), 0.9, resamples=50)
    found = drawn.intervals()
    assert found["ppv"] is None
    assert found["mcc"] is None
    assert found["sensitivity"] == (0.0, 0.0)


@pytest.mark.parametrize("decimals", [12, 1])
def test_curves_equal_sklearn(draw, decimals):
    label, probability, patient = draw(200, decimals=decimals)
    roc, precision_recall = curve_bands(label, probability, patient, resamples=100)
    fpr, tpr, _ = sk.roc_curve(label, probability, drop_intermediate=False)
    np.testing.assert_allclose(roc.estimate, np.interp(GRID, fpr, tpr), atol=1e-12)
    precision, recall, _ = sk.precision_recall_curve(label, probability)
    reached = [precision[np.flatnonzero(recall >= r)[-1]] for r in GRID[1:]]
    np.testing.assert_allclose(precision_recall.estimate[1:], reached, atol=1e-12)
    for band in (roc, precision_recall):
        assert (band.low <= band.high).all()
        assert np.mean((band.low <= band.estimate) & (band.estimate <= band.high)) > 0.95


def test_band_of_roc_is_the_interval_of_sensitivity_at_that_rate():
    """With two score values the curve has one corner: its band there is the binomial interval of sensitivity."""
    label = np.repeat([0, 1], [400, 400])
    probability = np.concatenate([np.zeros(400), np.repeat([0.0, 1.0], [160, 240])])
    roc, _ = curve_bands(label, probability, np.arange(800))
    assert roc.estimate[0] == 0.6
    assert (roc.high[0] - roc.low[0]) / 2 == pytest.approx(1.96 * np.sqrt(0.6 * 0.4 / 400), rel=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("patients", [50_000, 1_000_000])
def test_a_hundred_thousand_predictions_take_seconds(draw, patients):
    label, probability, patient = draw(100_000, patients=patients)
    tracemalloc.start()
    start = time.perf_counter()
    bootstrap_draws(label, probability, patient, 0.5).intervals()
    middle = time.perf_counter()
    curve_bands(label, probability, patient)
    end, peak = time.perf_counter(), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"metrics {middle - start:.1f} s, curves {end - middle:.1f} s, peak {peak / 2**20:.0f} MiB")
    assert end - start < 25
    assert peak < 1.5 * 2**30

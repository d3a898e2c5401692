import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import ks_2samp

from pneumonia.evaluation.bootstrap import bootstrap_draws
from pneumonia.evaluation.drift import chance_gap, metric_drift, oracle_gap, score_drift
from pneumonia.evaluation.films import Films
from pneumonia.evaluation.metrics import METRICS, point_metrics
from pneumonia.evaluation.operating_point import choose_threshold


def films(n: int, seed: int, shift: float = 0.0, only: int | None = None) -> Films:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n) if only is None else np.full(n, only)
    probability = expit(3 * label - 1.5 + rng.normal(size=n) + shift)
    paths = np.array([f"{seed}-{k}.jpeg" for k in range(n)])
    return Films(paths, label, probability, paths)


def drift_of(val, test):
    draws = [
        bootstrap_draws(part.label, part.probability, part.patient, 0.5, resamples=500, seed=seed)
        for seed, part in enumerate((val, test))
    ]
    return {row.metric: row for row in metric_drift(val, test, 0.5, *draws)}


def test_every_metric_is_test_minus_val():
    val, test = films(300, 0), films(200, 1, shift=1.5)
    found = drift_of(val, test)
    before, after = (point_metrics(part.label, part.probability, 0.5) for part in (val, test))
    assert tuple(found) == METRICS
    for name, row in found.items():
        assert (row.val, row.test) == (before[name], after[name])
        assert row.difference == pytest.approx(after[name] - before[name])


def test_a_planted_shift_is_seen_and_no_shift_is_not():
    shifted = drift_of(films(400, 0), films(400, 1, shift=1.5))
    assert shifted["specificity"].interval[1] < -0.1
    assert shifted["sensitivity"].interval[0] > 0
    assert shifted["auroc"].interval[0] < 0 < shifted["auroc"].interval[1]  # a shift of all scores keeps the ranking
    quiet = drift_of(films(400, 0), films(400, 2))
    assert quiet["accuracy"].interval[0] < 0 < quiet["accuracy"].interval[1]


def test_the_noise_of_ece_is_not_called_drift():
    """Calibrated on both sides: the smaller side's ECE is larger by chance, and its resamples' larger still."""
    row = drift_of(films(1000, 0), films(200, 1))["ece"]
    assert row.difference is not None and row.interval is None


def test_the_interval_of_the_difference_adds_both_variances():
    val, test = films(800, 0), films(300, 1)
    row = drift_of(val, test)["accuracy"]
    error = np.sqrt(sum(a * (1 - a) / n for a, n in ((row.val, 800), (row.test, 300))))
    assert np.ptp(row.interval) == pytest.approx(2 * 1.96 * error, rel=0.15)


def ranked(positives: int, negatives: int, wrong: int, seed: int) -> Films:
    """Films of which `wrong` normal ones lie above all others."""
    label = np.repeat([1, 0], [positives, negatives])
    probability = np.random.default_rng(seed).uniform(0, 0.4, label.size) + 0.5 * label
    probability[label.size - wrong :] += 0.6
    paths = np.array([f"{seed}-{k}.png" for k in range(label.size)])
    return Films(paths, label, np.minimum(probability, 1), paths)


def test_a_perfect_validation_is_not_known_exactly():
    few = drift_of(ranked(12, 12, 0, 0), ranked(195, 117, 6, 1))
    assert few["auroc"].val == few["accuracy"].val == few["specificity"].val == 1
    for name in ("auroc", "accuracy", "specificity"):
        assert few[name].interval[0] < few[name].difference < 0 < few[name].interval[1], name
    assert few["average_precision"].interval is None and few["mcc"].interval is None
    many = drift_of(ranked(500, 500, 0, 0), ranked(195, 117, 30, 1))
    for name in ("auroc", "accuracy", "specificity"):
        assert many[name].difference < many[name].interval[1] < -0.01, name
    error = np.sqrt((30 / 117) * (87 / 117) / 117)
    assert many["specificity"].interval[0] == pytest.approx(-30 / 117 - 1.96 * error, abs=0.01)


def test_one_seed_for_both_bootstraps_is_refused():
    val, test = films(50, 0), films(50, 1)
    draws = bootstrap_draws(val.label, val.probability, val.patient, 0.5, resamples=10)
    with pytest.raises(ValueError, match="Both bootstraps used seed=0"):
        metric_drift(val, test, 0.5, draws, draws)


def test_undefined_on_one_side_has_no_difference():
    found = drift_of(films(50, 0), films(50, 1, only=1))
    assert found["auroc"].val is not None
    assert (found["auroc"].test, found["auroc"].difference, found["auroc"].interval) == (None, None, None)
    assert found["accuracy"].difference is not None
    assert found["accuracy"].interval is None  # no resample of one class is kept


def test_score_drift_is_scipys_test_within_each_class():
    val, test = films(300, 0), films(200, 1, shift=1.0)
    rows = score_drift(val, test)
    assert [row.films for row in rows] == ["all", "normal", "pneumonia"]
    for row, part in zip(rows[1:], (0, 1), strict=True):
        expected = ks_2samp(val.probability[val.label == part], test.probability[test.label == part])
        assert (row.statistic, row.p_value) == pytest.approx((expected.statistic, expected.pvalue))
        assert (row.n_val, row.n_test) == ((val.label == part).sum(), (test.label == part).sum())
    assert rows[1].p_value < 1e-3
    empty = score_drift(val, films(50, 2, only=1))[1]
    assert (empty.n_test, empty.statistic, empty.p_value) == (0, None, None)


def test_the_oracle_is_never_worse_and_measures_a_shift():
    test = films(400, 1, shift=2.0)
    found = oracle_gap(test, 0.5)
    best = max(np.mean((test.probability >= cut) == test.label) for cut in [*test.probability, 2])
    assert found.oracle_accuracy == pytest.approx(best)
    assert found.locked_accuracy == point_metrics(test.label, test.probability, 0.5)["accuracy"]
    assert found.gap == pytest.approx(best - found.locked_accuracy)
    assert found.gap > 0.05
    assert oracle_gap(films(20, 1, only=0), 0.5) is None


@pytest.mark.parametrize("n", [30, 100, 312])
def test_without_drift_hindsight_seldom_gains_more_than_chance(n):
    """And a rule without it would mostly call the gain of thirty films a drift."""
    gaps, chances = [], []
    for seed in range(100):
        val, test = films(200, seed), films(n, 1000 + seed)
        locked = choose_threshold(val.label, val.probability, "accuracy").threshold
        gaps.append(oracle_gap(test, locked).gap)
        chances.append(chance_gap(val, n))
    assert np.mean(np.greater(gaps, np.maximum(chances, 0.03) + 1e-9)) <= 0.1
    assert n > 30 or np.mean(np.greater(gaps, 0.03)) > 0.4


def test_chance_gives_less_than_a_shift():
    val, test = films(400, 0), films(400, 1, shift=3.0)
    locked = choose_threshold(val.label, val.probability, "accuracy").threshold
    assert 0 < chance_gap(val, 400) < 0.05 < oracle_gap(test, locked).gap
    assert chance_gap(films(20, 1, only=0), 20) is None

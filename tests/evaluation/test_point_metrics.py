import numpy as np
import pytest
from sklearn import metrics as sk

from pneumonia.evaluation.metrics import (
    METRICS,
    at_prevalence,
    chance_ece,
    confident_mistakes,
    confusion,
    ece,
    point_metrics,
    reliability_bins,
    summary,
)


@pytest.mark.parametrize("decimals", [12, 1])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_every_metric_equals_sklearn(draw, decimals, threshold):
    label, probability, _ = draw(decimals=decimals)
    called = (probability >= threshold).astype(int)
    expected = {
        "accuracy": sk.accuracy_score(label, called),
        "balanced_accuracy": sk.balanced_accuracy_score(label, called),
        "auroc": sk.roc_auc_score(label, probability),
        "average_precision": sk.average_precision_score(label, probability),
        "sensitivity": sk.recall_score(label, called),
        "specificity": sk.recall_score(label, called, pos_label=0),
        "ppv": sk.precision_score(label, called),
        "npv": sk.precision_score(label, called, pos_label=0),
        "f1": sk.f1_score(label, called),
        "mcc": sk.matthews_corrcoef(label, called),
        "brier": sk.brier_score_loss(label, probability),
        "log_loss": sk.log_loss(label, probability),
    }
    found = point_metrics(label, probability, threshold)
    assert tuple(found) == METRICS
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_a_score_at_the_threshold_is_positive():
    assert confusion([0, 0, 1, 1], [0.5, 0.49, 0.5, 0.49], 0.5) == {"tn": 1, "fp": 1, "fn": 1, "tp": 1}


def test_ece_of_a_worked_example():
    """Two bins of fifteen: (0.2, 0.2667] with mean 0.25 and no positive, (0.8, 0.8667] with mean 0.85 and 2 of 3."""
    label, probability = [0, 1, 1, 0], [0.25, 0.84, 0.85, 0.86]
    assert ece(label, probability) == pytest.approx(1 / 4 * 0.25 + 3 / 4 * abs(2 / 3 - 0.85), abs=1e-12)


def test_ece_is_the_weighted_gap_of_the_reliability_bins(draw):
    label, probability, _ = draw(decimals=2)
    bins = reliability_bins(label, probability)
    gaps = [abs(b.mean_probability - b.positive_rate) * b.films for b in bins if b.films]
    assert sum(b.films for b in bins) == label.size
    assert ece(label, probability) == pytest.approx(sum(gaps) / label.size, abs=1e-12)
    for b in bins:
        assert b.films or (b.mean_probability is None and b.positive_rate is None)


def test_the_ece_of_true_probabilities_is_chance_and_falls_with_the_films():
    rng = np.random.default_rng(0)
    sure, unsure = np.array([0.0, 1.0] * 50), rng.uniform(0.05, 0.95, 4000)
    assert (chance_ece(sure) == 0).all()
    few, many = chance_ece(unsure[:250]).mean(), chance_ece(unsure).mean()
    assert many == pytest.approx(few / 4, rel=0.15) and many > 0.01
    drawn = [ece(rng.random(250) < unsure[:250], unsure[:250]) for _ in range(300)]
    assert few == pytest.approx(np.mean(drawn), rel=0.05)
    assert 0.01 < np.mean(drawn > np.quantile(chance_ece(unsure[:250]), 0.95)) < 0.1


def test_bin_edges_belong_to_the_bin_below_and_zero_to_the_first():
    bins = reliability_bins([0, 0, 0, 1, 1], [0.0, 0.05, 0.2, 0.8, 1.0])
    assert {number: b.films for number, b in enumerate(bins, 1) if b.films} == {1: 2, 3: 1, 12: 1, 15: 1}


def test_bayes_worked_example():
    """1 % ill, sensitivity 90 %, specificity 91 %: about one positive in eleven is ill (Gigerenzer 2002)."""
    ppv, npv = at_prevalence(0.90, 0.91, 0.01)
    assert ppv == pytest.approx(0.009 / (0.009 + 0.0891))
    assert npv == pytest.approx(0.9009 / (0.9009 + 0.001))
    assert at_prevalence(1.0, 1.0, 0.0) == (None, 1.0)
    assert at_prevalence(None, 0.9, 0.1) == (None, None)


def test_prevalence_of_the_sample_gives_back_ppv_and_npv(draw):
    label, probability, _ = draw()
    found = point_metrics(label, probability, 0.4)
    again = at_prevalence(found["sensitivity"], found["specificity"], label.mean())
    assert again == pytest.approx((found["ppv"], found["npv"]))


@pytest.mark.parametrize("only", [0, 1])
def test_one_class_is_undefined_not_zero(only):
    found = point_metrics([only] * 4, [0.1, 0.4, 0.6, 0.9], 0.5)
    for name in ("auroc", "average_precision", "balanced_accuracy", "mcc"):
        assert found[name] is None
    assert (found["sensitivity"] is None) == (only == 0)
    assert (found["specificity"] is None) == (only == 1)
    assert found["accuracy"] == 0.5
    assert not any(value is not None and np.isnan(value) for value in found.values())


def test_one_call_leaves_what_divides_by_it_undefined():
    found = point_metrics([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], 0.9)
    assert found["ppv"] is None
    assert found["mcc"] is None
    assert (found["npv"], found["f1"], found["sensitivity"]) == (0.5, 0.0, 0.0)


def test_summary_agrees_with_the_metrics_and_the_counts(draw):
    label, probability, _ = draw()
    found = summary(label, probability, 0.3)
    assert found["n"] == found["tn"] + found["fp"] + found["fn"] + found["tp"] == label.size
    assert found["positives"] == found["fn"] + found["tp"] == label.sum()
    assert found["threshold"] == 0.3
    full = point_metrics(label, probability, 0.3)
    assert all(found[name] == full[name] for name in ("accuracy", "auroc", "average_precision", "f1"))
    assert all(type(value) in (int, float) for value in found.values())  # json writes no numpy types


def test_the_most_confident_mistake_comes_first_whichever_kind_it_is():
    label, probability = [1, 0, 1, 0, 1, 0], [0.1, 0.7, 0.2, 0.95, 0.9, 0.3]
    assert confident_mistakes(label, probability, 0.5).tolist() == [3, 0, 2, 1]  # .95, .9, .8, .7 for the other class
    assert confident_mistakes(label, probability, 0.15).tolist() == [3, 0, 1, 5]
    assert confident_mistakes([1, 1, 0], [0.2, 0.2, 0.1], 0.5).tolist() == [0, 1]

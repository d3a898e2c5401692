import numpy as np
import pytest

from pneumonia.evaluation.metrics import confusion
from pneumonia.evaluation.operating_point import choose_pooled, choose_threshold


def every_outcome(label, probability):
    """(sensitivity, specificity, counts) of every way to cut the scores, all positive and all negative included."""
    cuts = [*np.unique(probability), 2.0]
    counts = [confusion(label, probability, cut) for cut in cuts]
    return [(c["tp"] / (c["tp"] + c["fn"]), c["tn"] / (c["tn"] + c["fp"]), c) for c in counts]


def both_rates(point):
    """(sensitivity, specificity) on the films that the threshold was chosen on."""
    return point.tp / (point.tp + point.fn), point.tn / (point.tn + point.fp)


@pytest.mark.parametrize("decimals", [12, 1])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("rule", "arguments", "value"),
    [
        ("accuracy", {}, lambda sens, spec, c: c["tp"] + c["tn"]),
        ("youden", {}, lambda sens, spec, c: sens + spec),
        ("sensitivity", {"minimum": 0.9}, lambda sens, spec, c: spec if sens >= 0.9 else -1),
        ("specificity", {"minimum": 0.8}, lambda sens, spec, c: sens if spec >= 0.8 else -1),
        ("cost", {"cost_ratio": 5}, lambda sens, spec, c: -(5 * c["fn"] + c["fp"])),
    ],
)
def test_the_choice_is_the_best_of_all(draw, rule, arguments, value, seed, decimals):
    label, probability, _ = draw(80, seed=seed, decimals=decimals)
    chosen = choose_threshold(label, probability, rule, **arguments)
    best = max(value(*outcome) for outcome in every_outcome(label, probability))
    counts = confusion(label, probability, chosen.threshold)
    assert counts == {"tn": chosen.tn, "fp": chosen.fp, "fn": chosen.fn, "tp": chosen.tp}
    assert value(*both_rates(chosen), counts) == pytest.approx(best, abs=1e-12)
    assert 0 <= chosen.threshold <= 1


def test_the_threshold_lies_in_the_middle_between_two_scores():
    chosen = choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], "accuracy")
    assert chosen.threshold == pytest.approx(0.4)
    assert chosen.accuracy == 1.0 and both_rates(chosen) == (1.0, 1.0)


def test_among_ties_the_one_closest_to_a_half_then_the_lower():
    label = [0, 1, 0, 1]  # cutting below 0.2 + or above 0.6 makes one error each
    assert choose_threshold(label, [0.1, 0.2, 0.6, 0.7], "accuracy").threshold == pytest.approx(0.65)
    assert choose_threshold(label, [0.25, 0.375, 0.625, 0.75], "accuracy").threshold == 0.3125


def test_a_minimum_takes_the_better_other_rate_before_closeness():
    """Both cuts at 0.45 and 0.25 have sensitivity >= 0.5 and specificity 1: the lower one finds one more."""
    label, probability = [0, 0, 1, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.5]
    chosen = choose_threshold(label, probability, "sensitivity", minimum=0.5)
    assert (*both_rates(chosen), chosen.threshold) == (1.0, 1.0, 0.25)


def test_a_minimum_given_in_decimals_is_met_exactly():
    """7 of 100 is a specificity of 0.07, although 0.07 * 100 > 7 in floating point."""
    label = np.repeat([0, 1, 0], [7, 50, 93])
    probability = np.repeat([0.1, 0.3, 0.9], [7, 50, 93])
    chosen = choose_threshold(label, probability, "specificity", minimum=0.07)
    assert both_rates(chosen) == (1.0, 0.07)


def test_neighbouring_floats_are_cut_where_both_precisions_agree():
    low = np.float32(0.3)
    high = np.nextafter(low, np.float32(1))
    score = np.array([low, high], dtype=np.float32)
    threshold = choose_threshold([0, 1], score, "accuracy").threshold
    assert (score.astype(np.float64) >= threshold).tolist() == [False, True]
    assert (score >= np.float32(threshold)).tolist() == [False, True]
    close = np.array([0.3, np.nextafter(0.3, 1)])
    assert choose_threshold([0, 1], close, "accuracy").accuracy == 1.0


def test_an_unreachable_minimum_says_the_best_reachable():
    """A normal film at exactly 1 is called positive by every threshold in [0, 1]."""
    with pytest.raises(ValueError, match=r"minimum=0.9.*best reachable is 0.7500"):
        choose_threshold([0, 0, 0, 0, 1], [0.1, 0.2, 0.3, 1.0, 1.0], "specificity", minimum=0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "f1"}, "rule='f1': expected one of accuracy, youden"),
        ({"rule": "sensitivity"}, "minimum=None with rule=sensitivity"),
        ({"rule": "youden", "minimum": 0.9}, "minimum=0.9 with rule=youden"),
        ({"rule": "sensitivity", "minimum": 95}, r"minimum=95: expected a share"),
        ({"rule": "cost"}, "cost_ratio=None with rule=cost"),
        ({"rule": "accuracy", "cost_ratio": 2}, "cost_ratio=2 with rule=accuracy"),
        ({"rule": "cost", "cost_ratio": -1}, "cost_ratio=-1: expected a positive"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_threshold([0, 1], [0.2, 0.8], **arguments)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="All 2 films have label 1"):
        choose_threshold([1, 1], [0.2, 0.8], "accuracy")


def test_pooled_is_the_choice_over_all_that_was_seen(draw):
    """A second look in which all scores are 0.2 higher: the threshold rises, and is the best of both together."""
    label, probability, _ = draw(200, seed=3)
    probability = 0.7 * probability
    plain = choose_threshold(label, probability, "youden")
    pooled = choose_pooled(label, [probability, probability + 0.2], "youden", None, None)
    assert choose_pooled(label, [probability], "youden", None, None) == plain
    assert plain.threshold < pooled.threshold < plain.threshold + 0.2 and pooled.n == 400
    both, seen = np.tile(label, 2), np.concatenate([probability, probability + 0.2])
    best = max(sens + spec for sens, spec, _ in every_outcome(both, seen))
    assert sum(both_rates(pooled)) == pytest.approx(best)

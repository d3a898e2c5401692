import numpy as np
import pytest
from scipy.special import expit

from pneumonia.evaluation.bootstrap import bootstrap_draws
from pneumonia.evaluation.comparison import Run, _bootstrap_p, check_comparable, holm, leaderboard
from pneumonia.evaluation.ensemble import soft_vote, spread
from pneumonia.evaluation.films import Films
from pneumonia.evaluation.intervals import delong_paired
from pneumonia.evaluation.metrics import point_metrics


def films(split: str, strength: float, noise: int, n: int = 200) -> Films:
    """Films of one split; the shared part of the score makes runs correlated, as runs on the same films are."""
    rng = np.random.default_rng([n, split == "val"])
    label, shared = rng.integers(0, 2, n), rng.normal(size=n)
    own = np.random.default_rng(noise).normal(size=n)
    paths = np.array([f"{split}/{k:04}.jpeg" for k in range(n)])
    patient = np.array([f"{split}{k // 2}" for k in range(n)])
    return Films(paths, label, expit(strength * (2 * label - 1) + 0.8 * shared + 0.6 * own), patient)


def run(name: str, strength: float, noise: int, **more) -> Run:
    return Run(name, films("val", strength, noise), films("test", strength, 100 + noise), 0.5, **more)


RUNS = [run("weak", 0.5, 1), run("strong", 1.6, 2), run("close", 1.5, 3)]


def test_holm_by_hand():
    """Sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, made monotone: .02 .03 .06 .06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, None, 0.5]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_the_board_is_ranked_on_validation_whatever_test_says():
    flattered = Run("flattered", films("val", 0.1, 4), films("test", 4.0, 5), 0.5)
    board = leaderboard([*RUNS, flattered], resamples=50)
    assert [entry.run.name for entry in board] == ["strong", "close", "weak", "flattered"]
    assert [entry.rank for entry in board] == [1, 2, 3, 4]
    assert board[3].test["auroc"] > board[0].test["auroc"]


def test_brier_ranks_upwards_and_a_run_without_validation_comes_last():
    no_val = Run("no_val", None, RUNS[1].test, 0.5)
    board = leaderboard([no_val, *RUNS], metric="brier", resamples=50)
    found = [entry.val["brier"] for entry in board[:3]]
    assert found == sorted(found)
    assert (board[3].run.name, board[3].val) == ("no_val", None)


def test_tests_against_the_leader_are_the_paired_ones():
    board = leaderboard(RUNS, metric="accuracy", resamples=400, seed=3)
    leader, others = board[0].run.test, board[1:]
    assert board[0].against is None
    paired = [delong_paired(leader.label, e.run.test.probability, leader.probability) for e in others]
    for entry, pair in zip(others, paired, strict=True):
        assert (entry.against.auroc_difference, entry.against.delong_p) == pair
        assert entry.against.difference == pytest.approx(entry.test["accuracy"] - board[0].test["accuracy"])
        low, high = entry.against.interval
        assert low <= entry.against.difference <= high
    assert [e.against.delong_holm for e in others] == holm([pair.p_value for pair in paired])
    assert [e.against.bootstrap_holm for e in others] == holm([e.against.bootstrap_p for e in others])


def test_the_paired_interval_is_narrower_than_that_of_independent_runs():
    board = {entry.run.name: entry for entry in leaderboard(RUNS, resamples=600)}
    a, b = board["strong"].run.test, board["close"].run.test
    free = [
        bootstrap_draws(part.label, part.probability, part.patient, 0.5, 600, seed).values["auroc"]
        for seed, part in enumerate((a, b))
    ]
    apart = np.ptp(np.quantile(free[1] - free[0], [0.025, 0.975]))
    assert np.ptp(board["close"].against.interval) < 0.9 * apart


def test_a_planted_difference_is_found_and_no_difference_is_not():
    board = {entry.run.name: entry.against for entry in leaderboard(RUNS, resamples=400)}
    assert board["weak"].delong_holm < 0.001
    assert board["weak"].bootstrap_holm < 0.02
    twins = leaderboard([RUNS[1], Run("twin", RUNS[1].val, RUNS[1].test, 0.5)], resamples=100)
    assert (twins[1].against.delong_p, twins[1].against.bootstrap_p) == (1.0, 1.0)
    assert twins[1].against.interval == (0.0, 0.0)


def test_the_bootstrap_p_is_two_sided_and_counts_the_data_as_one_resample():
    change = np.r_[-np.ones(97), np.ones(2)]
    assert _bootstrap_p(change) == _bootstrap_p(-change) == pytest.approx(2 * (2 + 1) / (99 + 1))


def test_one_run_has_nothing_to_be_tested_against():
    (only,) = leaderboard(RUNS[:1])
    assert (only.rank, only.against) == (1, None)


def test_undefined_on_test_is_compared_as_none():
    """At threshold 1 nothing is called positive: PPV has no denominator, AUROC is compared all the same."""
    deaf = [Run(r.name, r.val, r.test, 1.0) for r in RUNS[:2]]
    against = leaderboard(deaf, metric="ppv", resamples=20)[1].against
    assert (against.difference, against.interval, against.bootstrap_p, against.bootstrap_holm) == (None,) * 4
    assert against.delong_p is not None


def test_rows_in_another_order_are_the_same_films():
    test = RUNS[0].test
    back = Films(test.path[::-1], test.label[::-1], test.probability[::-1], test.patient[::-1])
    check_comparable([RUNS[1], Run("back", RUNS[0].val, back, 0.5)])
    np.testing.assert_array_equal(back.probability, test.probability)


def test_other_films_are_refused_and_named():
    other = films("test", 1.0, 0)
    path = other.path.copy()
    path[:5] = [f"new/{k}.jpeg" for k in range(5)]
    moved = Run("moved", RUNS[0].val, Films(path, other.label, other.probability, other.patient), 0.5)
    with pytest.raises(
        ValueError, match=r"moved \(test\) and weak \(test\).*5 only in weak .*test/0000.jpeg.*5 only in"
    ):
        leaderboard([RUNS[0], moved])


@pytest.mark.parametrize("column", ["label", "patient"])
def test_another_label_or_patient_is_refused_and_named(column):
    part = RUNS[0].val
    changed = {name: getattr(part, name).copy() for name in ("path", "label", "probability", "patient")}
    changed[column][7] = 1 - part.label[7] if column == "label" else "x"
    with pytest.raises(ValueError, match=rf"give 1 film\(s\) another {column} \(val/0007.jpeg\)"):
        leaderboard([RUNS[0], Run("other", Films(**changed), RUNS[0].test, 0.5)])


def test_names_and_metrics_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="names that differ"):
        leaderboard([RUNS[0], RUNS[0]])
    with pytest.raises(ValueError, match="at least one run"):
        leaderboard([])
    with pytest.raises(ValueError, match="metric='auc': expected one of accuracy"):
        leaderboard(RUNS, metric="auc")


def test_folds_may_differ_in_validation_but_not_in_test():
    first, second = (
        Run(f"fold{k}", films("val", 1.0, k, n=100 + k), films("test", 1.0, k), 0.4 + 0.2 * k, "cv", k) for k in (0, 1)
    )
    check_comparable([first, second])
    vote = soft_vote([first, second])
    assert (vote.val, vote.threshold) == (None, 0.5)
    with pytest.raises(ValueError, match="not over the same films"):
        check_comparable([first, Run("fold1", second.val, second.test, 0.5, "cv", 0)])


def test_soft_vote_is_the_mean_probability_at_its_own_threshold():
    vote = soft_vote(RUNS[1:], rule="youden")
    np.testing.assert_allclose(vote.test.probability, (RUNS[1].test.probability + RUNS[2].test.probability) / 2)
    at_half = point_metrics(vote.val.label, vote.val.probability, 0.5)["balanced_accuracy"]
    assert point_metrics(vote.val.label, vote.val.probability, vote.threshold)["balanced_accuracy"] >= at_half
    best = leaderboard([*RUNS, vote], resamples=20)[0]
    assert best.run.name == "ensemble"  # own noise averages out


def test_spread_over_seeds():
    seeds = [run(f"seed{k}", 1.0, k, group="cnn") for k in range(3)] + [run("alone", 1.0, 9, group="vgg")]
    rows = {(row.group, row.split): row for row in spread(seeds, "accuracy")}
    values = [point_metrics(r.test.label, r.test.probability, 0.5)["accuracy"] for r in seeds[:3]]
    row = rows["cnn", "test"]
    assert (row.n, row.low, row.high) == (3, min(values), max(values))
    assert (row.mean, row.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert (rows["vgg", "val"].n, rows["vgg", "val"].sd) == (1, None)

"""`python -m pneumonia.compare` as a user types it: ranked on validation, tested on the same films."""

import csv
import html
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import COLUMNS, make_run, records_of, rows_of, with_logit, write_table
from PIL import Image
from sklearn.metrics import roc_auc_score

from pneumonia.settings import CompareConfig
from pneumonia.workflows.comparison import compare
from pneumonia.workflows.record import home_of

Command = Callable[..., None]
QUICK = "resamples=200"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three runs over the same films; number 2 sees best."""
    for seed in (0, 1):
        make_run(tmp_path / "sweep" / str(seed), rows_of(seed), seed=seed)
    better = [with_logit(row, row["logit"] + 1.5 * (2 * row["label"] - 1)) for row in rows_of(2)]
    make_run(tmp_path / "sweep" / "2", better, seed=2)
    return tmp_path / "sweep"


def board_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "comparison.json").read_text())


def test_runs_are_ranked_on_validation_with_an_ensemble_row(
    command: Command, sweep: Path, tmp_path: Path, capsys: Any
) -> None:
    command("compare", f"runs={sweep}", QUICK)
    board = board_of(sweep / "comparison")
    assert [row["rank"] for row in board["rows"]] == [1, 2, 3, 4]
    values = [row["val"]["auroc"] for row in board["rows"]]
    assert values == sorted(values, reverse=True)
    [voted] = [row for row in board["rows"] if row["ensemble"]]
    parts = [
        [r for r in csv.DictReader((sweep / str(k) / "predictions.csv").open()) if r["split"] == "test"]
        for k in range(3)
    ]
    mean = np.mean([[float(r["probability"]) for r in part] for part in parts], axis=0)
    assert voted["test"]["auroc"] == pytest.approx(roc_auc_score([int(r["label"]) for r in parts[0]], mean), abs=1e-6)
    for row in board["rows"]:
        across, up = board["roc"][row["name"]]
        assert np.trapezoid(up, across) == pytest.approx(row["test"]["auroc"], abs=1e-6)
    worst = board["rows"][-1]["against"]
    assert worst["delong_holm"] < 0.05 and worst["auroc_difference"] < 0 and worst["bootstrap_holm"] < 0.05
    [val] = [row for row in board["spread"] if row["n"] == 3 and row["split"] == "val"]
    assert val["low"] < val["mean"] < val["high"]
    told = capsys.readouterr().out
    assert "best" in told and "comparison.html" in told


def test_the_soft_vote_can_be_evaluated_as_a_run_can(command: Command, sweep: Path) -> None:
    command("compare", f"runs={sweep}", QUICK)
    [voted] = [row for row in board_of(sweep / "comparison")["rows"] if row["ensemble"]]
    command("evaluate", f"predictions={sweep}/comparison/ensemble/predictions.csv", "resamples=200")
    evidence = json.loads((sweep / "comparison" / "ensemble" / "evidence.json").read_text())
    for split in ("val", "test"):
        told = evidence["splits"][split]["metrics"]
        for name in ("auroc", "accuracy", "sensitivity", "specificity"):
            assert told[name]["value"] == pytest.approx(voted[split][name], abs=1e-9)
    assert {row["name"] for row in evidence["subgroups"]} >= {"bacteria", "virus"}


@pytest.fixture
def alike(tmp_path: Path) -> list[Path]:
    """Two runs of one name over the same films, which lie where they say; both left out a film and know near copies."""
    root = tmp_path / "films"
    for row in rows_of():
        (root / row["path"]).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 30), 90).save(root / row["path"])
    near = {"films": 2, "groups": 1, "across": 1, "two_classes": 0, "examples": [["a.png", "b.png"]]}
    runs = [make_run(tmp_path / part / "run", rows_of(seed), seed=seed) for seed, part in enumerate("ab")]
    for run in runs:
        told = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(told | {"data_root": str(root), "skipped": ["a.png"]}))
        (run / "audit.json").write_text(json.dumps({"near": near}))
    return runs


def test_the_report_of_a_vote_tells_whose_it_is_and_shows_its_films(
    command: Command, alike: list[Path], tmp_path: Path
) -> None:
    vote = tmp_path / "out" / "ensemble"
    compare(CompareConfig(runs=list(map(str, alike)), resamples=200, metric="accuracy", output=str(vote.parent)))
    command("evaluate", f"predictions={vote}/predictions.csv", QUICK)
    page, evidence = (vote / "report.html").read_text(), json.loads((vote / "evidence.json").read_text())
    names = sorted(json.loads((vote / "vote.json").read_text())["vote"])
    assert names == ["a/run", "b/run"]
    for text in (page, (vote / "model_card.md").read_text()):
        assert re.search(r"of 2 runs of cnn at 32 px: (a/run, b/run|b/run, a/run)\.", text)
    assert page.count("data:image/jpeg") == len(evidence["mistakes"]) > 0
    assert evidence["audit"]["classes"]["train"]["NORMAL"] == 40 and evidence["audit"]["near"]["across"] == 1
    assert evidence["patient_key"] == "strict" and evidence["left_out"] == 1
    assert home_of(vote / "predictions.csv") == tmp_path / "films"

    told = re.search(r"<pre>python -m pneumonia\.compare ([^<]*)</pre>", page)
    assert told
    before = (vote / "vote.json").read_text(), (vote / "predictions.csv").read_text()
    command("compare", *shlex.split(html.unescape(told[1])))
    assert before == ((vote / "vote.json").read_text(), (vote / "predictions.csv").read_text())
    assert (vote / "report.html").read_text() == page  # the same vote's


def test_nothing_of_another_vote_stays_and_what_runs_differ_in_is_not_told(
    command: Command, alike: list[Path], tmp_path: Path
) -> None:
    vote, typed = tmp_path / "out" / "ensemble", (f"runs=[{alike[0]},{alike[1]}]", QUICK, f"output={tmp_path / 'out'}")
    command("compare", *typed)
    command("evaluate", f"predictions={vote}/predictions.csv", QUICK)
    rows = [with_logit(row, row["logit"] + 0.1) for row in rows_of(1)]
    write_table(alike[1] / "predictions.csv", rows, COLUMNS)
    told = json.loads((alike[1] / "run.json").read_text())
    (alike[1] / "run.json").write_text(json.dumps(told | {"data_root": str(tmp_path), "skipped": []}))
    for name, was, now in (("manifest.csv", "7000", "7001"), (".hydra/config.yaml", "strict", "none")):
        (alike[1] / name).write_text((alike[1] / name).read_text().replace(was, now))
    command("compare", *typed)
    assert {file.name for file in vote.iterdir()} == {"predictions.csv", "vote.json"}
    command("evaluate", f"predictions={vote}/predictions.csv", QUICK)
    evidence = json.loads((vote / "evidence.json").read_text())
    assert evidence["audit"] is None and evidence["patient_key"] is None and evidence["left_out"] == 0
    assert "data:image/jpeg" not in (vote / "report.html").read_text()


def test_runs_that_resize_otherwise_vote_and_their_films_are_shown(
    command: Command, alike: list[Path], tmp_path: Path
) -> None:
    config = alike[1] / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("squash", "pad"))
    command("compare", f"runs=[{alike[0]},{alike[1]}]", QUICK, f"output={tmp_path / 'out'}")
    command("evaluate", f"predictions={tmp_path}/out/ensemble/predictions.csv", QUICK)
    assert "data:image/jpeg" in (tmp_path / "out" / "ensemble" / "report.html").read_text()


def test_what_needs_a_net_is_refused_of_a_vote(
    command: Command, alike: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("compare", f"runs=[{alike[0]},{alike[1]}]", QUICK, f"output={tmp_path / 'out'}")
    vote = tmp_path / "out" / "ensemble"

    def refused(*typed: str) -> str:
        with pytest.raises(SystemExit):
            command("evaluate", *typed)
        return capsys.readouterr().err

    for option in ("shortcuts", "stress", "test", "export"):
        assert f"{option}=true: {vote} is a vote, which has no net of its own" in refused(
            f"run={vote}", f"{option}=true"
        )
    other = tmp_path / "other"
    make_run(other)
    config = other / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("image_size: 32", "image_size: 64"))
    assert "is a cnn at 32 px" in refused(f"run={other}", f"operating_point.runs=[{vote}]")
    (vote / "mine.csv").write_text((vote / "predictions.csv").read_text())
    assert "whose report it would overwrite" in refused(f"predictions={vote}/mine.csv")


def test_the_soft_vote_under_stress_is_the_mean_of_the_members_under_stress(
    command: Command, sweep: Path, capsys: Any
) -> None:
    typed = (f"runs={sweep}", QUICK, "operating_point.rule=youden", "operating_point.stressed=true")
    with pytest.raises(SystemExit):
        command("compare", *typed)
    assert "stress=true first" in capsys.readouterr().err
    shifted = []
    for k in range(3):
        rows = [r for r in csv.DictReader((sweep / str(k) / "predictions.csv").open()) if r["split"] == "val"]
        rows.sort(key=lambda row: row["path"])
        seen = np.array([float(row["probability"]) for row in rows])
        shifted.append(seen ** (1 + 0.3 * k))
        lines = [f"{r['path']},{a:.9g},{b:.9g}" for r, a, b in zip(rows, seen, shifted[-1], strict=True)]
        (sweep / str(k) / "stress.csv").write_text("\n".join(["path,as_is,gamma_darker", *lines]) + "\n")
    other = sweep / "2" / "stress.csv"
    ours = other.read_text()
    other.write_text(ours.replace("gamma_darker", "blur_light"))
    with pytest.raises(SystemExit):
        command("compare", *typed)
    assert "hold other corruptions in their stress.csv" in capsys.readouterr().err
    other.write_text(ours)
    command("compare", *typed)
    [voted] = [row for row in board_of(sweep / "comparison")["rows"] if row["ensemble"]]
    ensemble = sweep / "comparison" / "ensemble"
    written = list(csv.DictReader((ensemble / "stress.csv").open()))
    np.testing.assert_allclose([float(r["gamma_darker"]) for r in written], np.mean(shifted, axis=0), rtol=1e-5)
    command("evaluate", f"predictions={ensemble}/predictions.csv", "resamples=200", *typed[2:])
    evidence = json.loads((ensemble / "evidence.json").read_text())
    assert evidence["operating_point"]["threshold"] == pytest.approx(voted["threshold"], abs=1e-5)
    assert evidence["stress"]["rows"][0]["name"] == "gamma_darker"
    told = re.search(r"<pre>python -m pneumonia\.evaluate (.*)</pre>", (ensemble / "report.html").read_text())
    assert told
    command("evaluate", *shlex.split(told[1]))  # a vote has no checkpoint that stress=true could load
    assert json.loads((ensemble / "evidence.json").read_text()) == evidence
    (ensemble / "stress.csv").unlink()
    with pytest.raises(SystemExit):
        command("evaluate", f"predictions={ensemble}/predictions.csv", *typed[2:])
    assert "then compare operating_point.stressed=true, first" in capsys.readouterr().err


def test_a_higher_level_makes_the_intervals_of_differences_wider(command: Command, sweep: Path, tmp_path: Path) -> None:
    wide = {}
    for level in (0.8, 0.99):
        command("compare", f"runs={sweep}", QUICK, f"level={level}", f"output={tmp_path / 'out'}")
        rows = board_of(tmp_path / "out")["rows"]
        wide[level] = {row["name"]: np.ptp(row["against"]["interval"]) for row in rows if row["against"]}
    assert all(wide[0.99][name] > wide[0.8][name] > 0 for name in ("0", "1"))


def test_the_best_runs_vote_where_so_many_are_asked_for(command: Command, sweep: Path) -> None:
    for name, told in (("0", 0.2), ("1", 0.4), ("2", 1.0)):
        record = json.loads((sweep / name / "run.json").read_text())
        (sweep / name / "run.json").write_text(json.dumps(record | {"prior_correction": told}))
    command("compare", f"runs={sweep}", QUICK, "ensemble=2")
    ranked = [row["name"] for row in board_of(sweep / "comparison")["rows"] if not row["ensemble"]]
    told = json.loads((sweep / "comparison" / "ensemble" / "vote.json").read_text())
    assert told["vote"] == ranked[:2] and ranked[0] == "2" and "ensemble=2" in told["command"]
    assert told["prior_correction"] == pytest.approx((1.0 + {"0": 0.2, "1": 0.4}[ranked[1]]) / 2)
    command("compare", f"runs={sweep}", QUICK, "ensemble=0")
    assert not (sweep / "comparison" / "ensemble").exists()


def test_the_page_sorts_by_itself_and_the_table_is_a_csv(command: Command, sweep: Path) -> None:
    command("compare", f"runs={sweep}", QUICK, "ensemble=0", "output=here")
    text = Path("here/comparison.html").read_text()
    assert "aria-sort" in text and "http" not in text.replace("http-equiv", "") and "data:image/png" in text
    rows = list(csv.DictReader(Path("here/leaderboard.csv").read_text().splitlines()))
    assert len(rows) == 3 and {row["name"] for row in rows} == {"0", "1", "2"}
    assert rows[0]["delong_p"] == "" and 0 <= float(rows[1]["delong_holm"]) <= 1


def test_a_run_named_like_a_script_stays_text(command: Command, tmp_path: Path) -> None:
    evil = tmp_path / "<img src=x onerror=alert(1)>"
    make_run(evil, rows_of(1))
    make_run(tmp_path / "b", rows_of(2))
    from pneumonia.settings import CompareConfig
    from pneumonia.workflows.comparison import compare

    compare(CompareConfig(runs=[str(evil), str(tmp_path / "b")], resamples=200, output=str(tmp_path / "out")))
    assert "<img src=x" not in (tmp_path / "out" / "comparison.html").read_text()


def test_runs_that_left_test_alone_are_tested_on_validation_and_it_is_said(
    command: Command, tmp_path: Path, capsys: Any
) -> None:
    for seed in (0, 1):
        make_run(tmp_path / "sweep" / str(seed), [row for row in rows_of(seed) if row["split"] == "val"])
    command("compare", "runs=sweep", QUICK)
    assert "tested on the films that rank them" in capsys.readouterr().out
    assert "which flatters the first" in (tmp_path / "sweep" / "comparison" / "comparison.html").read_text()


def test_a_sweep_of_two_recipes_over_two_seeds_without_test_is_told_by_its_means(
    command: Command, tmp_path: Path, capsys: Any
) -> None:
    """Seed 1 validates on other films of the pool: only the recipe of the same seed is tested against the first."""
    rows, blurred = rows_of(), [row | {"probability": 0.5 + 0.2 * (row["probability"] - 0.5)} for row in rows_of(9)]
    records = records_of(rows)
    for record in records[40:70]:  # after forty training films: the first thirty that validate
        record["split"] = "train"
    for name, table in (("good", rows), ("bad", blurred)):
        here = [row for row in table if row["split"] == "val"]
        for seed, kept, split in ((0, here, records_of(rows)), (1, here[30:], records)):
            make_run(tmp_path / "sweep" / f"{name}{seed}", kept, split, seed=seed, dropout=0.1 * (name == "bad"))
    command("compare", "runs=sweep", QUICK)
    board = board_of(tmp_path / "sweep" / "comparison")
    assert len(board["rows"]) == 4 and not any(row["ensemble"] for row in board["rows"])
    first = board["rows"][0]["name"]
    assert [row["name"][-1] for row in board["rows"] if row["against"]] == [first[-1]]
    assert [(row["n"], row["split"]) for row in board["spread"]] == [(2, "val")] * 2
    assert {row["settings"] for row in board["spread"]} == {"model.dropout=0.0", "model.dropout=0.1"}
    by_name = {row["name"]: row["val"]["auroc"] for row in board["rows"]}
    means = sorted((by_name[f"{name}0"] + by_name[f"{name}1"]) / 2 for name in ("good", "bad"))
    assert sorted(row["mean"] for row in board["spread"]) == pytest.approx(means)
    assert "its own films" in capsys.readouterr().out
    assert "read the means over seeds and folds below" in (tmp_path / "sweep/comparison/comparison.html").read_text()


def test_a_crashed_job_of_a_sweep_is_left_out_aloud(command: Command, sweep: Path, capsys: Any) -> None:
    (sweep / "1" / "predictions.csv").unlink()
    command("compare", f"runs={sweep}", QUICK)
    assert "left out 1: no predictions.csv" in capsys.readouterr().out
    assert {row["name"] for row in board_of(sweep / "comparison")["rows"]} == {"0", "2", "soft vote of 2"}


def test_seeds_that_divide_the_same_films_anew_are_compared_with_a_warning(
    command: Command, tmp_path: Path, capsys: Any
) -> None:
    rows = rows_of()
    make_run(tmp_path / "sweep" / "0", rows)
    records = records_of(rows)
    for record in records[40:70]:  # after forty training films: the first thirty that validate
        record["split"] = "train"
    make_run(tmp_path / "sweep" / "1", rows[30:], records, seed=1)
    command("compare", "runs=sweep", QUICK)
    assert "validate on different films" in capsys.readouterr().out
    board = board_of(tmp_path / "sweep" / "comparison")
    assert board["validation_parts"] == 2 and {row["settings"] for row in board["rows"]} == {"seed=0", "seed=1", ""}


def test_what_an_older_version_did_not_know_or_named_otherwise_is_no_difference(
    command: Command, tmp_path: Path
) -> None:
    told = {"old": "standardize: true\n", "new": "standardize: centre\nkeep: best\ncrop_average: false\n"}
    for number, (name, settings) in enumerate(told.items()):
        run = make_run(tmp_path / "runs" / name, rows_of(number), seed=number)
        with (run / ".hydra" / "config.yaml").open("a") as stream:
            stream.write(settings)
    command("compare", "runs=runs", QUICK)
    board = board_of(tmp_path / "runs" / "comparison")
    assert {row["settings"] for row in board["rows"]} == {"seed=0", "seed=1", ""}
    assert {row["n"] for row in board["spread"]} == {2}


def test_where_the_films_lay_makes_no_other_group_and_precision_does(command: Command, tmp_path: Path) -> None:
    told = (
        "trainer: {accelerator: cpu, devices: 1, precision: null}\n",
        "trainer: {accelerator: cpu, devices: 1, precision: null}\n",
        "trainer: {accelerator: cpu, devices: 1, precision: bf16-mixed}\n",
    )
    for number, settings in enumerate(told):
        run = make_run(tmp_path / "runs" / str(number), rows_of(number))
        config = (
            (run / ".hydra" / "config.yaml").read_text().replace("root: /x", f"root: /{number}, num_workers: {number}")
        )
        (run / ".hydra" / "config.yaml").write_text(config + settings)
    command("compare", "runs=runs", QUICK, "ensemble=0")
    assert sorted(row["n"] for row in board_of(tmp_path / "runs" / "comparison")["spread"]) == [1, 1, 2, 2]


def test_folds_share_test_and_not_validation(command: Command, tmp_path: Path) -> None:
    for fold in (0, 1):
        rows = rows_of(fold)
        records = records_of(rows)
        validates = [row["split"] == "test" or k % 2 == fold for k, row in enumerate(rows)]
        for record, kept in zip(records[40:], validates, strict=True):
            record["split"] = record["split"] if kept else "train"
        rows = [row for row, kept in zip(rows, validates, strict=True) if kept]
        run = make_run(tmp_path / "sweep" / str(fold), rows, records)
        config = (run / ".hydra" / "config.yaml").read_text().replace("fold: null", f"fold: {fold}")
        (run / ".hydra" / "config.yaml").write_text(config)
    command("compare", "runs=sweep", QUICK)
    board = board_of(tmp_path / "sweep" / "comparison")
    [voted] = [row for row in board["rows"] if row["ensemble"]]
    assert voted["val"] is None and voted["rank"] == 3  # each film was trained on by one of them
    assert {row["n"] for row in board["spread"] if row["group"] != voted["group"]} == {2}


def test_a_run_whose_test_films_were_looked_at_stays_in_its_sweep(
    command: Command, tmp_path: Path, capsys: Any
) -> None:
    """All are judged on validation, as before the look."""
    for k in (0, 1):
        make_run(tmp_path / "sweep" / str(k), [row for row in rows_of(k) if row["split"] == "val"])
    command("compare", "runs=sweep", "output=before", "resamples=200")
    make_run(tmp_path / "looked", rows_of(1))
    (tmp_path / "looked" / "predictions.csv").replace(tmp_path / "sweep" / "1" / "predictions.csv")
    capsys.readouterr()
    command("compare", "runs=sweep", "output=after", "resamples=200")
    assert "Without test films of all runs" in capsys.readouterr().out
    before, after = ((tmp_path / name / "leaderboard.csv").read_text() for name in ("before", "after"))
    assert before == after and "val_auroc" in before and "test_auroc" not in before
    assert "Without test films of all runs" in (tmp_path / "after" / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("films", "1 (test) and 0 (test) are not over the same films: 1 only in 0 (test)"),
        ("val", "1 (val) and 0 (val) are not over the same films: 1 only in 0 (val)"),
        ("label", "another label"),
        ("one class", "1: All"),
        ("half", "left the test films alone"),
        ("none", "no validation films"),
        ("empty", "no finished run in it"),
        ("missing", "no such folder"),
        ("twice", "listed twice"),
        ("metric", "did you mean accuracy?"),
        ("nothing", "runs is not set"),
        ("others", "operating_point.runs is for evaluate"),
    ],
)
def test_runs_that_cannot_be_compared_are_named(
    command: Command, tmp_path: Path, capsys: Any, how: str, message: str
) -> None:
    make_run(tmp_path / "sweep" / "0", rows_of(0))
    rows = rows_of(1)
    typed = ["runs=sweep"]
    if how == "films":
        rows = rows[:-1]
    elif how == "val":
        rows = rows[1:]
    elif how == "label":
        rows[-1]["label"] = 1 - rows[-1]["label"]
    elif how == "one class":
        rows = [row for row in rows if row["label"] or row["split"] == "test"]
    elif how == "half":
        first = make_run(tmp_path / "sweep" / "2")
        write_table(first / "predictions.csv", [row for row in rows if row["split"] == "test"], COLUMNS)
        rows = [row for row in rows if row["split"] == "val"]
    elif how == "none":
        rows = [row for row in rows if row["split"] == "test"]
    run = make_run(tmp_path / "sweep" / "1", rows)
    write_table(run / "predictions.csv", rows, COLUMNS)
    if how == "empty":
        for k in (0, 1):
            (tmp_path / "sweep" / str(k) / "predictions.csv").unlink()
    typed = {
        "missing": ["runs=nowhere"], "twice": ["runs=[sweep/0,sweep/0]"], "metric": ["runs=sweep", "metric=acuracy"],
        "nothing": [], "others": ["runs=sweep", "operating_point.runs=[sweep/0]"],
    }.get(how, typed)  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        command("compare", *typed)
    told = capsys.readouterr()
    assert ending.value.code == 2 and message in told.err and "Traceback" not in told.out + told.err, told
    assert sorted(tmp_path.rglob("*")) == before


def test_two_votes_are_two_recipes(command: Command, tmp_path: Path) -> None:
    for name in ("one", "two"):
        for seed in (0, 1):
            make_run(tmp_path / name / str(seed), rows_of(seed + 2 * (name == "two")), seed=seed)
        command("compare", f"runs={tmp_path}/{name}", QUICK)
    votes = ",".join(str(tmp_path / name / "comparison" / "ensemble") for name in ("one", "two"))
    command("compare", f"runs=[{votes}]", QUICK, f"output={tmp_path}/votes")
    board = board_of(tmp_path / "votes")
    assert {(row["group"], row["n"]) for row in board["spread"]} == {
        (f"{k}/comparison/ensemble", 1) for k in ("one", "two")
    }


def test_a_table_of_another_kind_is_not_written_over(
    command: Command, sweep: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "leaderboard.csv").write_text("my,own\n")
    with pytest.raises(SystemExit) as ending:
        command("compare", f"runs={sweep}", f"output={tmp_path}/mine", QUICK)
    assert ending.value.code == 2 and "leaderboard.csv is there and not of a comparison" in capsys.readouterr().err
    assert (tmp_path / "mine" / "leaderboard.csv").read_text() == "my,own\n"
    for _ in range(2):  # its own may be
        command("compare", f"runs={sweep}", f"output={tmp_path}/ours", QUICK)


def test_one_folder_takes_one_comparison(command: Command, sweep: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ending:
        command("compare", "-m", f"runs={sweep}", "metric=auroc,accuracy", QUICK)
    assert ending.value.code == 2 and f"{sweep}/comparison: two runs of -m would write it" in capsys.readouterr().err


def page_of(folder: Path) -> str:
    """The words of comparison.html."""
    return " ".join(re.sub(r"<[^>]*>", "", html.unescape((folder / "comparison.html").read_text())).split())


def test_a_first_that_test_does_not_bear_out_is_said_with_a_warning(command: Command, tmp_path: Path) -> None:
    """The best of the validation films is the worst of the test films."""
    for name, val, test in (("a", 1.5, -0.8), ("b", 0.0, 1.5), ("c", 0.0, 1.4)):
        sign = {"val": val, "test": test}
        rows = [with_logit(r, r["logit"] + sign[r["split"]] * (2 * r["label"] - 1)) for r in rows_of(ord(name))]
        make_run(tmp_path / "runs" / name, rows)
    command("compare", "runs=runs", QUICK, "ensemble=0")
    told = page_of(tmp_path / "runs" / "comparison")
    assert "a leads on validation, but not on test." in told
    assert "On test the AUROC of a is lower than that of 2 of 2 other rows over the same films by more than" in told
    assert "AUROC, row minus first" in told
    assert 'class="verdict warning"' in (tmp_path / "runs" / "comparison" / "comparison.html").read_text()


def test_a_first_that_test_bears_out_is_said_without_and_the_vote_is_no_run(command: Command, sweep: Path) -> None:
    command("compare", f"runs={sweep}", QUICK)
    told = page_of(sweep / "comparison")
    assert "2 and soft vote of 3 lead on validation with the same AUROC, in the order of their names." in told
    assert "On test the AUROC of 2 is higher than that of 1 of 3 other rows" in told
    assert "Comparison of 3 runs" in told and "Comparison of 4 runs" not in told
    assert 'class="verdict "' in (sweep / "comparison" / "comparison.html").read_text()


def test_equal_runs_lead_together_and_one_run_leads_nobody(command: Command, tmp_path: Path) -> None:
    for name in "ab":
        make_run(tmp_path / name, rows_of())
    command("compare", "runs=[a,b]", QUICK, "output=both", "ensemble=0")
    told = page_of(tmp_path / "both")
    assert "a and b lead on validation with the same AUROC" in told
    assert "On test the AUROC of a can't be told from that of the 1 other row over the same films" in told
    command("compare", "runs=[a]", QUICK, "output=one")
    told = page_of(tmp_path / "one")
    assert "Comparison of 1 run " in told and "a is the only run. There is no other run" in told
    assert "Against the first" not in told and "0 of 0" not in told


def test_settings_that_differ_begin_with_the_model_and_say_where_they_are_cut(command: Command, tmp_path: Path) -> None:
    for name, model in (("a", "baseline"), ("b", "deep")):
        run = make_run(tmp_path / "runs" / name, rows_of(ord(name)), seed=ord(name))
        config = run / ".hydra" / "config.yaml"
        config.write_text(config.read_text() + "".join(f"x{k}: {name}{k}\n" for k in range(9)))
        (run / ".hydra" / "hydra.yaml").write_text(f"hydra: {{runtime: {{choices: {{model: {model}}}}}}}\n")
    command("compare", "runs=runs", QUICK, "ensemble=0")
    rows = {row["name"]: row["settings"].split() for row in board_of(tmp_path / "runs" / "comparison")["rows"]}
    assert rows["a"][0] == "model=baseline" and rows["b"][0] == "model=deep"
    assert [len(row) for row in rows.values()] == [7, 7] and {row[-1] for row in rows.values()} == {
        "\N{HORIZONTAL ELLIPSIS}"
    }
    command("evaluate", "run=runs/a", QUICK)
    assert "Model baseline, " in (tmp_path / "runs" / "a" / "report.html").read_text()
    (tmp_path / "runs" / "b" / ".hydra" / "hydra.yaml").unlink()
    command("compare", "runs=runs", QUICK, "ensemble=0")
    assert not [r for r in board_of(tmp_path / "runs" / "comparison")["rows"] if "model=" in r["settings"]]

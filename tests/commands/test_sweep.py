"""A sweep survives: nothing runs twice, a failure ends nothing else, a kill costs at most an epoch."""

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pneumonia.workflows.sweep import jobs_of, report, write_leaderboard

Command = Callable[..., None]
pytestmark = pytest.mark.usefixtures("unreported")
SMALL = ("trainer=cpu", "data.image_size=32", "data.batch_size=16", "epochs=2")


def table(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "leaderboard.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def started(sweep: Path) -> dict[str, str]:
    """{job: when its last attempt started}"""
    return {file.parent.name: json.loads(file.read_text())["started"] for file in sweep.glob("*/run.json")}


def test_finished_jobs_are_skipped_and_a_failed_one_ends_nothing_else(
    command: Command, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("-m", *SMALL, f"data.root={phantoms}", "optimizer.lr=1e38,0.001,0.002", "hydra.sweep.dir=sweep")
    sweep = tmp_path / "sweep"
    with pytest.raises(SystemExit) as ending:
        command("train", *typed)
    assert ending.value.code == 1
    rows = table(sweep)
    assert [row["status"] for row in rows] == ["finished", "finished", "failed"]
    assert float(rows[0]["value"]) >= float(rows[1]["value"])
    assert "nan or infinite at step" in rows[2]["reason"]
    assert not list(sweep.glob("*/predictions.csv")) or all(
        "test" not in json.loads(file.read_text()) for file in sweep.glob("*/metrics.json")
    )
    before = started(sweep)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        command("train", *typed)
    assert started(sweep) == before
    told = capsys.readouterr().out
    assert told.count("finished already, skipped") == 2 and told.count("failed already, skipped") == 1
    time.sleep(1.1)  # the clock of run.json counts seconds
    with pytest.raises(SystemExit):
        command("train", *typed, "retry_failed=true")
    again = [job for job, when in started(sweep).items() if when != before[job]]
    assert again == [rows[2]["job"]]


@pytest.mark.parametrize(("objective", "order"), [("val/auroc", ["b", "c", "a"]), ("val/loss", ["a", "c", "b"])])
def test_the_best_job_comes_first_and_one_without_a_value_last(
    tmp_path: Path, objective: str, order: list[str]
) -> None:
    for name, value in (("a", 0.1), ("b", 0.9), ("c", 0.5), ("failed", None)):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text("[]")
        told = {"status": "finished" if value else "failed", "objective": {"name": objective, "value": value}}
        (tmp_path / name / "run.json").write_text(json.dumps(told))
    write_leaderboard(tmp_path)
    assert [row["job"] for row in table(tmp_path)] == [*order, "failed"]


def test_jobs_of_two_objectives_are_ranked_each_among_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    made = (("a", "val/loss", 0.1), ("b", "val/auroc", 0.8), ("c", "val/auroc", 0.9), ("d", "val/loss", 0.4))
    for name, objective, value in made:
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text("[]")
        told = {"status": "failed", "objective": {"name": objective, "value": value}}
        (tmp_path / name / "run.json").write_text(json.dumps(told))
    report(tmp_path, jobs_of(tmp_path))
    assert [row["job"] for row in table(tmp_path)] == ["c", "b", "a", "d"]
    assert "jobs of val/auroc and val/loss are ranked each among their own" in caplog.text


def test_settings_that_do_not_go_together_end_no_other_job(command: Command, phantoms: Path, tmp_path: Path) -> None:
    """Each value goes with the first of the other, which is all that can be known before a search."""
    typed = (*SMALL, "trainer=debug", "-m", f"data.root={phantoms}", "border_out=0.1,0.5", "border_swap=0,0.8")
    with pytest.raises(SystemExit) as ending:
        command("train", *typed, "hydra.sweep.dir=sweep")
    assert ending.value.code == 1
    rows = table(tmp_path / "sweep")
    assert [row["status"] for row in rows] == ["finished"] * 3 + ["failed"]
    assert "border_out=0.5 lungs_out=0.0 border_swap=0.8: expected shares of one batch" in rows[3]["reason"]
    assert (tmp_path / "sweep" / "comparison" / "comparison.html").is_file()


def test_another_sweeps_folder_is_refused(command: Command, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("-m", "trainer=debug", "data.image_size=32", f"data.root={phantoms}", "hydra.sweep.dir=sweep")
    command("train", *small, "seed=1,2")

    def refused(*typed: str) -> str:
        with pytest.raises(SystemExit) as ending:
            command("train", *small, *typed)
        assert ending.value.code == 2
        return capsys.readouterr().err

    assert "another sweep is there" in refused("seed=3,4")
    Path("sweep/sweep.json").write_text("")
    assert "can't be read" in refused("seed=1,2")
    Path("sweep/sweep.json").unlink()
    assert "runs of no sweep are there" in refused("seed=1,2")


def test_jobs_keep_the_settings_they_were_trained_by_when_defaults_change(
    command: Command, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("-m", *SMALL, f"data.root={phantoms}", "model=compact", "seed=1,2,3", "hydra.sweep.dir=sweep")
    command("train", *typed)
    done, broken, begun = sorted(started(tmp_path / "sweep"))
    for job in (done, broken, begun):  # as if the default had been .1 then
        file = tmp_path / "sweep" / job / ".hydra" / "trained.yaml"
        file.write_text(file.read_text().replace("label_smoothing: 0.0", "label_smoothing: 0.1"))
    for job in (broken, begun):
        record = tmp_path / "sweep" / job / "run.json"
        record.write_text(record.read_text().replace('"finished"', '"interrupted"'))
    (tmp_path / "sweep" / begun / "checkpoints" / "last.ckpt").unlink()
    capsys.readouterr()
    command("train", *typed)
    told = capsys.readouterr().out
    assert f"{done}: finished already, skipped" in told and told.count("finished already") == 1
    for job, smoothing in ((done, 0.1), (broken, 0.1), (begun, 0.0)):
        saved = OmegaConf.load(tmp_path / "sweep" / job / ".hydra" / "config.yaml")
        assert saved.label_smoothing == smoothing
        changed = f"{job}: defaults have changed since it began (label_smoothing=0.1, now 0.0); it keeps its own"
        assert (changed in told) == (smoothing > 0)


def test_a_sweep_for_the_lowest_loss_is_compared_by_it(command: Command, phantoms: Path, tmp_path: Path) -> None:
    command("train", "-m", *SMALL, f"data.root={phantoms}", "objective=val/loss", "seed=1,2", "hydra.sweep.dir=sweep")
    assert json.loads((tmp_path / "sweep/comparison/comparison.json").read_text())["metric"] == "log_loss"


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_as_an_unbroken_one(command: Command, phantoms: Path, tmp_path: Path) -> None:
    typed = ("-m", *SMALL[:3], "epochs=4", f"data.root={phantoms}", "seed=1,2")
    words = [sys.executable, "-m", "pneumonia.train", *typed, f"hydra.sweep.dir={tmp_path / 'killed'}"]
    killed = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 100
    while len(list((tmp_path / "killed").glob("*/metrics.csv"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    finished = [job for job in started(tmp_path / "killed") if (tmp_path / "killed" / job / "metrics.json").exists()]
    before = started(tmp_path / "killed")
    for folder in ("killed", "unbroken"):
        command("train", *typed, f"hydra.sweep.dir={tmp_path / folder}")
    after = started(tmp_path / "killed")
    assert finished and all(after[job] == before[job] for job in finished)
    for job in after:
        for name in ("metrics.json", "predictions.csv"):
            pair = [(tmp_path / which / job / name).read_bytes() for which in ("unbroken", "killed")]
            assert pair[0] == pair[1]

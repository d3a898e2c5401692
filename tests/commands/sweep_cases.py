"""Sweeps that are killed and started again; also a tool: python tests/commands/sweep_cases.py shows two of them.

It runs a grid of six trials, one of which raises, and an Optuna search of ten, kills each (kill -9) in the midst of a
trial, starts it again with the same command, and sets the result beside that of one that nothing disturbed.
"""

import csv
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL = ("trainer=cpu", "data.image_size=64", "data.batch_size=16", "epochs=3")
GRID = (*SMALL, "optimizer.lr=0.001,0.002,0.003,1e38,0.004,0.005")
SEARCH = (*SMALL, "search=cnn", "hydra.sweeper.n_trials=10", "model=baseline")
COMPARED = ("metrics.json", "predictions.csv")


def start_sweep(films: Path, folder: Path, *typed: str) -> subprocess.Popen:
    """`train -m` in a process of its own; what it says goes to <folder>.log."""
    arguments = [*typed, f"data.root={films}", f"hydra.sweep.dir={folder}"]
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pneumonia.train", "-m", *arguments], stdout=log, stderr=subprocess.STDOUT
        )


def kill_in_trial(process: subprocess.Popen, folder: Path, number: int, seconds: float = 300) -> None:
    """Kill the sweep when its trial of that number (from 1) has finished an epoch and is still at work."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        at_work = [run for run in folder.glob("*/run.json") if status(run.parent) == "running"]
        if len(list(folder.glob("*/run.json"))) == number and any(
            (run.parent / "metrics.csv").exists() for run in at_work
        ):
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def status(job: Path) -> str:
    return str(json.loads((job / "run.json").read_text())["status"])


def attempts(folder: Path) -> dict[str, list[str]]:
    """{job: when each of its attempts began}"""
    told = {run.parent.name: json.loads(run.read_text()) for run in folder.glob("*/run.json")}
    return {
        job: [attempt["started"] for attempt in [*record.get("earlier_attempts", []), record] if "started" in attempt]
        for job, record in told.items()
    }


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "leaderboard.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def without_times(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_as_unbroken(unbroken: Path, killed: Path, before: dict[str, list[str]]) -> None:
    """The same trials with the same ends; of `before`, the attempts when it was killed, one trial alone went on."""
    told = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in table(folder)] for folder in (unbroken, killed)
    ]
    assert told[0] == told[1]
    for job in attempts(unbroken):
        for name in COMPARED:
            pair = [folder / job / name for folder in (unbroken, killed)]
            assert pair[0].exists() == pair[1].exists(), (job, name)
            assert not pair[0].exists() or pair[0].read_bytes() == pair[1].read_bytes(), (job, name)
    after = attempts(killed)
    went_on = [job for job in before if after[job] != before[job]]
    assert len(went_on) == 1 and len(after[went_on[0]]) == 2
    assert all(len(after[job]) == 1 for job in after if job not in went_on)


def killed_and_unbroken(films: Path, folder: Path, typed: tuple[str, ...], number: int) -> tuple[Path, Path, list[int]]:
    """Both sweeps, checked against each other, and the exit codes of the unbroken and of the one that went on."""
    unbroken, killed = folder / "unbroken", folder / "killed"
    folder.mkdir(exist_ok=True)
    codes = [start_sweep(films, unbroken, *typed).wait(600)]
    kill_in_trial(start_sweep(films, killed, *typed), killed, number)
    before = attempts(killed)
    codes.append(start_sweep(films, killed, *typed).wait(600))
    assert_as_unbroken(unbroken, killed, before)
    return unbroken, killed, codes


def main() -> None:
    from pneumonia.data.synthetic import draw_films

    folder = Path(tempfile.mkdtemp())
    draw_films(folder / "films", 80, seed=1)
    for name, typed, number in (("grid", GRID, 5), ("search", SEARCH, 7)):
        _, killed, codes = killed_and_unbroken(folder / "films", folder / name, typed, number)
        print(f"{name}: exit codes {codes}; killed in trial {number}; trials, values and bytes as of the unbroken one")
        for row in table(killed):
            print("  ", *(row[key] for key in ("job", "status", "value", "overrides", "reason")))


if __name__ == "__main__":
    main()

"""Runs that are killed and gone on with; also a tool: python tests/commands/resume_cases.py 50 does it 50 times.

Each trial starts a short run on phantom films, kills it (kill -9) at a random instant of its life, goes on with it, and
compares weights, metrics.json, predictions.csv and the history with those of a run that was never killed.
"""

import csv
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

SETTINGS = (
    "trainer=cpu",
    "data.image_size=32",
    "data.batch_size=16",
    "epochs=4",
    "model.dropout=0.3",
    "augment=strong",
    "mixup=0.2",
    "ema=0.9",
    "deterministic=true",
)
TIMES = ("images_per_second", "waiting_for_data")


def start(
    films: Path, folder: Path, *, resume: bool = False, epochs: int = 4, settings: Sequence[str] = SETTINGS
) -> subprocess.Popen:
    """The command in a process of its own."""
    others = [word for word in settings if not word.startswith("epochs=")]
    fresh = [*others, f"epochs={epochs}", f"data.root={films}", f"hydra.run.dir={folder}"]
    typed = [f"resume={folder}"] if resume else fresh
    return subprocess.Popen(
        [sys.executable, "-m", "pneumonia.train", *typed], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )


def undisturbed(films: Path, folder: Path, settings: Sequence[str] = SETTINGS, epochs: int = 4) -> Path:
    """A run that nothing disturbed, in this process and without its report."""
    from pneumonia.train import main

    others = [word for word in settings if not word.startswith("epochs=")]
    typed = [*others, f"epochs={epochs}", f"data.root={films}", f"hydra.run.dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pneumonia.workflows.experiment.after_training", lambda _: None)
        patch.setattr("sys.argv", ["pneumonia.train", *typed])
        main()
    torch.use_deterministic_algorithms(False)  # what deterministic=true leaves on
    return folder


def kill_after(process: subprocess.Popen, folder: Path, share: float, unbroken: Path) -> None:
    """Kill the process at about `share` of the time that the unbroken run took, counted from the start of the run."""
    end = time.monotonic() + 120
    while not (folder / "run.json").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(share * json.loads((unbroken / "run.json").read_text())["seconds"])
    process.send_signal(signal.SIGKILL)
    process.wait()


def pause_in_epoch(folder: Path, epochs: int, seconds: float = 60) -> None:
    """Wait until `epochs` rows stand in metrics.csv."""
    end = time.monotonic() + seconds
    file = folder / "metrics.csv"
    while time.monotonic() < end:
        if file.exists() and len(file.read_text().splitlines()) > epochs:
            return
        time.sleep(0.005)
    raise TimeoutError(folder)


def go_on(films: Path, folder: Path) -> int:
    """Go on with a killed run; one that had finished before the kill, or had not begun, needs nothing."""
    if not (folder / "run.json").exists():
        return start(films, folder).wait(120)
    if json.loads((folder / "run.json").read_text())["status"] == "finished":
        return 0
    return start(films, folder, resume=True).wait(120)


def interrupted(
    command: Callable[..., None],
    films: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: str = "outputs/run",
    settings: Sequence[str] = SETTINGS,
    epochs: int = 2,
) -> Path:
    """A run that Ctrl-C ended when `epochs` were done."""
    from pneumonia.training.callbacks import History

    real = History.on_train_epoch_start

    def stop(self: History, trainer, pl_module) -> None:
        real(self, trainer, pl_module)
        if trainer.current_epoch == epochs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", stop)
        with pytest.raises(SystemExit):
            command("train", *settings, f"data.root={films}", f"hydra.run.dir={folder}")
    return Path(folder).resolve()


def rows_without_times(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(stream)]


def assert_same_end(unbroken: Path, resumed: Path) -> None:
    """The same bytes where bytes are compared, the same tensors in both checkpoints, the same history."""
    for name in ("metrics.json", "predictions.csv", "manifest.csv"):
        assert (resumed / name).read_bytes() == (unbroken / name).read_bytes(), name
    for name, state in (("best.ckpt", "state_dict"), ("last.ckpt", "state_dict"), ("last.ckpt", "current_model_state")):
        saved = [torch.load(run / "checkpoints" / name, weights_only=True) for run in (unbroken, resumed)]
        first, second = (checkpoint.get(state, {}) for checkpoint in saved)
        assert (state in saved[0]) == (state in saved[1])
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), f"{state} of {name}"
    assert rows_without_times(resumed) == rows_without_times(unbroken)


def main(kills: int) -> None:
    from pneumonia.data.synthetic import draw_films

    folder = Path(tempfile.mkdtemp())
    draw_films(folder / "films", 80, seed=1)
    assert start(folder / "films", folder / "unbroken").wait() == 0
    draw = random.Random(0)
    same = 0
    for number in range(kills):
        run, share = folder / f"run{number}", draw.random()
        kill_after(start(folder / "films", run), run, share, folder / "unbroken")
        had = len(rows_without_times(run)) if (run / "metrics.csv").exists() else 0
        try:
            assert go_on(folder / "films", run) == 0
            assert_same_end(folder / "unbroken", run)
            same += 1
        except AssertionError as error:
            print(f"kill {number} at {share:.2f}: NOT the same: {error}")
        else:
            print(f"kill {number} at {share:.2f}, {had} epochs done: the same")
    print(f"{same} of {kills} ended with the same bytes")


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""What SIGTERM and Ctrl-C leave of a run, and what it says then."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_cases import SETTINGS

from pneumonia.training.classifier import Classifier
from pneumonia.workflows import experiment

Command = Callable[..., None]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A job in a shell's background ignores Ctrl-C, and so would pytest there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("where", "status", "told"),
    [
        ("predict", "interrupted", "goes on"),
        ("after_training", "finished", "python -m pneumonia.evaluate run="),
        ("films_of", None, "Interrupted before the run began"),
    ],
)
def test_sigterm_ends_a_run_wherever_it_is(
    command: Command, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    where: str, status: str | None, told: str,
) -> None:  # fmt: skip
    def killed(*arguments: Any, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(experiment, where, killed)
    with pytest.raises(SystemExit) as ending:
        command("train", *SETTINGS, f"data.root={phantoms}", "hydra.run.dir=run")
    assert ending.value.code == 143 and told in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == handler
    if status:
        assert json.loads(Path("run/run.json").read_text())["status"] == status


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("first", "again"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_a_second_signal_does_not_break_off_the_writing_of_the_first(
    command: Command, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    first: signal.Signals, again: signal.Signals,
) -> None:  # fmt: skip
    handlers = [signal.getsignal(number) for number in (first, again)]
    monkeypatch.setattr(experiment, "predict", lambda *_: os.kill(os.getpid(), first))
    monkeypatch.setattr("pneumonia.workflows.ending.end_children", lambda: os.kill(os.getpid(), again))
    with pytest.raises(SystemExit) as ending:
        command("train", *SETTINGS, f"data.root={phantoms}", "hydra.run.dir=run")
    assert ending.value.code == (143 if first == signal.SIGTERM else 130)
    said = capsys.readouterr().out
    assert said.count("Interrupted") == 1 and "goes on" in said
    record = json.loads(Path("run/run.json").read_text())
    assert (record["status"], record["reason"]) == ("interrupted", first.name)
    assert [signal.getsignal(number) for number in (first, again)] == handlers


@pytest.mark.usefixtures("unreported")
def test_sigterm_ends_a_run_with_a_message_and_whole_checkpoints(
    command: Command, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of the third epoch."""
    real, folder = Classifier.training_step, Path("run")

    def killed(self: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
        if (self.current_epoch, batch_idx) == (2, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", killed)
    with pytest.raises(SystemExit) as ending:
        command("train", *SETTINGS, f"data.root={phantoms}", "hydra.run.dir=run")
    assert ending.value.code == 143
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert "last.ckpt holds the last whole epoch" in (folder / "train.log").read_text()
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1

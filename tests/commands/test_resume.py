"""A run that was killed at any instant goes on to the same bytes as one that never was."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from resume_cases import SETTINGS, assert_same_end, go_on, interrupted, kill_after, pause_in_epoch, start, undisturbed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Command = Callable[..., None]
pytestmark = pytest.mark.usefixtures("unreported")


@pytest.fixture(scope="module")
def unbroken(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs that nothing disturbed."""
    return undisturbed(phantoms, tmp_path_factory.mktemp("unbroken") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.35, 0.6, 0.85])
def test_a_run_killed_at_some_instant_ends_as_one_that_was_not(
    unbroken: Path, phantoms: Path, tmp_path: Path, share: float
) -> None:
    folder = tmp_path / "run"
    kill_after(start(phantoms, folder), folder, share, unbroken)
    assert go_on(phantoms, folder) == 0
    assert_same_end(unbroken, folder)


def test_a_run_killed_in_its_third_epoch_ends_as_one_that_was_not_and_its_curves_have_no_gap(
    unbroken: Path, command: Command, phantoms: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = start(phantoms, folder)
    pause_in_epoch(folder, 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    command("train", f"resume={folder}")
    assert_same_end(unbroken, folder)
    for tag in ("val/loss", "train/loss", "learning_rate"):
        curves = []
        for run in (unbroken, folder):
            events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0}).Reload()
            curves.append([(event.step, event.value) for event in events.Scalars(tag)])
        assert curves[0] == curves[1], tag


def test_last_means_the_newest_run_that_has_not_finished(
    unbroken: Path, command: Command, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupted(command, phantoms, monkeypatch)
    command("train", "resume=last")
    assert_same_end(unbroken, folder)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert [attempt["status"] for attempt in record["earlier_attempts"]] == ["interrupted"]


def test_a_moved_run_goes_on_and_keeps_its_best(
    unbroken: Path, command: Command, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = interrupted(command, phantoms, monkeypatch).rename(tmp_path / "elsewhere")
    command("train", f"resume={moved}")
    assert_same_end(unbroken, moved)


def test_typed_in_another_folder_a_run_finds_the_list_of_films_that_was_named_by_a_relative_path(
    unbroken: Path, command: Command, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "films.csv").write_bytes((unbroken / "manifest.csv").read_bytes())
    settings = (*SETTINGS, "data.manifest=films.csv")
    folder = interrupted(command, phantoms, monkeypatch, settings=settings)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    command("train", f"resume={folder}")
    assert_same_end(unbroken, folder)


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_and_says_so(
    unbroken: Path,
    command: Command,
    phantoms: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = interrupted(command, phantoms, monkeypatch)
    last = folder / "checkpoints" / "last.ckpt"
    os.truncate(last, last.stat().st_size // 2)
    command("train", f"resume={folder}")
    told = capsys.readouterr().out
    assert "last.ckpt is damaged; going on from the one before it" in told and "after epoch 1" in told
    for name in ("last.ckpt", "previous.ckpt"):  # the damaged one did not take the good one's place
        torch.load(folder / "checkpoints" / name, weights_only=True)
    assert_same_end(unbroken, folder)


def test_a_disk_that_fills_during_a_checkpoint_leaves_the_former_one_and_one_line(
    unbroken: Path,
    command: Command,
    phantoms: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import resource

    from pneumonia.training.checkpoint import AtomicCheckpointIO

    real, limits = AtomicCheckpointIO.save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self: AtomicCheckpointIO, checkpoint, path, storage_options=None) -> None:
        size = 300_000 if checkpoint["epoch"] == 2 and Path(path).name == "last.ckpt" else limits[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # bytes a file may have: less than a checkpoint's
        try:
            real(self, checkpoint, path, storage_options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    folder = Path("outputs/run").resolve()
    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", full)
        with pytest.raises(SystemExit) as ending:
            command("train", *SETTINGS, f"data.root={phantoms}", f"hydra.run.dir={folder}")
    told = capsys.readouterr()
    assert ending.value.code == 2 and "Traceback" not in told.out + told.err
    assert "last.ckpt can't be written (" in told.out and f"resume={folder}" in told.out
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1
    assert not [file for file in (folder / "checkpoints").iterdir() if file.name.startswith(".")]
    command("train", f"resume={folder}")
    assert_same_end(unbroken, folder)


def test_last_passes_over_what_never_began_or_cannot_be_read(
    command: Command, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumonia.workflows.resume import newest_unfinished

    folder = interrupted(command, phantoms, monkeypatch)
    older = '{"status": "interrupted", "started": "2000-01-01T00:00:00+0000"}'
    for name, content in (("unstarted", '{"status": "failed"}'), ("emptied", ""), ("older", older)):
        (Path("outputs") / name).mkdir()
        (Path("outputs") / name / "run.json").write_text(content)
    assert newest_unfinished() == folder


def test_a_run_goes_on_though_files_beside_its_checkpoints_were_emptied(
    unbroken: Path, command: Command, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a crash of the machine may leave them; what a kill in the midst of a checkpoint left is cleared away."""
    folder = interrupted(command, phantoms, monkeypatch)
    (folder / "run.json").write_text("")
    (folder / "metrics.csv").write_text("")
    left = folder / "checkpoints" / ".last.ckpt.4711"
    left.write_bytes(b"half")
    for checkpoint in folder.glob("checkpoints/*.ckpt"):
        checkpoint.unlink()
    command("train", f"resume={folder}")
    assert not left.exists()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["earlier_attempts"] == [{"status": "damaged"}]
    assert (folder / "predictions.csv").read_bytes() == (unbroken / "predictions.csv").read_bytes()


def test_early_stopping_decided_before_a_kill_is_kept(tmp_path: Path) -> None:
    from pneumonia.training.callbacks import StopEarly

    class Trainer:
        should_stop = False

    def stops(patience: int, waited: int) -> bool:
        stop, trainer = StopEarly("val/loss", patience=patience), Trainer()
        stop.wait_count = waited
        stop.on_train_start(trainer, None)  # type: ignore[arg-type]
        return trainer.should_stop

    assert stops(2, 2) and not stops(2, 1)
    assert stops(0, 1) and not stops(0, 0)  # with patience=0 a run must begin all the same

"""A run that was killed at any instant goes on to the same bytes as one that never was."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from resume_cases import SETTINGS, assert_same_end, go_on, interrupted, kill_after, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pneumonia.config import compose
from pneumonia.workflows import experiment
from pneumonia.workflows.resume import resumed_arguments

Command = Callable[..., None]


@pytest.fixture(scope="module")
def unbroken(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert start(phantoms, folder).wait(120) == 0
    return folder


def pause_in_epoch(folder: Path, epochs: int, seconds: float = 60) -> None:
    """Wait until `epochs` rows stand in metrics.csv."""
    end = time.monotonic() + seconds
    file = folder / "metrics.csv"
    while time.monotonic() < end:
        if file.exists() and len(file.read_text().splitlines()) > epochs:
            return
        time.sleep(0.005)
    raise TimeoutError(folder)


@pytest.mark.parametrize("share", [0.35, 0.6, 0.85])
def test_a_run_killed_at_some_instant_ends_as_one_that_was_not(
    unbroken: Path, phantoms: Path, tmp_path: Path, share: float
) -> None:
    folder = tmp_path / "run"
    kill_after(start(phantoms, folder), folder, share, unbroken)
    assert go_on(phantoms, folder) == 0
    assert_same_end(unbroken, folder)


def test_the_curves_go_on_without_gap_or_repeat(unbroken: Path, phantoms: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(phantoms, folder)
    pause_in_epoch(folder, 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start(phantoms, folder, resume=True).wait(120) == 0
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


def test_settings_that_differ_are_refused_with_a_list_unless_forced(
    command: Command, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = interrupted(command, phantoms, monkeypatch)
    with pytest.raises(SystemExit):
        command("train", f"resume={folder}", "optimizer.lr=0.5", "seed=3")
    told = capsys.readouterr().err
    assert "optimizer.lr: the run has 0.001, now 0.5" in told and "seed: the run has 0, now 3" in told
    assert "force=true" in told
    command("train", f"resume={folder}", "epochs=3", "force=true")
    assert json.loads((folder / "run.json").read_text())["epochs"] == 3


def test_a_run_keeps_its_own_settings_though_the_defaults_have_changed(
    command: Command, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if label_smoothing's default and a step of the augmentation had been others when the run began."""
    folder = interrupted(command, phantoms, monkeypatch)
    file = folder / ".hydra" / "config.yaml"
    saved = OmegaConf.load(file)
    saved.label_smoothing, saved.augment.steps = 0.07, [{"_target_": "albumentations.HorizontalFlip", "p": 0.25}]
    OmegaConf.save(saved, file)
    before = {file.name: file.read_bytes() for file in (folder / ".hydra").glob("*.yaml")}
    seen: list[Any] = []
    monkeypatch.setattr("pneumonia.workflows.experiment.after_training", lambda folder: None)
    real = experiment.build_datamodule
    monkeypatch.setattr(
        experiment, "build_datamodule", lambda config, films: seen.append(config) or real(config, films)
    )
    command("train", f"resume={folder}")
    assert seen[0].label_smoothing == 0.07 and seen[0].augment["steps"] == [
        {"_target_": "albumentations.HorizontalFlip", "p": 0.25}
    ]
    assert seen[0].mixup == 0.2 and seen[0].model["dropout"] == 0.3  # as typed when it began
    assert before == {file.name: file.read_bytes() for file in (folder / ".hydra").glob("*.yaml")}


def test_a_run_of_an_earlier_version_takes_nothing_from_what_its_experiment_says_today(
    command: Command, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had been experiment=record when standardize was true or false and the last epoch could not be kept."""
    folder = interrupted(command, phantoms, monkeypatch)
    hydra = folder / ".hydra"
    saved = OmegaConf.to_container(OmegaConf.load(hydra / "config.yaml"))
    assert isinstance(saved, dict) and saved["keep"] == "best"
    old = {name: value for name, value in saved.items() if name not in ("keep", "crop_average")} | {"standardize": True}
    OmegaConf.save(OmegaConf.create(old), hydra / "config.yaml")
    typed = [*OmegaConf.load(hydra / "overrides.yaml"), "experiment=record"]
    OmegaConf.save(OmegaConf.create(typed), hydra / "overrides.yaml")
    config = compose("train", resumed_arguments([f"resume={folder}"]))
    assert (config.keep, config.crop_average, config.standardize) == ("best", False, "centre")
    assert config.epochs == saved["epochs"] and config.mixup == saved["mixup"]


def test_what_is_refused_leaves_the_runs_settings_and_what_is_forced_is_kept(
    command: Command, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = interrupted(command, phantoms, monkeypatch)
    before = {file.name: file.read_bytes() for file in (folder / ".hydra").glob("*.yaml")}
    for typed, message in (
        (["data.val_fraction=0.3"], "the films are not those of the run"),
        (["model=compact"], "the model is not that of the checkpoint"),
        (["optimizer=sgd"], "holds the state of torch.optim.Adam, which torch.optim.SGD can't go on with"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            command("train", f"resume={folder}", "force=true", *typed)
        said = capsys.readouterr()
        assert ending.value.code == 2 and message in said.out + said.err and "Traceback" not in said.out + said.err
        assert before == {file.name: file.read_bytes() for file in (folder / ".hydra").glob("*.yaml")}, typed
    command("train", f"resume={folder}", "force=true", "optimizer.lr=0.005", "epochs=3")
    assert OmegaConf.load(folder / ".hydra" / "config.yaml").optimizer.lr == 0.005
    assert "optimizer.lr=0.005" in OmegaConf.load(folder / ".hydra" / "overrides.yaml")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["-m", "seed=1,2"], "-m beside resume=: one run goes on"),
        (["hydra.run.dir=elsewhere"], "hydra.run.dir=elsewhere beside resume="),
        (["force=maybe"], "force=maybe: expected true or false"),
    ],
)
def test_what_does_not_go_with_resume_is_refused(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], typed: list[str], message: str
) -> None:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / ".hydra" / "overrides.yaml").write_text("[]")
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(SystemExit) as ending:
        command("train", "resume=run", *typed)
    assert ending.value.code == 2 and message in capsys.readouterr().err
    (tmp_path / "run" / "sweep.json").write_text("{}")
    with pytest.raises(SystemExit):
        command("train", "resume=run")
    assert "this is a sweep's folder" in capsys.readouterr().err


def test_last_passes_over_what_never_began_or_cannot_be_read(
    command: Command, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumonia.workflows.resume import newest_unfinished

    folder = interrupted(command, phantoms, monkeypatch)
    for name, content in (("unstarted", '{"status": "failed"}'), ("emptied", "")):
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


def test_what_cannot_be_resumed_is_refused(
    command: Command, phantoms: Path, films_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refused(*typed: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit):
            command("train", *typed)
        told = capsys.readouterr()
        assert "Traceback" not in told.out + told.err
        return told.out + told.err

    assert "not a run folder" in refused(f"resume={tmp_path}")
    assert "is finished; name a folder" in refused("resume=last")
    folder = interrupted(command, films_copy, monkeypatch)
    film = next((films_copy / "train" / "NORMAL").iterdir())
    film.rename(film.with_name("IM-9999-0001.png"))
    assert "the films are not those of the run" in refused(f"resume={folder}")
    film.with_name("IM-9999-0001.png").rename(film)
    command("train", f"resume={folder}")
    assert "this run is finished" in refused(f"resume={folder}")


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


def test_sigterm_ends_a_run_with_a_message_and_whole_checkpoints(phantoms: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(phantoms, folder, epochs=200)
    pause_in_epoch(folder, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert "last.ckpt holds the last whole epoch" in (folder / "train.log").read_text()
    torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)

"""With which settings and which films a run goes on."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from resume_cases import SETTINGS, interrupted

from pneumonia.config import compose, quoted
from pneumonia.workflows import experiment
from pneumonia.workflows.resume import resumed_arguments, value_of

Command = Callable[..., None]
pytestmark = pytest.mark.usefixtures("unreported")


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
        (["objective=val/loss"], "objective=val/loss: best.ckpt was kept by objective=val/accuracy"),
        (["keep=last"], "keep=last: best.ckpt was kept by keep=best"),
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
    rates = [float(row["learning_rate"]) for row in csv.DictReader((folder / "metrics.csv").open())]
    assert rates[2:] == [0.005] and 0.005 not in rates[:2]


@pytest.mark.parametrize(("before", "now"), [("0.9", "null"), ("null", "0.9")])
def test_averaged_weights_go_on_averaged_and_plain_ones_plain(
    command: Command, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    before: str, now: str,
) -> None:  # fmt: skip
    folder = interrupted(command, phantoms, monkeypatch, settings=(*SETTINGS, f"ema={before}"))
    with pytest.raises(SystemExit) as ending:
        command("train", f"resume={folder}", "force=true", f"ema={now}")
    state = "not averaged" if before == "null" else "averaged"
    assert ending.value.code == 2
    assert f"ema={now}: the weights of the checkpoint are {state}; start a new run" in capsys.readouterr().err
    command("train", f"resume={folder}")
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_fewer_epochs_than_are_done_are_refused_where_none_was_validated(
    command: Command, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = interrupted(command, phantoms, monkeypatch, settings=(*SETTINGS, "validate_every=3"))
    with pytest.raises(SystemExit) as ending:
        command("train", f"resume={folder}", "force=true", "epochs=2")
    assert ending.value.code == 2
    assert "epochs=2: 2 are done and none of them was validated" in capsys.readouterr().err
    command("train", f"resume={folder}", "force=true", "epochs=3")
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_a_path_with_an_apostrophe_is_read_as_it_is_told() -> None:
    for path in ("/home/o'brien/run", "/a b/c,d=e", "C:\\runs\\1"):
        assert value_of(f"resume={quoted(path)}") == path
    for path in ("/plain/run", "20240101_120000", "1234e56789", "null"):
        assert value_of(f"resume={path}") == path
    assert value_of("resume='a") == "a"


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
    assert "there is no run below" in refused("resume=last")
    folder = interrupted(command, films_copy, monkeypatch)
    film = next((films_copy / "train" / "NORMAL").iterdir())
    film.rename(film.with_name("IM-9999-0001.png"))
    assert "the films are not those of the run" in refused(f"resume={folder}")
    film.with_name("IM-9999-0001.png").rename(film)
    content, other = film.read_bytes(), next((films_copy / "train" / "PNEUMONIA").iterdir())
    film.write_bytes(other.read_bytes() + b" ")  # other pixels under the same name
    assert "the films are not those of the run" in refused(f"resume={folder}")
    film.write_bytes(content)
    kept = (folder / ".hydra" / "config.yaml").read_bytes()
    for damaged in (b"a: [", b"", b"\xff"):
        (folder / ".hydra" / "config.yaml").write_bytes(damaged)
        assert "config.yaml can't be read" in refused(f"resume={folder}")
    (folder / ".hydra" / "config.yaml").write_bytes(kept)
    kept = (folder / ".hydra" / "overrides.yaml").read_bytes()
    (folder / ".hydra" / "overrides.yaml").write_bytes(b"- a: [")
    assert "overrides.yaml can't be read" in refused(f"resume={folder}")
    (folder / ".hydra" / "overrides.yaml").write_bytes(kept)
    command("train", f"resume={folder}")
    assert "this run is finished" in refused(f"resume={folder}")
    assert "is finished; name a folder" in refused("resume=last")
    assert "a run is there already" in refused("resume=null", f"data.root={films_copy}", f"hydra.run.dir={folder}")

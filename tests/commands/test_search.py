"""An Optuna search that was broken off ends with the trials of one that was not."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from sweep_cases import GRID, SEARCH, killed_and_unbroken, table

from pneumonia.config import choices, compose, typed

Command = Callable[..., None]
SHORT = (
    "-m", "search=cnn", "trainer=cpu", "data.image_size=64", "hydra.sweeper.n_trials=6",
    "hydra.sweeper.sampler.n_startup_trials=3",
)  # fmt: skip


class StandIn:
    """Takes the place of a training: half of its runs reach the same objective, some fail, one may be broken off."""

    def __init__(self, break_at: int = 0) -> None:
        self.ran: list[str] = []
        self.break_at = break_at

    def __call__(self, config) -> float:
        folder = Path(config.resume or HydraConfig.get().runtime.output_dir)
        self.write(folder, status="running")
        self.ran.append(folder.name)
        if len(self.ran) == self.break_at:
            raise SystemExit(137)
        if config.label_smoothing and config.model["dropout"]:
            raise RuntimeError("no luck")
        value = 0.5 if config.model["dropout"] else -math.log10(config.optimizer["lr"]) / 5
        self.write(folder, status="finished", objective={"name": config.objective, "value": value})
        return value

    def write(self, folder: Path, **content) -> None:
        (folder / "run.json").write_text(json.dumps(content))


def search(
    command: Command, monkeypatch: pytest.MonkeyPatch, phantoms: Path, *typed: str, break_at: int = 0
) -> StandIn:
    stand_in = StandIn(break_at)
    monkeypatch.setattr("pneumonia.workflows.experiment.fit_and_test", stand_in)
    with pytest.raises(SystemExit):  # some trials fail
        command("train", *SHORT, f"data.root={phantoms}", *typed)
    return stand_in


def test_a_search_that_goes_on_proposes_the_trials_of_an_unbroken_one_and_runs_none_twice(
    command: Command,
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unbroken = search(command, monkeypatch, phantoms, "hydra.sweep.dir=unbroken")
    assert len(set(unbroken.ran)) == 6
    begun = search(command, monkeypatch, phantoms, "hydra.sweep.dir=broken", break_at=5)
    again = search(command, monkeypatch, phantoms, "hydra.sweep.dir=broken")
    assert begun.ran == unbroken.ran[:5] and again.ran == unbroken.ran[4:]
    rows = table(tmp_path / "unbroken")
    assert rows == table(tmp_path / "broken")
    assert {"finished", "failed"} == {row["status"] for row in rows}
    finished = [float(row["value"]) for row in rows if row["status"] == "finished"]
    best = OmegaConf.load(tmp_path / "unbroken" / "optimization_results.yaml").best_value
    assert finished == sorted(finished, reverse=True) and best == pytest.approx(finished[0])  # no failed trial is best
    more = search(command, monkeypatch, phantoms, "hydra.sweep.dir=broken", "hydra.sweeper.n_trials=7")
    assert len(more.ran) == 1
    several = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")  # proposed together
    for other in (("hydra.sweeper.sampler.seed=5",), several):
        with pytest.raises(SystemExit) as ending:
            command("train", *SHORT, f"data.root={phantoms}", "hydra.sweep.dir=broken", *other)
        assert ending.value.code == 2 and "another sweep is there" in capsys.readouterr().err


@pytest.mark.parametrize("name", choices("search"))
def test_every_value_that_a_search_may_propose_composes(name: str) -> None:
    assert compose("train", [f"search={name}", "objective=val/loss"]).hydra.sweeper.direction == "minimize"
    composed = compose("train", [f"search={name}"])
    assert composed.hydra.sweeper.direction == "maximize"
    for key, space in composed.hydra.sweeper.params.items():
        value = OverridesParser.create().parse_override(f"{key}={space}").value()
        for proposed in getattr(value, "list", None) or (value.start, value.end):
            typed("train", compose("train", [f"search={name}", f"{key}={proposed}"]))


def test_a_search_without_m_and_a_missing_extra_are_told_in_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*typed: str) -> str:
        with pytest.raises(SystemExit) as ending:
            command("train", *typed)
        assert ending.value.code == 2
        return capsys.readouterr().err

    assert "n_trails" in told("-m", "search=cnn", "hydra.sweeper.n_trails=3")
    assert told("search=cnn") == "pneumonia.train: search=cnn: a search is a sweep; type -m beside it.\n"

    def missing(package: str) -> str:
        from importlib.metadata import PackageNotFoundError

        raise PackageNotFoundError(package)

    monkeypatch.setattr("pneumonia.entry.version", missing)
    assert "uv run --extra optuna" in told("-m", "search=cnn")
    assert "uv sync --extra joblib" in told("-m", "seed=1,2", "hydra/launcher=joblib")
    assert "uv sync --extra slurm" in told("-m", "seed=1,2", "hydra/launcher=submitit_slurm")


@pytest.mark.slow
def test_a_grid_with_a_trial_that_raises_survives_a_kill(phantoms: Path, tmp_path: Path) -> None:
    _, killed, codes = killed_and_unbroken(phantoms, tmp_path / "grid", GRID, 5)
    assert codes == [1, 1]
    rows = table(killed)
    assert len(rows) == 6 and [row["status"] for row in rows] == ["finished"] * 5 + ["failed"]


@pytest.mark.slow
def test_a_search_of_ten_trials_survives_a_kill(phantoms: Path, tmp_path: Path) -> None:
    _, killed, codes = killed_and_unbroken(phantoms, tmp_path / "search", SEARCH, 7)
    assert codes == [0, 0]
    assert [row["status"] for row in table(killed)] == ["finished"] * 10
    assert (killed / "comparison" / "comparison.html").exists()

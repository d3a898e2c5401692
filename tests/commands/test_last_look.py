"""`evaluate test=true`: the test films of a run that left them alone, as it would have predicted them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pneumonia.workflows.sources import read_predictions

Command = Callable[..., None]
QUICK = "resamples=200"


@pytest.fixture
def untested(run: Path, tmp_path: Path) -> Path:
    """The run as `test=false` leaves it."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    lines = (copy / "predictions.csv").read_text().splitlines(keepends=True)
    (copy / "predictions.csv").write_text("".join(line for line in lines if ",test," not in line))
    metrics = json.loads((copy / "metrics.json").read_text())
    (copy / "metrics.json").write_text(json.dumps({"val": metrics["val"]}))
    settings = copy / ".hydra" / "config.yaml"
    assert "\ntest: true" in settings.read_text()
    settings.write_text(settings.read_text().replace("\ntest: true", "\ntest: false"))
    return copy


def test_it_predicts_what_training_would_have(run: Path, untested: Path, command: Command, capsys: Any) -> None:
    val = (untested / "predictions.csv").read_text()
    command("evaluate", f"run={untested}", QUICK, "test=true")
    assert (untested / "predictions.csv").read_text().startswith(val)
    now, then = (read_predictions(folder / "predictions.csv").splits["test"] for folder in (untested, run))
    for name in ("path", "label", "patient"):
        assert getattr(now.films, name).tolist() == getattr(then.films, name).tolist()
    assert now.subtype.tolist() == then.subtype.tolist() and now.logit == pytest.approx(then.logit, abs=1e-4)
    made, trained = (json.loads((folder / "metrics.json").read_text()) for folder in (untested, run))
    assert made["val"] == trained["val"] and made["test"] == pytest.approx(trained["test"], abs=1e-4)
    evidence = json.loads((untested / "evidence.json").read_text())
    assert evidence["judged"] == "test" and evidence["splits"]["test"]["n"] == now.films.label.size
    assert "test=true" in (untested / "report.html").read_text() and "test films predicted" in capsys.readouterr().out


def test_again_it_predicts_nothing_anew(untested: Path, command: Command, capsys: Any) -> None:
    command("evaluate", f"run={untested}", QUICK, "test=true")
    before = [(untested / name).read_bytes() for name in ("predictions.csv", "metrics.json", "evidence.json")]
    (untested / "checkpoints" / "best.ckpt").unlink()
    capsys.readouterr()
    command("evaluate", f"run={untested}", QUICK, "test=true")
    assert "has the test films already" in capsys.readouterr().out
    assert [(untested / name).read_bytes() for name in ("predictions.csv", "metrics.json", "evidence.json")] == before


def test_a_threshold_that_options_chose_is_not_replaced_in_silence(
    untested: Path, command: Command, capsys: Any
) -> None:
    command("evaluate", f"run={untested}", QUICK, "operating_point.rule=youden", "calibration=platt")
    command("evaluate", f"run={untested}", QUICK, "test=true")
    told = capsys.readouterr()
    assert "locked with other options" in told.out + told.err
    assert "operating_point.rule=youden" in told.out + told.err


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("none", "test=true: no film of split test stands in"),
        ("gone", "test=true needs the test films of the manifest: 20 are not there (test/"),
        ("other", "changed since the manifest was written (another SHA-256)"),
        ("unknown", "does not say where they are"),
        ("option", "stress=true first"),
        ("checkpoint", "best.ckpt"),
        ("table", "test=true needs the model and its films: type run="),
    ],
)
def test_what_it_needs_and_is_not_there_is_one_line(
    untested: Path, command: Command, capsys: Any, how: str, message: str
) -> None:
    typed, options = f"run={untested}", ["operating_point.stressed=true"] if how == "option" else []
    if how == "none":
        manifest = untested / "manifest.csv"
        kept = [line for line in manifest.read_text().splitlines(keepends=True) if not line.startswith("test/")]
        manifest.write_text("".join(kept))
    elif how in ("gone", "unknown"):
        told = json.loads((untested / "run.json").read_text())
        (untested / "run.json").write_text(json.dumps(told | {"data_root": "/no" if how == "gone" else None}))
    elif how == "other":
        films = Path(json.loads((untested / "run.json").read_text())["data_root"])
        (untested / "run.json").write_text(
            json.dumps(json.loads((untested / "run.json").read_text()) | {"data_root": str(untested / "films")})
        )
        shutil.copytree(films, untested / "films")
        first, second, *_ = sorted((untested / "films" / "test" / "NORMAL").iterdir())
        shutil.copy(first, second)
    elif how == "checkpoint":
        (untested / "checkpoints" / "best.ckpt").unlink()
    elif how == "table":
        typed = f"predictions={untested / 'predictions.csv'}"
    before = {file: file.read_bytes() for file in untested.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit) as ending:
        command("evaluate", typed, QUICK, "test=true", *options)
    assert ending.value.code == 2 and message in capsys.readouterr().err
    assert {file: file.read_bytes() for file in untested.rglob("*") if file.is_file()} == before

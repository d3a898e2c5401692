"""`evaluate stress=true` on a real checkpoint: what it writes, what it says, and what it refuses."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pneumonia.evaluation.calibration import fit_temperature
from pneumonia.evaluation.operating_point import choose_threshold
from pneumonia.evaluation.stress import CORRUPTIONS
from pneumonia.report.verdict import stressed

Command = Callable[..., None]
TYPED = ("stress=true", "resamples=200")


def row(name: str, auroc: float, specificity: float) -> dict[str, Any]:
    """A row of the suite whose intervals are 0.04 wide."""
    told = {"auroc": auroc, "sensitivity": 0.9, "specificity": specificity}
    return {"name": name} | {key: {"value": v, "interval": [v - 0.02, v + 0.02]} for key, v in told.items()}


def test_the_validation_films_are_stressed_at_the_locked_threshold(
    run: Path, command: Command, tmp_path: Path, capsys: Any
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    command("evaluate", f"run={copy}", *TYPED, "level=0.9")
    evidence = json.loads((copy / "evidence.json").read_text())
    found, val = evidence["stress"], evidence["splits"]["val"]
    assert [row["name"] for row in found["rows"]] == list(CORRUPTIONS) and found["level"] == 0.9
    assert found["threshold"] == evidence["operating_point"]["threshold"]
    assert found["clean"]["auroc"]["value"] == pytest.approx(val["metrics"]["auroc"]["value"], abs=0.02)
    assert found["clean"]["specificity"]["n"] == val["n"] - val["positives"]
    page = (copy / "report.html").read_text()
    assert "gamma darker" in page and "90 % intervals" in page and "stress=true" in page
    assert "| gamma darker |" in (copy / "report.md").read_text()
    told = capsys.readouterr().out
    assert "stress AUROC on val" in told and "as they are and under all corruptions in one ranking" in told
    assert found["framing"]["n"] == val["n"] and "as they are, zoomed and stretched in one ranking" in told
    assert found["pooled"]["interval"][0] <= found["pooled"]["value"] <= found["pooled"]["interval"][1]
    assert "In one ranking of the films as they are and under all corruptions" in page
    assert "in one of the films as they are, zoomed and stretched" in page
    first = (copy / "evidence.json").read_bytes()
    command("evaluate", f"run={copy}", *TYPED, "level=0.9")
    assert (copy / "evidence.json").read_bytes() == first


def test_a_fall_is_told_and_a_small_one_is_not() -> None:
    clean, steady, fallen = row("as_is", 0.95, 0.9), row("jpeg_mild", 0.94, 0.8), row("gamma_darker", 0.80, 0.3)
    assert list(stressed({"stress": {"clean": clean, "rows": [steady]}})) == []
    told = [text for _, text in stressed({"stress": {"clean": clean, "rows": [steady, fallen]}})]
    assert len(told) == 2 and told[0].startswith("AUROC on validation falls from 0.950 to 0.800 [0.780, 0.820] under")
    assert "Specificity" in told[1] and "gamma darker" in told[1]
    assert list(stressed({"stress": None})) == []


@pytest.mark.parametrize(
    ("how", "message"), [("films", "stress=true needs the films"), ("val", "stress=true needs validation films")]
)
def test_what_it_needs_and_is_not_there_is_one_line(
    run: Path, command: Command, tmp_path: Path, capsys: Any, how: str, message: str
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    if how == "films":
        (copy / "run.json").write_text(json.dumps(json.loads((copy / "run.json").read_text()) | {"data_root": "/no"}))
    else:
        lines = (copy / "predictions.csv").read_text().splitlines(keepends=True)
        (copy / "predictions.csv").write_text("".join(line for line in lines if ",val," not in line))
    before = (copy / "report.html").read_bytes()
    with pytest.raises(SystemExit) as ending:
        command("evaluate", f"run={copy}", *TYPED)
    assert ending.value.code == 2 and message in capsys.readouterr().err
    assert (copy / "report.html").read_bytes() == before


@pytest.mark.parametrize("option", ["stress=true", "shortcuts=true"])
@pytest.mark.parametrize("other", ["films", "weights"])
def test_films_and_weights_that_are_not_those_of_the_predictions_are_told(
    run: Path, command: Command, tmp_path: Path, capsys: Any, option: str, other: str
) -> None:
    """What was found of the run's own stays as it is."""
    copy = shutil.copytree(run, tmp_path / "run")
    command("evaluate", f"run={copy}", option, "resamples=200")
    if other == "films":
        told = json.loads((copy / "run.json").read_text())
        films = shutil.copytree(told["data_root"], tmp_path / "films")
        for file in films.rglob("*.png"):
            Image.fromarray(255 - np.asarray(Image.open(file).convert("L"))).save(file)
        (copy / "run.json").write_text(json.dumps(told | {"data_root": str(films)}))
    else:
        file = copy / "checkpoints" / "best.ckpt"
        content = torch.load(file, weights_only=True)
        content["state_dict"] = {name: -value for name, value in content["state_dict"].items()}
        torch.save(content, file)
    kept = {copy / name: (copy / name).read_bytes() for name in ("evidence.json", "report.html", "predictions.csv")}
    if option == "stress=true":
        kept[copy / "stress.csv"] = (copy / "stress.csv").read_bytes()
    with pytest.raises(SystemExit) as ending:
        command("evaluate", f"run={copy}", option, "resamples=200")
    said = capsys.readouterr().err
    assert ending.value.code == 2 and f"{option}: the probability of " in said and "other weights" in said
    assert kept == {file: file.read_bytes() for file in kept}


def test_a_later_evaluation_keeps_the_probes_of_the_same_predictions_only(
    run: Path, command: Command, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")

    def probes(*typed: str) -> list[Any]:
        command("evaluate", f"run={copy}", "resamples=200", *typed)
        evidence = json.loads((copy / "evidence.json").read_text())
        return [evidence["shortcuts"], evidence["stress"]]

    made = probes("shortcuts=true", "stress=true")
    assert all(made)
    shortcuts, stress = probes("operating_point.rule=youden", "level=0.9")
    assert shortcuts == made[0] and stress["mean"]["value"] == made[1]["mean"]["value"] and stress["level"] == 0.9
    assert np.ptp(stress["mean"]["interval"]) < np.ptp(made[1]["mean"]["interval"])
    page = (copy / "report.html").read_text()
    assert "<td>corners masked</td>" in page and "<td>gamma darker</td>" in page
    lines = (copy / "predictions.csv").read_text().splitlines(keepends=True)
    one = next(line for line in lines if ",val," in line)
    lines.remove(one)  # as another training would leave it
    (copy / "predictions.csv").write_text("".join(lines))
    assert probes() == [None, None]


def test_the_operating_point_can_be_chosen_under_stress(run: Path, command: Command, tmp_path: Path) -> None:
    """Threshold and temperature are those of the table of all looks; nothing of it is read when not asked for."""
    copy = shutil.copytree(run, tmp_path / "run")
    command("evaluate", f"run={copy}", *TYPED, "operating_point.rule=youden", "operating_point.stressed=true")
    point = json.loads((copy / "evidence.json").read_text())["operating_point"]
    rows = list(csv.DictReader((copy / "stress.csv").open()))
    predicted = {r["path"]: r for r in csv.DictReader((copy / "predictions.csv").open()) if r["split"] == "val"}
    assert [row["path"] for row in rows] == sorted(predicted)
    assert list(rows[0])[1:] == ["as_is", *CORRUPTIONS]
    score = np.array([[float(row[name]) for name in list(row)[1:]] for row in rows]).T.ravel()
    label = np.tile([int(predicted[row["path"]]["label"]) for row in rows], 1 + len(CORRUPTIONS))
    chosen = choose_threshold(label, score, "youden")
    assert point["threshold"] == pytest.approx(chosen.threshold) and point["corruptions"] == len(CORRUPTIONS)
    assert point["n"] == len(rows)
    clipped = np.clip(score, 1e-7, 1 - 1e-7)
    assert point["temperature"] == pytest.approx(fit_temperature(label, np.log(clipped / (1 - clipped))) or 1.0)
    assert f"and under {len(CORRUPTIONS)} corruptions" in (copy / "report.html").read_text()
    command("evaluate", f"run={copy}", "resamples=200", "operating_point.rule=youden")
    plain = json.loads((copy / "evidence.json").read_text())["operating_point"]
    assert plain["corruptions"] == 0 and plain["threshold"] != point["threshold"]


@pytest.mark.parametrize("how", ["none", "other", "near", "cut", "words"])
def test_stress_that_is_not_of_these_predictions_chooses_nothing(
    run: Path, command: Command, tmp_path: Path, capsys: Any, how: str
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    paths = sorted(r["path"] for r in csv.DictReader((copy / "predictions.csv").open()) if r["split"] == "val")
    if how != "none":
        told = {r["path"]: float(r["probability"]) for r in csv.DictReader((copy / "predictions.csv").open())}
        value = {"other": "0.987654", "near": None, "cut": "", "words": "high"}[how]
        own = {path: abs(told[path] - 0.02) for path in paths}
        shown = [own[path] if value is None else value for path in paths]
        lines = ["path,as_is,gamma_darker", *(f"{path},{as_is},0.5" for path, as_is in zip(paths, shown, strict=True))]
        (copy / "stress.csv").write_text("\n".join(lines[: -1 if how == "cut" else None]) + "\n")
    with pytest.raises(SystemExit) as ending:
        command("evaluate", f"run={copy}", "operating_point.stressed=true", "resamples=200")
    assert ending.value.code == 2 and f"run={copy} stress=true first" in capsys.readouterr().err
    command("evaluate", f"run={copy}", "resamples=200")
    assert json.loads((copy / "evidence.json").read_text())["stress"] is None

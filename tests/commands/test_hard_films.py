"""`data.nested=true` and `hard_films=` as a user types them: folds of the training films judge these, and no others."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL
from made_runs import make_run, rows_of

from pneumonia.data.records import Record
from pneumonia.evaluation.calibration import calibrate, fit_platt
from pneumonia.settings import UserError
from pneumonia.workflows.hard import MOST, weight_of_hard

Command = Callable[..., None]


def made(tmp_path: Path, judging: str = "val") -> tuple[Path, list[Record]]:
    """A sweep of two runs that judge each other's films, and the records of the training that they are for: of these
    films, and a third part that judges."""
    rows = rows_of(val=240, test=0)
    parts = [[row for k, row in enumerate(rows) if k // 2 % 3 == third] for third in range(3)]  # two films a patient
    number = {row["path"]: k for k, row in enumerate(rows)}

    def listed(part: list[dict], split: str) -> list[dict]:
        return [row | {"split": split, "sha256": f"{number[row['path']]:064x}"} for row in part]

    for fold in (0, 1):
        manifest = listed(parts[fold], "val") + listed(parts[1 - fold], "train")
        make_run(tmp_path / "halves" / str(fold), parts[fold], manifest)
    films = listed(parts[0] + parts[1], "train") + listed(parts[2], judging)
    return tmp_path / "halves", [
        Record(row["path"], row["label"], row["patient"], row["subtype"], row["split"], sha256=row["sha256"])
        for row in films
    ]


def test_a_normal_film_is_drawn_the_more_often_the_more_it_was_taken_for_pneumonia(tmp_path: Path) -> None:
    sweep, records = made(tmp_path)
    weight = weight_of_hard(sweep, records)
    train = [record for record in records if record.split == "train"]
    assert len(weight) == len(train) < len(records)
    expected = {}
    for fold in (0, 1):
        told = list(csv.DictReader((sweep / str(fold) / "predictions.csv").open()))
        logit = [float(row["logit"]) for row in told]
        temperature, bias = fit_platt([int(row["label"]) for row in told], logit)  # type: ignore[misc]
        expected |= dict(zip([row["path"] for row in told], calibrate(logit, temperature, bias), strict=True))
    for record, value in zip(train, weight, strict=True):
        assert value == pytest.approx(1 if record.label else 1 + MOST * expected[record.path])
    normal = np.array([record.label == 0 for record in train])
    assert weight[normal].min() > 1 and 2 < weight[normal].max() <= 1 + MOST


def test_a_film_that_no_run_judged_is_named(tmp_path: Path) -> None:
    sweep, records = made(tmp_path, judging="train")
    with pytest.raises(UserError, match=r"80 of 240 training films were judged by no run .*data\.nested=true"):
        weight_of_hard(sweep, records)


@pytest.mark.parametrize("split", ["val", "test"])
def test_runs_that_knew_films_which_judge_here_are_refused(tmp_path: Path, split: str) -> None:
    sweep, records = made(tmp_path)
    known = [Record(r.path, r.label, r.patient, r.subtype, split, sha256=r.sha256) for r in records[:3]]
    with pytest.raises(UserError, match=r"was trained on .* and 2 more films that judge here"):
        weight_of_hard(sweep, known + records[3:])


def test_a_run_whose_training_films_nobody_knows_is_refused(tmp_path: Path) -> None:
    sweep, records = made(tmp_path)
    (sweep / "0" / "manifest.csv").unlink()
    with pytest.raises(UserError, match="trained on nobody knows which films"):
        weight_of_hard(sweep, records)


def test_from_nested_folds_to_a_training(command: Command, phantoms: Path, tmp_path: Path, capsys: Any) -> None:
    usual = [*SMALL, f"data.root={phantoms}", "epochs=1"]
    command(
        "train", "-m", *usual, "data.nested=true", "data.folds=2", "data.fold=0,1",
        f"hydra.sweep.dir={tmp_path}/halves", "hydra.sweep.subdir=${data.fold}",
    )  # fmt: skip
    command("train", *usual, "hard_films=halves", f"hydra.run.dir={tmp_path}/again")
    assert "normal training films were taken for pneumonia by nets that had not seen them" in capsys.readouterr().out
    films = {name: list(csv.DictReader((tmp_path / name / "manifest.csv").open())) for name in ("halves/0", "again")}
    train = {row["path"] for row in films["again"] if row["split"] == "train"}
    assert {row["path"] for row in films["halves/0"]} == train
    assert json.loads((tmp_path / "again/run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["data.nested=true"], "data.nested=true is of folds: type data.folds=2 data.fold=0"),
        (["hard_films=nowhere"], "hard_films=nowhere: no such folder; expected a sweep folder of nested folds"),
        (["hard_films="], "hard_films= is empty"),
    ],
)
def test_what_can_not_be_is_told(command: Command, phantoms: Path, capsys: Any, typed: list[str], message: str) -> None:
    with pytest.raises(SystemExit):
        command("train", *SMALL, f"data.root={phantoms}", "epochs=1", *typed)
    assert message in " ".join(capsys.readouterr().err.split())

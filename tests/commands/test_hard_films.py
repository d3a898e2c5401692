"""`data.nested=true` and `hard_films=` as a user types them: folds of the training films judge these, and no others."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL
from made_runs import FIELDS, make_run, rows_of, with_logit, write_table
from resume_cases import assert_same_end, interrupted

from pneumonia.data.records import Record
from pneumonia.errors import UserError
from pneumonia.evaluation.calibration import calibrate, fit_platt
from pneumonia.workflows.hard import mistaken, read_hard
from pneumonia.workflows.resume import settings_of

Command = Callable[..., None]
pytestmark = pytest.mark.usefixtures("unreported")


def made(tmp_path: Path) -> tuple[Path, list[Record]]:
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
    films = listed(parts[0] + parts[1], "train") + listed(parts[2], "val")
    return tmp_path / "halves", [
        Record(row["path"], row["label"], row["patient"], row["subtype"], row["split"], sha256=row["sha256"])
        for row in films
    ]


def calibrated(folder: Path) -> dict[str, float]:
    told = list(csv.DictReader((folder / "predictions.csv").open()))
    logit = [float(row["logit"]) for row in told]
    temperature, bias = fit_platt([int(row["label"]) for row in told], logit) or (1.0, 0.0)
    return dict(zip([row["path"] for row in told], calibrate(logit, temperature, bias), strict=True))


def test_a_normal_film_is_as_hard_as_the_net_that_never_saw_it_took_it_for_pneumonia(tmp_path: Path) -> None:
    sweep, records = made(tmp_path)
    hard = mistaken(sweep, records)
    train = [record for record in records if record.split == "train"]
    assert len(hard) == len(train) < len(records)
    expected = calibrated(sweep / "0") | calibrated(sweep / "1")
    for record, value in zip(train, hard, strict=True):
        assert value == pytest.approx(0 if record.label else expected[record.path])
    assert hard.max() > 0.5 and hard[[record.label == 0 for record in train]].min() > 0


def test_where_a_net_separates_its_films_their_scores_stand_for_themselves(tmp_path: Path) -> None:
    sweep, records = made(tmp_path)
    rows = [row for row in rows_of(val=240, test=0) if row["path"] in calibrated(sweep / "0")]
    apart = [with_logit(row, 3.0 if row["label"] else -2.0) for row in rows]
    write_table(sweep / "0" / "predictions.csv", apart, tuple(apart[0]))
    hard = mistaken(sweep, records)
    assert np.isclose(hard, 1 / (1 + np.exp(2))).sum() == sum(row["label"] == 0 for row in rows)


def test_a_film_that_two_nets_judged_has_their_mean(tmp_path: Path) -> None:
    sweep, records = made(tmp_path)
    shutil.copytree(sweep / "0", sweep / "2")
    rows = [with_logit(r | {"label": int(r["label"])}, 1.5 * float(r["logit"]) + (k % 5) / 3)
            for k, r in enumerate(csv.DictReader((sweep / "0" / "predictions.csv").open()))]  # fmt: skip
    write_table(sweep / "2" / "predictions.csv", rows, tuple(rows[0]))
    one, other, hard = calibrated(sweep / "0"), calibrated(sweep / "2"), mistaken(sweep, records)
    judged = [(r, v) for r, v in zip(records, hard, strict=False) if r.path in one and r.label == 0]
    assert any(abs(one[r.path] - other[r.path]) > 0.02 for r, _ in judged)
    for record, value in judged:
        assert value == pytest.approx((one[record.path] + other[record.path]) / 2)


def other_bytes(record: Record) -> Record:
    return replace(record, sha256="f" + record.sha256[1:])


def other_label(record: Record) -> Record:
    return replace(record, label=1 - record.label)


@pytest.mark.parametrize("changed", [other_bytes, other_label])
def test_a_film_that_no_run_judged_as_it_is_here_is_named(tmp_path: Path, changed: Callable[[Record], Record]) -> None:
    sweep, records = made(tmp_path)
    with pytest.raises(UserError, match=r"1 of 160 training films were judged by no run .*data\.nested=true"):
        mistaken(sweep, [changed(records[0]), *records[1:]])


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("same", ["patient", "bytes", "both"])
def test_runs_that_were_shown_what_judges_here_are_refused(tmp_path: Path, split: str, same: str) -> None:
    sweep, records = made(tmp_path)
    known = [
        replace(
            r,
            split=split,
            sha256=r.sha256 if same != "patient" else "f" + r.sha256[1:],
            patient=r.patient if same != "bytes" else "another",
        )
        for r in records
        if r.patient == records[0].patient
    ]
    with pytest.raises(UserError, match=r"was shown .* or its patient, one of 2 that judge here"):
        mistaken(sweep, known + [r for r in records if r.patient != records[0].patient])


def test_films_that_a_net_was_validated_on_were_shown_to_it_too(tmp_path: Path) -> None:
    sweep, records = made(tmp_path)
    manifest, patient = sweep / "1" / "manifest.csv", records[0].patient
    rows = [row for row in csv.DictReader(manifest.open()) if row["patient"] != patient]  # run 0 alone knows it
    write_table(manifest, rows, FIELDS)
    judges = [replace(r, split="val") if r.patient == patient else r for r in records]
    with pytest.raises(UserError, match=r"halves/0 was shown .* or its patient, one of 2 that judge here"):
        mistaken(sweep, judges)


def test_what_stands_on_both_sides_here_anyway_is_no_reason_to_refuse(tmp_path: Path) -> None:
    sweep, records = made(tmp_path)
    twice = replace(records[0], path="val/twice.png", split="val")
    assert (mistaken(sweep, [*records, twice]) == mistaken(sweep, records)).all()


@pytest.mark.parametrize("lacking", ["manifest", "sha256"])
def test_a_run_that_does_not_tell_what_it_was_shown_is_refused(tmp_path: Path, lacking: str) -> None:
    sweep, records = made(tmp_path)
    manifest = sweep / "0" / "manifest.csv"
    rows = [row | {"sha256": ""} for row in csv.DictReader(manifest.open())]
    manifest.unlink() if lacking == "manifest" else write_table(manifest, rows, FIELDS)
    with pytest.raises(UserError, match=r"0/manifest\.csv does not tell which films it was shown"):
        mistaken(sweep, records)


def test_a_run_without_validation_films_is_refused(tmp_path: Path) -> None:
    sweep, records = made(tmp_path)
    rows = [r | {"split": "test"} for r in csv.DictReader((sweep / "0" / "predictions.csv").open())]
    write_table(sweep / "0" / "predictions.csv", rows, tuple(rows[0]))
    with pytest.raises(UserError, match=r"predictions\.csv has no validation films"):
        mistaken(sweep, records)


def test_from_nested_folds_to_a_training(command: Command, phantoms: Path, tmp_path: Path, capsys: Any) -> None:
    usual = [*SMALL, f"data.root={phantoms}", "epochs=1", "seed=3", "data.val_fraction=0.3"]
    command(
        "train", "-m", *usual, "data.nested=true", "data.folds=2", "data.fold=0,1",
        f"hydra.sweep.dir={tmp_path}/halves", "hydra.sweep.subdir=${data.fold}",
    )  # fmt: skip
    command("train", *usual, "hard_films=halves", f"hydra.run.dir={tmp_path}/again")
    told = next(line for line in capsys.readouterr().out.splitlines() if "hard films:" in line)
    films = {name: list(csv.DictReader((tmp_path / name / "manifest.csv").open())) for name in ("halves/0", "again")}
    train = {row["path"]: row["label"] for row in films["again"] if row["split"] == "train"}
    assert {row["path"] for row in films["halves/0"]} == set(train)
    normal = [path for path, label in train.items() if label == "0"]
    taken = calibrated(tmp_path / "halves/0") | calibrated(tmp_path / "halves/1")
    assert f"hard films: {sum(taken[path] > 0.5 for path in normal)} of {len(normal)} normal training films" in told
    assert json.loads((tmp_path / "again/run.json").read_text())["status"] == "finished"
    (tmp_path / "below").mkdir()
    with pytest.MonkeyPatch.context() as patch:  # a relative sweep folder is found from another one
        patch.chdir(tmp_path / "below")
        assert settings_of(tmp_path / "again")["hard_films"] == str(tmp_path / "halves")


def test_a_run_that_is_gone_on_with_keeps_the_hard_films_that_it_began_with(
    command: Command, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """With force=true too, where that is of other settings."""
    usual = [*SMALL, f"data.root={phantoms}", "data.val_fraction=0.3", "deterministic=true"]
    command(
        "train", "-m", *usual, "epochs=1", "data.nested=true", "data.folds=2", "data.fold=0,1",
        f"hydra.sweep.dir={tmp_path}/halves",
    )  # fmt: skip
    settings = [*usual, "epochs=3", f"hard_films={tmp_path}/halves"]
    command("train", *settings, f"hydra.run.dir={tmp_path}/whole")
    broken = interrupted(command, phantoms, monkeypatch, folder=str(tmp_path / "broken"), settings=settings, epochs=1)
    shutil.rmtree(tmp_path / "halves")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        command("train", f"resume={broken}", f"hard_films={tmp_path}/others", "epochs=3", "force=true")
    assert "no such folder; expected a sweep folder of nested folds" in capsys.readouterr().err
    for name, forced in (("plain", []), ("forced", ["force=true", "data.num_workers=1"])):
        folder = shutil.copytree(broken, tmp_path / name)
        command("train", f"resume={folder}", *forced)
        assert_same_end(tmp_path / "whole", folder)
    kept = list(csv.DictReader((folder / "hard_films.csv").open()))
    films = {row["path"]: row for row in csv.DictReader((folder / "manifest.csv").open()) if row["split"] == "train"}
    assert {row["path"] for row in kept} == set(films)
    assert any(float(row["probability"]) > 0 for row in kept)
    assert all(float(row["probability"]) == 0 for row in kept if films[row["path"]]["label"] == "1")
    write_table(folder / "hard_films.csv", kept[1:], tuple(kept[0]))  # a film is missing
    with pytest.raises(UserError, match=r"hard_films\.csv is not what the run wrote .*remove it"):
        read_hard(folder, [Record(r["path"], int(r["label"]), "", split="train", sha256=r["sha256"]) for r in kept])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["data.nested=true"], "data.nested=true is of folds: type data.folds=2 data.fold=0"),
        (["data.nested=true", "data.held_out=A*"], "data.nested=true is of folds"),
        (["hard_films=nowhere"], "hard_films=nowhere: no such folder; expected a sweep folder of nested folds"),
        (["hard_films=~"], "no finished run in it"),
        (["hard_films="], "hard_films= is empty"),
        (["hard_films=halves", "balance=weighted_loss"], "type another balance"),
    ],
)
def test_what_can_not_be_is_told_before_a_run_folder_is_made(
    command: Command, phantoms: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch,
    typed: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit):
        command("train", *SMALL, f"data.root={phantoms}", "epochs=1", *typed, f"hydra.run.dir={tmp_path}/run")
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()

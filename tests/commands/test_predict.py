"""`python -m pneumonia.predict` as a user types it: the run's own preprocessing, temperature and locked threshold."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit

from pneumonia.data.exported import read_told
from pneumonia.workflows.targets import folder_films

Command = Callable[..., None]


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_it_repeats_the_runs_logits_and_its_locked_calls(
    command: Command, run: Path, phantoms: Path, tmp_path: Path, capsys: Any
) -> None:
    command("predict", f"run={run}", f"images={phantoms / 'test'}")
    told = capsys.readouterr().out
    point = json.loads((run / "evidence.json").read_text())["operating_point"]
    rows, before = table(tmp_path / "predictions.csv"), {row["path"]: row for row in table(run / "predictions.csv")}
    assert len(rows) == sum(row["split"] == "test" for row in before.values())
    for row in rows:
        first = before[f"test/{row['path']}"]
        assert float(row["logit"]) == pytest.approx(float(first["logit"]), abs=1e-4)
        assert float(row["probability"]) == pytest.approx(expit(float(first["logit"]) / point["temperature"]), abs=1e-4)
        assert (row["call"] == "PNEUMONIA") == (float(first["probability"]) >= point["threshold"])
        assert (row["label"], row["patient"], row["subtype"]) == (first["label"], first["patient"], first["subtype"])
        assert f"{row['path']}  {float(row['probability']):.4f}  {row['call']}" in told


def test_films_are_resized_as_in_training_by_all_that_look_at_them_again(
    command: Command, phantoms: Path, tmp_path: Path
) -> None:
    small = ("trainer=cpu", "data.image_size=32", "data.batch_size=16", "epochs=2", f"data.root={phantoms}")
    command("train", *small, "optimizer.lr=0.003", "data.resize=pad", "hydra.run.dir=run")
    command("evaluate", "run=run", "resamples=200", "stress=true", "shortcuts=true", "export=true")
    command("predict", "run=run", f"images={phantoms / 'test'}", "output=again.csv")
    before = {row["path"]: float(row["logit"]) for row in table(tmp_path / "run" / "predictions.csv")}
    again = {f"test/{row['path']}": float(row["logit"]) for row in table(tmp_path / "again.csv")}
    assert (
        again == pytest.approx({path: before[path] for path in again}, abs=2e-6) and np.ptp(list(again.values())) > 1e-3
    )
    evidence = json.loads((tmp_path / "run" / "evidence.json").read_text())
    seen = {row["name"]: row["auroc"] for row in evidence["shortcuts"]["rows"]}
    assert seen["as_is"] == pytest.approx(evidence["splits"]["test"]["metrics"]["auroc"]["value"])
    clean = evidence["stress"]["clean"]["auroc"]["value"]
    assert clean == pytest.approx(evidence["splits"]["val"]["metrics"]["auroc"]["value"])
    stress = {row["path"]: float(row["as_is"]) for row in table(tmp_path / "run" / "stress.csv")}
    told = {row["path"]: float(row["probability"]) for row in table(tmp_path / "run" / "predictions.csv")}
    assert stress == pytest.approx({path: told[path] for path in stress}, abs=2e-6)
    assert read_told(tmp_path / "run" / "model.safetensors")["recipe"]["resize"] == "pad"


def test_its_table_can_be_evaluated_at_the_same_threshold(
    command: Command, run: Path, phantoms: Path, tmp_path: Path
) -> None:
    command("predict", f"run={run}", f"images={phantoms / 'test'}")
    command("evaluate", "predictions=predictions.csv", "resamples=200")
    again, first = (json.loads((folder / "evidence.json").read_text()) for folder in (tmp_path, run))
    assert again["splits"]["test"]["counts"] == first["splits"]["test"]["counts"]
    assert again["operating_point"]["reason"].endswith("the threshold that the films were predicted with is used")


def test_other_weights_of_a_run_do_not_get_the_threshold_of_its_best(
    command: Command, run: Path, phantoms: Path, tmp_path: Path, capsys: Any
) -> None:
    film = next((phantoms / "test" / "PNEUMONIA").iterdir())
    command("predict", f"checkpoint={run / 'checkpoints' / 'last.ckpt'}", f"images={film}")
    [row] = table(tmp_path / "predictions.csv")
    assert float(row["threshold"]) == 0.5
    assert float(row["probability"]) == pytest.approx(expit(float(row["logit"])), rel=1e-4)
    assert "threshold and calibration are of best.ckpt: last.ckpt gets" in capsys.readouterr().out


def test_runs_of_a_sweep_do_not_write_over_each_other(
    command: Command, run: Path, phantoms: Path, tmp_path: Path, capsys: Any
) -> None:
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / name)
    typed = ("predict", "-m", "run=a,b", f"images={phantoms / 'test' / 'NORMAL'}")
    with pytest.raises(SystemExit) as ending:
        command(*typed)
    told = capsys.readouterr().err
    assert ending.value.code == 2 and "output=predictions.csv: two runs of -m would write it" in told, told
    assert not (tmp_path / "predictions.csv").exists()
    command(*typed, "output=${run}/films.csv")
    assert table(tmp_path / "a" / "films.csv") == table(tmp_path / "b" / "films.csv")


def test_a_bare_checkpoint_gives_the_plain_probability_and_says_so(
    command: Command, run: Path, phantoms: Path, tmp_path: Path, capsys: Any
) -> None:
    shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "mine.ckpt")
    film = next((phantoms / "test" / "PNEUMONIA").iterdir())
    command("predict", "checkpoint=mine.ckpt", f"images={film}")
    told = capsys.readouterr().out
    assert "squashed to 32 x 32" in told and "temperature 1, threshold 0.5" in told
    [row] = table(tmp_path / "predictions.csv")
    assert row["label"] == "1" and row["path"] == film.name
    assert float(row["probability"]) == pytest.approx(expit(float(row["logit"])), abs=1e-5)


def test_labels_come_from_the_nearest_folder_of_a_class_though_films_are_links(phantoms: Path, tmp_path: Path) -> None:
    film = next((phantoms / "test" / "NORMAL").iterdir())
    for path in ("films/PNEUMONIA/viral/a.png", "films/NORMAL/b.png", "films/c.png", "pneumonia/films/d.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).symlink_to(film)
    assert [found.label for found in folder_films(tmp_path / "films")] == [0, 1, None]
    assert [found.label for found in folder_films(tmp_path / "pneumonia" / "films")] == [None]
    assert [found.label for found in folder_films(tmp_path / "films" / "NORMAL")] == [0]


def test_a_list_brings_its_labels_and_patients(command: Command, run: Path, phantoms: Path, tmp_path: Path) -> None:
    for number, file in enumerate(sorted((phantoms / "test" / "NORMAL").iterdir())[:3]):
        shutil.copy(file, tmp_path / f"scan{number}.png")
    (tmp_path / "list.csv").write_text("path,label,patient\nscan0.png,NORMAL,a\nscan1.png,,b\nscan2.png,1,\n")
    command("predict", f"checkpoint={run / 'checkpoints/best.ckpt'}", "images=list.csv", "output=out.csv")
    rows = table(tmp_path / "out.csv")
    assert [(row["label"], row["patient"]) for row in rows] == [("0", "a"), ("", "b"), ("1", "scan2.png")]
    command("evaluate", "predictions=out.csv", "resamples=200")
    assert "1 films without a label were left out" in json.loads((tmp_path / "evidence.json").read_text())["notes"]


def test_a_film_that_cannot_be_read_is_named_and_left_out(
    command: Command, run: Path, phantoms: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "films").mkdir()
    shutil.copy(next((phantoms / "test" / "NORMAL").iterdir()), tmp_path / "films" / "good.png")
    (tmp_path / "films" / "bad.png").write_bytes(b"")
    command("predict", f"run={run}", "images=films")
    assert "left out bad.png: zero bytes" in capsys.readouterr().out
    assert [row["path"] for row in table(tmp_path / "predictions.csv")] == ["good.png"]


def test_the_manifest_of_a_run_finds_the_runs_films(
    command: Command, run: Path, phantoms: Path, tmp_path: Path, capsys: Any
) -> None:
    command("predict", f"run={run}", f"images={run}/manifest.csv", "output=all.csv")
    rows, before = table(tmp_path / "all.csv"), {row["path"]: row for row in table(run / "predictions.csv")}
    assert len(rows) == len(table(run / "manifest.csv"))
    for row in rows:
        if row["path"] in before:
            assert float(row["logit"]) == pytest.approx(float(before[row["path"]]["logit"]), abs=1e-4)
    film = next((phantoms / "test" / "NORMAL").iterdir())
    gone = "".join(f"gone{number}.png\n" for number in range(9))
    (tmp_path / "list.csv").write_text(f"path\n{film}\n{gone}")
    capsys.readouterr()
    command("predict", f"run={run}", "images=list.csv", "output=out.csv")
    told = capsys.readouterr().out
    assert told.count("left out gone") == 3 and "left out gone0.png: no such file" in told
    assert "and 6 more were left out" in told and "Errno" not in told


def test_files_that_may_be_films_and_are_not_read_are_told(
    command: Command, run: Path, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(phantoms / "test" / "NORMAL", tmp_path / "films")
    (tmp_path / "films" / "ct.dcm").touch()
    (tmp_path / "films" / "notes.txt").touch()
    command("predict", f"run={run}", "images=films", "output=out.csv")
    told = capsys.readouterr().out
    assert "1 files are left out, as films/ct.dcm: films are .jpeg, .jpg, .png." in told and "notes" not in told


def test_the_films_do_not_depend_on_their_batch(command: Command, run: Path, phantoms: Path, tmp_path: Path) -> None:
    command("predict", f"run={run}", f"images={phantoms / 'test'}", "output=a.csv")
    command("predict", f"run={run}", f"images={phantoms / 'test'}", "output=b.csv", "batch_size=3")
    first, second = ([float(row["logit"]) for row in table(tmp_path / name)] for name in ("a.csv", "b.csv"))
    np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["images=films"], "Expected one of run="),
        (["run={run}"], "images is not set"),
        (["run={run}", "images=nowhere"], "images=nowhere: no such file or folder"),
        (["run={run}", "images=empty"], "images=empty: no films in it"),
        (["run={run}", "images=notes.txt"], "expected a film"),
        (["run={run}", "images=twice.csv"], "stands there already"),
        (["run={run}", "images=bad.csv"], "line 2: label=ill: expected 0 or NORMAL"),
        (["run={run}", "images=columns.csv"], "expected a CSV with a column path"),
        (["run={run}", "images=broken"], "none of 1 films can be read ("),
        (["run={run}", "images=films", "output=notes.txt"], "was not written by predict"),
        (["run={run}", "images=films", "output=empty"], "is a folder"),
        (["run={run}", "images=films", "output=no/where.csv"], "is not there"),
        (["run=empty", "images=films"], "has no checkpoints/best.ckpt"),
        (["checkpoint=nowhere.ckpt", "images=films"], "no such file"),
        (["checkpoint=notes.txt", "images=films"], "not a checkpoint of this project"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(
    command: Command, run: Path, tmp_path: Path, capsys: Any, typed: list[str], message: str
) -> None:
    for name in ("empty", "films", "broken"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "films" / "a.png")
    (tmp_path / "broken" / "a.png").write_bytes(b"no film")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "twice.csv").write_text("path\na.png\na.png\n")
    (tmp_path / "bad.csv").write_text("path,label\na.png,ill\n")
    (tmp_path / "columns.csv").write_text("file\na.png\n")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        command("predict", *[text.format(run=run) for text in typed])
    told = capsys.readouterr()
    assert ending.value.code == 2 and message in told.err and "Traceback" not in told.out + told.err, told
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    "content", ['{"operating_point": {"thr', "[]", '{"operating_point": {}}', '{"operating_point": {"threshold": NaN}}']
)
def test_a_damaged_evidence_is_not_read_as_none(
    command: Command, run: Path, phantoms: Path, tmp_path: Path, capsys: Any, content: str
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "evidence.json").write_text(content)
    with pytest.raises(SystemExit) as ending:
        command("predict", f"run={copy}", f"images={phantoms / 'test'}")
    told = capsys.readouterr().err
    assert ending.value.code == 2 and f"pneumonia.evaluate run={copy}" in told, told
    assert not (tmp_path / "predictions.csv").exists()


def test_a_probability_that_is_none_is_the_models_fault() -> None:
    from pneumonia.errors import UserError
    from pneumonia.workflows.inference import Recipe, called
    from pneumonia.workflows.targets import Film

    for logit in (np.nan, np.inf, -np.inf):
        with pytest.raises(UserError, match=rf"a\.png: the model gives {logit}"):
            called([Film(Path("a.png"), "a.png")], np.array([logit]), Recipe(32, "squash", 1, 0, 0.5, []))


def test_a_film_on_the_threshold_is_called() -> None:
    from pneumonia.workflows.inference import Recipe, called
    from pneumonia.workflows.targets import Film

    films = [Film(Path("a.png"), "a.png"), Film(Path("b.png"), "b.png")]
    rows = called(films, np.array([0.0, -1e-4]), Recipe(32, "squash", 1, 0, 0.5, []))
    assert [row["call"] for row in rows] == ["PNEUMONIA", "NORMAL"]


def test_a_batch_is_as_large_as_is_typed(
    command: Command, run: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumonia.training.classifier import Classifier

    sizes, forward = [], Classifier.forward

    def counted(self: Classifier, image: Any) -> Any:
        sizes.append(len(image))
        return forward(self, image)

    monkeypatch.setattr(Classifier, "forward", counted)
    films = len(folder_films(phantoms))
    for typed, expected in (([], 32), (["batch_size=100"], 100)):
        sizes.clear()
        command("predict", f"run={run}", f"images={phantoms}", "output=c.csv", *typed)
        assert sizes[0] == expected and sum(sizes) == films > 100


def test_a_checkpoint_may_lie_in_the_root_of_a_file_system() -> None:
    from pneumonia.workflows.selection import preprocessing
    from pneumonia.workflows.sources import scale_of

    assert scale_of(Path("/best.ckpt")) is None
    assert preprocessing(Path("/best.ckpt"))[:3] == (None, "squash", "")


def test_importing_the_commands_loads_no_torch() -> None:
    probe = "import sys, pneumonia.predict, pneumonia.evaluate, pneumonia.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], cwd=Path(__file__).parents[2]).returncode == 0


def test_an_exported_model_carries_its_preprocessing_temperature_and_threshold(
    command: Command, run: Path, phantoms: Path, tmp_path: Path, capsys: Any
) -> None:
    shutil.copytree(run, tmp_path / "mine")
    command("evaluate", "run=mine", "export=true", "resamples=200", "calibration=platt")
    assert "SHA-256" in capsys.readouterr().out
    (tmp_path / "mine" / "model.safetensors").rename(tmp_path / "alone.safetensors")
    for source, output in (("run=mine", "by_run.csv"), ("checkpoint=alone.safetensors", "alone.csv")):
        command("predict", source, f"images={phantoms / 'test'}", f"output={output}")
    before, after = table(tmp_path / "by_run.csv"), table(tmp_path / "alone.csv")
    assert [row["threshold"] for row in before] == [row["threshold"] for row in after]
    point = json.loads((tmp_path / "mine" / "evidence.json").read_text())["operating_point"]
    for row in after:
        scaled = expit(float(row["logit"]) / point["temperature"] + point["bias"])
        assert point["bias"] != 0 and float(row["probability"]) == pytest.approx(scaled, abs=1e-4)
    difference = [abs(float(a["logit"]) - float(b["logit"])) for a, b in zip(before, after, strict=True)]
    assert 0 < max(difference) < 0.05  # float16 weights


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x80\x02cos\nsystem\n", "is not a model that evaluate export=true wrote"), (None, "no such")],
)
def test_a_file_that_is_no_exported_model_is_refused(
    command: Command, phantoms: Path, tmp_path: Path, capsys: Any, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(SystemExit):
        command("predict", "checkpoint=bad.safetensors", f"images={phantoms / 'test'}")
    assert message in capsys.readouterr().err
    assert not (tmp_path / "predictions.csv").exists()

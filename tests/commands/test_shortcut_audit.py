"""A planted marker is found by the shortcut audit through a real checkpoint's path; clean films stay quiet."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumonia.report.verdict import marked, shortcuts
from pneumonia.settings import EvaluateConfig
from pneumonia.workflows import shortcuts as room
from pneumonia.workflows.shortcuts import shortcuts_of
from pneumonia.workflows.sources import read_run

Command = Callable[..., None]


def config_of(run: Path) -> EvaluateConfig:
    return EvaluateConfig(run=str(run), shortcuts=True)


def told(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What the verdict says of these rows of the audit."""
    return list(shortcuts({"shortcuts": {"rows": rows}}))


def test_every_probe_is_told_and_films_as_they_are_give_the_runs_auroc(run: Path) -> None:
    source = read_run(run)
    rows = {row["name"]: row for row in shortcuts_of(source, "test", config_of(run))["rows"]}
    assert list(rows) == [
        "metadata", "as_is", "border_only", "common_centre", "centre_only", "corners_masked", "blurred",
    ]  # fmt: skip
    written = json.loads((run / "metrics.json").read_text())["test"]["auroc"]
    assert rows["as_is"]["auroc"] == pytest.approx(written, abs=0.02)
    assert not [text for level, text in told([rows["metadata"]]) if level == "warning"]


def test_its_intervals_are_of_as_many_resamples_and_the_level_as_are_asked_for(run: Path) -> None:
    asked = ((100, 0.95), (400, 0.95), (400, 0.8))
    found = [
        shortcuts_of(read_run(run), "test", EvaluateConfig(run=str(run), resamples=n, level=level))
        for n, level in asked
    ]
    assert [(part["resamples"], part["level"]) for part in found] == list(asked)
    [wide], [narrow] = ([row["interval"] for row in part["rows"] if row["name"] == "as_is"] for part in found[1:])
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert [row["auroc"] for row in found[0]["rows"]] == [row["auroc"] for row in found[1]["rows"]]
    assert [row["interval"] for row in found[0]["rows"]] != [row["interval"] for row in found[1]["rows"]]


def test_a_model_that_reads_a_marker_is_caught(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels of one class get a white corner, and the model looks at nothing else."""
    source = read_run(run)
    films = source.splits["test"].films
    images = np.full((films.label.size, 32, 32), 90, np.uint8)
    images[films.label == 1, :3, :3] = 255
    monkeypatch.setattr(room, "read_all", lambda *_: images)
    monkeypatch.setattr(room, "probabilities", lambda _, batch: batch[:, :3, :3].mean((1, 2)) / 255)
    rows = {row["name"]: row for row in shortcuts_of(source, "test", config_of(run))["rows"]}
    assert rows["border_only"]["auroc"] == 1 and rows["corners_masked"]["auroc"] == 0.5
    border, corners = [text for _, text in told([rows["as_is"], rows["border_only"], rows["corners_masked"]])]
    common = told([rows["common_centre"]])[0][1]
    assert "With the mean film's centre in every film the model still reaches an AUROC of 1.000" in common
    assert "With the centre blanked the model still reaches an AUROC of 1.000" in border
    assert "With the corners masked, where markers sit, AUROC falls from 1.000 to 0.500" in corners


def test_metadata_that_tell_the_class_are_caught(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    lines = (copy / "manifest.csv").read_text().splitlines()
    columns = lines[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    for row in rows:
        row["width"] = "1200" if row["label"] == "1" else "1700"
        row["height"], row["mode"] = "900", "L"
    (copy / "manifest.csv").write_text("\n".join([lines[0], *[",".join(row.values()) for row in rows]]))
    found = shortcuts_of(read_run(copy), "test", config_of(copy))
    assert found["metadata"] == ["width", "bytes"]
    said = [text for _, text in shortcuts({"shortcuts": found})]
    assert any(text.startswith("Width, bytes alone (of width, height, bytes, colour mode) give an") for text in said)


def test_train_writes_the_evidence_and_names_the_report(run: Path) -> None:
    assert {"evidence.json", "report.html", "report.md", "model_card.md"} <= {file.name for file in run.iterdir()}
    assert json.loads((run / "audit.json").read_text())["near"]["groups"] == 0
    assert "Near copies, which look alike though their bytes differ: 0 films" in (run / "report.html").read_text()
    assert (run / "train.log").read_text().rstrip().endswith("report.html")


def test_films_that_are_gone_are_one_line(run: Path, command: Command, tmp_path: Path, capsys: Any) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    told = json.loads((copy / "run.json").read_text()) | {"data_root": "/nowhere"}
    (copy / "run.json").write_text(json.dumps(told))
    with pytest.raises(SystemExit) as ending:
        command("evaluate", f"run={copy}", "shortcuts=true", "resamples=200")
    err = capsys.readouterr().err
    assert ending.value.code == 2 and "shortcuts=true needs the films" in err
    assert f"name their folder as data_root in {copy / 'run.json'}" in " ".join(err.split())


def test_training_films_that_are_gone_cost_the_marks_alone(
    run: Path, command: Command, tmp_path: Path, capsys: Any
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    recorded = json.loads((copy / "run.json").read_text())
    films = shutil.copytree(recorded["data_root"], tmp_path / "films")
    (copy / "run.json").write_text(json.dumps(recorded | {"data_root": str(films)}))
    shutil.rmtree(films / "train" / "NORMAL")
    command("evaluate", f"run={copy}", "shortcuts=true", "resamples=200")
    told = capsys.readouterr()
    assert "marks in the corners were not looked for" in told.out + told.err
    found = json.loads((copy / "evidence.json").read_text())["shortcuts"]
    assert found["marks"] is None and len(found["rows"]) == 7
    assert "come with one class were not looked for" in (copy / "report.html").read_text()
    assert "Marks" not in (copy / "report.md").read_text()


@pytest.mark.parametrize(("carry", "warned"), [(51, True), (50, False)])
def test_marks_are_warned_of_above_a_twentieth_of_a_class(carry: int, warned: bool) -> None:
    mark = {"corner": "upper left", "comes_with": "NORMAL", "patients": [carry, 1], "example": "a.png"}
    found = {"patients": [1000, 2000], "carrying": {"NORMAL": [carry, 1], "PNEUMONIA": [0, 0]}, "found": [mark]}
    texts = [text for _, text in marked({"shortcuts": {"marks": found}})]
    expected = (
        "Marks in the corners (letters, lines, how the child lies) come with NORMAL: 51 of its 1,000 patients have "
        "one, and 1 of the 2,000 others."
    )
    assert bool(texts) == warned and all(text.startswith(expected) for text in texts)
    assert all(text.endswith("On the most patients: upper left, as in a.png.") for text in texts)
    on_halves_alone = [text for _, text in marked({"shortcuts": {"marks": found | {"found": []}}})]
    assert bool(on_halves_alone) == warned and all(text.endswith("A net can learn them.") for text in on_halves_alone)
    assert not list(marked({"shortcuts": {"rows": []}})) and not list(marked({"shortcuts": None}))

"""A marker in one class, learnt by a net that is really trained, is found by the shortcut audit; its absence is too."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from pneumonia.data.synthetic import draw_films
from pneumonia.report.verdict import marked, shortcuts
from pneumonia.settings import EvaluateConfig
from pneumonia.workflows.shortcuts import shortcuts_of
from pneumonia.workflows.sources import read_run

Command = Callable[..., None]
SMALL = ("trainer=cpu", "data.image_size=32", "data.batch_size=16", "augment=none", "objective=val/auroc")


def shortcut_warnings(command: Command, folder: Path, *typed: str) -> tuple[float, list[str]]:
    """(AUROC on test, what the verdict warns of) of a run trained and audited here."""
    command("train", *typed, f"hydra.run.dir={folder}")
    found = shortcuts_of(read_run(folder), "test", EvaluateConfig(run=str(folder)))
    [auroc] = [row["auroc"] for row in found["rows"] if row["name"] == "as_is"]
    told = [*shortcuts({"shortcuts": found}), *marked({"shortcuts": found})]
    return auroc, [text for level, text in told if level == "warning"]


def test_a_marker_in_one_class_is_found(command: Command, tmp_path: Path) -> None:
    draw_films(tmp_path / "films", 120, seed=3)
    for file in sorted((tmp_path / "films").glob("t*/*/*.png")):
        film = cv2.resize(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), (224, 224))
        if file.parent.name == "PNEUMONIA":
            film[4:28, 4:28] = 255
            cv2.putText(film, "KV", (4, 218), cv2.FONT_HERSHEY_PLAIN, 0.9, 255)
        cv2.imwrite(str(file), film, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    typed = (*SMALL, f"data.root={tmp_path / 'films'}", "epochs=6")
    auroc, warnings = shortcut_warnings(command, tmp_path / "run", *typed)
    assert auroc > 0.95
    assert any("With the centre blanked the model still reaches" in text for text in warnings)
    assert any("With the corners masked, where markers sit, AUROC falls" in text for text in warnings)
    [told] = [text for text in warnings if "how the child lies) come with PNEUMONIA" in text]
    assert "On the most patients: " in told
    command("evaluate", f"run={tmp_path / 'run'}", "shortcuts=true", "resamples=100")
    page, text = ((tmp_path / "run" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert told.replace(",", "") in text.replace(",", "").replace("\\_", "_")
    assert 'alt="The lower left corner of train/PNEUMONIA/person' in page and "| lower left | 0 | " in text
    groups = {row["name"]: row for row in json.loads((tmp_path / "run" / "evidence.json").read_text())["subgroups"]}
    assert groups["a mark of pneumonia"]["positives"] == groups["a mark of pneumonia"]["n"] > 5
    assert "| mark | a mark of pneumonia | " in text
    command(
        "evaluate", f"run={tmp_path / 'run'}", "resamples=100", "operating_point.rule=youden"
    )  # none looked for anew
    assert json.loads((tmp_path / "run" / "evidence.json").read_text())["subgroups"][-1]["group"] == "mark"


@pytest.mark.slow
def test_clean_films_raise_no_alarm(command: Command, tmp_path: Path) -> None:
    auroc, warnings = shortcut_warnings(command, tmp_path / "run", "data=synthetic", "trainer=cpu")
    assert auroc > 0.9 and warnings == []

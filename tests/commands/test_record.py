"""experiment=record from training to an exported file, as commands: the last weights, a mean over views, Platt."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from resume_cases import assert_same_end, interrupted, undisturbed
from scipy.special import expit
from scipy.special import logit as log_odds

from pneumonia.training.checkpoint import load_classifier

Command = Callable[..., None]

RECORD = (
    "experiment=record", "data.image_size=32", "data.batch_size=8", "trainer=cpu", "data.held_out=IM-0004*",
    "model.widths=[8,16]", "model.blocks=[1,1]", "model.stem=8", "optimizer.lr=0.02",
    "augment=none", "mixup=0", "border_out=0", "lungs_out=0", "border_swap=0",
)  # fmt: skip


def table(file: Path) -> dict[str, dict[str, str]]:
    with file.open(newline="") as stream:
        return {Path(row["path"]).name: row for row in csv.DictReader(stream)}


@pytest.fixture(scope="module")
def record(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(phantoms, tmp_path_factory.mktemp("record") / "run", RECORD, epochs=12)


def test_its_last_weights_are_kept_and_give_its_table_again(
    command: Command, record: Path, phantoms: Path, tmp_path: Path
) -> None:
    best, last = (torch.load(record / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert best["epoch"] == last["epoch"] == 11
    net = load_classifier(record / "checkpoints" / "best.ckpt")
    assert net.flip_average and net.crop_average and net.local_view and net.alignment and net.blurred_views == 0.006
    command("predict", f"run={record}", f"images={phantoms / 'test'}")
    before, after = table(record / "predictions.csv"), table(tmp_path / "predictions.csv")
    assert after and all(float(after[k]["logit"]) == pytest.approx(float(before[k]["logit"]), abs=1e-4) for k in after)


def test_each_fifth_epoch_and_the_last_are_validated(record: Path) -> None:
    with (record / "metrics.csv").open(newline="") as stream:
        seen = [int(row["epoch"]) for row in csv.DictReader(stream) if row["val/auroc"]]
    told = json.loads((record / "run.json").read_text())
    assert seen == [4, 9, 11] and told["epochs"] == 12 and told["objective"]["value"] is not None


def test_one_that_was_interrupted_and_went_on_ends_as_it(
    command: Command, record: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupted(command, phantoms, monkeypatch, settings=(*RECORD, "epochs=12"), epochs=7)
    command("train", f"resume={folder}")
    assert_same_end(record, folder)


def rounded(checkpoint: Path, file: Path) -> Path:
    """A checkpoint of the same run whose weights are what float16 leaves of them."""
    content = torch.load(checkpoint, weights_only=True)
    state = content["state_dict"]
    content["state_dict"] = {name: w.half().float() if w.is_floating_point() else w for name, w in state.items()}
    torch.save(content, file)
    return file


def test_exported_it_calls_films_as_the_run_does(
    command: Command, record: Path, phantoms: Path, tmp_path: Path
) -> None:
    command("evaluate", f"run={record}", "export=true", "resamples=200", "calibration=platt")
    point = json.loads((record / "evidence.json").read_text())["operating_point"]
    best = rounded(record / "checkpoints" / "best.ckpt", record / "checkpoints" / "rounded.ckpt")
    films = f"images={phantoms / 'test'}"
    command("predict", f"checkpoint={best}", films, "output=before.csv")
    command("predict", f"checkpoint={record / 'model.safetensors'}", films)
    before, after = table(tmp_path / "before.csv"), table(tmp_path / "predictions.csv")
    far = 0
    for name, row in after.items():
        logit, first = float(row["logit"]), float(before[name]["logit"])
        assert logit == pytest.approx(first, abs=1e-4)
        scaled = expit(logit / point["temperature"] + point["bias"])
        assert float(row["probability"]) == pytest.approx(scaled, abs=1e-4)
        if abs(first - log_odds(point["threshold"])) > 0.005:
            far += 1
            assert (row["call"] == "PNEUMONIA") == (expit(first) >= point["threshold"])
    assert far > len(after) / 2 and np.isfinite(point["bias"])

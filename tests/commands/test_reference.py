"""The net in the package: small, whole, told by its card, and worth something on films that it was trained beside."""

import csv
import hashlib
import json
import shlex
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from pneumonia.config import compose
from pneumonia.data.exported import KEY, read_told
from pneumonia.errors import UserError
from pneumonia.training.classifier import Classifier
from pneumonia.workflows.sources import REFERENCE

Command = Callable[..., None]


def test_its_card_names_the_file_and_what_it_does_to_a_film() -> None:
    card, told = (REFERENCE.parent / "model_card.md").read_text(), read_told(REFERENCE)
    assert hashlib.sha256(REFERENCE.read_bytes()).hexdigest() in card
    assert REFERENCE.stat().st_size < 2_000_000
    assert "Not for clinical use" in card and "10.17632/rscbjbr9sj" in card and "experiment=record" in card
    assert told["recipe"]["image_size"] == 112 and 0 < told["recipe"]["threshold"] < 1
    assert "Kermany" in told["recipe"]["films"]


def test_the_logits_beside_it_give_the_figures_that_are_told() -> None:
    """Of the card: seed 0's AUROC and rates at its locked threshold; of the README: the vote's."""
    rows = list(csv.DictReader((REFERENCE.parent / "development_half.csv").open()))
    label = np.array([int(row["label"]) for row in rows])
    nets = [f"{kind}_{k}" for kind in ("seed", "hard") for k in range(4)]
    logits = np.array([[float(row[name]) for name in nets] for row in rows])
    assert (label.size, label.sum()) == (312, 195)
    scale = read_told(REFERENCE)["recipe"]
    called = expit(logits[:, 0] / scale["temperature"] + scale["bias"]) >= scale["threshold"]
    card, readme = ((REFERENCE.parent / "model_card.md").read_text(), (REFERENCE.parents[2] / "README.md").read_text())
    assert f"| AUROC | {roc_auc_score(label, logits[:, 0]):.4f} [" in card
    assert f"| accuracy | {(called == label).mean():.4f} [" in card
    assert f"| specificity | {1 - called[label == 0].mean():.4f} [" in card
    voted = expit(logits).mean(axis=1)
    [row] = [line for line in readme.splitlines() if line.startswith("| **soft vote of the eight**")]
    assert f"| {roc_auc_score(label, voted):.3f} [".replace("0.", ".", 1) in row
    assert f"{np.sum((voted >= 0.388892) == label)} of 312 films" in readme


def test_it_tells_real_films_apart(command: Command, real_films: Path, tmp_path: Path) -> None:
    """Sixty films of the official training set; what it is worth on others stands in the card."""
    listed = [
        f"{file},{label}"
        for label, name in ((0, "NORMAL"), (1, "PNEUMONIA"))
        for file in sorted((real_films / "train" / name).iterdir())[:30]
    ]
    Path("films.csv").write_text("\n".join(["path,label", *listed]) + "\n")
    command("predict", "checkpoint=reference", "images=films.csv")
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert len(rows) == 60 and len({row["threshold"] for row in rows}) == 1
    assert roc_auc_score([int(row["label"]) for row in rows], [float(row["probability"]) for row in rows]) > 0.95


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bias", float("nan")),
        ("temperature", float("inf")),
        ("threshold", "x"),
        ("temperature", 0),
        ("image_size", None),
        ("resize", "stretch"),
    ],
)
def test_a_recipe_whose_numbers_are_none_is_refused(tmp_path: Path, name: str, value: object) -> None:
    told = read_told(REFERENCE)
    told["recipe"][name] = value
    save_file({"weight": np.zeros(1)}, tmp_path / "odd.safetensors", {KEY: json.dumps(told)})
    with pytest.raises(UserError, match=r"odd\.safetensors is not a model that evaluate export=true wrote"):
        read_told(tmp_path / "odd.safetensors")


def test_an_export_that_names_no_net_is_refused(tmp_path: Path) -> None:
    told = read_told(REFERENCE)
    del told["hyper_parameters"]
    save_file({"weight": np.zeros(1)}, tmp_path / "odd.safetensors", {KEY: json.dumps(told)})
    with pytest.raises(UserError, match=r"odd\.safetensors is not a model"):
        read_told(tmp_path / "odd.safetensors")


def test_it_can_be_explained(command: Command, phantoms: Path, tmp_path: Path) -> None:
    command(
        "explain", "checkpoint=reference", f"images={phantoms / 'test' / 'PNEUMONIA'}", "count=1", "output=here",
        "attribution=integrated_gradients", "attribution.n_steps=50",
    )  # fmt: skip
    assert any((tmp_path / "here").rglob("*.png"))
    command("predict", "checkpoint=reference", f"images={phantoms / 'test' / 'PNEUMONIA'}")
    row = min(csv.DictReader((tmp_path / "predictions.csv").open()), key=lambda row: row["path"])
    arrays = np.load(next((tmp_path / "here").rglob("*.npz")))
    assert Path(str(arrays["path"][0])).name == Path(row["path"]).name
    assert arrays["probability"] == pytest.approx(float(row["probability"]), rel=1e-3)
    told = json.loads(next((tmp_path / "here").rglob("*.json")).read_text())
    assert told["threshold"] == pytest.approx(float(row["threshold"]))


def test_the_command_on_its_card_composes_its_recipe() -> None:
    """A change of experiment=record or of what it composes would leave a card that tells of another net. What the
    file itself does not tell stands here; who changes it makes another net of it."""
    from omegaconf import OmegaConf

    card = (REFERENCE.parent / "model_card.md").read_text()
    [line] = [line for line in card.splitlines() if "pneumonia.train" in line]
    typed = [word for word in shlex.split(line) if "=" in word and "<" not in word and not word.startswith("hydra.")]
    config = OmegaConf.to_container(compose("train", typed), resolve=False)
    assert isinstance(config, dict)
    config["model"]["image_size"] = config["data"]["image_size"]
    told = read_told(REFERENCE)["hyper_parameters"]
    defaults = {name: one.default for name, one in signature(Classifier).parameters.items()}
    told = defaults | told  # of a setting that is younger than the file
    told |= told.pop("mixing")
    own = {name: value for name, value in told.items() if name not in ("channels_last", "positive_weight")}
    assert {name: config[name] for name in own} == own
    trained = {name: config[name] for name in ("epochs", "balance", "keep", "gradient_clip", "unfreeze_epoch", "seed")}
    assert trained == {
        "epochs": 100, "balance": "marks", "keep": "last", "gradient_clip": None, "unfreeze_epoch": None,
        "seed": 0,
    }  # fmt: skip
    films = {name: config["data"][name] for name in ("batch_size", "val_fraction", "patient_key", "held_out", "folds")}
    assert films == {"batch_size": 64, "val_fraction": 0.2, "patient_key": "strict", "held_out": None, "folds": None}
    augment = json.dumps(config["augment"], sort_keys=True).encode()
    assert hashlib.sha256(augment).hexdigest()[:16] == "7c6e3c5d93d0d417"

"""predictions.csv: one row a film, and what the rows are worth.

A prediction carries its film's number from the loader to the row, so that no order of loading can pair it with another
film's label.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from pneumonia.data.datamodule import FilmDataModule
from pneumonia.evaluation.metrics import summary
from pneumonia.files import written
from pneumonia.training.classifier import Classifier
from pneumonia.training.precision import full_float32
from pneumonia.workflows.films import Films

COLUMNS = ("path", "patient", "subtype", "label", "split", "logit", "probability")
THRESHOLD = 0.5


def predict(
    classifier: Classifier, datamodule: FilmDataModule, films: Films, splits: Sequence[str], trainer: L.Trainer
) -> list[dict[str, Any]]:
    """The rows of predictions.csv for `splits`, in record order, whatever the order of the loaders.

    In full precision, as `predict` computes later, whatever the training's: bfloat16 has 8 bits, and would tie films.
    """
    judge = L.Trainer(
        accelerator=trainer.accelerator, devices=1, precision="32-true",
        limit_predict_batches=trainer.limit_predict_batches, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, plugins=[LightningEnvironment()],
    )  # fmt: skip
    datamodule.trainer = None
    loaders = {"val": datamodule.val_dataloader, "test": datamodule.test_dataloader}
    rows: list[dict[str, Any]] = []
    for split in splits:
        with full_float32():
            batches = judge.predict(classifier, loaders[split](), weights_only=True)
        rows += rows_of(films, split, batches or [])
    return rows


def rows_of(films: Films, split: str, batches: Iterable[Any]) -> list[dict[str, Any]]:
    """Pair each logit with the record whose number came with it; a film that came twice is an error of ours."""
    records = films.of(split)
    logits: dict[int, float] = {}
    for batch in batches:
        for index, logit in zip(batch["index"].tolist(), batch["logit"].tolist(), strict=True):
            assert index not in logits, f"film {index} of {split} was predicted twice"
            logits[index] = logit
    return [row(records[index], logits[index]) for index in sorted(logits)]


def row(record: Any, logit: float) -> dict[str, Any]:
    """One line of predictions.csv; six significant digits."""
    values = {name: getattr(record, name) for name in COLUMNS[:5]}
    return values | {"logit": float(f"{logit:.6g}"), "probability": float(f"{sigmoid(logit):.6g}")}


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)) without overflow."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def write_predictions(file: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    """Write predictions.csv: `columns` of the rows."""
    with written(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{split: metrics at threshold 0.5}: the content of metrics.json; nothing in it differs between equal runs."""
    splits = list(dict.fromkeys(row["split"] for row in rows))
    parts = {split: [row for row in rows if row["split"] == split] for split in splits}
    return {
        split: summary([row["label"] for row in part], [row["probability"] for row in part], THRESHOLD)
        for split, part in parts.items()
    }

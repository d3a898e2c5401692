"""Run folders made up from a seed, as train leaves them: the evidence needs no model."""

import csv
import json
from pathlib import Path

import numpy as np
from scipy.special import expit

COLUMNS = ("path", "patient", "subtype", "label", "split", "logit", "probability")
FIELDS = ("path", "label", "patient", "subtype", "split", "width", "height", "mode", "bytes", "sha256")


def rows_of(seed: int = 0, shift: float = 0.0, val: int = 120, test: int = 80, films_seed: int = 7) -> list[dict]:
    """Predictions of films whose names and labels come from `films_seed` alone; `shift` moves the logits of test."""
    rng, films = np.random.default_rng(seed), np.random.default_rng(films_seed)
    rows = []
    for split, count in (("val", val), ("test", test)):
        for index in range(count):
            label = int(films.random() < 0.6)
            number = index // 2 + (0 if split == "val" else 1000)
            kind = ("bacteria", "virus")[number % 2] if label else ""
            name = f"person{number}_{kind}_{index}" if label else f"IM-{number:04d}-{index:04d}"
            patient = f"person-{kind}-{number}" if label else f"IM-{number:04d}"
            logit = float(f"{2.4 * label - 1.2 + rng.normal(0, 1.1) + shift * (split == 'test'):.6g}")
            folder = ("NORMAL", "PNEUMONIA")[label]
            rows.append(
                {
                    "path": f"{'train' if split == 'val' else split}/{folder}/{name}.png",
                    "patient": patient,
                    "subtype": kind,
                    "label": label,
                    "split": split,
                    "logit": logit,
                    "probability": float(f"{expit(logit):.6g}"),
                }
            )
    return rows


def with_logit(row: dict, logit: float) -> dict:
    """The same film with another prediction."""
    return row | {"logit": logit, "probability": float(f"{expit(logit):.6g}")}


def records_of(rows: list[dict]) -> list[dict]:
    """A manifest of these films and forty training films of other patients."""
    train = [
        {"path": f"train/NORMAL/IM-{k}-0001.png", "label": 0, "patient": f"IM-{k}", "split": "train", "subtype": ""}
        for k in range(5000, 5040)
    ]
    return [
        {name: row[name] for name in ("path", "label", "patient", "subtype", "split")}
        | {"width": 90, "height": 80, "mode": "L", "bytes": 7000, "sha256": f"{k:064x}"}
        for k, row in enumerate([*train, *rows])
    ]


def write_table(file: Path, rows: list[dict], columns: tuple[str, ...]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def make_run(
    folder: Path, rows: list[dict] | None = None, records: list[dict] | None = None, seed: int = 0, dropout: float = 0.0
) -> Path:
    """A finished run's folder."""
    rows = rows_of(seed) if rows is None else rows
    (folder / ".hydra").mkdir(parents=True)
    write_table(folder / "predictions.csv", rows, COLUMNS)
    write_table(folder / "manifest.csv", records_of(rows) if records is None else records, FIELDS)
    (folder / "metrics.csv").write_text(
        "epoch,step,train/loss,train/accuracy,val/loss,val/accuracy,val/auroc\n0,10,0.7,0.5,0.6,0.7,0.8\n1,20,0.5,0.7,0.5,0.8,\n"
    )
    told = {"status": "finished", "command": "train.py data=synthetic", "seed": seed, "data_root": str(folder / "gone")}
    told |= {
        "objective": {"name": "val/auroc", "value": 0.8},
        "versions": {"torch": "2"},
        "parameters": 9,
        "skipped": [],
    }
    (folder / "run.json").write_text(json.dumps(told))
    (folder / ".hydra" / "overrides.yaml").write_text("- data=synthetic\n")
    (folder / ".hydra" / "config.yaml").write_text(
        "data: {source: folder, root: /x, image_size: 32, resize: squash, patient_key: strict, fold: null}\n"
        f"model: {{_target_: pneumonia.models.cnn.cnn, dropout: {dropout}}}\nseed: {seed}\n"
    )
    return folder


def averaging(run: Path) -> None:
    """Make a trained run's net predict by the mean over views of blurred films."""
    import torch

    file = run / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    views = {"flip_average": True, "crop_average": True, "local_view": True, "blurred_views": 0.02}
    torch.save(content | {"hyper_parameters": content["hyper_parameters"] | views}, file)

"""Call any films with a trained model: its own preprocessing, calibration and locked threshold.

Writes    predictions.csv: the columns of a run's, then `threshold` and `call`. The logit is the model's own; the
          probability is after calibration, and the threshold is the locked one on that scale.
Memory    films are decoded and called a batch at a time.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia.data.decode import BadFilm, read_film
from pneumonia.data.exported import EXPORTED, read_told
from pneumonia.errors import UserError
from pneumonia.launch import usable_cores
from pneumonia.settings import PredictConfig
from pneumonia.training.checkpoint import load_to_predict
from pneumonia.workflows.predictions import COLUMNS, sigmoid, write_predictions
from pneumonia.workflows.shortcuts import logits
from pneumonia.workflows.sources import Scale, checkpoint_file, class_name, data_settings, read_config, scale_of
from pneumonia.workflows.targets import Film, films_to_predict

log = logging.getLogger(__name__)

SHOWN = 3  # films that are named as left out
FILM_COLUMNS = (*COLUMNS, "threshold", "call")


@dataclass(frozen=True)
class Recipe:
    """How films become calls: side and resize rule, temperature, bias, threshold on the scaled probability; notes."""

    image_size: int
    resize: str
    temperature: float
    bias: float
    threshold: float
    notes: list[str]


def predict_films(config: PredictConfig) -> list[dict[str, Any]]:
    """Predict, print a line a film, write the table; its rows."""
    films = films_to_predict(config)
    checkpoint = checkpoint_of(config)
    classifier = load_to_predict(checkpoint)
    recipe = recipe_of(checkpoint, dict(classifier.hparams["model"]))
    for note in recipe.notes:
        log.warning("%s", note)
    rows, bad = [], []
    for film, result in read(films, recipe, config.batch_size):
        if isinstance(result, str):
            bad.append((film, result))
            continue
        pixels = np.stack([decoded for _, decoded in result])
        rows += called([film for film, _ in result], logits(classifier, pixels, config.batch_size), recipe)
    for film, reason in bad[:SHOWN]:
        log.warning("left out %s: %s", film.path, reason)
    if len(bad) > SHOWN:
        log.warning("and %d more were left out", len(bad) - SHOWN)
    if not rows:
        film, reason = bad[0]
        raise UserError(f"images={config.images}: none of {len(bad)} films can be read ({film.file}: {reason}).")
    for row in rows:
        log.info("%s  %.4f  %s", row["path"], row["probability"], row["call"])
    write_rows(Path(config.output).expanduser(), rows)
    ill = sum(row["call"] == class_name(1) for row in rows)
    log.info(
        "%d films, %d called PNEUMONIA at a probability of at least %.4f; not for clinical use", len(rows), ill,
        recipe.threshold,
    )  # fmt: skip
    log.info("%s", config.output)
    return rows


def checkpoint_of(config: PredictConfig) -> Path:
    if config.run:
        return Path(config.run).expanduser() / "checkpoints" / "best.ckpt"
    return checkpoint_file(config.checkpoint or "")


def recipe_of(checkpoint: Path, model: dict[str, Any]) -> Recipe:
    """An exported model's own, or that of the run the checkpoint lies in; what is not told is at its default, noted."""
    scale = scale_of(checkpoint)
    if checkpoint.suffix == EXPORTED:
        told = read_told(checkpoint)["recipe"]
        return Recipe(told["image_size"], told["resize"], **asdict(scale or Scale()), notes=[])
    settings = read_config(checkpoint.resolve().parent.parent)
    data, notes = data_settings(settings), []
    size = model.get("image_size") or data.image_size
    if not settings:
        notes.append(f"No settings lie beside the checkpoint: films are squashed to {size} x {size} pixels.")
    if scale is None and settings and checkpoint.name != "best.ckpt":
        notes.append(
            f"A run's threshold and calibration are of best.ckpt: {checkpoint.name} gets temperature 1 and 0.5."
        )
    elif scale is None:
        notes.append(
            "No evidence.json lies beside the checkpoint: temperature 1, threshold 0.5 (evaluate run= writes it)."
        )
    side = int(data.image_size if settings else size)
    return Recipe(side, data.resize, **asdict(scale or Scale()), notes=notes)


Decoded = list[tuple[Film, np.ndarray]]


def read(films: Sequence[Film], recipe: Recipe, batch: int) -> Iterator[tuple[Film, str | Decoded]]:
    """Batches of decoded films (first of them, all of them); a film that can't be read comes alone with its reason."""

    def one(film: Film) -> np.ndarray | str:
        if not film.file.is_file():
            return "no such file"
        try:
            return read_film(film.file, recipe.image_size, recipe.resize)
        except BadFilm as error:
            return str(error).removeprefix(f"{film.file}: ")

    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        for start in range(0, len(films), batch):
            part = films[start : start + batch]
            results = list(zip(part, pool.map(one, part), strict=True))
            yield from ((film, result) for film, result in results if isinstance(result, str))
            if good := [(film, result) for film, result in results if not isinstance(result, str)]:
                yield good[0][0], good


def called(films: Sequence[Film], values: np.ndarray, recipe: Recipe) -> list[dict[str, Any]]:
    """Rows of the table; six significant digits, and the call follows from the numbers as written."""
    rows = []
    for film, logit in zip(films, values.tolist(), strict=True):
        known = {name: asdict(film)[name] for name in COLUMNS[:5]}
        label = "" if film.label is None else film.label
        if not math.isfinite(logit):
            raise UserError(
                f"{film.path}: the model gives {logit} where a finite number is expected; its weights are damaged or "
                "its training diverged. Use another checkpoint."
            )
        probability = float(f"{sigmoid(logit / recipe.temperature + recipe.bias):.6g}")
        call = class_name(int(probability >= recipe.threshold))
        rows.append(
            known
            | {"label": label, "logit": float(f"{logit:.6g}"), "probability": probability}
            | {"threshold": recipe.threshold, "call": call}
        )
    return rows


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    try:
        write_predictions(file, rows, FILM_COLUMNS)
    except OSError as error:
        raise UserError(f"output={file} can't be written ({error}).") from error

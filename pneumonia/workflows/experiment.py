"""Train, test and monitor one model: what `python -m pneumonia.train` does from start to end."""

import logging
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pneumonia.config import quoted
from pneumonia.data.datamodule import FilmDataModule
from pneumonia.data.records import CLASSES, write_manifest
from pneumonia.data.split import class_counts
from pneumonia.errors import UserError
from pneumonia.launch import launched
from pneumonia.models.vgg import VGG
from pneumonia.settings import HOW, TrainConfig
from pneumonia.training.alignment import FILMS
from pneumonia.training.callbacks import kept_row
from pneumonia.training.checkpoint import load_classifier
from pneumonia.training.classifier import Classifier
from pneumonia.workflows.audit import write_audit
from pneumonia.workflows.ending import ending, signal_of
from pneumonia.workflows.evidence import after_training
from pneumonia.workflows.films import Films, describe, films_of, stacked
from pneumonia.workflows.hard import hard_of, write_hard
from pneumonia.workflows.pictures import draw_after, draw_before
from pneumonia.workflows.predictions import predict, summarize, write_predictions
from pneumonia.workflows.record import RunRecord, write_json
from pneumonia.workflows.resume import Place, flat, keep_settings, place_of, refuse_other_films, refuse_other_state
from pneumonia.workflows.sources import read_numbers
from pneumonia.workflows.trainer import build_trainer, processes_here, quiet, say_emulated, say_processes, uses_gpu

log = logging.getLogger(__name__)

SPLIT = (
    "batch_size", "image_size", "resize", "val_fraction", "folds", "fold", "nested", "held_out", "counterexamples",
    "patient_key",
)  # fmt: skip
MIXED = ("mixup", "cutmix", "border_out", "lungs_out", "random_conv", "border_swap")


def fit_and_test(config: TrainConfig) -> float:
    """Fit, predict val and test with the best weights, and leave a run folder that explains itself; the objective."""
    quiet()
    folder = Path(config.resume or HydraConfig.get().runtime.output_dir)
    films = films_of(config.data, config.seed)
    describe(films)
    L.seed_everything(config.seed, verbose=False)
    classifier = build_classifier(config, films)
    place = Place(None, 0, -1)
    if config.resume is not None:
        refuse_other_films(folder, films.records)
        place = place_of(folder)
        refuse_other_state(folder, place, classifier.state_dict(), config)
    datamodule = build_datamodule(config, films)  # last: a balance that weighs films takes seconds
    trainer = build_trainer(config, folder, place)
    if launched().rank > 0:
        return follow(classifier, datamodule, trainer, place)
    say_marks(datamodule)
    say_hard(datamodule)
    say_processes(config, trainer)
    say_emulated(trainer)
    record = start_record(config, folder, films, datamodule, classifier, trainer)
    if config.resume is not None and config.force:
        keep_settings(folder, config)
    try:
        write_manifest(folder / "manifest.csv", films.records)
        if datamodule.hard is not None:
            write_hard(folder, films.records, datamodule.hard)
        draw_before(folder, films, datamodule, classifier)
        trainer.fit(classifier, datamodule, ckpt_path=place.checkpoint, weights_only=True)
        objective = test_best(config, folder, films, datamodule, trainer, record)
        write_audit(folder, films)
    except BaseException as error:
        told = ending(error, trainer, folder, record)
        if told is error:
            raise
        raise told from None
    record.end("finished")
    log.info("%s", folder)
    try:
        after_training(folder)
    except (KeyboardInterrupt, SIGTERMException) as error:
        log.warning("Interrupted in the report; the run is whole: python -m pneumonia.evaluate run=%s", quoted(folder))
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 143) from None
    return objective


def follow(classifier: Classifier, datamodule: FilmDataModule, trainer: L.Trainer, place: Place) -> float:
    """What the other processes do: train their share of the films. The first one writes, speaks and tests."""
    try:
        trainer.fit(classifier, datamodule, ckpt_path=place.checkpoint, weights_only=True)
    except BaseException as error:
        if signal_of(error, trainer):
            raise SystemExit(143) from None
        raise
    return math.nan


def build_datamodule(config: TrainConfig, films: Films) -> FilmDataModule:
    data, on_gpu = config.data, uses_gpu(config.trainer, launched())
    return FilmDataModule(
        films.pixels, films.records, config.augment["steps"],
        batch_size=data.batch_size, num_workers=data.num_workers, balance=config.balance, seed=config.seed,
        on_gpu=on_gpu, root=films.root, hard=hard_of(config, films.records),
        processes=processes_here(config.trainer, launched(), on_gpu),
    )  # fmt: skip


def say_marks(datamodule: FilmDataModule) -> None:
    """How many training films of each class have a mark, by which balance=marks draws them."""
    if datamodule.marks is None:
        return
    label = datamodule.datasets["train"].label
    for has, name in zip(datamodule.marks, CLASSES, strict=True):
        log.info(
            "marks in the corners that come with %s: %s of %s normal training films, %s of %s with pneumonia", name,
            *(f"{count:,}" for y in (0, 1) for count in ((has & (label == y)).sum(), (label == y).sum())),
        )  # fmt: skip


def say_hard(datamodule: FilmDataModule) -> None:
    """How many normal training films the nets of hard_films= take for pneumonia."""
    if datamodule.hard is None:
        return
    normal = datamodule.datasets["train"].label == 0
    log.info(
        "hard films: %s of %s normal training films were taken for pneumonia by nets that had not seen them",
        f"{(datamodule.hard > 0.5).sum():,}", f"{normal.sum():,}",
    )  # fmt: skip


def build_classifier(config: TrainConfig, films: Films) -> Classifier:
    """The classifier with positive weight and mean film from the training films.

    Raises UserError for settings that don't fit.
    """
    labels = [record.label for record in films.of("train")]
    weight = (len(labels) - sum(labels)) / sum(labels) if config.balance == "weighted_loss" else 1.0
    if (
        config.model.get("trainable_blocks", 5) < 5
        and config.model.get("weights") is None
        and config.unfreeze_epoch is None
    ):
        log.warning(
            "The frozen blocks have random weights and will not learn; model.trainable_blocks=5 trains them all."
        )
    classifier = Classifier(
        config.model, config.optimizer, config.schedule, weight, config.label_smoothing, config.trainer.channels_last,
        {name: getattr(config, name) for name in MIXED},
        config.standardize, config.flip_average, config.crop_average, config.aligned_view, config.blurred_views,
        config.local_view,
    )  # fmt: skip
    if config.unfreeze_epoch is not None and not isinstance(classifier.net, VGG):
        raise UserError(f"unfreeze_epoch={config.unfreeze_epoch}: only model=vgg16 has frozen blocks; leave it out.")
    if classifier.alignment is not None:
        some = films.of("train")[:: math.ceil(len(labels) / FILMS)]
        classifier.alignment.learn(torch.from_numpy(stacked(films.pixels, some))[:, None])
    return classifier


def start_record(
    config: TrainConfig, folder: Path, films: Films, datamodule: FilmDataModule, classifier: Classifier,
    trainer: L.Trainer,
) -> RunRecord:  # fmt: skip
    """Open run.json: from here on the run has started."""
    return RunRecord(
        folder / "run.json",
        data_root=str(films.root),
        films=class_counts(films.records),
        skipped=[{"path": path, "reason": reason} for path, reason in films.skipped],
        seed=config.seed,
        parameters=sum(p.numel() for p in classifier.net.parameters()),
        trainable_parameters=sum(p.numel() for p in classifier.net.parameters() if p.requires_grad),
        precision=trainer.precision,
        devices=trainer.world_size,
        prior_correction=round(datamodule.prior_correction() - math.log(classifier.positive_weight), 6),
    )


def test_best(
    config: TrainConfig, folder: Path, films: Films, datamodule: FilmDataModule, trainer: L.Trainer, record: RunRecord
) -> float:
    """Predict with the best weights, write the evidence, close the terminal output with a table; the objective."""
    best = folder / "checkpoints" / "best.ckpt"
    classifier = load_classifier(best)
    splits = ["val", "test"] if config.test and films.of("test") else ["val"]
    predictions = predict(classifier, datamodule, films, splits, trainer)
    write_predictions(folder / "predictions.csv", predictions)
    metrics = summarize(predictions)
    write_json(folder / "metrics.json", metrics)
    history = read_numbers(folder / "metrics.csv")
    row = kept_row(history, config.objective, config.keep)
    draw_after(folder, metrics, history, None if row is None else int(row["epoch"] or 0))
    objective = None if row is None else row[config.objective]
    record.update(
        objective={"name": config.objective, "value": objective},
        epochs=len(history),
        images_per_second=[row["images_per_second"] for row in history],
        waiting_for_data=[row["waiting_for_data"] for row in history],
    )
    log_hyperparameters(config, trainer, metrics)
    log_table(metrics)
    return float("nan") if objective is None else objective


def log_hyperparameters(config: TrainConfig, trainer: L.Trainer, metrics: dict[str, dict[str, Any]]) -> None:
    """The HParams tab: what was chosen, beside the run's real final metrics."""
    groups = HydraConfig.get().runtime.choices
    chosen = {name: str(groups[name]) for name in ("model", "experiment", "augment", "optimizer", "schedule", "data")}
    names = ("accuracy", "auroc", "sensitivity", "specificity", "f1")
    final = {f"final/{split}_{name}": metrics[split][name] for split in metrics for name in names}
    for logger in trainer.loggers:
        assert isinstance(logger, TensorBoardLogger)
        logger.log_hyperparams(
            hyperparameters(config) | chosen,
            {name: value for name, value in final.items() if value is not None},
        )
        logger.finalize("success")


def hyperparameters(config: TrainConfig) -> dict[str, bool | int | float | str]:
    """The settings that make another model. What may be null is a text in every run, since TensorBoard takes names and
    types from the first run that it meets."""
    nullable = {field.name for of in (config, config.data) for field in fields(of) if field.default is None}
    own = {name: value for name, value in vars(config).items() if name not in HOW and not is_dataclass(value)}
    parts = flat({name: own.pop(name) for name in ("model", "optimizer", "schedule")})
    found = parts | own | {name: getattr(config.data, name) for name in SPLIT}
    found["lr"] = found.pop("optimizer.lr")
    return {
        name: str(value) if name in nullable or value is None or isinstance(value, list) else value
        for name, value in found.items()
        if name != "augment" and not name.endswith("._target_")
    }


def log_table(metrics: dict[str, dict[str, Any]]) -> None:
    """n, rates and counts of each split; at threshold 0.5."""
    names = ("n", "accuracy", "auroc", "average_precision", "sensitivity", "specificity", "f1", "tp", "fp", "tn", "fn")
    log.info("%-6s%s", "split", "".join(f"{name.replace('average_precision', 'avg_precision'):>14}" for name in names))
    for split, values in metrics.items():
        cells = [values[name] for name in names]
        texts = [
            "undefined" if cell is None else f"{cell:.4f}" if isinstance(cell, float) else f"{cell}" for cell in cells
        ]
        log.info("%-6s%s", split, "".join(f"{text:>14}" for text in texts))

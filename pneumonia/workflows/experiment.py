"""Train, test and monitor one model: what `python -m pneumonia.train` does from start to end."""

import contextlib
import errno
import logging
import math
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing.spawn import ProcessRaisedException

from pneumonia.config import quoted
from pneumonia.data.datamodule import FilmDataModule
from pneumonia.data.records import write_manifest
from pneumonia.data.split import class_counts
from pneumonia.models.vgg import VGG
from pneumonia.settings import Launch, TrainConfig, TrainerConfig, UserError, launched
from pneumonia.training.callbacks import (
    AveragedWeights,
    History,
    ReseedEachStep,
    StopEarly,
    StopOnNonFiniteLoss,
    TensorBoardPictures,
    UnfreezeAt,
    best_checkpoint,
    kept_row,
    last_checkpoint,
    mode_of,
    read_history,
)
from pneumonia.training.checkpoint import AtomicCheckpointIO, load_classifier
from pneumonia.training.classifier import Classifier
from pneumonia.workflows.audit import write_audit
from pneumonia.workflows.evidence import after_training
from pneumonia.workflows.films import Films, describe, films_of
from pneumonia.workflows.pictures import draw_after, draw_before
from pneumonia.workflows.predictions import predict, summarize, write_predictions
from pneumonia.workflows.processes import end_children, one_at_a_time
from pneumonia.workflows.record import RunRecord, write_json
from pneumonia.workflows.resume import Place, keep_settings, place_of, refuse_other_films, refuse_other_state

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fit_and_test(config: TrainConfig) -> float:
    """Fit, predict val and test with the best weights, and leave a run folder that explains itself; the objective."""
    quiet()
    folder = Path(config.resume or HydraConfig.get().runtime.output_dir)
    films = films_of(config.data, config.seed)
    describe(films)
    L.seed_everything(config.seed, verbose=False)
    datamodule = build_datamodule(config, films)
    classifier = build_classifier(config, films)
    place = Place(None, 0, -1)
    if config.resume is not None:
        refuse_other_films(folder, films.records)
        place = place_of(folder)
        refuse_other_state(folder, place, classifier.state_dict(), config.optimizer["_target_"])
    trainer = build_trainer(config, folder, place)
    if launched().rank > 0:
        return follow(classifier, datamodule, trainer, place)
    say_processes(config, trainer)
    record = start_record(config, folder, films, classifier, trainer)
    if config.resume is not None and config.force:
        keep_settings(folder, config)
    try:
        write_manifest(folder / "manifest.csv", films.records)
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


def ending(error: BaseException, trainer: L.Trainer, folder: Path, record: RunRecord) -> BaseException:
    """Write down that the run was interrupted or failed, say how it goes on, and give what is to be raised."""
    if name := signal_of(error, trainer):
        end_children()
        record.end("interrupted", name)
        last = folder / "checkpoints" / "last.ckpt"
        kept = f"{last} holds the last whole epoch" if last.exists() else "no epoch was finished"
        log.warning('Interrupted; %s. "resume=%s" goes on.', kept, quoted(folder))
        return SystemExit(143 if name == "SIGTERM" else 130)
    told = of_child(error)
    with contextlib.suppress(OSError):  # a full disk takes no run.json either
        record.end("failed", f"{type(told).__name__}: {told}")
    return told


def signal_of(error: BaseException, trainer: L.Trainer) -> str:
    """What interrupted the run: a signal, or the end of another of its processes, which may have had it first."""
    if trainer.received_sigterm or isinstance(error, SIGTERMException):
        return "SIGTERM"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "SIGINT"
    return "another process ended" if launched().world > 1 and " by peer" in str(error) else ""


class EndAtOnce(L.Callback):
    """Of several processes each ends at its own SIGTERM, which torchrun and srun send to all of them.

    Lightning's handler tells the others by a collective, in the midst of another one, and may hang there.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signal.signal(signal.SIGTERM, self.end)

    def end(self, number: int, frame: FrameType | None) -> None:
        raise SIGTERMException


def say_processes(config: TrainConfig, trainer: L.Trainer) -> None:
    """How many films a step takes when several processes share it, and that the rate is not scaled with them."""
    count, batch = trainer.world_size, config.data.batch_size
    if count > 1:
        log.info(
            "%d processes x data.batch_size=%d: an effective batch of %d; optimizer.lr=%g is taken as typed",
            *(count, batch, count * batch, config.optimizer["lr"]),
        )


def build_datamodule(config: TrainConfig, films: Films) -> FilmDataModule:
    data = config.data
    return FilmDataModule(
        films.pixels, films.records, config.augment["steps"],
        batch_size=data.batch_size, num_workers=data.num_workers, balance=config.balance, seed=config.seed,
    )  # fmt: skip


def build_classifier(config: TrainConfig, films: Films) -> Classifier:
    """The classifier with its positive weight from the training films. Raises UserError for settings that don't fit."""
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
        {name: getattr(config, name) for name in ("mixup", "cutmix", "border_out", "lungs_out", "random_conv")},
        config.standardize, config.flip_average, config.crop_average,
    )  # fmt: skip
    if config.unfreeze_epoch is not None and not isinstance(classifier.net, VGG):
        raise UserError(f"unfreeze_epoch={config.unfreeze_epoch}: only model=vgg16 has frozen blocks; leave it out.")
    if config.compile:
        classifier.net.compile()  # in place: names in the checkpoint stay the same
    return classifier


def build_trainer(config: TrainConfig, folder: Path, begin: Place) -> L.Trainer:
    """Lightning's trainer with the callbacks that write the run folder."""
    place, launch = config.trainer, launched()
    on_gpu = uses_gpu(place, launch)
    return L.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=launch.local if launch.world > 1 else devices(place, on_gpu),
        num_nodes=launch.world // launch.local,
        strategy="auto" if place.strategy != "ddp" else "ddp" if launch.world > 1 else "ddp_spawn",
        precision=precision(place, on_gpu),  # type: ignore[arg-type]
        max_epochs=config.epochs,
        gradient_clip_val=config.gradient_clip,
        deterministic=config.deterministic,
        benchmark=not config.deterministic,
        limit_train_batches=place.limit_batches,
        limit_val_batches=place.limit_batches,
        limit_predict_batches=place.limit_batches,
        logger=TensorBoardLogger(
            folder,
            name="tensorboard",
            version="",
            default_hp_metric=False,
            purge_step=None if config.resume is None else begin.step,
        ),
        callbacks=callbacks(config, folder),
        plugins=[AtomicCheckpointIO(), environment(launch)],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        enable_model_summary=False,
        enable_progress_bar=has_bar(),
        default_root_dir=folder,
    )


def environment(launch: Launch) -> ClusterEnvironment:
    """Where a process finds the others; a preempted job of SLURM goes on from last.ckpt, not from Lightning's own."""
    if launch.world == 1:
        return LightningEnvironment()
    return TorchElasticEnvironment() if launch.by == "torchrun" else SLURMEnvironment(auto_requeue=False)


def callbacks(config: TrainConfig, folder: Path) -> list[L.Callback]:
    """In the order in which they act; checkpoints come last, after the loss was found finite."""
    checkpoints = folder / "checkpoints"
    chosen: list[L.Callback] = [
        StopOnNonFiniteLoss(checkpoints),
        ReseedEachStep(config.seed),
        TensorBoardPictures(),
        History(folder / "metrics.csv"),
    ]
    if config.ema is not None:
        chosen.append(AveragedWeights(decay=config.ema))
    if has_bar():
        chosen.append(TQDMProgressBar(refresh_rate=5))
    if config.trainer.strategy == "ddp" and launched().world == 1:
        chosen.append(SpeakInChild(folder / "train.log"))
    if launched().world > 1:
        chosen.append(EndAtOnce())
    if config.unfreeze_epoch is not None:
        chosen.append(UnfreezeAt(config.unfreeze_epoch))
    if config.stop_on is not None:
        chosen.append(StopEarly(config.stop_on, patience=config.patience, mode=mode_of(config.stop_on)))
    return [*chosen, best_checkpoint(checkpoints, config.objective, config.keep), last_checkpoint(checkpoints)]


def has_bar() -> bool:
    """Whether a progress bar can be drawn: one run on a terminal."""
    return sys.stdout.isatty() and one_at_a_time()


def uses_gpu(place: TrainerConfig, launch: Launch) -> bool:
    """Whether to run on CUDA. Raises UserError when a GPU is asked for and there is none, or fewer than asked for."""
    there = torch.cuda.device_count()
    if place.accelerator == "gpu" and not there:
        raise UserError("trainer.accelerator=gpu: no CUDA GPU is visible here. Type trainer=cpu, or mend the driver.")
    on_gpu = place.accelerator != "cpu" and there > 0
    if on_gpu and place.devices != "auto" and int(place.devices) > there:
        raise UserError(f"trainer.devices={place.devices}: expected at most {there}, the GPUs that are visible here.")
    if on_gpu and launch.local > there:
        raise UserError(
            f"{launch.by} started {launch.local} processes on this machine: expected at most {there}, the GPUs that "
            "are visible here, or trainer.accelerator=cpu."
        )
    return on_gpu


def devices(place: TrainerConfig, on_gpu: bool) -> int:
    """How many processes: as asked for; by itself every GPU under ddp, else one."""
    if place.devices != "auto":
        return int(place.devices)
    return torch.cuda.device_count() if on_gpu and place.strategy == "ddp" else 1


def precision(place: TrainerConfig, on_gpu: bool) -> str:
    """bf16 where the GPU computes in it, else full."""
    if place.precision != "auto":
        return place.precision
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def start_record(
    config: TrainConfig, folder: Path, films: Films, classifier: Classifier, trainer: L.Trainer
) -> RunRecord:
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
    history = read_history(folder / "metrics.csv")
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
    numbers = {name: getattr(config, name) for name in ("seed", "epochs", "balance", "label_smoothing")}
    sizes = {name: getattr(config.data, name) for name in ("batch_size", "image_size", "resize")}
    names = ("accuracy", "auroc", "sensitivity", "specificity", "f1")
    final = {f"final/{split}_{name}": metrics[split][name] for split in metrics for name in names}
    for logger in trainer.loggers:
        assert isinstance(logger, TensorBoardLogger)
        logger.log_hyperparams(
            chosen | numbers | sizes | {"lr": config.optimizer["lr"]},
            {name: value for name, value in final.items() if value is not None},
        )
        logger.finalize("success")


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


def of_child(error: BaseException) -> BaseException:
    """A user's error that was raised in a spawned process comes wrapped in that process's traceback: its own line.

    A full disk and a port that another program took are a user's to mend, too.
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        return UserError(f"The run can't be written on ({error}): make room, then go on with resume=last.")
    if "EADDRINUSE" in text:
        return UserError(f"MASTER_PORT={os.environ.get('MASTER_PORT')} is in use: export another, or unset it.")
    own = re.search(r"\npneumonia\.\S+\.(?:UserError|NonFiniteLoss): (.*)", text, re.DOTALL)
    return UserError(own[1].strip()) if isinstance(error, ProcessRaisedException) and own else error


class SpeakInChild(L.Callback):
    """A spawned process begins without logging: the first of them writes to the terminal and to the run's log."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __setstate__(self, state: dict[str, Any]) -> None:
        """It comes to the child as a pickle, before Lightning there says anything."""
        self.__dict__ |= state
        quiet()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.is_global_zero and not logging.getLogger().handlers:
            handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout), logging.FileHandler(self.file)]
            logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers)


def quiet() -> None:
    """Keep Lightning's notices and tips off the terminal; what a user needs to know is said by this module."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*exists and is not empty.*",
        ".*number of training batches.*",
        ".*sync_dist=True.*",  # every process logs the value over all of them
        ".*module\\(s\\) in eval mode.*",  # frozen blocks are meant to be
    ):
        warnings.filterwarnings("ignore", text)

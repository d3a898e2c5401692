"""What happens beside the training step; each callback does one thing."""

import csv
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from pneumonia.errors import UserError
from pneumonia.evaluation.metrics import confusion
from pneumonia.files import written
from pneumonia.models.vgg import VGG
from pneumonia.report.figures import confusion_matrix, last_validated
from pneumonia.settings import lower_is_better
from pneumonia.training.classifier import Classifier

log = logging.getLogger(__name__)

COLUMNS = (
    "epoch", "step", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/auroc", "val/average_precision",
    "val/sensitivity", "val/specificity", "learning_rate", "images_per_second", "waiting_for_data",
)  # fmt: skip

PICTURES = 10  # of one name; TensorBoard shows no more, and would choose ten of them by chance
PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class NonFiniteLoss(UserError):
    """The loss became nan or infinite."""


class StopOnNonFiniteLoss(L.Callback):
    """Stop before a nan or infinite loss, or weight, reaches a checkpoint, and say at which step it first appeared.

    The step is kept on the device and looked at every `every` steps, so that no step waits for it.
    """

    def __init__(self, folder: Path, every: int = 50) -> None:
        self.folder = folder
        self.every = every
        self.first: Tensor | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.watch(outputs["loss"].detach(), trainer.global_step)
        if (batch_idx + 1) % self.every == 0:
            self.look(trainer)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.watch(outputs.detach(), trainer.global_step)  # the last step's weights are first used here

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.look(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        weights = torch.stack([weight.detach().float().sum() for weight in pl_module.parameters()])
        self.watch(weights.sum(), trainer.global_step)  # the last step's, where no validation has used them
        self.look(trainer)

    def watch(self, loss: Tensor, step: int) -> None:
        """Remember the first step whose loss is not finite, without waiting for the device."""
        first = torch.full_like(loss, math.inf) if self.first is None else self.first
        self.first = torch.where(loss.isfinite(), first, first.clamp(max=float(step)))

    def look(self, trainer: L.Trainer) -> None:
        """Raise NonFiniteLoss, in all processes, if a step of one had a loss so far that is not finite."""
        if self.first is None or math.isinf(step := float(trainer.strategy.reduce(self.first, reduce_op="min"))):
            return
        saved = [file for name in ("last.ckpt", "best.ckpt") if (file := self.folder / name).exists()]
        kept = f"the last good checkpoint is {saved[0]}" if saved else "no epoch was finished, so no checkpoint is kept"
        raise NonFiniteLoss(
            f"The loss became nan or infinite at step {step:.0f} (epoch {trainer.current_epoch}); {kept}. "
            "Try a lower optimizer.lr, gradient_clip=1.0, or trainer.precision=32-true."
        )


class UnfreezeAt(L.Callback):
    """Let all of a VGG16's blocks learn from `epoch` on; before that those it was built with stay frozen."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        net = cast(Classifier, pl_module).net
        if trainer.current_epoch >= self.epoch and isinstance(net, VGG):
            net.train_blocks(5)


class CompiledNet(L.Callback):
    """torch.compile of the network in each process that trains: a spawned one gets it without, since no pickle holds
    what was compiled. In place, so that names in the checkpoint stay the same."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        cast(Classifier, pl_module).net.compile()


class AveragedWeights(EMAWeightAveraging):
    """Lightning's moving average of the weights, in place from the validation until best.ckpt is written.

    Lightning asks no callback about a checkpoint of weights alone: swapped back after the validation, as Lightning does
    it, best.ckpt would hold the weights of the last step. Buffers are the last step's: a running variance of 0.01 would
    drown in what is left of the 1 that it started from.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay, use_buffers=False)
        self.swapped = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device  # the module moves there later: the average would stay behind
        super().setup(trainer, pl_module, stage)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self.swapped = True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Not yet: best.ckpt is written after this."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.swapped:  # not in an epoch without a validation
            self._swap_models(pl_module)
            self.swapped = False
        super().on_train_epoch_end(trainer, pl_module)


class ValidateEvery(L.Callback):
    """Lightning's check_val_every_n_epoch, which leaves out the last epoch where it is no multiple."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.check_val_every_n_epoch = 1 if trainer.current_epoch + 1 == trainer.max_epochs else self.epochs


class ReseedEachStep(L.Callback):
    """Dropout's random numbers, and those by which films are mixed, come from (seed, step) alone, so that a resumed run
    draws what an unbroken one draws; each process of several draws its own."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        told = (self.seed, trainer.global_step, *([rank] if (rank := trainer.global_rank) else []))
        torch.manual_seed(int(np.random.SeedSequence(told).generate_state(1, np.uint64)[0]))


class History(L.Callback):
    """One row an epoch in metrics.csv, and one plain line in the log: what the epoch reached and how fast it went.

    An epoch without a validation has no val/ figures.

    images_per_second is over the training steps; waiting_for_data is the share of that time between steps, in which the
    next batch was fetched; learning_rate is that of the last step.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.started = self.stepped = self.waited = self.rate = 0.0
        self.films = 0
        self.validated = False
        self.row: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            drop_rows(self.file, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = self.stepped = time.perf_counter()
        self.waited, self.films, self.validated = 0.0, 0, False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.waited += time.perf_counter() - self.stepped
        self.rate = float(trainer.optimizers[0].param_groups[0]["lr"])  # after the step it is the next one's

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.stepped = time.perf_counter()
        self.films += len(batch["target"])
        if batch_idx + 1 == trainer.num_training_batches:  # validation runs inside the epoch: stop the clock before it
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()  # once an epoch: what was queued belongs to the time
                self.stepped = time.perf_counter()
            seconds = self.stepped - self.started
            self.row = {
                "images_per_second": self.films * trainer.world_size / seconds,
                "waiting_for_data": self.waited / seconds,
                "learning_rate": self.rate,
            }

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log_dict(self.row, rank_zero_only=True)
        known = [name for name in COLUMNS if self.validated or not name.startswith("val/")]  # Lightning keeps old ones
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name in known}
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step} | values | self.row
        if trainer.is_global_zero:
            append_row(self.file, row)
            log_on_terminal(epoch_line(row, trainer.max_epochs or 0))


def drop_rows(file: Path, epoch: int) -> None:
    """Drop the rows of `epoch` and later, and half a line: a run that goes on after a kill writes them anew."""
    header, *lines = (file.read_bytes() if file.exists() else b"").splitlines(keepends=True) or [b""]
    kept = [line for line in lines if line.endswith(b"\n") and int(line.partition(b",")[0]) < epoch]
    if not kept:
        file.unlink(missing_ok=True)  # the next row brings its header
        return
    with written(file) as temporary:
        temporary.write_bytes(b"".join([header, *kept]))


def append_row(file: Path, row: dict[str, float]) -> None:
    """Append a row to metrics.csv, with the header when it is the first; an undefined value stays empty."""
    new = not file.exists() or not file.stat().st_size
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({name: "" if math.isnan(value) else value for name, value in row.items()})
        stream.flush()
        os.fsync(stream.fileno())


def kept_row(
    history: list[dict[str, float | None]], objective: str, keep: str = "best"
) -> dict[str, float | None] | None:
    """The row whose weights best.ckpt holds: with keep="last" the last that was validated, else of equally good ones
    the first; None when there is no such row, or the objective was never defined."""
    if keep == "last":
        return last_validated(history)
    rows = [row for row in history if row[objective] is not None]
    sign = 1 if lower_is_better(objective) else -1
    return min(rows, key=lambda row: sign * float(row[objective] or 0), default=None)


def epoch_line(row: dict[str, float], epochs: int) -> str:
    """One line a person can read."""
    named = {
        side: "  ".join(f"{name} {row[f'{side}/{name}']:.3f}" for name in names if f"{side}/{name}" in row)
        for side, names in (("train", ("loss", "accuracy")), ("val", ("loss", "accuracy", "auroc")))
    }
    sides = "  ".join(f"{side}: {figures}" for side, figures in named.items() if figures)
    speed = f"{row['images_per_second']:,.0f} images/s, {100 * row['waiting_for_data']:.0f} % waiting for data"
    return f"epoch {row['epoch'] + 1:.0f}/{epochs}  {sides}  {speed}"


def log_on_terminal(line: str) -> None:
    """Into the log; where a progress bar owns the terminal, above the bar."""
    if not sys.stdout.isatty():
        log.info(line)
        return
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm():
        log.info(line)


class Bar(TQDMProgressBar):
    """Lightning's progress bar, but its epochs count from 1, as in the lines above it."""

    def on_train_epoch_start(self, trainer: L.Trainer, *rest: Any) -> None:
        super().on_train_epoch_start(trainer, *rest)
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")


class TensorBoardPictures(L.Callback):
    """Into TensorBoard: the first augmented batch, after each validation the PR curve, and the confusion matrix of
    PICTURES at most, the first and the last among them: on a GPU one takes a tenth of a small net's epoch."""

    def __init__(self) -> None:
        self.waiting: Callable[[], None] | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 0:
            self.write(trainer, lambda writer: writer.add_images("train/augmented", batch["image"][:16].cpu(), 0))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        probability, target = (scores.cpu().numpy() for scores in cast(Classifier, pl_module).validation_scores())
        step = trainer.global_step - 1  # as the epoch's scalars have it
        self.write(trainer, lambda writer: writer.add_pr_curve("val/precision_recall", target, probability, step))
        counts, title = confusion(target, probability, 0.5), f"Validation, epoch {trainer.current_epoch + 1}"

        def draw() -> None:
            figure = confusion_matrix(**counts, title=title)
            self.write(trainer, lambda writer: writer.add_figure("val/confusion_matrix", figure, step))

        self.waiting = draw
        every = trainer.check_val_every_n_epoch or 1
        if trainer.current_epoch // every % math.ceil((trainer.max_epochs or 1) / every / (PICTURES - 1)) == 0:
            self.draw()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.draw()

    def draw(self) -> None:
        """The confusion matrix of the last validation, if it is not drawn yet."""
        if self.waiting:
            self.waiting()
            self.waiting = None

    def write(self, trainer: L.Trainer, add: Callable[[SummaryWriter], None]) -> None:
        """Hand the event writer to `add`, in the process that writes."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                add(logger.experiment)


class Checkpoint(ModelCheckpoint):
    """Lightning's, but it remembers the best in a run folder that was moved, too."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        moved = {name: here(state_dict[name]) for name in PATHS if name in state_dict}
        ranked = {here(path): value for path, value in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | moved | {"dirpath": self.dirpath, "best_k_models": ranked})


class StopEarly(EarlyStopping):
    """Lightning's, but a run that was killed between this decision and its end doesn't train on when resumed, one that
    goes on has the patience of its settings, and an epoch without a value is one that is no better."""

    def __init__(self, monitor: str, patience: int) -> None:
        super().__init__(monitor, patience=patience, mode=mode_of(monitor), check_finite=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.wait_count >= max(1, self.patience):  # 0: the first epoch that is no better
            trainer.should_stop = True


def best_checkpoint(folder: Path, objective: str, keep: str = "best") -> ModelCheckpoint:
    """best.ckpt: weights and model spec of the first epoch with the best `objective`; with keep="last" of the last."""
    ranked, mode = ("epoch", "max") if keep == "last" else (objective, mode_of(objective))
    return Checkpoint(
        folder, "best", ranked, mode=mode, save_weights_only=True, enable_version_counter=False,
        auto_insert_metric_name=False, save_on_train_epoch_end=False,
    )  # fmt: skip


def last_checkpoint(folder: Path) -> ModelCheckpoint:
    """last.ckpt: all that resuming needs, after every epoch."""
    return Checkpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)


def mode_of(objective: str) -> str:
    """What Lightning's callbacks call the direction in which an objective is better."""
    return "min" if lower_is_better(objective) else "max"

"""Lightning's trainer as the settings want it: where it computes, what it writes, and which process speaks."""

import logging
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pneumonia.errors import UserError
from pneumonia.launch import Launch, launched
from pneumonia.settings import TrainConfig, TrainerConfig
from pneumonia.training.callbacks import (
    AveragedWeights,
    Bar,
    CompiledNet,
    History,
    ReseedEachStep,
    StopEarly,
    StopOnNonFiniteLoss,
    TensorBoardPictures,
    UnfreezeAt,
    ValidateEvery,
    best_checkpoint,
    last_checkpoint,
)
from pneumonia.training.checkpoint import AtomicCheckpointIO
from pneumonia.training.graphs import ReplayedNet
from pneumonia.workflows.processes import one_at_a_time
from pneumonia.workflows.resume import Place

log = logging.getLogger(__name__)


def build_trainer(config: TrainConfig, folder: Path, begin: Place) -> L.Trainer:
    """Lightning's trainer with the callbacks that write the run folder."""
    place, launch = config.trainer, launched()
    on_gpu = uses_gpu(place, launch)
    if config.compile:
        check_compiler(on_gpu)
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
        check_val_every_n_epoch=config.validate_every,
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
        ValidateEvery(config.validate_every),
        StopOnNonFiniteLoss(checkpoints),
        ReseedEachStep(config.seed),
        TensorBoardPictures(),
        History(folder / "metrics.csv"),
    ]
    if config.cuda_graphs:
        chosen.append(ReplayedNet())
    if config.compile:
        chosen.append(CompiledNet())
    if config.ema is not None:
        chosen.append(AveragedWeights(decay=config.ema))
    if has_bar():
        chosen.append(Bar(refresh_rate=5))
    if config.trainer.strategy == "ddp" and launched().world == 1:
        chosen.append(SpeakInChild(folder / "train.log"))
    if launched().world > 1:
        chosen.append(EndAtOnce())
    if config.unfreeze_epoch is not None:
        chosen.append(UnfreezeAt(config.unfreeze_epoch))
    if config.stop_on is not None:
        chosen.append(StopEarly(config.stop_on, config.patience))
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


def check_compiler(on_gpu: bool) -> None:
    """Raise UserError where torch.compile would find no compiler: its kernels for a CPU are C++, and Triton, which
    writes those for a GPU, launches them from C."""
    name, usual = ("CC", ("gcc", "clang")) if on_gpu else ("CXX", ("g++",))
    wanted = (os.environ[name],) if name in os.environ else usual
    if not any(map(shutil.which, wanted)):
        raise UserError(
            f"compile=true: torch.compile needs a compiler, and {' or '.join(wanted)} can't be found. Install one (on "
            f"Debian: apt install g++), name it as {name}=<file>, or type compile=false."
        )


def devices(place: TrainerConfig, on_gpu: bool) -> int:
    """How many processes: as asked for; by itself every GPU under ddp, else one."""
    if place.devices != "auto":
        return int(place.devices)
    return torch.cuda.device_count() if on_gpu and place.strategy == "ddp" else 1


def processes_here(place: TrainerConfig, launch: Launch, on_gpu: bool) -> int:
    """How many processes share the cores that this one may use; srun gives each its own."""
    return {"": devices(place, on_gpu), "torchrun": launch.local, "srun": 1}[launch.by]


def precision(place: TrainerConfig, on_gpu: bool) -> str:
    """bf16 where the GPU computes in it, else full. Raises UserError for float16 on a CPU."""
    if place.precision == "16-mixed" and not on_gpu:
        raise UserError("trainer.precision=16-mixed is for a GPU: type bf16-mixed or 32-true in place of it.")
    if place.precision != "auto":
        return place.precision
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def say_processes(config: TrainConfig, trainer: L.Trainer) -> None:
    """How many films a step takes when several processes share it, and that the rate is not scaled with them."""
    count, batch = trainer.world_size, config.data.batch_size
    if count > 1:
        log.info(
            "%d processes x data.batch_size=%d: an effective batch of %d; optimizer.lr=%g is taken as typed",
            *(count, batch, count * batch, config.optimizer["lr"]),
        )


def say_emulated(trainer: L.Trainer) -> None:
    """That an x86 processor without instructions for bfloat16 computes it slower than float32: eight times with AVX2
    alone; with AVX-512 alone not measured here, by OpenVINO's documentation (Bfloat16 Inference) slower too."""
    has = torch.cpu.get_capabilities()
    slow = has["architecture"] == "x86_64" and not (has.get("avx512_bf16") or has.get("amx_bf16"))
    if slow and trainer.precision == "bf16-mixed" and isinstance(trainer.accelerator, CPUAccelerator):
        log.warning("trainer.precision=bf16-mixed: this processor only emulates bfloat16; 32-true is faster here")


class EndAtOnce(L.Callback):
    """Of several processes each ends at its own SIGTERM, which torchrun and srun send to all of them.

    Lightning's handler tells the others by a collective, in the midst of another one, and may hang there.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signal.signal(signal.SIGTERM, self.end)

    def end(self, number: int, frame: FrameType | None) -> None:
        raise SIGTERMException


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
    """Keep Lightning's notices and tips off the terminal; what a user needs to know these workflows say."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*exists and is not empty.*",
        ".*number of training batches.*",
        ".*sync_dist=True.*",  # every process logs the value over all of them
        ".*module\\(s\\) in eval mode.*",  # frozen blocks are meant to be
        ".*AccumulateGrad node's stream does not match.*",  # graphs are captured in a stream of their own
        ".*there was no current CUDA context.*",  # and the thread of the backward pass finds its context there
    ):
        warnings.filterwarnings("ignore", text)

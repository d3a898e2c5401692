"""Two processes beside one of the same cores, and what each step pays for the exchange of gradients.

uv run pytest -n 0 -m benchmark -s tests/benchmarks/test_processes_speed.py

Training steps of `baseline` on cached noise, batch 32 a process, gloo: with films of 64 px (3.2 M parameters) and of
224 px (47.8 M). The exchange is timed by itself: an all-reduce of as many bytes between two processes.
"""

import time
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pneumonia.data.cache import FilmCache
from pneumonia.data.datamodule import FilmDataModule
from pneumonia.data.records import Record
from pneumonia.launch import usable_cores
from pneumonia.training.callbacks import History, ReseedEachStep
from pneumonia.training.classifier import Classifier
from pneumonia.workflows.sources import read_numbers
from pneumonia.workflows.trainer import SpeakInChild, quiet

pytestmark = pytest.mark.benchmark
ADAM = {"_target_": "torch.optim.Adam", "lr": 1e-4}
CONSTANT = {"_target_": "pneumonia.training.schedules.constant", "warmup": 0.0}
BATCH = 32


class Rows(FilmCache):
    """A cache whose rows are in record order."""

    def rows(self, records) -> np.ndarray:
        return np.arange(len(records))


def baseline(size: int) -> dict:
    return {
        "_target_": "pneumonia.models.cnn.cnn", "blocks": [[32], [64]], "dense": [256], "dropout": 0.0,
        "image_size": size,
    }  # fmt: skip


def rate(folder: Path, size: int, steps: int, processes: int, threads: int) -> float:
    """Films a second of all processes together, over the second of two epochs of `steps` steps."""
    quiet()
    folder.mkdir()
    count = steps * BATCH * processes
    (folder / "pixels.u8").write_bytes(
        np.random.default_rng(0).integers(0, 256, (count, size, size), np.uint8).tobytes()
    )
    records = [Record(str(n), n % 2, str(n), split="train", sha256=str(n)) for n in range(count)]
    films = FilmDataModule(
        Rows(folder, size, []), records, [], batch_size=BATCH, num_workers=0, balance="none", seed=0, on_gpu=False
    )
    torch.set_num_threads(threads)
    trainer = L.Trainer(
        accelerator="cpu", devices=processes, strategy="ddp_spawn" if processes > 1 else "auto", max_epochs=2,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ReseedEachStep(0), History(folder / "metrics.csv"), SpeakInChild(folder / "train.log")],
        limit_val_batches=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(Classifier(baseline(size), ADAM, CONSTANT), films)
    return float(read_numbers(folder / "metrics.csv")[-1]["images_per_second"] or 0)


def all_reduce(rank: int, store: str, parameters: int, result: str) -> None:
    """Seconds that two processes take to sum `parameters` floats, the median of 5, written by the first."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    gradient, seconds = torch.zeros(parameters), []
    for _ in range(6):
        start = time.perf_counter()
        dist.all_reduce(gradient)
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        Path(result).write_text(str(np.median(seconds[1:])))
    dist.destroy_process_group()


@pytest.mark.parametrize(("size", "steps"), [(64, 16), (224, 4)])
def test_two_processes_against_one(tmp_path: Path, size: int, steps: int) -> None:
    cores = usable_cores()
    plan = {"one process, one thread": (1, 1), "one process, every core": (1, cores), "two processes": (2, cores // 2)}
    rounds = [
        {name: rate(tmp_path / f"{turn} {name}", size, steps, *how) for name, how in plan.items()} for turn in range(3)
    ]
    speed = {name: float(np.median([turn[name] for turn in rounds])) for name in plan}
    parameters = sum(p.numel() for p in Classifier(baseline(size), ADAM, CONSTANT).parameters())
    mp.spawn(all_reduce, (str(tmp_path / "store"), parameters, str(tmp_path / "seconds")), nprocs=2)
    exchange = float((tmp_path / "seconds").read_text())
    step = 2 * BATCH / speed["two processes"]
    print(f"\nbaseline at {size} px, {parameters:,} parameters, batch {BATCH} a process, {cores} cores")
    for name, films in speed.items():
        print(f"  {name:<26}{films:>8,.1f} images/s  {films / speed['one process, one thread']:.2f}")
    megabytes = 4e-6 * parameters
    print(f"  a step of two: {1000 * step:.0f} ms; {megabytes:.0f} MB of gradients alone: {1000 * exchange:.0f} ms")
    assert speed["two processes"] > 0.25 * speed["one process, every core"]

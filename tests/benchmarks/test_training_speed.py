"""Lightning's fit beside a raw PyTorch loop of the same model and batches: one ratio a model.

uv run pytest -m benchmark -s tests/benchmarks/test_training_speed.py

On a CPU `baseline` at batch 32 in full precision, and steps of the compact net with freed memory kept or given back; on
a GPU `baseline` at batch 256 and VGG16 end to end at batch 128 in bf16, against a raw loop fed with one constant batch,
and the share of the card's measured bf16 matrix rate.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from pneumonia.data.cache import FilmCache
from pneumonia.data.datamodule import FilmDataModule
from pneumonia.data.records import Record
from pneumonia.training.callbacks import History, ReseedEachStep, StopOnNonFiniteLoss
from pneumonia.training.classifier import Classifier

pytestmark = pytest.mark.benchmark
GPU = torch.cuda.is_available()
BASELINE = {
    "_target_": "pneumonia.models.cnn.cnn", "blocks": [[32], [64]], "dense": [256], "dropout": 0.0, "image_size": 224,
}  # fmt: skip
VGG = {
    "_target_": "pneumonia.models.vgg.vgg16", "weights": None, "trainable_blocks": 5, "head": [512, 256, 128, 64],
    "dropout": 0.0, "image_size": 224,
}  # fmt: skip
ADAM = {"_target_": "torch.optim.Adam", "lr": 1e-4}
CONSTANT = {"_target_": "pneumonia.training.schedules.constant", "warmup": 0.0}


def films_of(folder: Path, count: int, batch_size: int) -> FilmDataModule:
    """`count` films of noise in a cache, with augment=light's work left out: the step is what is measured."""
    rng = np.random.default_rng(0)
    (folder / "pixels.u8").write_bytes(rng.integers(0, 256, (count, 224, 224), np.uint8).tobytes())
    films = FilmCache(folder, 224, [])
    records = [Record(str(n), n % 2, str(n), split="train", sha256=str(n)) for n in range(count)]
    films.rows = lambda part: np.arange(len(part))  # type: ignore[method-assign]
    return FilmDataModule(
        films, records, [], batch_size=batch_size, num_workers=None, balance="none", seed=0, on_gpu=GPU
    )


def lightning_rate(folder: Path, model: dict, batch_size: int, steps: int) -> float:
    """Films a second over the second of two epochs, by the run's own throughput line."""
    films = films_of(folder, steps * batch_size, batch_size)
    history = History(folder / "metrics.csv")
    trainer = L.Trainer(
        accelerator="gpu" if GPU else "cpu", devices=1, precision="bf16-mixed" if GPU else "32-true", max_epochs=2,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[StopOnNonFiniteLoss(folder), ReseedEachStep(0), history], limit_val_batches=0, benchmark=True,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(Classifier(model, ADAM, CONSTANT), films)
    return history.row["images_per_second"]


def raw_rate(model: dict, batch_size: int, steps: int, constant: bool, folder: Path) -> float:
    """The same step in a bare loop: the same batches, or one that lies on the device."""
    device = torch.device("cuda" if GPU else "cpu")
    classifier = Classifier(model, ADAM, CONSTANT).to(device).train()
    optimizer = classifier.build_optimizer()
    loader = films_of(folder, steps * batch_size, batch_size).train_dataloader()
    first = {name: value.to(device) for name, value in next(iter(loader)).items()}

    def epoch() -> None:
        for batch in [first] * steps if constant else loader:
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=GPU):
                logit = classifier(batch["image"])
            loss = binary_cross_entropy_with_logits(logit, batch["target"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if GPU:
            torch.cuda.synchronize()

    epoch()
    start = time.perf_counter()
    epoch()
    return steps * batch_size / (time.perf_counter() - start)


def matrix_ceiling() -> float:
    """bf16 matrix rate of the card in FLOP a second, measured."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - start)


CASES = (
    [("vgg16 end to end", VGG, 128, 40, 0.95), ("baseline", BASELINE, 256, 40, 0.80)]
    if GPU
    else [("baseline", BASELINE, 32, 8, 0.95)]
)


@pytest.mark.parametrize(("name", "model", "batch_size", "steps", "least"), CASES, ids=lambda case: str(case)[:16])
def test_lightning_against_a_raw_loop(
    tmp_path: Path, name: str, model: dict, batch_size: int, steps: int, least: float
) -> None:
    rounds = [
        (lightning_rate(tmp_path, model, batch_size, steps), raw_rate(model, batch_size, steps, GPU, tmp_path))
        for _ in range(3)
    ]
    ratios = [ours / raw for ours, raw in rounds]
    ours, raw = np.median(rounds, 0)
    print(
        f"\n{name}, batch {batch_size}: Lightning {ours:,.1f}/s, raw loop {raw:,.1f}/s, ratio {np.median(ratios):.3f}"
    )
    if GPU and "vgg" in name:
        flops = ours * 3 * 2 * 15.35e9  # forward and backward of VGG16's convolutions at 224 px, 15.35 G multiply-adds
        print(f"share of the measured bf16 matrix rate: {flops / matrix_ceiling():.2f}")
    assert np.median(ratios) >= least


STEPS = """
import sys, time, torch
from pneumonia.entry import keep_freed_memory
from pneumonia.models.compact import compact
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
net = compact(16, [16, 32, 64, 128, 192], [1] * 5, 0.0, 112).to(memory_format=torch.channels_last)
image = torch.rand(64, 3, 112, 112).contiguous(memory_format=torch.channels_last)
for step in range(23):
    if step == 3:
        start = time.perf_counter()
    net(image).sum().backward()
print((time.perf_counter() - start) / 20)
"""


@pytest.mark.skipif(GPU, reason="steps on a CPU")
def test_steps_with_freed_memory_kept_against_steps_without() -> None:
    """Both at once, each on a core, since a machine that others share is not as fast in one minute as in the next."""
    huge = os.environ | {"THP_MEM_ALLOC_ENABLE": "1"}  # as every command has it

    def both() -> list[float]:
        pair = [
            subprocess.Popen([sys.executable, "-c", STEPS, how], env=huge, stdout=subprocess.PIPE)
            for how in ("kept", "given back")
        ]
        return [float(process.communicate()[0]) for process in pair]

    rounds = [both() for _ in range(4)]
    kept, back = np.median(rounds, 0)
    ratio = np.median([b / a for a, b in rounds])
    print(f"\ncompact, a step of 64 films: freed memory kept {kept:.3f} s, given back {back:.3f} s, ratio {ratio:.3f}")
    assert ratio >= 1

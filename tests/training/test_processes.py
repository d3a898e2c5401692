"""Two processes see each film once and report what one process reports."""

import json
import time
from contextlib import nullcontext
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from pneumonia.data.cache import FilmCache
from pneumonia.data.datamodule import FilmDataModule
from pneumonia.data.records import Record
from pneumonia.training.callbacks import NonFiniteLoss, ReseedEachStep, StopOnNonFiniteLoss
from pneumonia.training.classifier import Classifier

CNN = {"_target_": "pneumonia.models.cnn.cnn", "blocks": [[4]], "dense": [8], "dropout": 0.0, "image_size": 16}
ADAM = {"_target_": "torch.optim.Adam", "lr": 0.01}
CONSTANT = {"_target_": "pneumonia.training.schedules.constant", "warmup": 0.0}


def films_of(folder: Path, count: int, split: str = "val") -> FilmDataModule:
    """`count` films of 16 px; an odd number, so that the last batches are uneven."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, count)
    pixels = (rng.integers(0, 156, (count, 16, 16)) + 40 * label[:, None, None]).astype(np.uint8)
    (folder / "pixels.u8").write_bytes(pixels.tobytes())
    records = [Record(str(n), int(label[n]), str(n), split=split, sha256=str(n)) for n in range(count)]
    return FilmDataModule(
        Rows(folder, 16, []), records, [], batch_size=32, num_workers=0, balance="none", seed=0, on_gpu=False
    )


class Rows(FilmCache):
    """A cache whose rows are in record order."""

    def rows(self, records) -> np.ndarray:
        return np.arange(len(records))


class Counted(L.Callback):
    """Writes the metrics and the films that this process saw."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[int] = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.seen += batch["index"].tolist()

    def on_validation_end(self, trainer, pl_module) -> None:
        told = {name: float(value) for name, value in trainer.callback_metrics.items()}
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps({"metrics": told, "seen": self.seen}))


class Drawn(L.Callback):
    """Poisons the second process's first loss, if told to; writes what each step drew."""

    def __init__(self, folder: Path, poison: bool) -> None:
        self.folder = folder
        self.poison = poison
        self.drawn: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.drawn.append(float(torch.rand(())))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.poison and trainer.global_rank == 1:
            outputs["loss"] = outputs["loss"] * torch.nan

    def on_train_end(self, trainer, pl_module) -> None:
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.drawn))


class Told(StopOnNonFiniteLoss):
    """Writes what it raises, and waits for the other process to do so: the first that ends would end both."""

    def look(self, trainer) -> None:
        try:
            super().look(trainer)
        except NonFiniteLoss as error:
            (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps([str(error)]))
            end = time.monotonic() + 30
            while len(list(self.folder.glob("?.json"))) < 2 and time.monotonic() < end:
                time.sleep(0.1)
            raise


def train(folder: Path, poison: bool) -> list[list]:
    """What each of two processes wrote."""
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", logger=False, max_epochs=1, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[ReseedEachStep(0), Drawn(folder, poison), Told(folder, every=1)],
        enable_checkpointing=False,
    )  # fmt: skip
    with pytest.raises(Exception, match="nan or infinite at step 1") if poison else nullcontext():
        trainer.fit(Classifier(CNN, ADAM, CONSTANT), films_of(folder, 256, "train"))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_each_of_two_processes_draws_its_own_random_numbers(tmp_path: Path) -> None:
    """The first what a process draws that is alone."""
    first, second = train(tmp_path, poison=False)
    torch.manual_seed(int(np.random.SeedSequence((0, 0)).generate_state(1, np.uint64)[0]))
    assert first[0] == float(torch.rand(()))
    assert len(first) == len(second) == 4 and len({*first, *second}) == 8


def test_a_loss_that_is_nan_in_one_process_ends_all_of_them_alike(tmp_path: Path) -> None:
    first, second = train(tmp_path, poison=True)
    assert first == second and "nan or infinite at step 1 (epoch 0)" in first[0]


def validate(folder: Path, processes: int) -> list[dict]:
    folder.mkdir()
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu", devices=processes, strategy="ddp_fork" if processes > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[Counted(folder)], enable_checkpointing=False,
    )  # fmt: skip
    trainer.validate(Classifier(CNN, ADAM, CONSTANT), films_of(folder, 313), verbose=False)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


def test_two_processes_report_what_one_does_on_an_odd_number_of_films(tmp_path: Path) -> None:
    [alone] = validate(tmp_path / "one", 1)
    two = validate(tmp_path / "two", 2)
    assert sorted(two[0]["seen"] + two[1]["seen"]) == list(range(313)) == sorted(alone["seen"])
    for told in two:
        assert told["metrics"].keys() == alone["metrics"].keys()
        for name, value in alone["metrics"].items():
            assert told["metrics"][name] == pytest.approx(value, abs=1e-6), name

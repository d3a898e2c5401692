"""Two processes see each film once and report what one process reports."""

import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest

from pneumonia.data.cache import FilmCache
from pneumonia.data.datamodule import FilmDataModule
from pneumonia.data.records import Record
from pneumonia.training.classifier import Classifier

CNN = {"_target_": "pneumonia.models.cnn.cnn", "blocks": [[4]], "dense": [8], "dropout": 0.0, "image_size": 16}
ADAM = {"_target_": "torch.optim.Adam", "lr": 0.01}
CONSTANT = {"_target_": "pneumonia.training.schedules.constant", "warmup": 0.0}


def films_of(folder: Path, count: int) -> FilmDataModule:
    """`count` validation films of 16 px; an odd number, so that the last batches are uneven."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, count)
    pixels = (rng.integers(0, 156, (count, 16, 16)) + 40 * label[:, None, None]).astype(np.uint8)
    (folder / "pixels.u8").write_bytes(pixels.tobytes())
    records = [Record(str(n), int(label[n]), str(n), split="val", sha256=str(n)) for n in range(count)]
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


def validate(folder: Path, processes: int) -> list[dict]:
    folder.mkdir()
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu", devices=processes, strategy="ddp_spawn" if processes > 1 else "auto", logger=False,
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

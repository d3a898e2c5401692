"""The LightningDataModule: it only wires records, decoding, augmentation and loaders."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pneumonia.data.cache import FilmCache, FilmFiles
from pneumonia.data.counterexamples import FOLDS, against_marks, against_shortcuts
from pneumonia.data.dataset import Batch, EpochSampler, FilmDataset
from pneumonia.data.decode import BadFilm
from pneumonia.data.marks import marks_of, squashed
from pneumonia.data.records import Record
from pneumonia.data.split import check_enough, groups_of
from pneumonia.data.transforms import Augmentation
from pneumonia.errors import UserError
from pneumonia.launch import usable_cores

MOST = 4.0  # how many times more a normal film is drawn that others are sure is pneumonia; the only one tried


class FilmDataModule(L.LightningDataModule):
    """Loaders over `records`, their pixels from `films`: train shuffled and augmented, val and test in record order.

    `root`: the folder of the films' own files, in which balance="marks" looks for marks. `hard` [N]: how sure others
    are, wrongly, that a training film is pneumonia; the surer, the more often it is drawn. `processes`: how many train
    on these cores, each with loaders of its own.
    """

    def __init__(
        self,
        films: FilmCache | FilmFiles,
        records: Sequence[Record],
        augment: Sequence[Mapping[str, Any]],
        *,
        batch_size: int,
        num_workers: int | None,
        balance: str,
        seed: int,
        on_gpu: bool,
        root: Path | None = None,
        hard: np.ndarray | None = None,
        processes: int = 1,
    ) -> None:
        super().__init__()
        self.records = {split: [r for r in records if r.split == split] for split in ("train", "val", "test")}
        self.batch_size = batch_size
        self.num_workers = default_workers(on_gpu, processes) if num_workers is None else num_workers
        self.balance = balance
        self.seed = seed
        self.on_gpu = on_gpu
        self.datasets = {
            split: FilmDataset(
                films,
                films.rows(part),
                np.array([record.label for record in part], np.float32),
                Augmentation(augment if split == "train" else [], films.size),
                seed,
            )
            for split, part in self.records.items()
        }
        self.hard = hard
        self.against: np.ndarray | None = None
        self.marks: np.ndarray | None = None
        if balance in ("counterexamples", "marks"):
            self.against = self.against_shortcuts()
        if balance == "marks":
            assert root is not None and self.against is not None
            self.marks = self.marks_in(root)
            self.against = self.against * against_marks(self.marks, self.datasets["train"].label.astype(np.int64))

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader("train", shuffle=True, weight=self.weight())

    def weight(self) -> np.ndarray | None:
        """How often each training film is drawn, [N], only their ratios count; None: each once an epoch."""
        label = self.datasets["train"].label
        alike = self.balance == "weighted_sampler"
        weight = balanced(label) if alike else self.against
        if self.hard is not None:
            often = 1 + MOST * self.hard
            if alike:
                often[label == 0] /= often[label == 0].mean()
            weight = often if weight is None else weight * often
        return weight

    def prior_correction(self) -> float:
        """The log odds of pneumonia among the training films, less those among the films as they are drawn."""
        weight, ill = self.weight(), self.datasets["train"].label == 1
        return 0.0 if weight is None else math.log(weight[~ill].mean() / weight[ill].mean())

    def against_shortcuts(self) -> np.ndarray:
        """Weight [N] of the training films against SHORTCUTS. Raises UserError where there are too few patients."""
        train, part = self.datasets["train"], self.records["train"]
        label, group = train.label.astype(np.int64), groups_of(part)
        check_enough(label, group, FOLDS, f"for balance={self.balance}", "type another balance=")
        return against_shortcuts(np.stack([train.read(k) for k in range(len(part))]), label, group, self.seed)

    def marks_in(self, root: Path) -> np.ndarray:
        """Which training films have a mark that comes with normal, with pneumonia: bool [2, N]. Raises UserError where
        a film can't be read any more."""
        part = self.records["train"]
        try:
            return marks_of(part, squashed(root, [record.path for record in part]))
        except BadFilm as error:
            raise UserError(f"{error}: balance=marks looks for marks in the films themselves. Put it back.") from error

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test")

    def _loader(self, split: str, *, shuffle: bool = False, weight: np.ndarray | None = None) -> DataLoader[Batch]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        dataset = self.datasets[split]
        sampler = EpochSampler(len(dataset), self.seed, shuffle, weight, rank, world)
        alone = shuffle and len(sampler) > self.batch_size > 1 and len(sampler) % self.batch_size == 1
        return FilmLoader(
            dataset,
            self.batch_size,
            sampler=sampler,
            drop_last=alone,  # a last batch of one film, over which a batch norm may have no spread
            collate_fn=labels_as_arrays,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.on_gpu,
        )


class FilmLoader(DataLoader[Batch]):
    """A DataLoader that sends only the films through shared memory.

    From a loader process each tensor takes a handshake of its own, for which a GPU would wait: labels and numbers come
    as arrays, in the message itself, and become tensors here.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            yield {name: torch.as_tensor(values) for name, values in batch.items()}


def labels_as_arrays(batch: Any) -> dict[str, Tensor | np.ndarray]:
    """The data set makes whole batches; all but the films become arrays, see FilmLoader."""
    return {name: values if name == "image" else values.numpy() for name, values in batch.items()}


def balanced(label: np.ndarray) -> np.ndarray:
    """Weight [N] that gives both classes the same chance to be drawn."""
    positive = label.mean()
    return np.where(label == 1, 1 / positive, 1 / (1 - positive))


def default_workers(on_gpu: bool, processes: int) -> int:
    """Loader processes of one process for its share of the cores: none on a CPU that trains by itself, up to 8 beside a
    GPU."""
    cores = usable_cores() // processes
    return min(8, max(1, cores - 1)) if on_gpu else cores // 4

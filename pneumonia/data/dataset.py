"""Films and the order in which they are drawn.

The sampler hands out (epoch, index, again), so a loader process that lives through many epochs always knows which
augmentation a film gets; `again` is how often the epoch drew the film before. A batch is made whole: {"image": uint8
[N, 1, S, S], "target": float32 [N], "index": int64 [N]}.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pneumonia.data.cache import FilmCache, FilmFiles
from pneumonia.data.transforms import Augmentation

Batch = dict[str, Tensor]
Key = tuple[int, int, int]


class FilmDataset(Dataset[Batch]):
    """Films of one split: their pixels in `films`, the row [N] of each there, and label float32 [N]."""

    def __init__(
        self, films: FilmCache | FilmFiles, rows: np.ndarray, label: np.ndarray, augmentation: Augmentation, seed: int
    ) -> None:
        self.films = films
        self.rows = rows
        self.label = label
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.label)

    def read(self, index: int) -> np.ndarray:
        """Film number `index` as it is on disk, uint8 [S, S]."""
        return self.films.read(self.rows[index])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these (epoch, index, again) keys."""
        cv2.setNumThreads(0)  # the loader's processes are the parallel part
        size = self.films.size
        image = np.empty((len(keys), size, size), np.uint8)
        for place, (epoch, number, again) in enumerate(keys):
            image[place] = self.augmentation(self.read(number), self.seed, epoch, number, again)
        index = np.array([number for _, number, _ in keys])
        return {
            "image": torch.from_numpy(image).unsqueeze(1),
            "target": torch.from_numpy(self.label[index]),
            "index": torch.from_numpy(index),
        }


class EpochSampler(Sampler[Key]):
    """(epoch, index, again) of `size` films: in order, shuffled from (seed, epoch), or drawn by `weight`, with
    replacement.

    Of several processes each takes every `world`-th film from `rank` on. When shuffled, the last films are dropped so
    that all have equally many; in order, nothing is dropped or repeated.
    """

    def __init__(
        self, size: int, seed: int, shuffle: bool, weight: np.ndarray | None = None, rank: int = 0, world: int = 1
    ) -> None:
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.weight = weight
        self.rank = rank
        self.world = world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.world if self.shuffle else len(range(self.rank, self.size, self.world))

    def __iter__(self) -> Iterator[Key]:
        keys = counted(self.order().tolist())
        mine = itertools.islice(keys, self.rank, self.rank + len(self) * self.world, self.world)
        return ((self.epoch, index, again) for index, again in mine)

    def order(self) -> np.ndarray:
        """Indices [size] of this epoch, before they are shared out."""
        if not self.shuffle:
            return np.arange(self.size)
        generator = np.random.default_rng((self.seed, self.epoch))
        if self.weight is None:
            return generator.permutation(self.size)
        return generator.choice(self.size, self.size, p=self.weight / self.weight.sum())


def counted(order: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each index with how often it stands earlier in `order`."""
    drawn: Counter[int] = Counter()
    for index in order:
        yield index, drawn[index]
        drawn[index] += 1

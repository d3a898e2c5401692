"""Random augmentation by albumentations, the one place that knows that library.

Every film's augmentation is drawn from (seed, epoch, index) alone: the number of loader processes, the order of films
and a resumed run change nothing. The operations are called one after another without albumentations.Compose, which
would seed each of them alike, so that the flip would foretell the rotation, and costs as much as a rotation.
"""

import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network at import otherwise

import albumentations  # noqa: F401  (the variable above must be set first)

from pneumonia.build import build


class Augmentation:
    """uint8 [S, S] -> uint8 [S, S] by the operations of an augment file, in their order, from one random stream."""

    def __init__(self, steps: Sequence[Mapping[str, Any]]) -> None:
        self.steps = [build("augment", step) for step in steps]
        self.bits = np.random.Philox(0)
        self.python = random.Random(0)
        for step in self.steps:
            step.set_random_state(np.random.Generator(self.bits), self.python)

    def __call__(self, film: np.ndarray, seed: int, epoch: int, index: int) -> np.ndarray:
        if not self.steps:
            return film
        self.reseed(seed, epoch, index)
        image = film[..., None]
        for step in self.steps:
            image = step(image=image)["image"]
        return image[..., 0] if image.ndim == 3 else image

    def reseed(self, seed: int, epoch: int, index: int) -> None:
        """Start both random streams anew; Philox takes the numbers as its key (Salmon et al. 2011)."""
        place = epoch << 32 | index
        state: Any = dict(self.bits.state)
        state["state"] = {"counter": np.zeros(4, np.uint64), "key": np.array([seed, place], np.uint64)}
        state |= {"buffer_pos": 4, "has_uint32": 0, "uinteger": 0}
        self.bits.state = state
        self.python.seed(seed << 64 | place)

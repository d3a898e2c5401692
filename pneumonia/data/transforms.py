"""Random augmentation by albumentations, the one place that knows that library.

Every film's augmentation is drawn from (seed, epoch, index) alone, and from how often the epoch drew it before: the
number of loader processes, the order of films and a resumed run change nothing. The operations are called one after
another without albumentations.Compose, which would seed each of them alike, so that the flip would foretell the
rotation, and costs as much as a rotation.
"""

import os
import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network at import otherwise

import albumentations

from pneumonia.build import build
from pneumonia.errors import UserError

DRAWS = 16  # that each pipeline is asked for at the start: a step of p=0.5 is in all but one of 65,536 such trials


class Augmentation:
    """uint8 [S, S] -> uint8 [S, S] by the operations of an augment file, in their order, from one random stream.

    Raises UserError for operations that can't be built, or leave a film of `side` pixels anything else.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], side: int) -> None:
        self.steps = [build("augment", step) for step in steps]
        self.calls = [partial(affine if type(step) is albumentations.Affine else call, step) for step in self.steps]
        self.bits = np.random.Philox(0)
        self.python = random.Random(0)
        for step in self.steps:
            step.set_random_state(np.random.Generator(self.bits), self.python)
        try:
            left = [self(np.zeros((side, side), np.uint8), 0, 0, number) for number in range(DRAWS)]
        except Exception as error:  # albumentations and OpenCV raise many kinds
            raise UserError(f"augment.steps: {error} (films of {side} x {side} px)") from error
        if any(film.shape != (side, side) for film in left):
            raise UserError("augment.steps: a step changes the size of the films; data.image_size= sets that.")
        if kinds := {film.dtype.name for film in left} - {"uint8"}:
            raise UserError(
                f"augment.steps: a step makes {', '.join(kinds)} of the films' uint8, as Normalize and ToFloat do; "
                "leave it out, standardize=centre brings films to one mean and spread."
            )

    def __call__(self, film: np.ndarray, seed: int, epoch: int, index: int, again: int = 0) -> np.ndarray:
        """`again`: how often this epoch drew the film before."""
        if not self.steps:
            return film
        self.reseed(seed, epoch, index, again)
        for apply in self.calls:
            film = apply(film)
        return film

    def reseed(self, seed: int, epoch: int, index: int, again: int) -> None:
        """Start both random streams anew; Philox takes the numbers as key and start (Salmon et al. 2011)."""
        place = epoch << 32 | index
        state: Any = dict(self.bits.state)
        state["state"] = {"counter": np.array([0, 0, 0, again], np.uint64), "key": np.array([seed, place], np.uint64)}
        state |= {"buffer_pos": 4, "has_uint32": 0, "uinteger": 0}
        self.bits.state = state
        self.python.seed(again << 128 | seed << 64 | place)


def call(step: Any, film: np.ndarray) -> np.ndarray:
    """Any operation, through albumentations' own call: uint8 [S, S] -> uint8 [S, S]."""
    image: np.ndarray = step(image=film[..., None])["image"]
    return image[..., 0] if image.ndim == 3 else image


def affine(step: Any, film: np.ndarray) -> np.ndarray:
    """albumentations.Affine, pixel for pixel, with its own draw of the matrix but not its checks, which cost as much as
    the warp does. `fit_output` isn't for films of one size."""
    if not step.should_apply():
        return film
    matrix = step.get_params_dependent_on_data({"shape": film.shape}, {})["matrix"]
    size = film.shape[1], film.shape[0]
    return cv2.warpAffine(
        film, matrix[:2], size, flags=step.interpolation, borderMode=step.border_mode, borderValue=step.fill
    )

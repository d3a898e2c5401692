"""What every attribution method promises, and how it leaves the net and the random generators as it found them.

Net     a module from images [N, 3, H, W] in [0, 1] to logits [N]; positive means pneumonia; no in-place ReLU. Methods
        that read layers ask one that averages views of each image (AveragesViews) for these.
Method  an object built from its YAML; `attribute` gives one map [N, H, W] on the device of the images, in float32.
        Films are grey and repeated to three channels, so the map sums the channels: the effect of the grey value.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn


class Method(Protocol):
    """One way to explain a logit; maps are signed (for and against pneumonia) where the method is."""

    def attribute(self, net: nn.Module, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] -> attribution [N, H, W]."""


@runtime_checkable
class AveragesViews(Protocol):
    """A net whose logit of an image is the mean over `copies` views of it."""

    copies: int

    def views(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> [N * copies, 3, H, W] as the net within takes them."""

    def by_view(
        self, attribute: Callable[[nn.Module, Tensor], Tensor], images: Tensor, *, heat: bool = False
    ) -> Tensor:
        """Images [N, 3, H, W] -> the mean [N, H, W] of the maps of their views, moved back onto the images; with `heat`
        a map without unit, whose values move and not their sums."""


def check_images(images: Tensor) -> None:
    """Raise ValueError unless `images` are at least one film [N, 3, H, W] of floats."""
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0 or not images.is_floating_point():
        raise ValueError(
            f"Expected float images [N, 3, H, W] in [0, 1] with N >= 1, got {images.dtype} {list(images.shape)}"
        )


def check_positive(**values: float) -> None:
    """Raise ValueError, naming the argument, for a value that is not above zero."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value}: expected a number above 0")


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Dropout and batch statistics are off inside; afterwards every module has its own training flag again."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators of torch and numpy, which Captum draws from, start at `seed`; put back afterwards."""
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)

"""Occlusion: how far the logit falls when a window of the film is covered (Zeiler and Fergus 2014, arXiv:1311.2901)."""

from dataclasses import dataclass

import torch
from captum import attr
from torch import Tensor, nn

from pneumonia.attribution.batching import batch_for, halved_until_it_fits
from pneumonia.attribution.contract import check_images, check_positive, evaluating


@dataclass(frozen=True)
class Occlusion:
    """Captum's Occlusion with a square `window` that moves by `stride` pixels and is filled with `baseline`.

    Each pixel has the mean fall of the logit over the windows that cover it; negative where covering raises it.
    """

    window: int
    stride: int
    baseline: float
    internal_batch_size: int

    def __post_init__(self) -> None:
        check_positive(window=self.window, stride=self.stride, internal_batch_size=self.internal_batch_size)
        if self.stride > self.window:
            raise ValueError(f"stride={self.stride}: expected at most window={self.window}, or pixels are left out")

    def attribute(self, net: nn.Module, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, H, W] in logits; ValueError when the window does not fit into the images."""
        check_images(images)
        if self.window > min(images.shape[-2:]):
            raise ValueError(f"window={self.window}: expected at most the side of the images {list(images.shape[-2:])}")

        def over_all(size: int) -> Tensor:
            return torch.cat([self._one(net, film, size) for film in torch.split(images, 1)])

        with evaluating(net), torch.no_grad():
            return halved_until_it_fits(over_all, batch_for(net, images[:1], self.internal_batch_size, gradients=False))

    def _one(self, net: nn.Module, film: Tensor, batch: int) -> Tensor:
        """[1, 3, H, W] -> [1, H, W]: a window covers the three channels at once, so all carry the same fall."""
        falls: Tensor = attr.Occlusion(net).attribute(
            film, sliding_window_shapes=(3, self.window, self.window), strides=(3, self.stride, self.stride),
            baselines=float(self.baseline), perturbations_per_eval=batch,
        )  # fmt: skip
        return falls[:, 0]

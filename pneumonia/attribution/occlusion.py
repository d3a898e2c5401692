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

    `window` null is a seventh of the side (32 at 224), `stride` null half the window: the same share of any film.
    Each pixel has the mean fall of the logit over the windows that cover it; negative where covering raises it.
    """

    window: int | None
    stride: int | None
    baseline: float
    internal_batch_size: int

    def __post_init__(self) -> None:
        given = {"window": self.window, "stride": self.stride, "internal_batch_size": self.internal_batch_size}
        check_positive(**{name: value for name, value in given.items() if value is not None})
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise ValueError(f"stride={self.stride}: expected at most window={self.window}, or pixels are left out")

    def attribute(self, net: nn.Module, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, H, W] in logits; ValueError when window, stride and images do not fit together."""
        check_images(images)
        window, stride = self.sizes(min(images.shape[-2:]))

        def over_all(size: int) -> Tensor:
            return torch.cat([self._one(net, film, window, stride, size) for film in torch.split(images, 1)])

        with evaluating(net), torch.no_grad():
            return halved_until_it_fits(over_all, batch_for(net, images[:1], self.internal_batch_size, gradients=False))

    def sizes(self, side: int) -> tuple[int, int]:
        """(window, stride) in pixels for images of that side."""
        window = max(1, round(side / 7)) if self.window is None else self.window
        stride = max(1, window // 2) if self.stride is None else self.stride
        if window > side:
            raise ValueError(f"window={window}: expected at most the side of the images, {side}")
        if stride > window:
            raise ValueError(f"stride={stride}: expected at most window={window}, or pixels are left out")
        return window, stride

    def _one(self, net: nn.Module, film: Tensor, window: int, stride: int, batch: int) -> Tensor:
        """[1, 3, H, W] -> [1, H, W]: a window covers the three channels at once, so all carry the same fall."""
        falls: Tensor = attr.Occlusion(net).attribute(
            film, sliding_window_shapes=(3, window, window), strides=(3, stride, stride),
            baselines=float(self.baseline), perturbations_per_eval=batch,
        )  # fmt: skip
        return falls[:, 0]

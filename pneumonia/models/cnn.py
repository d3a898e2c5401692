"""The six custom networks, one table of layers: blocks of 3x3 convolutions, a pool after each, then dense layers.

As in the Keras notebooks: convolutions "valid" with stride 1, pools 2x2, ReLU throughout, Glorot-uniform kernels
(Glorot and Bengio 2010), zero biases, one logit. ReLUs are neither in-place nor reused, so hooks and DeepLift see true
values.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    """image [N, 3, S, S] in [0, 1] -> logit [N]; `features` ends with a pool, `head` begins with a flatten."""

    def __init__(self, features: nn.Sequential, head: nn.Sequential, image_size: int) -> None:
        super().__init__()
        self.features = features
        self.head = head
        self.image_size = image_size

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image)).squeeze(1)


def cnn(blocks: Sequence[Sequence[int]], dense: Sequence[int], dropout: float, image_size: int) -> ConvNet:
    """Build a network, as `blocks=[[32], [64]] dense=[256]` for C32 P C64 P D256 D1.

    Raises ValueError when the image is too small for that many blocks, widths are no whole numbers from 1, or dropout
    is not in [0, 1).
    """
    features, channels, side = convolutions(blocks, image_size)
    head = dense_head(channels * side * side, dense, dropout)
    net = ConvNet(features, head, image_size)
    net.apply(keras_start)
    return net


def convolutions(blocks: Sequence[Sequence[int]], side: int) -> tuple[nn.Sequential, int, int]:
    """(layers, channels, side) after `blocks` on a 3-channel image of `side` pixels."""
    layers: list[nn.Module] = []
    channels, size = 3, side
    if not all(isinstance(block, Sequence) and are_counts(block) for block in blocks):
        raise ValueError(f"blocks={list(blocks)}: expected lists of whole numbers from 1, as [[32], [64]]")
    for block in blocks:
        for width in block:
            layers += [nn.Conv2d(channels, width, 3), nn.ReLU()]
            channels, size = width, size - 2
        layers.append(nn.MaxPool2d(2))
        size //= 2
    if size < 1:
        raise ValueError(
            f"image_size={side} is too small for {len(blocks)} blocks of convolutions; try data.image_size=64 or more"
        )
    return nn.Sequential(*layers), channels, size


def are_counts(numbers: Sequence[Any]) -> bool:
    """Whether all are whole numbers from 1, as a number of channels, units or blocks is."""
    return all(type(number) is int and number >= 1 for number in numbers)


def dense_head(inputs: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Flatten, then a dense layer with ReLU (and dropout, unless 0) per width, then one logit."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: expected a share of units in [0, 1)")
    if not are_counts(widths):
        raise ValueError(f"dense layers of {list(widths)} units: expected whole numbers from 1")
    layers: list[nn.Module] = [nn.Flatten()]
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 1))


def keras_start(module: nn.Module) -> None:
    """Keras's defaults: Glorot-uniform kernels, zero biases."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def layer_table(net: nn.Module, image_size: int) -> list[tuple[str, str, tuple[int, ...], int]]:
    """(name, kind, output shape without N, parameters) of every layer that computes, in the order it runs."""
    rows: list[tuple[str, str, tuple[int, ...], int]] = []
    hooks = [
        module.register_forward_hook(
            lambda m, _, out, name=name: rows.append(
                (name, type(m).__name__, tuple(out.shape[1:]), sum(p.numel() for p in m.parameters()))
            )
        )
        for name, module in net.named_modules()
        if not list(module.children())
    ]
    training, parameter = net.training, next(net.parameters())
    net.eval()
    with torch.no_grad():
        net(torch.zeros(1, 3, image_size, image_size, device=parameter.device))
    net.train(training)
    for hook in hooks:
        hook.remove()
    return rows

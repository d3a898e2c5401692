"""What each layer of a net makes of one film: a map per convolution and pool, but the global one, by forward hooks."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pneumonia.attribution.contract import check_images, evaluating
from pneumonia.attribution.layers import POOLS, leaves, relu_after

CHANNELS = ("first", "strongest", "mean")
RELU = ("before", "after")


class Activation(NamedTuple):
    """One channel (or the mean) of one layer's output; `kind` is input, conv or pool."""

    layer: str
    kind: str
    map: NDArray[np.float32]


def activations(
    net: nn.Module,
    image: Tensor,
    channel: str | int = "first",
    relu: str = "before",
    layers: Sequence[str] | None = None,
) -> list[Activation]:
    """Maps [h, w] of the input, then of every convolution and pool in the order that a film [1, 3, H, W] meets them.

    channel  first, mean, strongest (largest mean absolute value) or a number, counted from 0; the input is grey, so
             its first channel is taken for every number
    relu     before: the convolution's own output; after: that of the ReLU which follows it, where one does
    layers   only these, by name ("input" too)

    Raises ValueError for an unknown choice, layer or channel, saying which there are.
    """
    check_images(image)
    if len(image) != 1:
        raise ValueError(f"Expected one image [1, 3, H, W], got {list(image.shape)}")
    _check_choices(channel, relu)
    wanted = _wanted(net, layers)
    found = [Activation("input", "input", _map(image, channel if channel == "mean" else "first", "input"))]
    _record(net, image, wanted, channel, relu, found)
    return found if layers is None or "input" in layers else found[1:]


def shown_layers(net: nn.Module) -> dict[str, str]:
    """Name -> kind (conv or pool) of the layers that can be shown, in the order in which the net registers them.

    A pool over the whole film leaves one number a channel and no map.
    """
    known = [(name, module) for name, module in leaves(net) if isinstance(module, (nn.Conv2d, *POOLS))]
    layers = [(name, module) for name, module in known if getattr(module, "output_size", None) not in (1, (1, 1))]
    return {name: "conv" if isinstance(module, nn.Conv2d) else "pool" for name, module in layers}


def _check_choices(channel: str | int, relu: str) -> None:
    if isinstance(channel, str) and channel not in CHANNELS:
        raise ValueError(f"channel={channel}: expected {', '.join(CHANNELS)} or the number of a channel")
    if isinstance(channel, int) and channel < 0:
        raise ValueError(f"channel={channel}: expected a number from 0 on")
    if relu not in RELU:
        raise ValueError(f"relu={relu}: expected before or after")


def _wanted(net: nn.Module, layers: Sequence[str] | None) -> dict[str, str]:
    """The part of `shown_layers` that was asked for; ValueError with the list for a name outside it."""
    known = shown_layers(net)
    if layers is None:
        return known
    unknown = [name for name in layers if name != "input" and name not in known]
    if unknown:
        raise ValueError(f"No layer {', '.join(unknown)}; choose from input, {', '.join(known)}")
    return {name: kind for name, kind in known.items() if name in layers}


def _record(
    net: nn.Module, image: Tensor, wanted: dict[str, str], channel: str | int, relu: str, found: list[Activation]
) -> None:
    """One forward pass with a hook on every wanted layer; each hook adds its map to `found`."""

    def hook(name: str, kind: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def record(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            found.append(Activation(name, kind, _map(output, channel, name)))

        return record

    modules = dict(net.named_modules())
    handles = []
    try:
        for name, kind in wanted.items():
            source = relu_after(net, name) if kind == "conv" and relu == "after" else name
            handles.append(modules[source].register_forward_hook(hook(name, kind)))
        with evaluating(net), torch.inference_mode():
            net(image)
    finally:
        for handle in handles:
            handle.remove()


def _map(output: Tensor, channel: str | int, layer: str) -> NDArray[np.float32]:
    """One map [h, w] of an output [1, C, h, w]."""
    maps = output[0].detach().float()
    if channel == "mean":
        return maps.mean(0).cpu().numpy()
    if channel == "strongest":
        channel = int(maps.abs().mean((1, 2)).argmax())
    number = 0 if isinstance(channel, str) else channel
    if number >= len(maps):
        raise ValueError(f"channel={number}: layer {layer} has only {len(maps)} channels, 0 to {len(maps) - 1}")
    return maps[number].cpu().numpy().copy()

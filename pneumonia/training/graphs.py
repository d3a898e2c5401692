"""The network's kernels captured once and launched together: what a small network waits for on a GPU is Python."""

import gc
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from pneumonia.data.datamodule import FilmDataModule
from pneumonia.training.classifier import Classifier


class ReplayedNet(L.Callback):
    """Train with CUDA graphs of the network's forward and backward pass on whole batches, on one GPU alone; on a CPU
    and under DDP it does nothing.

    With deterministic=true the results are meant to be those of a run without it. Whatever has another shape (the last
    batch of an epoch) or is in evaluation goes the usual way. The graphs hold one batch's activations besides.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the first batch is asked for: another thread that pins one would break the capture."""
        classifier = cast(Classifier, pl_module)
        if not isinstance(trainer.strategy, SingleDeviceStrategy) or classifier.device.type != "cuda":
            return
        films = cast(FilmDataModule, cast(Any, trainer).datamodule)
        size = films.datasets["train"].films.size
        film = torch.zeros(films.batch_size, 1, size, size, dtype=torch.uint8, device=classifier.device)
        with trainer.precision_plugin.forward_context():
            replay_in_training(classifier.net, classifier.images(film), torch.cuda.make_graphed_callables)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        vars(cast(Classifier, pl_module).net).pop("forward", None)


def replay_in_training(net: nn.Module, image: Tensor, capture: Callable[..., Any]) -> None:
    """From now on `net` in training replays what `capture` made of it, for images of the shape of `image`.

    `capture(net, (image,))` is torch.cuda.make_graphed_callables, which runs the net a few times: its buffers (running
    means and variances) are put back.
    """
    eager = net.forward
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    gc.collect()  # an earlier run's graphs, in cycles on torch 2.11, must not be freed in the midst of a capture
    capture(net, (image,))
    for buffer, before in buffers:
        buffer.copy_(before)
    replay, shape = net.forward, image.shape
    net.forward = lambda image: (replay if image.shape == shape else eager)(image)

"""The network's kernels recorded once and launched together: what a small network waits for on a GPU is Python."""

from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from pneumonia.data.dataset import Batch
from pneumonia.training.classifier import Classifier


class ReplayedNet(L.Callback):
    """Train with CUDA graphs of the network's forward and backward pass, from the first batch on; on one GPU alone: on
    a CPU and under DDP it does nothing.

    The kernels and their results are those of a run without it. Whatever has another shape (the last batch of an epoch)
    or is in evaluation goes the usual way. The graphs hold one batch's activations besides.
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        classifier = cast(Classifier, pl_module)
        alone = isinstance(trainer.strategy, SingleDeviceStrategy) and classifier.device.type == "cuda"
        if not alone or "forward" in vars(classifier.net):
            return
        with trainer.precision_plugin.forward_context():
            image = classifier.images(batch["image"])
            record_once(classifier.net, image, torch.cuda.make_graphed_callables)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        vars(cast(Classifier, pl_module).net).pop("forward", None)


def record_once(net: nn.Module, image: Tensor, record: Callable[..., Any]) -> None:
    """From now on `net` in training replays what `record` recorded of it, for images of the shape of `image`.

    `record(net, (image,))` is torch.cuda.make_graphed_callables, which runs the net a few times: its buffers (running
    means and variances) are put back.
    """
    eager = net.forward
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    record(net, (image,))
    for buffer, before in buffers:
        buffer.copy_(before)
    replay, shape = net.forward, image.shape
    net.forward = lambda image: (replay if image.shape == shape else eager)(image)

"""A net that is replayed: the right shape in the right mode, with its buffers as they were."""

import torch
from torch import Tensor, nn

from pneumonia.models.compact import compact
from pneumonia.training.graphs import replay_in_training


def captured(net: nn.Module, sample: tuple[Tensor]) -> None:
    """As torch.cuda.make_graphed_callables does it: some runs first, then another `forward` for training alone."""
    eager = net.forward
    for _ in range(3):
        eager(*sample)
    net.forward = lambda image: torch.full((len(image),), 7.0) if net.training else eager(image)


def small() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return compact(stem=8, widths=[8, 8], blocks=[1, 1], dropout=0.0, image_size=16), torch.rand(4, 3, 16, 16)


def test_only_training_batches_of_the_captured_shape_are_replayed() -> None:
    net, image = small()
    replay_in_training(net, image, captured)
    assert net(image).eq(7).all()
    assert net(image[:3]).ne(7).all()
    assert net.eval()(image).ne(7).all()


def test_capturing_changes_no_weight_and_no_running_mean() -> None:
    net, image = small()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    replay_in_training(net, image, captured)
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

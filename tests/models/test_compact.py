"""The compact network is as small as it says and starts as its docstring tells."""

import pytest
import torch
from torch import nn

from pneumonia.build import build
from pneumonia.errors import UserError
from pneumonia.models.compact import Block, Compact, compact


def net(image_size: int = 32) -> Compact:
    torch.manual_seed(0)
    return compact(8, [8, 16], [1, 2], 0.0, image_size)


def test_the_usual_one_has_under_a_million_parameters() -> None:
    with torch.device("meta"):
        usual = compact(16, [16, 32, 64, 128, 192], [1, 1, 1, 1, 1], 0.0, 112)
    assert sum(p.numel() for p in usual.parameters()) == 886_129


@pytest.mark.parametrize("side", [32, 33])
def test_a_batch_becomes_a_logit_each_whatever_the_side(side: int) -> None:
    assert net(side)(torch.rand(3, 3, side, side)).shape == (3,)


def test_kernels_start_as_he_draws_them_and_the_output_small() -> None:
    usual = compact(16, [16, 32, 64], [1, 1, 1], 0.0, 32)
    for layer in (layer for layer in usual.modules() if isinstance(layer, nn.Conv2d)):
        expected = (2 / (layer.out_channels * layer.kernel_size[0] ** 2)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=6 / layer.weight.numel() ** 0.5)
    output = usual.head[-1]
    assert isinstance(output, nn.Linear) and output.weight.std() < 0.02 and not output.bias.any()


def test_a_block_starts_as_its_shortcut() -> None:
    block, features = Block(4, 4, 1), torch.rand(2, 4, 6, 6)
    torch.testing.assert_close(block(features), features)
    nn.init.ones_(block.norm2.weight)
    assert not torch.allclose(block(features), features)


def test_the_shortcut_of_a_block_that_halves_sees_every_pixel() -> None:
    features = torch.rand(1, 4, 5, 5, requires_grad=True)
    Block(4, 8, 2).eval()(features).sum().backward()
    assert features.grad is not None and (features.grad != 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": [8]}, "one number of blocks for each width"),
        ({"blocks": [0, 1]}, "whole numbers from 1"),
        ({"blocks": [1, 1.5]}, r"blocks=\[1, 1.5\].*whole numbers from 1"),
        ({"widths": [8, "a"]}, r"widths=\[8, 'a'\].*whole numbers from 1"),
        ({"dropout": 1.0}, "dropout=1"),
        ({"image_size": 3}, "image_size=3 is too small"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict, message: str) -> None:
    spec = {"stem": 8, "widths": [8, 16], "blocks": [1, 1], "dropout": 0.0, "image_size": 32} | change
    with pytest.raises(UserError, match=message):
        build("model", {"_target_": "pneumonia.models.compact.compact"} | spec)

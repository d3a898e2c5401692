"""The six networks are the notebooks' to the parameter, start as Keras starts, and compute what a loop computes."""

import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from pneumonia.build import build
from pneumonia.config import CONF
from pneumonia.errors import UserError
from pneumonia.models.cnn import ConvNet, cnn, layer_table

PARAMETERS = {
    "baseline": 47_795_649,
    "deep": 19_394_881,
    "deep_dropout": 19_394_881,
    "wide": 382_505_729,
    "double_conv": 46_121_505,
    "regularized": 89_107_585,
}


def spec(name: str, image_size: int) -> dict:
    config = OmegaConf.merge(
        {"data": {"image_size": image_size}}, {"model": OmegaConf.load(CONF / f"model/{name}.yaml")}
    )
    return OmegaConf.to_container(config.model, resolve=True)  # type: ignore[return-value]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_notebooks(name: str) -> None:
    with torch.device("meta"):
        net = build("model", spec(name, 224))
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]


def plain_forward(net: ConvNet, image: np.ndarray) -> float:
    """The same network by loops over numpy arrays: image [3, S, S] -> logit."""
    x = image
    for layer in [*net.features, *net.head]:
        if isinstance(layer, nn.Conv2d):
            kernel, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()  # type: ignore[union-attr]
            side = x.shape[1] - 2
            y = np.empty((len(kernel), side, side))
            for row in range(side):
                for column in range(side):
                    y[:, row, column] = np.tensordot(kernel, x[:, row : row + 3, column : column + 3], 3) + bias
            x = y
        elif isinstance(layer, nn.ReLU):
            x = np.maximum(x, 0)
        elif isinstance(layer, nn.MaxPool2d):
            side = x.shape[1] // 2
            x = x[:, : 2 * side, : 2 * side].reshape(len(x), side, 2, side, 2).max((2, 4))
        elif isinstance(layer, nn.Flatten):
            x = x.reshape(-1)
        elif isinstance(layer, nn.Linear):
            x = layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()
        else:
            assert isinstance(layer, nn.Dropout)
    return float(x[0])


@pytest.mark.parametrize("name", ["baseline", "deep", "deep_dropout", "double_conv", "regularized"])
def test_forward_pass_equals_a_plain_loop(name: str) -> None:
    small = spec(name, 48)
    small["blocks"] = [[max(2, width // 16) for width in block] for block in small["blocks"]]
    small["dense"] = [width // 16 for width in small["dense"]]
    torch.manual_seed(0)
    net = build("model", small).eval()
    for parameter in net.parameters():  # biases of zero would hide a mistake
        parameter.data += 0.05 * torch.rand_like(parameter)
    image = np.random.default_rng(0).random((3, 48, 48)).astype(np.float32)
    got = net(torch.from_numpy(image)[None]).item()
    assert got == pytest.approx(plain_forward(net, image), rel=1e-4, abs=1e-5)


def test_kernels_start_glorot_uniform_and_biases_at_zero() -> None:
    torch.manual_seed(0)
    net = cnn([[32], [64]], [256], 0.0, 64)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            receptive = math.prod(layer.weight.shape[2:])
            limit = math.sqrt(6 / ((layer.weight.shape[0] + layer.weight.shape[1]) * receptive))
            assert 0.9 * limit < layer.weight.abs().max() <= limit
            assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.1)
            assert not layer.bias.any()  # type: ignore[union-attr]


def test_dropout_stands_after_each_hidden_dense_layer_and_acts_in_training_only() -> None:
    net = cnn([[4]], [16, 8], 0.5, 16)
    assert [type(layer).__name__ for layer in net.head] == [
        "Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear",
    ]  # fmt: skip
    image = torch.rand(4, 3, 16, 16)
    assert torch.equal(net.eval()(image), net(image))
    net.train()
    assert not torch.equal(net(image), net(image))


def test_no_relu_is_in_place_or_used_twice() -> None:
    net = cnn([[4, 4], [8]], [8], 0.5, 32)
    relus = [layer for layer in net.modules() if isinstance(layer, nn.ReLU)]
    assert len(relus) == 4 and not any(relu.inplace for relu in relus)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 8}, "too small"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"widht": 3}, "widht"),
        ({"dense": ["a"]}, r"dense layers of \['a'\] units: expected whole numbers from 1"),
        ({"blocks": [[32], [0]]}, r"blocks=\[\[32\], \[0\]\]: expected lists of whole numbers from 1"),
        ({"blocks": [32]}, r"blocks=\[32\]: expected lists of whole numbers from 1"),
    ],
)
def test_what_a_network_cannot_be_built_from_is_the_users_error(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("model", spec("deep", 64) | change)


def test_the_layer_table_lists_each_layer_with_its_shape_and_all_parameters() -> None:
    net = cnn([[4], [8]], [16], 0.0, 32)
    rows = layer_table(net, 32)
    assert rows[0] == ("features.0", "Conv2d", (4, 30, 30), 112)
    assert rows[-1][2] == (1,)
    assert sum(row[3] for row in rows) == sum(p.numel() for p in net.parameters())
    assert not net.features[0]._forward_hooks

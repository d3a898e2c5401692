import numpy as np
import pytest
import torch
from attribution_cases import random_films, small_cnn
from torch import nn

from pneumonia.attribution.activations import activations
from pneumonia.attribution.layers import find_layer, last_convolution, leaves, relu_after


@pytest.fixture
def film():
    return random_films(1, 17)


def test_input_convolutions_and_pools_in_the_order_of_the_net(film):
    found = activations(small_cnn(), film)
    assert [(layer, kind, values.shape) for layer, kind, values in found] == [
        ("input", "input", (17, 17)),
        ("features.0.0", "conv", (15, 15)),
        ("features.0.2", "pool", (7, 7)),
        ("features.1.0", "conv", (5, 5)),
        ("features.1.2", "pool", (2, 2)),
    ]


def test_a_pool_over_the_whole_film_leaves_no_map(film):
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert [layer for layer, _, _ in activations(net, film)] == ["input", "0", "1"]
    with pytest.raises(ValueError, match="No layer 2; choose from input, 0, 1"):
        activations(net, film, layers=["2"])


def test_maps_are_the_first_channels_of_the_layers_outputs(film):
    net = small_cnn().eval()
    before, after = activations(net, film), activations(net, film, relu="after")
    with torch.no_grad():
        first = net.features[0][0](film)
        pooled = net.features[0](film)
    np.testing.assert_array_equal(before[0].map, film[0, 0].numpy())
    np.testing.assert_array_equal(before[1].map, first[0, 0].numpy())
    np.testing.assert_array_equal(after[1].map, first[0, 0].relu().numpy())
    np.testing.assert_array_equal(before[2].map, pooled[0, 0].numpy())
    assert before[1].map.min() < 0 <= after[1].map.min() and after[1].layer == "features.0.0"


def test_the_channel_can_be_chosen(film):
    net = small_cnn().eval()
    with torch.no_grad():
        output = net.features[0][0](film)[0]
    strongest = output.abs().mean((1, 2)).argmax()
    for channel, expected in ((2, output[2]), ("strongest", output[strongest]), ("mean", output.mean(0))):
        np.testing.assert_array_equal(activations(net, film, channel)[1].map, expected.numpy())


def test_the_net_stays_as_it_was(film):
    net = small_cnn().train()
    activations(net, film)
    with pytest.raises(ValueError, match=r"channel=4: layer features\.0\.0 has only 4 channels, 0 to 3"):
        activations(net, film, channel=4)
    assert net.training and net.head.training
    assert not any(module._forward_hooks for module in net.modules())


def test_only_the_layers_asked_for(film):
    found = activations(small_cnn(), film, layers=["features.1.2", "input"])
    assert [activation.layer for activation in found] == ["input", "features.1.2"]
    assert [activation.layer for activation in activations(small_cnn(), film, layers=["features.1.0"])] == [
        "features.1.0"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"layers": ["features.7"]},
            "No layer features.7; choose from input, features.0.0, features.0.2, features.1.0",
        ),
        ({"channel": "last"}, "channel=last: expected first, strongest, mean"),
        ({"channel": -1}, "channel=-1"),
        ({"relu": "between"}, "relu=between"),
    ],
)
def test_what_does_not_exist_is_refused(film, arguments, message):
    with pytest.raises(ValueError, match=message):
        activations(small_cnn(), film, **arguments)


def test_more_than_one_film_is_refused():
    with pytest.raises(ValueError, match="one image"):
        activations(small_cnn(), random_films(2, 17))


def test_layers_are_found_by_name():
    net = small_cnn()
    assert last_convolution(net) == "features.1.0"
    assert relu_after(net, "features.1.0") == "features.1.1"
    assert find_layer(net, "features.0.2") is net.features[0][2]
    with pytest.raises(ValueError, match=r"No layer 'tail' in Net; its layers: features, features\.0"):
        find_layer(net, "tail")


def test_a_relu_is_found_over_a_batch_norm_and_missed_where_there_is_none():
    layers = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.MaxPool2d(2)
    normed = nn.Sequential(*layers)
    assert relu_after(normed, "0") == "2"
    assert relu_after(normed, "3") == "3"
    assert relu_after(nn.Sequential(layers[0]), "0") == "0"


def test_a_relu_is_found_over_the_shortcut_of_a_residual_block():
    from pneumonia.models.compact import compact

    for blocks in ([1, 1], [1, 2]):
        net = compact(stem=4, widths=[4, 8], blocks=blocks, dropout=0.0, image_size=16)
        relus = [name for name, module in leaves(net) if isinstance(module, nn.ReLU)]
        assert relu_after(net, last_convolution(net)) == relus[-1] and relus[-1].endswith("relu2"), blocks


def test_a_net_without_convolutions_is_refused_with_its_layers():
    with pytest.raises(ValueError, match="Sequential has no convolution; its layers: 0"):
        last_convolution(nn.Sequential(nn.Flatten()))

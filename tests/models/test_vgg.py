"""VGG16 is torchvision's, its head the notebooks', its preprocessing that of its weights; what is frozen stays so."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights
from torchvision.models import vgg16 as torchvision_vgg16

from pneumonia.models.vgg import BLOCK_STARTS, VGG, vgg16

HEAD = [512, 256, 128, 64]


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    return torchvision_vgg16(weights=None).features


@pytest.fixture(scope="module")
def state_file(original: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict such as torchvision's vgg16 gives, its classifier cut to one tensor."""
    file = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    state = {f"features.{key}": value for key, value in original.state_dict().items()}
    torch.save(state | {"classifier.0.bias": torch.zeros(3)}, file)
    return file


def small(weights: str | None = None, blocks: int = 0, size: int = 32) -> VGG:
    return vgg16(weights, blocks, [8], 0.0, size)


def test_parameter_counts_are_the_notebooks() -> None:
    with torch.device("meta"):
        net = vgg16(None, 0, HEAD, 0.0, 224)
    assert sum(p.numel() for p in net.head.parameters()) == 13_018_113
    assert sum(p.numel() for p in net.features.parameters()) == 14_714_688
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 13_018_113


def test_forward_pass_equals_torchvision_on_normalised_images(original: nn.Module, state_file: Path) -> None:
    net = small(str(state_file)).eval()
    image = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        features = original((image - mean[:, None, None]) / std[:, None, None]).flatten(1)
        first, last = net.head[1], net.head[3]
        by_hand = (features @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
        torch.testing.assert_close(net(image), by_hand[:, 0])


def test_weights_by_name_come_from_torchs_cache_with_their_own_preprocessing(
    original: nn.Module, state_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file lies where torch looks for it; only the checksum, which a stand-in can't have, is not asked for."""
    weights = VGG16_Weights.IMAGENET1K_FEATURES
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / Path(weights.url).name).write_bytes(state_file.read_bytes())
    net = small("IMAGENET1K_FEATURES")
    assert torch.equal(net.features[0].weight, original[0].weight)
    preprocessing = weights.transforms()
    assert net.mean.flatten().tolist() == pytest.approx(preprocessing.mean)
    assert net.std.flatten().tolist() == pytest.approx(preprocessing.std)


def test_weights_that_cannot_be_fetched_say_both_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(ValueError, match=r"model\.weights=/path/to/state_dict\.pth.*model\.weights=null"):
        small("IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"features.0.weight": torch.zeros(5, 3, 3, 3)}, "another architecture"),
        ({"conv1.weight": torch.zeros(2)}, "another architecture"),
        ([1, 2, 3], "not a state dict"),
        (b"not a checkpoint", "not a state dict"),
        (pickle.dumps({"a": 1}, protocol=4), "not a state dict"),
        (nn.Linear(2, 2), "not a state dict"),  # a pickle of code: refused, not run
    ],
    ids=["wrong shape", "other names", "list", "text", "pickle", "module"],
)
def test_a_file_of_something_else_is_refused_without_warnings(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, content: object, message: str
) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match=message):
        small(str(file))
    assert not recwarn


def test_weights_of_this_network_load_whole(tmp_path: Path) -> None:
    first = small()
    torch.save(first.state_dict(), tmp_path / "whole.pth")
    second = small(str(tmp_path / "whole.pth")).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.state_dict().items())


def test_the_head_starts_as_glorot_has_it() -> None:
    for layer in (layer for layer in small().head if isinstance(layer, nn.Linear)):
        limit = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.6 * limit < layer.weight.abs().max() <= limit and not layer.bias.any()


@pytest.mark.parametrize("blocks", range(6))
def test_the_last_blocks_learn_and_the_others_do_not(blocks: int) -> None:
    net = small(blocks=blocks)
    start = [*BLOCK_STARTS, len(net.features)][5 - blocks]
    for index, layer in enumerate(net.features):
        assert all(p.requires_grad == (index >= start) for p in layer.parameters())
    assert all(p.requires_grad for p in net.head.parameters())


def test_frozen_weights_stay_bit_identical_and_run_without_autograd() -> None:
    net = small(blocks=1, size=32).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    seen: list[Tensor] = []
    net.features[BLOCK_STARTS[4] - 1].register_forward_hook(lambda m, i, out: seen.append(out))
    net(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert not seen[0].requires_grad
    for name, value in net.state_dict().items():
        frozen = name in ("mean", "std") or (name.startswith("features") and int(name.split(".")[1]) < BLOCK_STARTS[4])
        assert torch.equal(value, before[name]) == frozen, name


def test_frozen_blocks_stay_in_eval_mode_and_images_get_gradients_in_eval() -> None:
    net = small(blocks=2).train()
    modes = [layer.training for layer in net.features]
    assert modes == [index >= BLOCK_STARTS[3] for index in range(len(modes))]
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    net.eval()(image).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


def test_no_relu_is_in_place() -> None:
    assert not any(layer.inplace for layer in small().modules() if isinstance(layer, nn.ReLU))


@pytest.mark.parametrize(("argument", "message"), [({"blocks": 6}, "trainable_blocks=6"), ({"size": 16}, "too small")])
def test_what_does_not_fit_is_refused(argument: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**argument)

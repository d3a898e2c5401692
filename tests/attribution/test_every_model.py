"""Every model of conf/model, small: hooks find each layer, and every method explains it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from attribution_cases import NAMES, method_of, random_films
from hydra.utils import get_object
from torch import nn

from pneumonia.attribution.activations import activations
from pneumonia.attribution.layers import relu_after

MODELS = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"), key=lambda file: file.stem)
SIDE = 48
QUICK = {
    "integrated_gradients": {"n_steps": 4}, "gradient_shap": {"n_samples": 2}, "smoothgrad": {"n_samples": 2},
    "lime": {"num_samples": 12, "segmentation": "grid", "n_segments": 4}, "occlusion": {"window": 24, "stride": 24},
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS, ids=lambda file: file.stem)
def net(request: pytest.FixtureRequest) -> Any:
    """The model of a YAML with random weights, at 48 pixels."""
    spec = yaml.safe_load(request.param.read_text())
    spec = spec.get("model", spec) | {"image_size": SIDE}
    spec |= {"weights": None} if "weights" in spec else {}
    torch.manual_seed(0)
    return get_object(spec.pop("_target_"))(**spec).eval()


def test_there_are_eight_models() -> None:
    assert len(MODELS) == 8


def test_no_relu_is_in_place_or_used_twice(net: nn.Module) -> None:
    calls: dict[str, int] = {}
    relus = {name: module for name, module in net.named_modules() if isinstance(module, nn.ReLU)}

    def count(name: str) -> Any:
        return lambda *_: calls.update({name: calls.get(name, 0) + 1})

    hooks = [module.register_forward_hook(count(name)) for name, module in relus.items()]
    with torch.no_grad():
        net(random_films(1, SIDE))
    for hook in hooks:
        hook.remove()
    assert not any(module.inplace for module in relus.values())
    assert calls == dict.fromkeys(relus, 1)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_explains_every_model(net: nn.Module, name: str) -> None:
    films = random_films(1, SIDE)
    maps = method_of(name, **QUICK.get(name, {})).attribute(net, films)
    assert maps.shape == (1, SIDE, SIDE) and maps.isfinite().all()
    if name not in ("gradcam", "guided_gradcam"):  # of random weights nothing need speak for pneumonia
        assert maps.std() > 0


def test_deeplift_sums_to_the_change_in_logit_up_to_its_pools(net: nn.Module) -> None:
    films = random_films(1, SIDE)
    with torch.no_grad():
        change = net(films) - net(torch.zeros_like(films))
    attribution = method_of("deeplift").attribute(net, films)
    assert abs(attribution.sum() - change[0]) <= 0.05 * attribution.abs().sum()  # Captum's rule for pools loses some


@pytest.mark.parametrize("relu", ["before", "after"])
def test_activations_show_the_input_and_every_convolution_and_pool_in_order(net: nn.Module, relu: str) -> None:
    shown = activations(net, random_films(1, SIDE), relu=relu)
    kinds = (nn.Conv2d, nn.MaxPool2d)
    known = [n for n, m in net.named_modules() if isinstance(m, kinds)]
    assert [item.layer for item in shown if item.layer in known] == known and shown[0].layer == "input"
    rectified = [n for n in known if relu_after(net, n) != n]  # one that ends in a sum has no ReLU of its own
    convolutions = [item.map for item in shown if item.layer in rectified]
    assert all((given >= 0).all() for given in convolutions) is (relu == "after")

"""Tiny nets whose attributions can be worked out by hand, films for them, and the methods of conf/attribution."""

from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.utils import get_object
from torch import Tensor, nn

CONF = Path(__file__).parents[2] / "conf" / "attribution"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def method_of(name: str, **changes: Any) -> Any:
    """The method that conf/attribution/`name`.yaml describes, with some arguments changed."""
    spec = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return get_object(spec.pop("_target_"))(**{**spec, **changes})


class Net(nn.Module):
    """features -> head -> logits [N], as the project's nets are built."""

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N]."""
        logits: Tensor = self.head(self.features(image)).flatten()
        return logits


def small_cnn(size: int = 17, seed: int = 9) -> Net:
    """C4 P C6 P D8 D1 with random weights; odd sizes leave a row and a column out of each pool."""
    torch.manual_seed(seed)
    features = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2)),
    )
    side = ((size - 2) // 2 - 2) // 2
    head = nn.Sequential(nn.Flatten(), nn.Linear(6 * side * side, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
    net = Net(features, head)
    for parameter in net.parameters():
        if parameter.ndim > 1:  # logits of order 1, so that an error of 1e-3 is small but not nothing
            nn.init.normal_(parameter, std=1.2 / parameter[0].numel() ** 0.5)
    with torch.no_grad():
        head[4].weight.abs_()  # something speaks for pneumonia, so that Grad-CAM's ReLU leaves something to see
    return net


def weighing(weights: Tensor, bias: float = 0.0) -> Net:
    """A linear net: the logit is the sum of grey value x `weights` [H, W], plus `bias`."""
    convolution = nn.Conv2d(3, 1, weights.shape[0], bias=True)
    with torch.no_grad():
        convolution.weight.copy_((weights / 3).expand(1, 3, -1, -1))
        convolution.bias.fill_(bias)
    return Net(nn.Sequential(convolution), nn.Flatten())


def grey(pixels: Tensor) -> Tensor:
    """[N, H, W] or [H, W] in 0 .. 255 -> film [N, 3, H, W] in [0, 1]."""
    return (pixels.float() / 255).reshape(-1, 1, *pixels.shape[-2:]).repeat(1, 3, 1, 1)


def random_films(count: int, size: int, seed: int = 0) -> Tensor:
    """Grey films of random 8-bit pixels, [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    return grey(torch.randint(0, 256, (count, size, size), generator=generator))

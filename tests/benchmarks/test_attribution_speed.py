"""How long explanations take beside what they replace: lime_image, and bare forward and backward passes.

uv run pytest -m benchmark -s tests/benchmarks/test_attribution_speed.py; on a GPU where there is one.
"""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import get_object
from lime.lime_image import LimeImageExplainer
from scipy.ndimage import gaussian_filter
from torch import nn

from pneumonia.attribution.batching import CPU_BATCH
from pneumonia.models.cnn import cnn

pytestmark = pytest.mark.benchmark

CONF = Path(__file__).parents[2] / "conf" / "attribution"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZE, SAMPLES, STEPS, REPEATS = 224, 1000, 50, 5


def method_of(name):
    """The method that conf/attribution/`name`.yaml describes."""
    spec = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return get_object(spec.pop("_target_"))(**spec)


@pytest.fixture(scope="module")
def net():
    """`model=baseline`: C32 P C64 P D256 D1, 47.8 M parameters, weights frozen as for inference."""
    torch.manual_seed(0)
    return cnn(blocks=[[32], [64]], dense=[256], dropout=0.0, image_size=SIZE).to(DEVICE).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pixels():
    """Clouds of every grey, uint8 [224, 224]: as many superpixels as a film has."""
    clouds = gaussian_filter(np.random.default_rng(0).normal(size=(SIZE, SIZE)), 9)
    return np.interp(clouds, [clouds.min(), clouds.max()], [0, 255]).round().astype(np.uint8)


@pytest.fixture(scope="module")
def film(pixels):
    return (torch.from_numpy(pixels).float() / 255).expand(1, 3, -1, -1).contiguous().to(DEVICE)


def now():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Timed(nn.Module):
    """Adds up the seconds inside `net`; laying the batch out in memory is not counted as part of them."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seconds = net, 0.0

    def forward(self, image):
        image = image.contiguous()
        start = now()
        logits = self.net(image)
        self.seconds += now() - start
        return logits


def time_ours(net, film):
    """(seconds in all, in the net) of one film's explanation."""
    timed, start = Timed(net), now()
    method_of("lime").explain(timed, film)
    return now() - start, timed.seconds


def time_lime_image(net, pixels):
    """The same for lime_image with its defaults: quickshift in colour, batches of 10 in numpy."""
    timed = Timed(net)

    def classify(images):
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2).float() / 255
            return timed(batch).sigmoid().cpu().numpy()[:, None]

    start = now()
    LimeImageExplainer(random_state=0).explain_instance(
        np.repeat(pixels[..., None], 3, axis=2), classify, top_labels=1, hide_color=0, num_samples=SAMPLES
    )
    return now() - start, timed.seconds


def test_lime_beside_lime_image(net, film, pixels):
    time_ours(net, film)  # first calls compile and allocate
    ours, theirs = time_ours(net, film), time_lime_image(net, pixels)
    overhead, their_overhead = ours[0] - ours[1], theirs[0] - theirs[1]
    print(f"\nLIME, {SAMPLES} samples, {SIZE} px, baseline, {DEVICE.type}, {torch.get_num_threads()} threads")
    print(f"{'':14}{'total s':>9}{'net s':>9}{'beyond s':>10}{'beyond / net':>14}")
    for name, (total, inside) in (("ours", ours), ("lime_image", theirs)):
        print(f"{name:14}{total:9.2f}{inside:9.2f}{total - inside:10.2f}{(total - inside) / inside:14.1%}")
    print(f"overhead: {their_overhead / overhead:.1f} x below lime_image; overall {theirs[0] / ours[0]:.1f} x faster")
    assert their_overhead / overhead >= 5
    if DEVICE.type == "cpu":
        assert overhead <= 0.2 * ours[1]


def bare_passes(net, film, batch):
    """Seconds of STEPS forward and backward passes, down to the gradient of the image, `batch` at a time."""
    start = now()
    for first in range(0, STEPS, batch):
        images = film.expand(min(batch, STEPS - first), -1, -1, -1).contiguous().requires_grad_()
        torch.autograd.grad(net(images).sum(), images)
    return now() - start


def time_integrated_gradients(net, film):
    start = now()
    method_of("integrated_gradients").attribute(net, film)
    return now() - start


def test_integrated_gradients_beside_bare_passes(net, film):
    batch = CPU_BATCH if DEVICE.type == "cpu" else STEPS
    rounds = [
        (time_integrated_gradients(net, film), bare_passes(net, film, batch), bare_passes(net, film, 1))
        for _ in range(REPEATS)  # by turns, so that a busy moment of the machine falls on all alike
    ]
    ours, batched, single = (min(times) for times in zip(*rounds, strict=True))
    print(f"\nIntegrated gradients, {STEPS} steps, {SIZE} px, baseline, {DEVICE.type}, best of {REPEATS}")
    print(f"{'':34}{'seconds':>9}{'ratio':>8}")
    for name, seconds in (("ours", ours), (f"passes, {batch} at a time", batched), ("passes, one at a time", single)):
        print(f"{name:34}{seconds:9.2f}{ours / seconds:8.2f}")
    assert ours <= 1.2 * batched

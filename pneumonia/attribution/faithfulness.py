"""Does an attribution say what the net does? Measures that ask the net; every one gives a number per film, [N].

Attributions are [N, H, W] as the methods give them, images [N, 3, H, W] in [0, 1]. Random draws come from `seed`.
"""

from functools import partial

import torch
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from pneumonia.attribution.batching import batch_for, halved_until_it_fits, predict
from pneumonia.attribution.contract import Method, check_images, evaluating, seeded

BLUR_WIDTH, BLUR_SIGMA = 11, 5.0  # pixels, RISE's own code: github.com/eclique/RISE, evaluation.py
AT_MOST = 256  # images in the net at once
NOISE = 0.02  # either way, of a grey in [0, 1]


def check_maps(images: Tensor, attribution: Tensor) -> None:
    """Raise ValueError unless `attribution` is one map [N, H, W] per image."""
    check_images(images)
    if attribution.shape != (len(images), *images.shape[-2:]):
        raise ValueError(f"Expected an attribution {[len(images), *images.shape[-2:]]}, got {list(attribution.shape)}")


def blurred(images: Tensor) -> Tensor:
    """Gaussian blur of [N, 3, H, W] that leaves the place but not the detail; borders are mirrored."""
    width = min(BLUR_WIDTH, *(2 * side - 1 for side in images.shape[-2:]))
    return gaussian_blur(images, [width, width], [BLUR_SIGMA, BLUR_SIGMA])


def replacement_curve(net: nn.Module, image: Tensor, into: Tensor, attribution: Tensor, steps: int) -> Tensor:
    """Probability of pneumonia, [steps + 1], while `image` [3, H, W] becomes `into`, highest attribution first.

    Point k has the highest k/steps of the pixels of `attribution` [H, W] replaced; equal ones go in reading order.
    """
    order = attribution.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    replaced = torch.linspace(0, len(order), steps + 1, device=order.device).round().long()
    rank = rank.view(1, 1, *attribution.shape)

    def make(start: int, stop: int) -> Tensor:
        return torch.where(rank < replaced[start:stop].view(-1, 1, 1, 1), into, image)

    return predict(net, make, steps + 1, batch_for(net, image[None], AT_MOST, gradients=False)).sigmoid()


def area(curve: Tensor) -> Tensor:
    """Area under equally spaced points [..., K] by trapezoids, over a width of 1."""
    return torch.trapezoid(curve, dim=-1) / (curve.shape[-1] - 1)


def deletion_auc(net: nn.Module, images: Tensor, attribution: Tensor, steps: int = 56) -> Tensor:
    """Area under the probability while the most important pixels become black (RISE, arXiv:1806.07421).

    Low is good for a film that is called pneumonia; [N].
    """
    check_maps(images, attribution)
    black = torch.zeros_like(images[0])
    pairs = zip(images, attribution, strict=True)
    return torch.stack([area(replacement_curve(net, image, black, given, steps)) for image, given in pairs])


def insertion_auc(net: nn.Module, images: Tensor, attribution: Tensor, steps: int = 56) -> Tensor:
    """Area under the probability while the most important pixels return to the blurred film (arXiv:1806.07421).

    High is good for a film that is called pneumonia; [N].
    """
    check_maps(images, attribution)
    triples = zip(images, blurred(images), attribution, strict=True)
    return torch.stack([area(replacement_curve(net, blur, image, given, steps)) for image, blur, given in triples])


def hide_square(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """(hidden, changed), like `images`: `hidden` is 1 in a random square of each, where `changed` is black."""
    height, width = images.shape[-2:]
    corner = torch.rand(len(images), 2).to(images.device)  # on the CPU: the same squares whatever the device and batch
    top = (corner[:, 0] * (height - side + 1)).long().view(-1, 1, 1, 1)
    left = (corner[:, 1] * (width - side + 1)).long().view(-1, 1, 1, 1)
    row = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    column = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    square = (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
    hidden = square.to(images.dtype).expand_as(images)
    return hidden, torch.where(square, 0.0, images)


def infidelity(net: nn.Module, images: Tensor, attribution: Tensor, samples: int = 200, seed: int = 0) -> Tensor:
    """Captum's infidelity: mean squared error of the map's sum in a hidden square as the fall of the logit, [N].

    Squares are a quarter of the side wide (square removal, Yeh 2019, arXiv:1901.09392, section 2.3); the best scale of
    the map is found first (`normalize`), so methods in different units compare; it may be negative, so a map of the
    wrong sign is not told from one of the right. In squared logits, 0 is best.
    """
    check_maps(images, attribution)
    hide = partial(hide_square, side=max(1, min(images.shape[-2:]) // 4))
    shared = (attribution[:, None] / 3).expand_as(images).to(images.dtype)  # a square covers the three channels at once

    def one(film: Tensor, given: Tensor, batch: int) -> Tensor:
        with seeded(seed, film.device):
            value: Tensor = captum_infidelity(
                net,
                hide,
                film,
                given,
                n_perturb_samples=samples,
                max_examples_per_batch=min(batch, samples),
                normalize=True,
            )
        return value

    def over_all(batch: int) -> Tensor:
        pairs = zip(torch.split(images, 1), torch.split(shared, 1), strict=True)
        return torch.cat([one(film, given, batch) for film, given in pairs])

    with evaluating(net):
        return halved_until_it_fits(over_all, batch_for(net, images[:1], AT_MOST, gradients=False))


def max_sensitivity(method: Method, net: nn.Module, images: Tensor, samples: int = 10, seed: int = 0) -> Tensor:
    """Captum's max-sensitivity: the largest relative change of the map under noise within NOISE of grey, [N].

    Yeh 2019, arXiv:1901.09392, definition 3; 0 is best. The method runs samples + 1 times: take fewer for LIME.
    """
    check_images(images)

    def explain(inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (method.attribute(net, inputs[0]).contiguous(),)

    with seeded(seed, images.device):
        value: Tensor = sensitivity_max(
            explain, images, perturb_radius=NOISE, n_perturb_samples=samples, max_examples_per_batch=len(images)
        )
    return value

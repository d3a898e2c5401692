"""Attributions from gradients, all computed by Captum (target=None: the net has one logit).

Every class is one method with the arguments of its YAML; `internal_batch_size` bounds the images in the net at once (of
a net that averages views, its views, but for those of one image). Random methods take one film at a time from the same
seed, so a film's map depends on no other film. They draw their noise `internal_batch_size` samples at a time: on CUDA
another batch is another draw.
"""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from captum import attr
from torch import Tensor, nn

from pneumonia.attribution.batching import batch_for, halved_until_it_fits
from pneumonia.attribution.contract import AveragesViews, check_images, check_positive, evaluating, seeded
from pneumonia.attribution.layers import POOLS, find_layer, last_convolution, leaves, relu_after


def _leaf(images: Tensor) -> Tensor:
    """A copy that gradients can be taken for, whatever the images were made in."""
    return images.detach().clone().requires_grad_()


def _in_batches(net: nn.Module, images: Tensor, at_most: int, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Maps of `run([n, 3, H, W]) -> [n, H, W]` over all images."""

    def over_all(size: int) -> Tensor:
        return torch.cat([run(_leaf(chunk)).detach() for chunk in torch.split(images, size)])

    return _attributed(net, images, at_most, over_all)


def _film_by_film(net: nn.Module, images: Tensor, at_most: int, run: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Maps of `run([1, 3, H, W], batch) -> [1, H, W]`, for methods that make many images of one film."""

    def over_all(size: int) -> Tensor:
        return torch.cat([run(_leaf(film), size).detach() for film in torch.split(images, 1)])

    return _attributed(net, images, at_most, over_all)


def _attributed(net: nn.Module, images: Tensor, at_most: int, run: Callable[[int], Tensor]) -> Tensor:
    """`run(batch)` on a net in evaluation mode, with a batch that fits and without Captum's notices about its hooks."""
    check_images(images)
    with ExitStack() as stack:
        stack.enter_context(evaluating(net))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Setting (forward, )?backward hooks")
        return halved_until_it_fits(run, batch_for(net, images[:1], at_most, gradients=True))


@dataclass(frozen=True)
class Saliency:
    """The derivative of the logit by each pixel's grey value (Simonyan 2014, arXiv:1312.6034, section 3.1).

    The paper takes the largest channel; on a grey film the channels move together, so theirs are added, then made
    `absolute` as in the paper (false: signed, which is how far brightening the pixel raises the logit).
    """

    absolute: bool
    internal_batch_size: int

    def __post_init__(self) -> None:
        check_positive(internal_batch_size=self.internal_batch_size)

    def attribute(self, net: nn.Module, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, H, W] in logits per unit of grey (black to white)."""

        def run(chunk: Tensor) -> Tensor:
            gradient: Tensor = attr.Saliency(net).attribute(chunk, abs=False).sum(1)
            return gradient.abs() if self.absolute else gradient

        return _in_batches(net, images, self.internal_batch_size, run)


@dataclass(frozen=True)
class IntegratedGradients:
    """Gradients along the straight line from a flat `baseline` to the film (Sundararajan 2017, arXiv:1703.01365).

    A map sums to logit(film) - logit(baseline), up to the error of `n_steps` Gauss-Legendre points.
    """

    baseline: float
    n_steps: int
    internal_batch_size: int

    def __post_init__(self) -> None:
        check_positive(n_steps=self.n_steps, internal_batch_size=self.internal_batch_size)

    def attribute(self, net: nn.Module, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, H, W] in logits."""

        def run(film: Tensor, batch: int) -> Tensor:
            attribution: Tensor = attr.IntegratedGradients(net).attribute(
                film, baselines=float(self.baseline), n_steps=self.n_steps, internal_batch_size=batch
            )
            return attribution.sum(1)

        return _film_by_film(net, images, self.internal_batch_size, run)


@dataclass(frozen=True)
class GradientShap:
    """Mean of gradient x (film - baseline) at random points between baseline and noisy film (Lundberg 2017,
    arXiv:1705.07874; expected gradients, Erion 2021, arXiv:1906.10670), with one flat `baseline` as the background.
    """

    baseline: float
    n_samples: int
    stdev: float
    seed: int
    internal_batch_size: int

    def __post_init__(self) -> None:
        check_positive(n_samples=self.n_samples, internal_batch_size=self.internal_batch_size)
        check_spread(self.stdev)

    def attribute(self, net: nn.Module, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, H, W] in logits."""
        return _film_by_film(net, images, self.internal_batch_size, partial(self._one, net))

    def _one(self, net: nn.Module, film: Tensor, batch: int) -> Tensor:
        """Captum takes all samples at once; here they come in parts, and each part counts by its size."""
        method = attr.GradientShap(net)
        background = torch.full_like(film, self.baseline)
        total = torch.zeros_like(film)
        with seeded(self.seed, film.device):
            for start in range(0, self.n_samples, batch):
                count = min(batch, self.n_samples - start)
                part = method.attribute(film, background, n_samples=count, stdevs=float(self.stdev))
                total += part.detach() * (count / self.n_samples)
        return total.sum(1)


@dataclass(frozen=True)
class DeepLift:
    """Differences from a flat `baseline`, carried back by the Rescale rule (Shrikumar 2017, arXiv:1704.02685).

    Needs ReLUs that are modules, used once and not in-place. A map sums to logit(film) - logit(baseline) but for
    what Captum's rule for max-pooling loses.
    """

    baseline: float
    internal_batch_size: int

    def __post_init__(self) -> None:
        check_positive(internal_batch_size=self.internal_batch_size)

    def attribute(self, net: nn.Module, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, H, W] in logits."""
        check_images(images)
        flat = torch.full_like(images[:1], self.baseline)
        if isinstance(net, AveragesViews):
            return net.by_view(partial(self._from, net.views(flat)), images)
        return self._from(flat.expand_as(images), net, images)

    def _from(self, baselines: Tensor, net: nn.Module, images: Tensor) -> Tensor:
        """The maps by differences from `baselines` [N, 3, H, W]."""

        def over_all(size: int) -> Tensor:
            pairs = zip(images.split(size), baselines.split(size), strict=True)
            return torch.cat([attr.DeepLift(net).attribute(_leaf(x), x0).sum(1).detach() for x, x0 in pairs])

        return _attributed(net, images, self.internal_batch_size, over_all)


@dataclass(frozen=True)
class SmoothGrad:
    """Mean saliency of noisy copies of the film (Smilkov 2017, arXiv:1706.03825): a NoiseTunnel over Saliency.

    `stdev` is in units of the grey scale [0, 1]; the paper advises 0.1 to 0.2.
    """

    absolute: bool
    n_samples: int
    stdev: float
    seed: int
    internal_batch_size: int

    def __post_init__(self) -> None:
        check_positive(n_samples=self.n_samples, internal_batch_size=self.internal_batch_size)
        check_spread(self.stdev)

    def attribute(self, net: nn.Module, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, H, W] in logits per unit of grey."""

        def run(film: Tensor, batch: int) -> Tensor:
            with seeded(self.seed, film.device):
                gradient: Tensor = attr.NoiseTunnel(attr.Saliency(net)).attribute(
                    film, nt_type="smoothgrad", nt_samples=self.n_samples, nt_samples_batch_size=batch,
                    stdevs=float(self.stdev), abs=False,
                )  # fmt: skip
            return gradient.sum(1).abs() if self.absolute else gradient.sum(1)

        return _film_by_film(net, images, self.internal_batch_size, run)


def check_spread(stdev: float) -> None:
    """Raise ValueError for a standard deviation below zero."""
    if not stdev >= 0:
        raise ValueError(f"stdev={stdev}: expected a number from 0")


def cam_layer(net: nn.Module, name: str | None, images: Tensor) -> nn.Module:
    """The layer `name`, or by default the last convolution after its ReLU: the feature maps of the Grad-CAM paper.
    ValueError for a layer that the net does not have, or that makes no feature maps of `images`."""
    if name is None:
        return find_layer(net, relu_after(net, last_convolution(net)))
    layer, made = find_layer(net, name), []
    hook = layer.register_forward_hook(lambda module, given, maps: made.append(maps))
    try:
        with evaluating(net), torch.no_grad():
            net(images[:1])
    finally:
        hook.remove()
    if len(made) != 1 or made[0].ndim != 4:
        found = f"{list(made[0].shape[1:])}" if made else "nothing"
        maps = [leaf for leaf, module in leaves(net) if isinstance(module, (nn.Conv2d, *POOLS))]
        raise ValueError(f"layer={name} gives {found}, no feature maps; try one of {', '.join(maps)}")
    return layer


@dataclass(frozen=True)
class GradCam:
    """Feature maps weighed by their mean gradient (Selvaraju 2017, arXiv:1610.02391, eq. 1 and 2), enlarged bilinearly.

    `layer` null is the last convolution after its ReLU. `relu` keeps what speaks for pneumonia, as the paper does.
    """

    layer: str | None
    relu: bool
    internal_batch_size: int

    def __post_init__(self) -> None:
        check_positive(internal_batch_size=self.internal_batch_size)

    def attribute(self, net: nn.Module, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, H, W]; ValueError for a layer that the net does not have, or without feature maps."""
        if isinstance(net, AveragesViews):
            return net.by_view(self.attribute, images, heat=True)
        layer = cam_layer(net, self.layer, images)
        size = (images.shape[-2], images.shape[-1])

        def run(chunk: Tensor) -> Tensor:
            small = attr.LayerGradCam(net, layer).attribute(chunk, relu_attributions=self.relu)
            large: Tensor = attr.LayerAttribution.interpolate(small, size, "bilinear")
            return large.squeeze(1)

        return _in_batches(net, images, self.internal_batch_size, run)


@dataclass(frozen=True)
class GuidedGradCam:
    """Guided backpropagation (Springenberg 2015, arXiv:1412.6806) times Grad-CAM (arXiv:1610.02391, section 3.2).

    Signed by the guided gradient; `layer` as in GradCam. Needs ReLUs that are modules and not in-place.
    """

    layer: str | None
    internal_batch_size: int

    def __post_init__(self) -> None:
        check_positive(internal_batch_size=self.internal_batch_size)

    def attribute(self, net: nn.Module, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, H, W]; ValueError for a layer that the net does not have, or without feature maps."""
        if isinstance(net, AveragesViews):
            return net.by_view(self.attribute, images)
        layer = cam_layer(net, self.layer, images)

        def run(chunk: Tensor) -> Tensor:
            attribution: Tensor = attr.GuidedGradCam(net, layer).attribute(chunk, interpolate_mode="bilinear")
            return attribution.sum(1)

        return _in_batches(net, images, self.internal_batch_size, run)

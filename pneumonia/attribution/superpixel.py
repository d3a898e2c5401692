"""LIME for images (Ribeiro 2016, arXiv:1602.04938): which superpixels, shown or hidden, move the output.

The samples, distances and fit are those of lime.lime_image, number for number; what differs is where the work is done:
hidden superpixels are looked up on the device in uint8 and the net takes large batches.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lime.lime_base import LimeBase
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances
from torch import Tensor, nn

from pneumonia.attribution.batching import batch_for, predict
from pneumonia.attribution.contract import check_images, check_positive
from pneumonia.attribution.segmentation import Segments, grid_segments, quickshift_segments, slic_segments

Samples = NDArray[np.int64]
SEGMENTATIONS = ("quickshift", "slic", "grid")
SIDE = 224  # pixels of a film that kernel_size and shrink are given for
OUTPUTS = ("probability", "logit")


@dataclass(frozen=True)
class Explanation:
    """A linear model of the output around one film: output = intercept + sum of `weights` of the segments shown.

    `segments` [H, W] holds numbers 0 .. S-1, `weights` [S] their signed effect (above 0: for pneumonia); `score` is the
    weighted R2 of the fit and `local_prediction` the fit's own output for the whole film.
    """

    segments: Segments
    weights: NDArray[np.float64]
    intercept: float
    score: float
    local_prediction: float

    def painted(self, num_features: int | None = None) -> NDArray[np.float32]:
        """Weights in place of segments, [H, W]; with `num_features` only the strongest of either sign, 0 elsewhere."""
        weights = self.weights
        if num_features is not None:
            strongest = np.argsort(-np.abs(weights), kind="stable")[:num_features]
            weights = np.zeros_like(weights)
            weights[strongest] = self.weights[strongest]
        return weights[self.segments].astype(np.float32)


def to_bytes(image: Tensor) -> Tensor:
    """One image [3, H, W] in [0, 1] -> uint8 [1, H, W] if it is grey, else [3, H, W]."""
    pixels = image.detach().mul(255).round().clamp(0, 255).to(torch.uint8)
    grey = bool((pixels == pixels[:1]).all())
    return pixels[:1] if grey else pixels


def draw_samples(random: np.random.RandomState, num_samples: int, segments: int) -> Samples:
    """Which segments each sample shows (1) or hides (0), [num_samples, segments]; the first shows all."""
    samples = random.randint(0, 2, num_samples * segments).reshape(num_samples, segments)
    samples[0, :] = 1
    return samples.astype(np.int64)


def sample_outputs(
    net: nn.Module, pixels: Tensor, segments: Segments, samples: Samples, hide_color: int, batch: int
) -> Tensor:
    """Logits [num_samples] of a film, uint8 [1 or 3, H, W], with the hidden segments of each sample in `hide_color`."""
    place = torch.from_numpy(segments).to(pixels.device).view(1, -1)
    shown = torch.from_numpy(samples.astype(np.uint8)).to(pixels.device)

    def make(start: int, stop: int) -> Tensor:
        keep = shown[start:stop].gather(1, place.expand(stop - start, -1)).view(-1, 1, *pixels.shape[1:])
        film = torch.where(keep.bool(), pixels, hide_color) if hide_color else keep * pixels
        return film.float().div_(255).expand(-1, 3, -1, -1)

    return predict(net, make, len(samples), batch)


def similarity(distances: NDArray[np.float64], kernel_width: float) -> NDArray[np.float64]:
    """Weight of a sample at a cosine distance from the whole film: lime_image's exponential kernel."""
    return np.sqrt(np.exp(-(distances**2) / kernel_width**2))


def fit(
    segments: Segments, samples: Samples, outputs: NDArray[Any], kernel_width: float, random: np.random.RandomState
) -> Explanation:
    """lime's own weighted ridge regression of `outputs` [num_samples] on `samples`, over all segments."""
    distances = pairwise_distances(samples, samples[:1], metric="cosine").ravel()
    base = LimeBase(partial(similarity, kernel_width=kernel_width), random_state=random)
    intercept, pairs, score, local = base.explain_instance_with_data(
        samples, outputs[:, None], distances, 0, num_features=samples.shape[1], feature_selection="none"
    )
    weights = np.zeros(samples.shape[1])
    for segment, weight in pairs:
        weights[segment] = weight
    return Explanation(segments, weights, float(intercept), float(score), float(local[0]))


@dataclass(frozen=True)
class Lime:
    """LIME over superpixels; the arguments are explained in conf/attribution/lime.yaml.

    `explain` gives the fit of each film, `attribute` the weights of all its segments as a map. `num_features` is for
    who draws: how many segments to show, `explanation.painted(lime.num_features)`.
    """

    num_samples: int
    num_features: int
    hide_color: int
    output: str
    kernel_width: float
    segmentation: str
    kernel_size: float
    max_dist: float
    ratio: float
    shrink: int
    n_segments: int
    compactness: float
    seed: int
    internal_batch_size: int

    def __post_init__(self) -> None:
        check_positive(
            num_samples=self.num_samples, num_features=self.num_features, kernel_width=self.kernel_width,
            kernel_size=self.kernel_size, max_dist=self.max_dist, ratio=self.ratio, shrink=self.shrink,
            n_segments=self.n_segments, compactness=self.compactness, internal_batch_size=self.internal_batch_size,
        )  # fmt: skip
        if self.segmentation not in SEGMENTATIONS:
            raise ValueError(f"segmentation={self.segmentation}: expected one of {', '.join(SEGMENTATIONS)}")
        if self.output not in OUTPUTS:
            raise ValueError(f"output={self.output}: expected one of {', '.join(OUTPUTS)}")
        if not 0 <= self.hide_color <= 255:
            raise ValueError(f"hide_color={self.hide_color}: expected 0 (black) to 255 (white)")

    def attribute(self, net: nn.Module, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, H, W]: each pixel has its segment's weight, in units of `output`."""
        maps = [torch.from_numpy(explanation.painted()) for explanation in self.explain(net, images)]
        return torch.stack(maps).to(images.device)

    def explain(self, net: nn.Module, images: Tensor) -> list[Explanation]:
        """One linear model per film; every film starts from the same seed, so none depends on another."""
        check_images(images)
        batch = batch_for(net, images[:1], self.internal_batch_size, gradients=False)
        return [self._one(net, image, batch) for image in images]

    def _one(self, net: nn.Module, image: Tensor, batch: int) -> Explanation:
        random = np.random.RandomState(self.seed)
        segmentation_seed = random.randint(0, 1000)  # lime_image draws it first: the same seed gives the same samples
        pixels = to_bytes(image)
        segments = self.segment(pixels.float().mean(0).round().to(torch.uint8).cpu().numpy(), segmentation_seed)
        samples = draw_samples(random, self.num_samples, int(segments.max()) + 1)
        logits = sample_outputs(net, pixels, segments, samples, self.hide_color, batch).double()
        outputs = logits.sigmoid() if self.output == "probability" else logits
        return fit(segments, samples, outputs.cpu().numpy(), self.kernel_width, random)

    def segment(self, film: NDArray[np.uint8], seed: int) -> Segments:
        """Superpixels of a grey film [H, W] by the algorithm of that name.

        Quickshift's kernel_size and shrink are those of a film of SIDE pixels and go with its side: with 4 pixels for
        all, a film of 64 would fall into 3 superpixels, too few to explain anything.
        """
        if self.segmentation == "quickshift":
            scale = max(film.shape) / SIDE
            shrink = max(1, round(self.shrink * scale))
            kernel_size = max(self.kernel_size * scale, shrink)  # scikit-image refuses less than a pixel
            return quickshift_segments(film, kernel_size, self.max_dist, self.ratio, shrink, seed)
        if self.segmentation == "slic":
            return slic_segments(film, self.n_segments, self.compactness)
        return grid_segments(film, self.n_segments)

"""Superpixels of a grey film by scikit-image.

Segments are int64 [H, W], numbered 0 .. S-1 without gaps, as LIME's matrix of samples needs them.
Quickshift in CIELAB sees only the lightness of a grey film (a* and b* are 0), so one channel gives the segments that
LIME gets from three.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import gray2rgb, rgb2lab
from skimage.segmentation import quickshift, slic

Segments = NDArray[np.int64]


def numbered(labels: NDArray[Any]) -> Segments:
    """The same regions, numbered 0 .. S-1 in the order of their labels."""
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int64)


def quickshift_segments(
    film: NDArray[np.uint8], kernel_size: float, max_dist: float, ratio: float, shrink: int, seed: int
) -> Segments:
    """Quickshift (Vedaldi and Soatto 2008) of the lightness of `film` [H, W], at 1/`shrink` of the size.

    Distances, in pixels and in lightness alike, shrink with the film, so the segments keep their scale while the time
    falls with the fourth power of `shrink`. With shrink=1 these are the segments of lime's own default.
    """
    lightness = rgb2lab(gray2rgb(film))[..., 0]
    small = torch.nn.functional.avg_pool2d(torch.from_numpy(lightness)[None], shrink, ceil_mode=True)[0].numpy()
    labels = quickshift(
        small[..., None], kernel_size=kernel_size / shrink, max_dist=max_dist / shrink, ratio=ratio / shrink,
        convert2lab=False, rng=seed,
    )  # fmt: skip
    full = np.repeat(np.repeat(labels, shrink, axis=0), shrink, axis=1)
    return numbered(full[: film.shape[0], : film.shape[1]])


def slic_segments(film: NDArray[np.uint8], n_segments: int, compactness: float) -> Segments:
    """About `n_segments` clusters of place and grey value, film [H, W] (Achanta 2012, doi:10.1109/TPAMI.2012.120)."""
    return numbered(
        slic(film / 255.0, n_segments=n_segments, compactness=compactness, channel_axis=None, start_label=0)
    )


def grid_segments(film: NDArray[np.uint8], n_segments: int) -> Segments:
    """The nearest square grid with at most `n_segments` cells, blind to what the film [H, W] shows."""
    side = max(1, int(n_segments**0.5))
    rows = np.arange(film.shape[0]) * side // film.shape[0]
    columns = np.arange(film.shape[1]) * side // film.shape[1]
    return numbered(rows[:, None] * side + columns[None, :])

"""What of a film the net is shown: grey values standardised; at test time less noise, its middle in several sizes."""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, interpolate, pad
from torchvision.transforms.v2.functional import gaussian_blur

from pneumonia.evaluation.frame import BORDER, inner

KEPT = (0.87, 0.77, 0.69)  # shares of the height; a series of films that no net had seen was told apart better in them
WINDOW = 0.5  # share of the side that counts as a pixel's surroundings
FLATTEST = 0.03  # standard deviation, of a range of 1; in surroundings as flat as this noise would be all there is
DEVIATIONS = 3  # either way, which fill the range

Level = tuple[Tensor, Tensor]  # mean and standard deviation, which in_range makes 1/2 and 1/6


def as_it_is(grey: Tensor) -> Tensor:
    """[N, 1, S, S] -> itself."""
    return grey


def by_centre(grey: Tensor) -> Tensor:
    """[N, 1, S, S] in [0, 1] -> the same; each centre has mean 1/2 and standard deviation 1/6, cut at three of them.

    What differs between machines by exposure and contrast is gone. The margins have no say: a white frame or a black
    page changes nothing within. A blank film becomes 1/2.
    """
    return in_range(grey, *of_centre(grey))


def of_centre(grey: Tensor) -> Level:
    """[N, 1, S, S] in [0, 1] -> mean and standard deviation [N, 1, 1, 1] of what is within the border."""
    rows, columns = inner(grey.shape[-2:], BORDER)
    centre = grey[:, :, rows, columns]
    mean = centre.mean((1, 2, 3), keepdim=True)
    return mean, centre.std((1, 2, 3), correction=0, keepdim=True).clamp(min=1e-3)


def by_surroundings(grey: Tensor) -> Tensor:
    """[N, 1, S, S] in [0, 1] -> the same; each pixel by mean and standard deviation of the square around it.

    Beyond exposure and contrast, what differs from one part of the film to the next is gone: the shading of a body
    that lies askew, a grid, a burnt-in corner beyond the window (local contrast normalisation, Jarrett et al. 2009,
    doi:10.1109/ICCV.2009.5459469). Films are mirrored beyond their edges. A blank film becomes 1/2.
    """
    return in_range(grey, *of_surroundings(grey))


def of_surroundings(grey: Tensor) -> Level:
    """[N, 1, S, S] in [0, 1] -> mean and standard deviation [N, 1, S, S] of the square around each pixel."""
    reach = max(1, int(WINDOW * min(grey.shape[-2:]) / 2))
    with torch.autocast(grey.device.type, enabled=False):  # a difference of squares needs all of float32
        mean = around(grey, reach)
        return mean, ((around(grey**2, reach) - mean**2).clamp(min=0) + FLATTEST**2).sqrt()


def around(grey: Tensor, reach: int) -> Tensor:
    """[N, 1, S, S] -> the mean of each pixel's square, `reach` pixels to every side.

    As two matrix products: on a CPU ten times as fast as pooling over windows of this size.
    """
    rows, columns = (averages(side, reach, grey.device).to(grey) for side in grey.shape[-2:])
    return rows @ grey @ columns.T


@cache
def averages(side: int, reach: int, device: torch.device) -> Tensor:
    """[side, side]: row i averages the places i - reach .. i + reach of a line that is mirrored beyond its ends."""
    with torch.inference_mode(False):  # kept for training too; a copy for each batch would wait for a GPU
        mirrored = pad(torch.eye(side).unsqueeze(1), (reach, reach), mode="reflect")
        return avg_pool1d(mirrored, 2 * reach + 1, 1)[:, 0].T.to(device)


def in_range(grey: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return ((grey - mean) / (2 * DEVIATIONS * std) + 0.5).clamp(0, 1)


STANDARDIZE: dict[str, Callable[[Tensor], Tensor]] = {"none": as_it_is, "centre": by_centre, "local": by_surroundings}
LEVELS: dict[str, Callable[[Tensor], Level]] = {"centre": of_centre, "local": of_surroundings}


def blurred(film: Tensor, share: float) -> Tensor:
    """Grey [N, 1, S, S] -> float of the same shape, under a Gaussian with `share` of the height as deviation."""
    sigma = share * film.shape[-2]
    with torch.autocast(film.device.type, enabled=False):  # else a convolution: grey values in bfloat16
        return gaussian_blur(film.float(), [2 * math.ceil(4 * sigma) + 1] * 2, [sigma] * 2)


def middle(film: Tensor, kept: float) -> Tensor:
    """Grey [N, 1, S, S] -> float of the same shape: the middle rows, `kept` of them, drawn out to the whole height."""
    height, width = film.shape[-2:]
    margin = round(height * (1 - kept) / 2)
    rows = film[:, :, margin : height - margin].float()
    return interpolate(rows, (height, width), mode="bilinear") if margin else rows

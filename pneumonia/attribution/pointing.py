"""Where an attribution points: at the middle of the film or its border, inside or outside a known opacity.

Attributions are [N, H, W], masks bool [N, H, W]; every measure gives a number per film, [N], NaN where it has no
meaning (an empty mask, no attribution). Equal pixels share their credit, so a constant map scores what chance scores.
"""

import torch
from torch import Tensor

MARGIN = 1 / 8


def _check(attribution: Tensor, mask: Tensor) -> None:
    if attribution.ndim != 3 or attribution.shape != mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"Expected an attribution [N, H, W] and a bool mask of its shape, got {list(attribution.shape)} and "
            f"{mask.dtype} {list(mask.shape)}"
        )


def central_share(attribution: Tensor) -> Tensor:
    """Share of |attribution| outside a frame that is MARGIN of each side wide, [N].

    An even map scores the central field's share of the pixels, about (1 - 2 MARGIN)^2 = 0.5625.
    """
    height, width = attribution.shape[-2:]
    rows, columns = round(height * MARGIN), round(width * MARGIN)
    magnitude = attribution.abs().double()
    central = magnitude[:, rows : height - rows, columns : width - columns].sum((1, 2))
    return central / magnitude.sum((1, 2))


def pointing_game(attribution: Tensor, mask: Tensor) -> Tensor:
    """1 where the highest attribution lies in the mask, else 0, [N].

    A plateau of equal maxima (LIME) scores the share of it that hits. Zhang 2018, arXiv:1608.00507, who forgives 15
    pixels.
    """
    _check(attribution, mask)
    highest = attribution == attribution.amax((1, 2), keepdim=True)
    hits = (highest & mask).sum((1, 2)) / highest.sum((1, 2))
    return hits.masked_fill(~mask.any(2).any(1), torch.nan)


def mass_in_mask(attribution: Tensor, mask: Tensor) -> Tensor:
    """Share of the attribution for pneumonia (above 0) that lies inside the mask, [N]."""
    _check(attribution, mask)
    positive = attribution.clamp(min=0).double()
    share = (positive * mask).sum((1, 2)) / positive.sum((1, 2))
    return share.masked_fill(~mask.any(2).any(1), torch.nan)


def iou_at_equal_area(attribution: Tensor, mask: Tensor) -> Tensor:
    """Intersection over union of the mask and as many pixels of the highest attribution as the mask has, [N]."""
    _check(attribution, mask)
    values = [_iou(given, true) for given, true in zip(attribution, mask, strict=True)]
    return torch.tensor(values, dtype=torch.float64, device=attribution.device)


def _iou(attribution: Tensor, mask: Tensor) -> float:
    """For one film: pixels above the k-th highest value count in full, those equal to it by their share."""
    area = int(mask.sum())
    if area == 0:
        return float("nan")
    threshold = attribution.flatten().topk(area).values[-1]
    above, equal = attribution > threshold, attribution == threshold
    taken = (area - int(above.sum())) / int(equal.sum())
    common = int((above & mask).sum()) + taken * int((equal & mask).sum())
    return common / (2 * area - common)

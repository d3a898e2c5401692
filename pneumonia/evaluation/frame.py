"""The frame of a film, around the lungs: the shortcut audit hides it, stress turns it over, training may blank it."""

import numpy as np
from numpy.typing import NDArray

BORDER = 0.15  # share of each side that is border; the centre is then 49 % of the area


def inner(shape: tuple[int, ...], share: float) -> tuple[slice, slice]:
    """The rows and columns of a film [H, W] that a frame of this share of each side, or of a pixel, leaves."""
    top, left = (max(1, round(share * side)) for side in shape)
    return slice(top, shape[0] - top), slice(left, shape[1] - left)


def inside(shape: tuple[int, ...], share: float) -> NDArray[np.bool_]:
    """True [H, W] where `inner` is."""
    centre = np.zeros(shape, dtype=bool)
    centre[inner(shape, share)] = True
    return centre

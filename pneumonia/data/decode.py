"""A file becomes pixels: uint8 [S, S], 0 black .. 255 white, whatever the file's colour mode.

Grey and RGB files go through OpenCV at reduced scale where that leaves at least twice the target, then an area resize;
palette, alpha, 16-bit and CMYK files go through Pillow at full size. 16-bit values are scaled by 255 / 65535.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pneumonia.data.records import Record

REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}


def read_film(root: Path, record: Record, size: int, resize: str) -> np.ndarray:
    """The film as uint8 [size, size] by the resize rule squash, pad or crop. Raises OSError when it can't be read."""
    grey = read_grey(root / record.path, record, 2 * size)
    return RESIZE[resize](grey, size)


def read_grey(path: Path, record: Record, at_least: int) -> np.ndarray:
    """Grey pixels uint8 [H, W]; a large JPEG or PNG comes at 1/2, 1/4 or 1/8 if its short side stays `at_least`."""
    if record.mode not in ("L", "RGB"):
        return pillow_grey(path)
    short = min(record.width, record.height)
    factor = max((f for f in REDUCED if short // f >= at_least), default=1)
    flag = REDUCED.get(factor, cv2.IMREAD_GRAYSCALE)
    image = cv2.imdecode(np.fromfile(path, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise OSError(f"{path}: can't be decoded")
    return image


def pillow_grey(path: Path) -> np.ndarray:
    """Grey pixels uint8 [H, W] of a palette, alpha, 16-bit, 1-bit or CMYK file; alpha is laid over black."""
    with Image.open(path) as file:
        image: Image.Image = file
        if image.mode.startswith("I"):
            return np.rint(np.asarray(image, np.float32) * (255 / 65535)).clip(0, 255).astype(np.uint8)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
        return np.asarray(image.convert("RGB").convert("L"))


def to_size(grey: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize [H, W]: by area when it shrinks, bilinear when it grows."""
    shrinks = width <= grey.shape[1] and height <= grey.shape[0]
    return cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def squash(grey: np.ndarray, size: int) -> np.ndarray:
    """Both sides to `size`; the aspect ratio is lost."""
    return to_size(grey, size, size)


def pad(grey: np.ndarray, size: int) -> np.ndarray:
    """The long side to `size`, black beside the short one."""
    height, width = (max(1, round(side * size / max(grey.shape))) for side in grey.shape)
    top, left = (size - height) // 2, (size - width) // 2
    canvas = np.zeros((size, size), np.uint8)
    canvas[top : top + height, left : left + width] = to_size(grey, width, height)
    return canvas


def crop(grey: np.ndarray, size: int) -> np.ndarray:
    """The central square to `size`."""
    side = min(grey.shape)
    top, left = (grey.shape[0] - side) // 2, (grey.shape[1] - side) // 2
    return to_size(grey[top : top + side, left : left + side], size, size)


RESIZE = {"squash": squash, "pad": pad, "crop": crop}

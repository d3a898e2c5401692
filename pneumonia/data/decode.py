"""A file becomes pixels: uint8 [S, S], 0 black .. 255 white, whatever the file's colour mode.

A large JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves at least twice the target and LEAST pixels (libjpeg
computes a smaller inverse DCT), then resized by area: within a mean of 1 grey level of a full decode. A colour JPEG
gives its luma. 16-bit values are scaled by 255 / 65535, or by 255 / 4095 where none passes 4095: a detector's 12 bits
(DICOM's usual BitsStored) that were saved as they are. Alpha is laid over black. A JPEG that its EXIF tag calls turned
or mirrored is set upright, as viewers show it. The same pass finds what is wrong with a file: Pillow reads the whole
stream and refuses what is cut short.
"""

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

LEAST = 448  # below it the mean error of the reduced decode passes 1 grey level on some full-size films
HALVED = 2.5  # sides to target from which halving first stays within 1 grey level
TWELVE_BITS, SIXTEEN_BITS = 2**12 - 1, 2**16 - 1  # white
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height

# A bomb is told as BadFilm. Once for all: filters that each film sets and takes back leak between threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadFilm(Exception):
    """A file that can't be used, with the reason in a user's words."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """pixels uint8 [S, S]; width, height and colour mode of the file."""

    pixels: np.ndarray
    width: int
    height: int
    mode: str


def decode(content: bytes, size: int, resize: str) -> Decoded:
    """Decode a whole JPEG or PNG to uint8 [size, size] by the rule squash, pad or crop. Raises BadFilm."""
    if not content:
        raise BadFilm("zero bytes")
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            mode, (width, height) = image.mode, image.size
            if width * height > (Image.MAX_IMAGE_PIXELS or width * height):
                raise Image.DecompressionBombError
            turned = 1
            if image.format == "JPEG":
                turned = orientation(image)
                least = max(2 * size, LEAST)
                image.draft("L", (least, least))
            pixels = RESIZE[resize](grey(image if turned == 1 else ImageOps.exif_transpose(image)), size)
    except Image.DecompressionBombError as error:
        raise BadFilm(f"a decompression bomb: more than {Image.MAX_IMAGE_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise BadFilm("not a JPEG or PNG image") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:  # the last of EXIF that is written anew, turned
        raise BadFilm(str(error)) from error
    return Decoded(pixels, *((height, width) if turned in SIDEWAYS else (width, height)), mode)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a JPEG, 1 to 8; 1 (upright) where there is none, or no whole one."""
    try:
        told = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return 1
    return told if told in range(1, 9) else 1


def read_film(path: Path, size: int, resize: str) -> np.ndarray:
    """The film as uint8 [size, size]. Raises BadFilm with its path."""
    try:
        return decode(path.read_bytes(), size, resize).pixels
    except (OSError, BadFilm) as error:
        raise BadFilm(f"{path}: {error}") from error


def grey(image: Image.Image) -> np.ndarray:
    """Grey pixels uint8 [H, W] of a picture in any mode."""
    if image.mode == "L":
        return np.asarray(image)
    if image.mode.startswith("I"):
        deep = np.asarray(image, np.float32)
        white = TWELVE_BITS if deep.max() <= TWELVE_BITS else SIXTEEN_BITS
        return np.rint(deep * (255 / white)).clip(0, 255).astype(np.uint8)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB").convert("L"))


def to_size(grey: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize [H, W]: by area when it shrinks, bilinear when it grows.

    Where it shrinks by HALVED and more, even sides are halved first: OpenCV does that at a fraction of the cost of any
    other ratio, and the area resize that is left has a quarter of the pixels to read.
    """
    tall, wide = grey.shape
    if tall >= HALVED * height and wide >= HALVED * width and tall % 2 == wide % 2 == 0:
        grey = cv2.resize(grey, (wide // 2, tall // 2), interpolation=cv2.INTER_AREA)
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

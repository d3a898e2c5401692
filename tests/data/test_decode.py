"""Every kind of file becomes the same kind of pixels."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pneumonia.data.decode import crop, pad, read_film, squash
from pneumonia.data.records import Record, inspect


def film(height: int = 150, width: int = 210) -> np.ndarray:
    """A smooth picture with all grey levels, uint8 [H, W]."""
    y, x = np.mgrid[0:height, 0:width]
    return ((np.sin(x / 17) + np.cos(y / 23) + 2) / 4 * 255).round().astype(np.uint8)


def save(grey: np.ndarray, path: Path, mode: str) -> None:
    image = Image.fromarray(grey)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "P":
        image = image.convert("P")
    elif mode != "L":
        image = image.convert("RGB").convert(mode)
    image.save(path, **({"quality": 100, "subsampling": 0} if path.suffix == ".jpeg" else {}))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("RGB", "png"), ("RGBA", "png"), ("P", "png"), ("I;16", "png"), ("LA", "png"),
     ("L", "jpeg"), ("RGB", "jpeg"), ("CMYK", "jpeg")],
)  # fmt: skip
def test_every_colour_mode_gives_the_same_film(tmp_path: Path, mode: str, suffix: str) -> None:
    grey = film()
    path = tmp_path / f"film.{suffix}"
    save(grey, path, mode)
    record = inspect(path, Record(path.name, 0, "p"))
    assert isinstance(record, Record) and record.mode == mode
    pixels = read_film(tmp_path, record, 64, "squash").astype(int)
    assert pixels.shape == (64, 64)
    assert np.abs(pixels - squash(grey, 64)).mean() <= 1


def test_reduced_scale_decoding_stays_within_a_grey_level_of_a_full_one(tmp_path: Path) -> None:
    grey = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (1000, 1300)).astype(np.uint8), (0, 0), 2)
    path = tmp_path / "large.jpeg"
    save(grey, path, "L")
    record = inspect(path, Record(path.name, 0, "p"))
    assert isinstance(record, Record)
    reduced = read_film(tmp_path, record, 112, "squash").astype(int)
    full = cv2.resize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (112, 112), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced - full).mean() < 1


def test_pad_keeps_the_aspect_ratio_and_crop_keeps_the_centre() -> None:
    grey = np.full((100, 200), 200, np.uint8)
    padded = pad(grey, 50)
    assert (padded[:12] == 0).all() and (padded[13:37] == 200).all() and (padded[38:] == 0).all()
    grey[:, :50] = grey[:, 150:] = 0
    assert (crop(grey, 50) == 200).all()


def test_alpha_is_laid_over_black(tmp_path: Path) -> None:
    pixels = np.full((64, 64, 4), 255, np.uint8)
    pixels[:, :32, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    shown = read_film(tmp_path, Record("alpha.png", 0, "p", mode="RGBA"), 64, "squash")
    assert (shown[:, :32] == 0).all() and (shown[:, 32:] == 255).all()


def test_a_file_that_vanished_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"gone\.png"):
        read_film(tmp_path, Record("gone.png", 0, "p", width=64, height=64, mode="L"), 64, "squash")

"""Every kind of file becomes the same kind of pixels."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from pneumonia.data.decode import BadFilm, crop, decode, pad, read_film, squash


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
    film_of = decode(path.read_bytes(), 64, "squash")
    assert (film_of.mode, film_of.width, film_of.height) == (mode, 210, 150)
    assert film_of.pixels.shape == (64, 64) and film_of.pixels.dtype == np.uint8
    assert np.abs(film_of.pixels.astype(int) - squash(grey, 64)).mean() <= 1


@pytest.mark.parametrize(("white", "seen"), [(4095, 255), (4096, 16), (65535, 255), (4000, 249)])
def test_twelve_bits_saved_in_sixteen_are_not_black(tmp_path: Path, white: int, seen: int) -> None:
    deep = np.linspace(0, white, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(deep).save(tmp_path / "film.png")
    pixels = read_film(tmp_path / "film.png", 64, "squash")
    assert pixels.min() == 0 and pixels.max() == seen


@pytest.mark.parametrize("size", [64, 112, 224])
def test_reduced_scale_decoding_stays_within_a_grey_level_of_a_full_one(tmp_path: Path, size: int) -> None:
    grey = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (1200, 1500)).astype(np.uint8), (0, 0), 8)
    path = tmp_path / "large.jpeg"
    save(cv2.normalize(grey, None, 0, 255, cv2.NORM_MINMAX), path, "L")  # type: ignore[call-overload]
    reduced = read_film(path, size, "squash").astype(int)
    full = cv2.resize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (size, size), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced - full).mean() < 1
    with Image.open(path) as opened:
        assert (reduced != squash(np.asarray(opened), size)).any()  # the reduced way was taken


@pytest.mark.parametrize("size", [64, 112, 224])
def test_full_size_films_lose_less_than_a_grey_level(originals: Path, size: int) -> None:
    for path in sorted(originals.rglob("*.jpeg")):
        full = cv2.resize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (size, size), interpolation=cv2.INTER_AREA)
        assert np.abs(read_film(path, size, "squash").astype(int) - full).mean() < 1, path.name


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
    shown = read_film(tmp_path / "alpha.png", 64, "squash")
    assert (shown[:, :32] == 0).all() and (shown[:, 32:] == 255).all()


def test_a_file_that_vanished_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(BadFilm, match=r"gone\.png"):
        read_film(tmp_path / "gone.png", 64, "squash")


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size, with next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def jpeg(exif: bytes = b"") -> bytes:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300), dtype=np.uint8))
    stream = io.BytesIO()
    noise.save(stream, "JPEG", exif=exif)
    return stream.getvalue()


# on its side (0x0112 is 6), and tag 0x0121, whose values are numbers, holds a text: Pillow can't write it anew
TEXT_FOR_NUMBERS = bytes.fromhex(
    "45786966 0000 4d4d002a 00000008 0002 0121 0002 00000029 00000026 0112 0003 00000001 00060000 00000000"
) + b"x" * 40 + bytes(2)  # fmt: skip


@pytest.mark.parametrize("told", range(1, 9))
def test_a_film_that_lies_on_its_side_is_set_upright(tmp_path: Path, told: int) -> None:
    upright, back = Image.fromarray(film(160, 240)), {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(back[told])) if told in back else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = told
    stored.save(tmp_path / "film.jpeg", quality=100, exif=exif)
    found = decode((tmp_path / "film.jpeg").read_bytes(), 64, "squash")
    assert (found.width, found.height) == (240, 160)
    assert np.abs(found.pixels.astype(int) - squash(np.asarray(upright), 64)).mean() <= 1


def test_a_torn_exif_tag_is_as_none(tmp_path: Path) -> None:
    Image.fromarray(film()).save(tmp_path / "film.jpeg", exif=b"Exif\x00\x00MM\x00*\x00\x00")
    assert decode((tmp_path / "film.jpeg").read_bytes(), 64, "squash").width == 210


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest takes back the filter
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "zero bytes"),
        (b"this is a text, not a film", "not a JPEG or PNG"),
        (jpeg()[:-2000], "truncated"),
        (png(60_000, 60_000), "decompression bomb"),
        (png(10_000, 10_000), "decompression bomb"),  # of which Pillow itself only warns
        (png(64, 64), "truncated"),
        (b"GIF89a" + bytes(100), "not a JPEG or PNG"),
        (jpeg(TEXT_FOR_NUMBERS), "not an integer"),
    ],
    ids=["empty", "text", "truncated", "bomb", "small bomb", "short png", "gif", "exif"],
)
def test_a_bad_file_is_refused_with_its_reason(content: bytes, reason: str) -> None:
    with pytest.raises(BadFilm, match=reason):
        decode(content, 64, "squash")

"""Draw phantom chest films, for tests and for trying every command without a download.

Layout  <folder>/{train,test}/{NORMAL,PNEUMONIA}/*.png     uint8 grey, 72..112 wide, 64..100 high, not compressed
        <folder>/masks/{train,test}/PNEUMONIA/*.png        uint8 0 or 255, where the opacity is; same name and grid
Names   as in Kermany et al. 2018 (doi:10.17632/rscbjbr9sj): IM-0012-0002.png is film 2 of normal patient 12,
        person7_virus_12.png is film 12 of patient 7. A patient has 1 to 4 films, all on one side of the split.
Opacity bacteria: one to three fluffy patches, each inside one lung (lobar or bronchopneumonia, schematically);
        virus: a web of fine streaks over regions of both lungs (interstitial). Severity varies from faint to plain.
Shift   the test films come from "another hospital": brighter, flatter, blurrier and noisier, in both classes alike.

The classes differ in nothing else. Each pneumonia patient has a normal twin: another anatomy, but as many films, of
the same sizes, tones, markers and borders. Ranks are matched to the film's tone, so its histogram (hence mean and
variance) comes from the tone alone; the lungs as a whole are as dark in both classes. Within a patient tones balance
around the middle, so that no fold of patients is brighter than another. Files are not compressed: their bytes depend
on the size alone. Resizing keeps mean and variance equal, but not the finer histogram: it smooths streaks and patches.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

FORMAT = 1  # changes whenever the same seed would draw other films
FEWEST = 40  # films: then each side has two pneumonia patients or more, hence both subtypes

SPLITS = ("train", "test")
LETTERS = {
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "R": "11110 10001 10001 11110 10100 10010 10001",
}
MIDDLE, REACH = np.array([92, 82]), np.array([20, 18])  # width, height in pixels: 72..112, 64..100

Plane = NDArray[np.floating]  # [H, W]
Pixels = NDArray[np.uint8]  # [H, W], 0 black .. 255 white


@dataclass(frozen=True)
class Acquisition:
    """What the machine does to a film, whatever is on it; twins share it."""

    size: tuple[int, int]  # width, height in pixels
    tone: tuple[float, float]  # brightness, contrast, each -1..1
    marker: str  # the radiographer's letter, or none
    border: int  # black frame, pixels


@dataclass(frozen=True)
class Film:
    split: str
    subtype: str  # normal, bacteria or virus
    patient: int
    number: int  # within the patient if normal, within the folder otherwise, as Kermany counts
    acquisition: Acquisition

    @property
    def path(self) -> Path:
        """Where the film lies in the folder: train/PNEUMONIA/person7_virus_12.png."""
        if self.subtype == "normal":
            return Path(self.split, "NORMAL", f"IM-{self.patient:04d}-{self.number:04d}.png")
        return Path(self.split, "PNEUMONIA", f"person{self.patient}_{self.subtype}_{self.number}.png")


def draw_films(folder: Path, films: int, seed: int) -> None:
    """Draw half normal and half pneumonia films into `folder`, 3/4 of them in train; same seed, same bytes.

    The folder appears complete or not at all. One that is already there is left as it is, so that two processes may
    draw at once: put films, seed and FORMAT into its name. Raises ValueError for an odd or too small `films`.
    """
    if films < FEWEST or films % 2:
        raise ValueError(f"films={films}: expected an even number from {FEWEST} up, as each film has a twin")
    if folder.is_dir() and any(folder.iterdir()):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:12]}")
    try:
        for film in roster(films, seed):
            pixels, opacity = draw(film, seed)
            write_png(unfinished / film.path, pixels)
            if film.subtype != "normal":
                write_png(unfinished / "masks" / film.path, opacity)
        os.replace(unfinished, folder)
    except OSError:
        if not (folder.is_dir() and any(folder.iterdir())):  # else another process was first, with the same films
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_png(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes())


# Who is filmed, and how


def roster(films: int, seed: int) -> Iterator[Film]:
    """Every film of the folder; normal and pneumonia patients of one number are twins and share their acquisitions."""
    in_test = round(films / 8)  # of each class
    patient, number = 0, 0
    for block, (split, count) in enumerate(zip(SPLITS, (films // 2 - in_test, in_test), strict=True)):
        rng = np.random.default_rng([seed, block])
        sizes = films_per_patient(count, rng)
        subtypes = rng.permutation(np.resize(["bacteria", "virus"], len(sizes)))
        for many, subtype in zip(sizes, subtypes, strict=True):
            patient += 1
            for index, acquisition in enumerate(acquisitions(many, rng)):
                number += 1
                yield Film(split, "normal", patient, index + 1, acquisition)
                yield Film(split, str(subtype), patient, number, acquisition)


def films_per_patient(count: int, rng: np.random.Generator) -> list[int]:
    """1 to 4 films a patient, `count` in all."""
    sizes: list[int] = []
    while (left := count - sum(sizes)) > 0:
        sizes += [min(left, int(many)) for many in rng.permutation([1, 2, 3, 4])[: 1 if left < 10 else 4]]
    return sizes


def acquisitions(many: int, rng: np.random.Generator) -> list[Acquisition]:
    """How a patient's films are taken: pairs mirror each other in size and tone, one left over has the middle tone."""
    offsets = rng.uniform(-1, 1, (many, 4))
    offsets[many - many // 2 :] = -offsets[: many // 2][::-1]
    if many % 2:
        offsets[many // 2, 2:] = 0
    made = []
    for offset in offsets:
        width, height = np.round(MIDDLE + REACH * offset[:2]).astype(int)
        marker, border = str(rng.choice(["", "L", "R"])), int(rng.choice([0, 0, 1, 2]))
        made.append(Acquisition((int(width), int(height)), (float(offset[2]), float(offset[3])), marker, border))
    return made


# What is on the film


def draw(film: Film, seed: int) -> tuple[Pixels, Pixels]:
    """A film and the mask of its opacity, both [H, W]."""
    place = [seed, SPLITS.index(film.split), int(film.subtype != "normal"), film.patient]
    patient, rng = np.random.default_rng(place), np.random.default_rng([*place, film.number])
    width, height = film.acquisition.size
    x, y = pose(width, height, rng)
    chest, lungs = draw_chest(x, y, patient, rng)
    opacity, region = np.zeros_like(chest), np.zeros_like(chest)
    if film.subtype == "bacteria":
        opacity, region = draw_patches(x, y, lungs, rng)
    elif film.subtype == "virus":
        opacity, region = draw_streaks(x, y, lungs, rng)
    opacity -= lungs * (opacity.sum() / lungs.sum())  # the lungs' mean tells nothing, only what is where in them
    picture = expose(chest + opacity, film, rng)
    return match_ranks(picture, film, rng), np.where((region > 0.5) & (lungs > 0.5), 255, 0).astype(np.uint8)


def pose(width: int, height: int, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Each pixel's place in the patient, about -1..1 from left to right and top to bottom, after a slight move."""
    x, y = np.meshgrid(np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32))
    angle, zoom = np.radians(rng.uniform(-4, 4)), rng.uniform(0.94, 1.08)
    x, y = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    return (
        (x * zoom + rng.uniform(-0.06, 0.06)).astype(np.float32),
        (y * zoom + rng.uniform(-0.06, 0.06)).astype(np.float32),
    )


def draw_chest(x: Plane, y: Plane, patient: np.random.Generator, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """How much tissue the beam meets (0 air .. about 1 bone and heart), and the lungs (0..1), both [H, W]."""
    body = inside(np.abs(x) / patient.uniform(0.9, 1.0) + 0.25 * step(-y, 0.55, 0.12) * np.abs(x), 1.0, 0.03)
    heart_x, heart_y, heart_r = patient.uniform(0.08, 0.16), patient.uniform(0.28, 0.38), patient.uniform(0.26, 0.34)
    heart = inside(
        np.hypot((x - heart_x + 0.25 * (y - heart_y)) / heart_r, (y - heart_y) / (1.05 * heart_r)), 1.0, 0.06
    )
    lungs = draw_lungs(x, y, patient)
    mediastinum = inside(np.abs(x) / patient.uniform(0.14, 0.18), 1.0, 0.2)
    spine = inside(np.abs(x) / 0.09, 1.0, 0.15) * (0.8 + 0.2 * np.sin(y * patient.uniform(20, 26)))
    spacing, droop = patient.uniform(0.2, 0.25), patient.uniform(0.35, 0.6)
    wave = np.cos(2 * np.pi * (y - droop * (np.abs(x) - 0.4) ** 2 + 0.25 * np.abs(x)) / spacing)
    ribs = np.clip(wave - 0.35, 0, None) * inside(np.abs(x), 0.85, 0.03) * step(y, -0.85, 0.05) * step(-y, -0.7, 0.1)
    lungs = lungs * (1 - heart) * (1 - mediastinum)
    vessels = clouds(x, y, 12, rng) * np.exp(-(((np.abs(x) - 0.25) / 0.25) ** 2) - ((y - 0.05) / 0.4) ** 2)
    chest = (
        body * (0.62 + 0.1 * clouds(x, y, 4, patient))
        - rng.uniform(0.4, 0.52) * lungs
        + 0.14 * heart
        + 0.12 * mediastinum
    )
    chest += body * (0.06 * spine + 0.06 * ribs) + 0.05 * vessels * lungs + 0.1 * body * step(y, 0.6, 0.1)
    return chest.astype(np.float32), lungs.astype(np.float32)


def draw_lungs(x: Plane, y: Plane, patient: np.random.Generator) -> Plane:
    """Two ellipses, narrower at the top, each cut by its half of the diaphragm: 0 outside .. 1 inside, [H, W]."""
    lungs = np.zeros_like(x)
    rx, ry, top = patient.uniform(0.3, 0.36), patient.uniform(0.72, 0.84), patient.uniform(-0.02, 0.06)
    for side in (-1, 1):
        across = (side * x - 0.43 + 0.06 * y) / (rx * (1 - 0.25 * np.clip(0.2 - y, 0, 1)))
        dome = patient.uniform(0.56, 0.68) - 0.03 * side + 0.5 * (side * x - 0.38) ** 2
        lungs += inside(np.hypot(across, (y - top) / ry), 1.0, 0.04) * step(dome - y, 0, 0.03)
    return np.clip(lungs, 0, 1).astype(np.float32)


def draw_patches(x: Plane, y: Plane, lungs: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Bacteria: fluffy patches centred in a lung; the added tissue and where it is (0..1), both [H, W]."""
    rows, columns = np.nonzero(lungs > 0.8)
    patch = np.zeros_like(x)
    for _ in range(rng.integers(1, 4)):
        at = rng.integers(len(rows))
        dx, dy = x - x[rows[at], columns[at]], y - y[rows[at], columns[at]]
        radius, stretch = rng.uniform(0.2, 0.34), rng.uniform(0.8, 1.25)
        ragged = np.hypot(dx * stretch, dy / stretch) / radius + 0.2 * clouds(x, y, 10, rng)
        patch = np.maximum(patch, inside(ragged, 1.0, 0.16))
    severity = rng.uniform(0.32, 0.75)
    fluff = np.clip(1 + 0.6 * clouds(x, y, 18, rng), 0.2, 2.2)
    return (severity * patch * fluff * lungs).astype(np.float32), patch


def draw_streaks(x: Plane, y: Plane, lungs: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Virus: a web of streaks over parts of both lungs; the added tissue and where it is (0..1), both [H, W]."""
    weather = clouds(x, y, 3, rng)
    region = step(weather, float(np.quantile(weather[lungs > 0.5], 1 - rng.uniform(0.5, 0.95))), 0.15)
    web = np.maximum(ridges(clouds(x, y, 11, rng)), ridges(clouds(x, y, 15, rng)))
    severity = rng.uniform(0.3, 0.7)
    return (severity * region * (0.25 + web) * lungs).astype(np.float32), region


def inside(distance: Plane, edge: float, softness: float) -> Plane:
    """1 where distance < edge, 0 beyond, with a logistic rim."""
    return step(-distance, -edge, softness)


def step(value: Plane, edge: float, softness: float) -> Plane:
    rim: Plane = 1 / (1 + np.exp(np.clip((edge - value) / softness, -30, 30)))
    return rim


def ridges(noise: Plane) -> Plane:
    """Lines where the noise crosses zero: 1 on the line, 0 away from it."""
    lines: Plane = np.exp(-((noise / 0.35) ** 2))
    return lines


def clouds(x: Plane, y: Plane, cells: int, rng: np.random.Generator) -> Plane:
    """Smooth noise of about unit variance in the patient's coordinates, `cells` blobs across: [H, W]."""
    lattice = rng.standard_normal((cells + 4, cells + 4), dtype=np.float32)
    scale, middle = cells / 2, (cells + 3) / 2
    at = (x * scale + middle).astype(np.float32), (y * scale + middle).astype(np.float32)
    return np.asarray(cv2.remap(lattice, *at, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT))


# How the machine renders it


def expose(picture: Plane, film: Film, rng: np.random.Generator) -> Plane:
    """Uneven beam, blur and noise of the split's machine, then the marker and border of the acquisition: [H, W]."""
    height, width = picture.shape
    blur, noise = ((0.6, 0.8), (0.02, 0.04)) if film.split == "train" else ((0.7, 0.95), (0.03, 0.06))
    across, down = np.linspace(-1, 1, width)[None, :], np.linspace(-1, 1, height)[:, None]
    beam = rng.uniform(-0.05, 0.05) * across + rng.uniform(-0.05, 0.05) * down
    grain = rng.normal(0, rng.uniform(*noise), picture.shape)
    picture = cv2.GaussianBlur((picture + beam + grain).astype(np.float32), (0, 0), rng.uniform(*blur))
    stamp(picture, film.acquisition)
    return picture


def stamp(picture: Plane, acquisition: Acquisition) -> None:
    """Put the marker (a 5 by 7 letter, a lead one is white) and the border on a picture, in place."""
    if acquisition.marker:
        letter = np.array([[int(dot) for dot in row] for row in LETTERS[acquisition.marker].split()], np.float32)
        left = 5 if acquisition.marker == "R" else picture.shape[1] - 10
        picture[5:12, left : left + 5] = np.maximum(picture[5:12, left : left + 5], 1.3 * letter)
    for edge in range(acquisition.border):
        picture[[edge, -1 - edge]], picture[:, [edge, -1 - edge]] = -1, -1


def match_ranks(picture: Plane, film: Film, rng: np.random.Generator) -> Pixels:
    """Exact histogram specification: the k-th darkest of n pixels gets the (k + u) / n quantile of the film's target.

    Grain breaks the ties. One u in 0..1 for each film, so that twins don't even share their rounding.
    """
    order = np.argsort(picture, axis=None, kind="stable")
    ranks = (np.arange(order.size) + rng.random()) / order.size
    pixels = np.empty(order.size, np.uint8)
    pixels[order] = np.searchsorted(np.cumsum(histogram(film.split, *film.acquisition.tone)), ranks).clip(0, 255)
    return pixels.reshape(picture.shape)


def histogram(split: str, brightness: float, contrast: float) -> NDArray[np.float64]:
    """Share of each grey level [256]: the split's four lobes (air, lung, soft tissue, bone) over a floor, tilted.

    It is linear in both tones, so films whose tones cancel have the middle's histogram on average, bin by bin.
    """
    centre, spread = (118, 1.0) if split == "train" else (130, 0.9)
    grey = np.arange(256)
    density = np.full(256, 0.0012)
    for share, offset, width in ((0.1, -95, 12), (0.3, -45, 20), (0.42, 25, 24), (0.18, 65, 18)):
        density += share / width / 2.5 * np.exp(-0.5 * ((grey - centre - spread * offset) / width) ** 2)
    density /= density.sum()
    slope, bend = (grey - 127.5) / 127.5, ((grey - 127.5) / 127.5) ** 2
    tilt = 0.5 * brightness * (slope - density @ slope) + 0.6 * contrast * (bend - density @ bend)
    tilted: NDArray[np.float64] = density * (1 + tilt)
    return tilted

"""What is left of a model on another hospital's machine: its figures on films under fixed corruptions.

Layout    images uint8 [N, H, W], 0 black .. 255 white; predict maps uint8 [n, H, W] -> probability [n] of class 1.
Source    Hendrycks & Dietterich 2019, arXiv:1903.12261: corruptions at fixed severities, summed up by the mean over
          all. Of their kinds those that a radiograph meets are here: exposure (gamma), display window (contrast),
          focus (blur), detector noise, JPEG, resolution (down-sampling); fog, snow and motion are not.
          What a department does differently comes beside: collimation and distance (zoom, aspect: a squashed square
          shows the shape of the film), position (rotation), and the margins, which show the cassette or the page
          rather than the child.
Training  theirs are no part of it; here that is for the recipe to say: augment=wide and tone draw zoom, aspect,
          rotation, down-sampling, lighter films and the milder blur and noise as strong as here.
Severity  two of every kind, so that each weighs the same in the mean: one that a reader would hardly mind, one that he
          would. Lengths are shares of the height, greys of 255. They meet the pixels that the net gets, so noise
          and the blocks of JPEG are coarser on a smaller image: compare runs of one size.
Fixed     what is random about a film comes from (seed, corruption, place of the film) alone: batches change nothing.
Memory    a batch of films under one corruption at a time, beside the scores [corruptions, N].
"""

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumonia.evaluation.bootstrap import bootstrap_draws, percentile_interval, width_or_none
from pneumonia.evaluation.checks import Floats, Ints, Strings, checked, checked_patient
from pneumonia.evaluation.frame import inside
from pneumonia.evaluation.intervals import auroc_interval
from pneumonia.evaluation.metrics import confusion, point_metrics, proportions
from pneumonia.evaluation.subgroups import Estimate, proportion

Film = NDArray[np.uint8]  # [H, W]
Images = NDArray[np.uint8]  # [N, H, W]
Predict = Callable[[Images], ArrayLike]
Corruption = Callable[[Film, np.random.Generator], Film]

FRAMED = ("as_is", "zoom_in", "zoom_out", "aspect_tall", "aspect_wide")
MARGIN = 0.08  # of each side


@dataclass(frozen=True)
class Stressed:
    """The figures under one corruption; `as_is` under none."""

    name: str
    auroc: Estimate
    sensitivity: Estimate
    specificity: Estimate


@dataclass(frozen=True)
class Stress:
    """As it is, then one row a corruption; mean: of the AUROC over all of them; worst: the name of the lowest one.

    pooled: the AUROC of all films under all corruptions in one ranking. A corruption that moves every film alike leaves
    each row's AUROC; this one it lowers, since one threshold must serve all.
    framing: the same over FRAMED alone; None unless all of them are there.
    """

    threshold: float
    clean: Stressed
    rows: tuple[Stressed, ...]
    mean: Estimate
    pooled: Estimate
    framing: Estimate | None
    worst: str | None


def stress_scores(predict: Predict, batches: Iterable[Images]) -> dict[str, Floats]:
    """{"as_is" or corruption: probability [N]} of films that come in batches uint8 [n, H, W], each read once."""
    names = ("as_is", *CORRUPTIONS)
    parts: dict[str, list[Floats]] = {name: [] for name in names}
    done = 0
    for batch in batches:
        for name in names:
            shown = batch if name == "as_is" else corrupted(batch, name, first=done)
            parts[name].append(np.asarray(predict(shown), dtype=np.float64))
        done += len(batch)
    return {name: np.concatenate(part) if part else np.empty(0) for name, part in parts.items()}


def stress_table(
    scores: Mapping[str, Floats], label: ArrayLike, threshold: float, patient: ArrayLike | None = None,
    seed: int = 0, level: float = 0.95, resamples: int = 2000,
) -> Stress:  # fmt: skip
    """Wilson intervals for the rates, over patients for AUROC (the same resamples in every row, so in the mean too).

    scores   {"as_is" or corruption: probability [N]}, as stress_scores gives them
    patient  [N]; without it each film is one of its own
    Raises ValueError for an empty split, labels or probabilities that are none.
    """
    truth, _ = checked(label, scores["as_is"])
    keys = np.arange(truth.size).astype(str) if patient is None else checked_patient(patient, truth.size)
    rows, drawn = [], []
    for name, score in scores.items():
        draws = bootstrap_draws(truth, score, keys, threshold, resamples, seed, ("auroc",)).values["auroc"]
        rows.append(row(name, truth, score, threshold, draws, level))
        drawn.append(draws)
    clean, *others = rows
    known = {found.name: found.auroc.value for found in others if found.auroc.value is not None}
    mean = float(np.mean(list(known.values()))) if known else None
    interval = width_or_none(percentile_interval(np.mean(drawn[1:], axis=0), level))
    worst = min(known, key=lambda name: known[name], default=None)
    together = pooled(scores, truth, keys, seed, level, resamples)
    framed = {name: scores[name] for name in FRAMED if name in scores}
    framing = pooled(framed, truth, keys, seed, level, resamples) if len(framed) == len(FRAMED) else None
    middle = Estimate(mean, interval, truth.size)
    return Stress(float(threshold), clean, tuple(others), middle, together, framing, worst)


def pooled(
    scores: Mapping[str, Floats], label: Ints, patient: Strings, seed: int, level: float, resamples: int
) -> Estimate:
    """AUROC of {corruption: probability [N]} as one ranking, its interval over patients; n counts films, not looks."""
    truth, keys, score = np.tile(label, len(scores)), np.tile(patient, len(scores)), np.concatenate([*scores.values()])
    draws = bootstrap_draws(truth, score, keys, 0.5, resamples, seed, ("auroc",)).values["auroc"]
    value = point_metrics(truth, score, 0.5)["auroc"]
    return Estimate(value, width_or_none(percentile_interval(draws, level)), label.size)


def row(name: str, label: ArrayLike, score: Floats, threshold: float, draws: Floats, level: float) -> Stressed:
    """One row; `draws` [B] are the AUROCs of the resamples. One class only: AUROC and one rate are None."""
    of = proportions(confusion(label, score, threshold))
    return Stressed(
        name,
        Estimate(
            point_metrics(label, score, threshold)["auroc"], auroc_interval(draws, label, score, level), score.size
        ),
        proportion(*of["sensitivity"], level),
        proportion(*of["specificity"], level),
    )


def corrupted(images: Images, name: str, seed: int = 0, first: int = 0) -> Images:
    """The films [n, H, W] under one of CORRUPTIONS; `first` is the place of the first of them among all films."""
    change, key = CORRUPTIONS[name], zlib.crc32(name.encode())
    return np.stack([change(film, np.random.default_rng((seed, key, first + k))) for k, film in enumerate(images)])


def gamma(film: Film, _: np.random.Generator, power: float) -> Film:
    """Grey in [0, 1] to `power`: below 1 lighter, above 1 darker."""
    return np.rint(255 * (np.arange(256) / 255) ** power).astype(np.uint8)[film]


def contrast(film: Film, _: np.random.Generator, factor: float) -> Film:
    """Every grey's distance from the film's mean times `factor`."""
    mean = film.mean()
    return grey(mean + factor * (film - mean))


def blur(film: Film, _: np.random.Generator, sigma: float) -> Film:
    """Gaussian blur; standard deviation as a share of the height."""
    return np.asarray(cv2.GaussianBlur(film, (0, 0), sigma * film.shape[0], borderType=cv2.BORDER_REPLICATE))


def noise(film: Film, rng: np.random.Generator, sigma: float) -> Film:
    """Independent normal noise, standard deviation in greys."""
    return grey(film + sigma * rng.standard_normal(film.shape, dtype=np.float32))


def jpeg(film: Film, _: np.random.Generator, quality: int) -> Film:
    """Compressed and read again."""
    content = cv2.imencode(".jpeg", film, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_GRAYSCALE))


def crop(film: Film, rng: np.random.Generator, height: float, width: float) -> Film:
    """A window of these shares of the sides, anywhere, enlarged to the whole film."""
    top, bottom = window(film.shape[0], height, rng)
    left, right = window(film.shape[1], width, rng)
    return to_shape(film[top:bottom, left:right], film.shape)


def shrink(film: Film, rng: np.random.Generator, share: float) -> Film:
    """The film at `share` of its size, anywhere on a black page."""
    page = np.zeros_like(film)
    (top, bottom), (left, right) = (window(side, share, rng) for side in film.shape)
    page[top:bottom, left:right] = to_shape(film, (bottom - top, right - left))
    return page


def rotate(film: Film, rng: np.random.Generator, degrees: float) -> Film:
    """Turned about the middle, to the left or to the right; what comes into view is black."""
    height, width = film.shape
    angle = degrees * int(rng.choice((-1, 1)))
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1)
    return np.asarray(cv2.warpAffine(film, matrix, (width, height), flags=cv2.INTER_LINEAR))


def invert_margins(film: Film, _: np.random.Generator) -> Film:
    """The outer MARGIN of each side as a negative."""
    return np.where(inside(film.shape, MARGIN), film, 255 - film)


def whiten_margins(film: Film, _: np.random.Generator) -> Film:
    """The outer MARGIN of each side white."""
    return np.where(inside(film.shape, MARGIN), film, np.uint8(255))


def downsample(film: Film, _: np.random.Generator, share: float) -> Film:
    """Reduced to `share` of each side, and enlarged again."""
    small = [max(1, round(share * side)) for side in film.shape]
    return to_shape(to_shape(film, (small[0], small[1])), film.shape)


def grey(values: NDArray[np.floating]) -> Film:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def window(side: int, share: float, rng: np.random.Generator) -> tuple[int, int]:
    """(first, last + 1) of a part of a side, anywhere."""
    length = max(1, round(share * side))
    first = int(rng.integers(side - length + 1))
    return first, first + length


def to_shape(film: Film, shape: tuple[int, ...]) -> Film:
    """Resized to [H, W]: by area when it shrinks, bilinear when it grows."""
    way = cv2.INTER_AREA if shape[0] < film.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(film, (shape[1], shape[0]), interpolation=way))


CORRUPTIONS: dict[str, Corruption] = {
    "gamma_lighter": partial(gamma, power=0.6),
    "gamma_darker": partial(gamma, power=1.7),
    "contrast_low": partial(contrast, factor=0.6),
    "contrast_high": partial(contrast, factor=1.5),
    "blur_mild": partial(blur, sigma=0.006),
    "blur_strong": partial(blur, sigma=0.012),
    "noise_mild": partial(noise, sigma=8),
    "noise_strong": partial(noise, sigma=20),
    "jpeg_mild": partial(jpeg, quality=25),
    "jpeg_strong": partial(jpeg, quality=10),
    "zoom_in": partial(crop, height=0.85, width=0.85),
    "zoom_out": partial(shrink, share=0.85),
    "aspect_tall": partial(crop, height=0.85, width=1.0),
    "aspect_wide": partial(crop, height=1.0, width=0.85),
    "rotation_mild": partial(rotate, degrees=5),
    "rotation_strong": partial(rotate, degrees=12),
    "margins_inverted": invert_margins,
    "margins_white": whiten_margins,
    "downsampling_mild": partial(downsample, share=0.5),
    "downsampling_strong": partial(downsample, share=0.25),
}

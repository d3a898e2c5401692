"""Marks that come with one class: burnt-in letters, times and voltages, clips and lines in the corners of films.

A net learns them, and all else that their machine or ward does to a film, with the class (Zech et al. 2018,
doi:10.1371/journal.pmed.1002683), and no split of the same films shows it. Nobody has to know what to look for:

Windows    of each corner the PEAKS places of the most contrast: a mark has its own there, so all films' are cut alike.
Alike      two windows of one corner whose correlation is above ALIKE.
One-sided  a window whose like is on films of a share of one class's patients and of hardly any of the other's: at
           least ONE_SIDED of the sum of both shares, and more than chance tells (Fisher's exact test, Bonferroni over
           windows).
Marks      one-sided windows of one corner and class, joined where alike. Ranked by patients.

Layout     films uint8 [SIDE, SIDE]; windows float32 [D, pixels] of mean 0 and length 1, with the film [D] of each.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pneumonia.data.records import CLASSES, Record

Film = NDArray[np.uint8]  # [SIDE, SIDE]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

SIDE = 224  # pixels, whatever a net is given: at 112 letters can't be told from each other
WINDOW = (9, 12)  # pixels, height and width: a letter or two
CORNER = (40, 48)  # pixels, height and width
CORNERS = {
    "upper left": (slice(None, CORNER[0]), slice(None, CORNER[1])),
    "upper right": (slice(None, CORNER[0]), slice(-CORNER[1], None)),
    "lower left": (slice(-CORNER[0], None), slice(None, CORNER[1])),
    "lower right": (slice(-CORNER[0], None), slice(-CORNER[1], None)),
}
PEAKS = 4  # windows of a corner
FLAT = 20.0  # grey levels: a window whose deviation is below it holds no mark
ALIKE = 0.75
ONE_SIDED = 0.95
CHANCE = 0.01  # of one mark or more on films without any
FILMS = 8000  # at most, each k-th of more: the time goes with the square
ROWS = 512  # windows that are compared at once


@dataclass(frozen=True)
class Mark:
    """Films and patients that carry it as (normal, pneumonia); `example` is the film whose window has the most like it,
    at `top`, `left` in pixels of SIDE."""

    corner: str
    comes_with: str
    films: tuple[int, int]
    patients: tuple[int, int]
    example: str
    top: int
    left: int


def one_sided_marks(records: Sequence[Record], films: Iterable[Film]) -> dict[str, Any]:
    """Marks of these films as plain values, films and patients as [normal, pneumonia]; `carrying` is how many patients
    of each class have a mark of their own class.

    5,216 films take 20 s on one core. Raises ValueError for films of another size.
    """
    step = max(1, -(-len(records) // FILMS))
    kept, corners = list(records[::step]), cut(islice(films, 0, None, step))
    label = np.array([record.label for record in kept])
    patient = np.unique([f"{record.label} {record.patient}" for record in kept], return_inverse=True)[1]
    every = np.arange(len(kept))
    total, marks, carrying = both(label, every, patient), [], np.zeros(len(kept), bool)
    for (corner, (rows, columns)), parts in zip(CORNERS.items(), corners, strict=True):
        owner, place, window = windows_of(parts)
        for number, group in joined(window, one_sided(window, owner, label, patient, total)):
            alike = window[group] @ window.T > ALIKE
            film, best = np.unique(owner[alike.any(0)]), group[np.argmax(alike.sum(1))]
            carrying[film[label[film] == number]] = True
            top, left = place[best] + [(span.start or 0) % SIDE for span in (rows, columns)]
            counts = both(label, film), both(label, film, patient)
            marks.append(Mark(corner, CLASSES[number], *counts, kept[owner[best]].path, int(top), int(left)))
    marks.sort(key=lambda mark: (-sum(mark.patients), mark.corner, mark.example))
    return {
        "films": both(label, every),
        "patients": total,
        "carrying": both(label, np.flatnonzero(carrying), patient),
        "marks": [asdict(mark) for mark in marks],
    }


def cut(films: Iterable[Film]) -> list[list[Film]]:
    """The corners of all films, those of one of CORNERS together; the films themselves are not kept."""
    parts: list[list[Film]] = [[] for _ in CORNERS]
    for film in films:
        if film.shape != (SIDE, SIDE):
            raise ValueError(f"a film is {film.shape}: expected ({SIDE}, {SIDE})")
        for part, place in zip(parts, CORNERS.values(), strict=True):
            part.append(film[place].copy())
    return parts


def windows_of(corners: Sequence[Film]) -> tuple[Ints, Ints, Floats]:
    """The film [D], the place [D, 2] in its corner and the window of each of the PEAKS of every corner."""
    owner, places, windows = [], [], [np.empty((0, WINDOW[0] * WINDOW[1]), np.float32)]
    for number, corner in enumerate(corners):
        grey = corner.astype(np.float32)
        for top, left in peaks(grey):
            window = grey[top : top + WINDOW[0], left : left + WINDOW[1]].reshape(1, -1)
            window = window - window.mean()
            owner.append(number)
            places.append((top, left))
            windows.append(window / np.linalg.norm(window))
    return np.array(owner, np.int64), np.array(places, np.int64).reshape(-1, 2), np.concatenate(windows)


def peaks(grey: Floats) -> Ints:
    """Upper left corners [n, 2] of the windows of a corner whose variance is the highest around, PEAKS at most."""
    size = (WINDOW[1], WINDOW[0])
    mean, square = (cv2.boxFilter(plane, -1, size) for plane in (grey, grey**2))
    height, width = (side - window + 1 for side, window in zip(grey.shape, WINDOW, strict=True))
    variance = (square - mean**2)[WINDOW[0] // 2 :, WINDOW[1] // 2 :][:height, :width]
    around = cv2.dilate(variance, np.ones(WINDOW), borderType=cv2.BORDER_CONSTANT, borderValue=0.0)
    place = np.argwhere((variance == around) & (variance > FLAT**2))
    return place[np.argsort(-variance[tuple(place.T)], kind="stable")[:PEAKS]]


def one_sided(window: Floats, owner: Ints, label: Ints, patient: Ints, total: Sequence[int]) -> Ints:
    """Of each window [D] the class that its like comes with, -1 for none; `total` patients of each class."""
    from scipy.stats import hypergeom

    if not len(window):
        return np.empty(0, np.int64)
    order = np.argsort(patient[owner], kind="stable")
    starts = np.flatnonzero(np.diff(patient[owner[order]], prepend=-1))
    of_class = label[owner[order[starts]]]
    count = np.empty((len(CLASSES), len(window)), np.int64)
    for start in range(0, len(window), ROWS):
        hit = np.logical_or.reduceat(window[start : start + ROWS] @ window[order].T > ALIKE, starts, axis=1)
        for number in range(len(CLASSES)):
            count[number, start : start + ROWS] = hit[:, of_class == number].sum(1)
    share = count / np.maximum(total, 1)[:, None]
    sides = np.full(len(window), -1)
    for number in range(len(CLASSES)):
        chance = hypergeom.sf(count[number] - 1, sum(total), total[number], count.sum(0))
        sides[(share[number] >= ONE_SIDED * share.sum(0)) & (chance * len(window) * len(CORNERS) < CHANCE)] = number
    return sides


def joined(window: Floats, sides: Ints) -> Iterator[tuple[int, Ints]]:
    """(class, windows) of each mark: one-sided windows of a class that are alike, in any chain."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    for number in range(len(CLASSES)):
        some = np.flatnonzero(sides == number)
        if len(some):
            count, part = connected_components(coo_matrix(window[some] @ window[some].T > ALIKE), directed=False)
            yield from ((number, some[part == group]) for group in range(count))


def both(label: Ints, film: Ints, unit: Ints | None = None) -> tuple[int, int]:
    """How many of these films are normal and how many show pneumonia; with `unit` [N], how many of those they have."""
    normal, ill = (film[label[film] == number] for number in range(len(CLASSES)))
    return (len(normal), len(ill)) if unit is None else (len(np.unique(unit[normal])), len(np.unique(unit[ill])))

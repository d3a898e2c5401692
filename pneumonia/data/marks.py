"""Marks that come with one class: burnt-in letters, times and voltages, clips and lines in the corners of films.

A net learns them, and all else that their machine or ward does to a film, with the class (Zech et al. 2018,
doi:10.1371/journal.pmed.1002683), and no split of the same films shows it. Nobody has to know what to look for:

Windows    of each corner the PEAKS places of the most contrast: a mark is in the middle of one of its own, wherever it
           stands, unless brighter ones take all places.
Alike      two windows of one corner whose correlation is above ALIKE.
One-sided  a window whose like is on a share of one class's films and on hardly any of the other's: at least ONE_SIDED
           of the sum of both shares, and more than chance tells (Fisher's exact test, Bonferroni over all windows).
Marks      one-sided windows of one corner and class, joined where alike, with all films that have the like of one.

A mark is found by being on many films: fewer films show fewer marks, and none found is no proof that there is none.

Layout     films uint8 [SIDE, SIDE], one a patient; windows float32 [D, pixels] of mean 0 and length 1, with the film
           [D] of each.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pneumonia.data.records import CLASSES, Record
from pneumonia.data.split import groups_of

Film = NDArray[np.uint8]  # [SIDE, SIDE]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

SIDE = 224  # pixels, whatever a net is given: at 112 letters can't be told from each other
WINDOW = (9, 13)  # pixels, height and width, odd: a letter or two
HEIGHT, WIDTH = 40, 48  # pixels of a corner
CORNERS = {
    "upper left": (slice(None, HEIGHT), slice(None, WIDTH)),
    "upper right": (slice(None, HEIGHT), slice(-WIDTH, None)),
    "lower left": (slice(-HEIGHT, None), slice(None, WIDTH)),
    "lower right": (slice(-HEIGHT, None), slice(-WIDTH, None)),
}
AROUND = (4, 6)  # pixels up and down, left and right
PEAKS = 4  # windows of a corner
FLAT = 20.0  # grey levels: a window whose deviation is below it holds no mark
ALIKE = 0.75
ONE_SIDED = 0.95
CHANCE = 0.01  # of any mark at all where the classes are dealt to the films at random
FILMS = 8000  # at most: the time goes with the square
SHOWN = 20  # marks that are told one by one
ROWS = 512  # windows that are compared at once


@dataclass(frozen=True)
class Mark:
    """Patients that carry it as (normal, pneumonia); `example` is the film whose window has the most like it, at `top`,
    `left` of the corner in pixels of SIDE."""

    corner: str
    comes_with: str
    patients: tuple[int, int]
    example: str
    top: int
    left: int


def one_of_each(records: Sequence[Record]) -> list[Record]:
    """One film of each patient (of films that share a patient or their bytes), drawn from seed 0; at most FILMS. So
    that a patient with many films is no more likely to have a mark."""
    if not records:
        return []
    group = groups_of(records)
    drawn = np.random.default_rng(0).permutation(len(records))
    _, first = np.unique(group[drawn], return_index=True)
    return [records[place] for place in sorted(drawn[np.sort(first)[:FILMS]])]


def one_sided_marks(
    records: Sequence[Record], films: Iterable[Film], others: Iterable[Film] = ()
) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """The marks of these films, one a patient, as plain values, and which of M other films have a mark that comes with
    normal, with pneumonia: bool [2, M].

    Numbers of patients are (normal, pneumonia); `carrying` is how many have any mark that comes with either. 3,654
    films take 10 s on one core. Raises ValueError for films of another size or number.
    """
    label = np.array([record.label for record in records])
    corners, corners_of_others = cut(films), cut(others)
    if len(corners[0]) != len(records):
        raise ValueError(f"{len(corners[0])} films, {len(records)} records: expected one film a record")
    carrying, marks = np.zeros((len(CLASSES), len(records)), bool), []
    marked = np.zeros((len(CLASSES), len(corners_of_others[0])), bool)
    for corner, parts, other_parts in zip(CORNERS, corners, corners_of_others, strict=True):
        owner, place, window = windows_of(parts)
        owner_of_others, _, window_of_others = windows_of(other_parts)
        for number, group in joined(window, one_sided(window, owner, label)):
            some, many = carriers(window[group], window, owner)
            carrying[number, some] = True
            marked[number, carriers(window[group], window_of_others, owner_of_others)[0]] = True
            best = group[many.argmax()]
            example, (top, left) = records[owner[best]].path, place[best].tolist()
            marks.append(Mark(corner, CLASSES[number], by_class(label[some]), example, top, left))
    marks.sort(key=lambda mark: (-sum(mark.patients), mark.corner, mark.example))
    found = {
        "patients": by_class(label),
        "carrying": {name: by_class(label[some]) for name, some in zip(CLASSES, carrying, strict=True)},
        "found": [asdict(mark) for mark in marks],
    }
    return found, marked


def by_class(label: Ints) -> tuple[int, int]:
    """How many are normal, and how many show pneumonia."""
    return int((label == 0).sum()), int((label == 1).sum())


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
    """(top, left) of the windows [n, 2] of a corner [HEIGHT, WIDTH] whose variance, weighted towards their middle, is
    the highest within AROUND; PEAKS at most, the highest first."""
    mean, square = (cv2.GaussianBlur(plane, (0, 0), WINDOW[1] / 4, sigmaY=WINDOW[0] / 4) for plane in (grey, grey**2))
    down, right = (side // 2 for side in WINDOW)
    variance = (square - mean**2)[down : HEIGHT - down, right : WIDTH - right]
    near = np.ones([2 * reach + 1 for reach in AROUND], np.uint8)
    highest = variance == cv2.dilate(variance, near, borderType=cv2.BORDER_CONSTANT, borderValue=0.0)
    places = np.argwhere(highest & (variance > FLAT**2))
    return places[np.argsort(-variance[tuple(places.T)], kind="stable")[:PEAKS]]


def one_sided(window: Floats, owner: Ints, label: Ints) -> Ints:
    """Of each window [D] the class that its like comes with, -1 for none; `owner` [D] ascending, `label` [N]."""
    from scipy.stats import hypergeom

    total = by_class(label)
    sides = np.full(len(window), -1)
    if not len(window) or 0 in total:
        return sides
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    of_class = label[owner[starts]]
    count = np.empty((len(CLASSES), len(window)), np.int64)
    for start, near in alike(window, window):
        film = np.logical_or.reduceat(near, starts, axis=1)
        for number in range(len(CLASSES)):
            count[number, start : start + ROWS] = film[:, of_class == number].sum(1)
    share = count / np.array(total)[:, None]
    tests = len(window) * len(CORNERS) * len(CLASSES)
    for number in range(len(CLASSES)):
        some = np.flatnonzero(share[number] >= ONE_SIDED * share.sum(0))
        chance = hypergeom.sf(count[number, some] - 1, len(label), total[number], count[:, some].sum(0))
        sides[some[chance * tests < CHANCE]] = number
    return sides


def joined(window: Floats, sides: Ints) -> Iterator[tuple[int, Ints]]:
    """(class, windows) of each mark: one-sided windows of a class that are alike, in any chain."""
    from scipy.sparse import csr_matrix, vstack
    from scipy.sparse.csgraph import connected_components

    for number in range(len(CLASSES)):
        some = np.flatnonzero(sides == number)
        if len(some):
            graph = vstack([csr_matrix(near) for _, near in alike(window[some], window[some])])
            count, part = connected_components(graph, directed=False)
            yield from ((number, some[part == group]) for group in range(count))


def carriers(some: Floats, window: Floats, owner: Ints) -> tuple[Ints, Ints]:
    """The films that have the like of any window of `some` among theirs [D], and how many are like each of `some`."""
    has, many = np.zeros(len(window), bool), np.empty(len(some), np.int64)
    for start, near in alike(some, window):
        has |= near.any(0)
        many[start : start + ROWS] = near.sum(1)
    return np.unique(owner[has]), many


def alike(some: Floats, window: Floats) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """(start, bool [ROWS, D]): which windows are like each of `some`, ROWS of these at a time."""
    for start in range(0, len(some), ROWS):
        yield start, some[start : start + ROWS] @ window.T > ALIKE

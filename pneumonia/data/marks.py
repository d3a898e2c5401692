"""Marks in films' corners that come with one class: burnt-in letters, times and voltages, lines, how the child lies.

A net learns them, and all else that their machine or ward does to a film, with the class (Zech et al. 2018,
doi:10.1371/journal.pmed.1002683), and no split of the same films shows it. Nobody has to know what to look for:

Windows    around the PEAKS places of each corner that can least be shifted without a change, in any direction (smaller
           eigenvalue of the structure tensor, Shi and Tomasi 1994, doi:10.1109/CVPR.1994.323794): strokes of letters,
           not straight edges, wherever they stand.
Alike      two windows of one corner whose correlation is above ALIKE.
One-sided  a window whose like is on a share of one class's films and on hardly any of the other's: at least ONE_SIDED
           of the sum of both shares, and more than chance tells (Fisher's exact test, Bonferroni over all windows).
Marks      one-sided windows of one corner and class, joined where alike, with all films that have the like of one.
Carrying   how many patients have a mark is counted on the half of them that the marks were not found on, both ways: on
           the films that chose the marks the other class has hardly any by choice.

A mark is found by being on many films: fewer films show fewer marks, and none found is no proof that there is none.

Layout     films uint8 [SIDE, SIDE], one a patient but in `marks_of`; windows float32 [D, pixels] of mean 0 and length
           1, with the film and the place [D] of each.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pneumonia.data.decode import read_film
from pneumonia.data.records import CLASSES, Record
from pneumonia.data.split import groups_of
from pneumonia.launch import usable_cores

Film = NDArray[np.uint8]  # [SIDE, SIDE]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

SIDE = 224  # pixels, whatever a net is given: at 112 letters can't be told from each other
WINDOW = (9, 13)  # pixels, height and width, odd: a letter or two
HEIGHT, WIDTH = 40, 48  # pixels of a corner
CORNERS = {
    "upper left": (slice(0, HEIGHT), slice(0, WIDTH)),
    "upper right": (slice(0, HEIGHT), slice(SIDE - WIDTH, SIDE)),
    "lower left": (slice(SIDE - HEIGHT, SIDE), slice(0, WIDTH)),
    "lower right": (slice(SIDE - HEIGHT, SIDE), slice(SIDE - WIDTH, SIDE)),
}
BLOCK = 5  # pixels a side that a structure tensor is of
AROUND = (4, 6)  # pixels up and down, left and right, within which one place is taken
PEAKS = 4  # windows of a corner
FLAT = 200.0  # squared grey levels: a smaller eigenvalue below it is no mark's
ALIKE = 0.75
ONE_SIDED = 0.95
CHANCE = 0.01  # of any mark at all where the classes are dealt to the films at random
FILMS = 8000  # at most: the time goes with the square
ROWS = 512  # windows that are compared, films that are read at once


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


@dataclass(frozen=True)
class Windows:
    """Of one corner of N films: the film [D], ascending, the place in the corner [D, 2] and the window [D, pixels]."""

    films: int
    owner: Ints
    place: Ints
    window: Floats

    def of(self, some: Mask) -> "Windows":
        """Those of some of the films, bool [N], which are numbered anew."""
        kept = some[self.owner]
        owner = (np.cumsum(some) - 1)[self.owner[kept]]
        return Windows(int(some.sum()), owner, self.place[kept], self.window[kept])


def one_of_each(records: Sequence[Record]) -> tuple[list[Record], int]:
    """One film of each patient (of films that share a patient or their bytes), of FILMS patients at most, all drawn
    from seed 0: a patient with many films is no more likely to have a mark; and of how many patients."""
    if not records:
        return [], 0
    rng, group = np.random.default_rng(0), groups_of(records)
    drawn = rng.permutation(len(records))
    film = drawn[np.unique(group[drawn], return_index=True)[1]]
    return [records[place] for place in sorted(rng.permutation(film)[:FILMS])], len(film)


def one_sided_marks(
    records: Sequence[Record], films: Iterable[Film], others: Iterable[Film] = ()
) -> tuple[dict[str, Any], Mask]:
    """The marks of these films, one a patient, as plain values, and which of M other films have a mark that comes with
    normal, with pneumonia: bool [2, M].

    Numbers of patients are (normal, pneumonia); `carrying` is how many have any mark that comes with either, as the
    other half of them shows it. 3,654 films take 15 s on one core. Raises ValueError for films of another size or
    number.
    """
    label = np.array([record.label for record in records])
    known, count = windows_of(films), len(records)
    if any(part.films != count for part in known.values()):
        raise ValueError(f"{known['upper left'].films} films, {count} records: expected one film a record")
    marks, groups = [], list(sided(known, label))
    for corner, number, group in groups:
        part = known[corner]
        has, many = carriers(part.window[group], part)
        best = group[many.argmax()]
        example, (top, left) = records[part.owner[best]].path, part.place[best].tolist()
        marks.append(Mark(corner, CLASSES[number], by_class(label[has]), example, top, left))
    marks.sort(key=lambda mark: (-sum(mark.patients), mark.corner, mark.example))
    carrying = marked_by_the_others(known, label, np.random.default_rng(0).permutation(count) % 2 == 0)
    told = {
        "patients": by_class(label),
        "carrying": {name: by_class(label[some]) for name, some in zip(CLASSES, carrying, strict=True)},
        "found": [asdict(mark) for mark in marks],
    }
    return told, marked(groups, known, windows_of(others))


def marks_of(records: Sequence[Record], films: Iterable[Film]) -> Mask:
    """Which films have a mark that comes with normal, with pneumonia: bool [2, N], by the labels of patients other than
    its own: those of one half (drawn from seed 0) by what FILMS films at most of the other half show. 4,173 films of
    224 px take 4 s of a core."""
    group = groups_of(records)
    half = (np.random.default_rng(0).permutation(group.max() + 1) % 2 == 0)[group]
    return marked_by_the_others(windows_of(films), np.array([record.label for record in records]), half)


def marked_by_the_others(known: dict[str, Windows], label: Ints, half: Mask) -> Mask:
    """Which of the N films have a mark that comes with normal, with pneumonia, as the films of the other half show it:
    bool [2, N]; `half` [N]."""
    has = np.zeros((len(CLASSES), len(label)), bool)
    order = np.random.default_rng(1).permutation(len(label))
    for judged in (half, ~half):
        found = np.zeros(len(label), bool)
        found[order[~judged[order]][:FILMS]] = True
        found_on, rest = ({corner: part.of(some) for corner, part in known.items()} for some in (found, judged))
        has[:, judged] = marked(sided(found_on, label[found]), found_on, rest)
    return has


def squashed(root: Path, paths: Sequence[str]) -> Iterator[Film]:
    """The films in the size that marks are looked for in; squashed, since pad moves their corners inwards. Raises
    BadFilm."""
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        for start in range(0, len(paths), ROWS):  # no more than these wait for who reads them
            yield from pool.map(lambda path: read_film(root / path, SIDE, "squash"), paths[start : start + ROWS])


def by_class(label: Ints) -> tuple[int, int]:
    """How many are normal, and how many show pneumonia."""
    return int((label == 0).sum()), int((label == 1).sum())


def windows_of(films: Iterable[Film]) -> dict[str, Windows]:
    """The windows of each corner; the films are read once and not kept."""
    owner: dict[str, list[int]] = {corner: [] for corner in CORNERS}
    place: dict[str, list[tuple[int, int]]] = {corner: [] for corner in CORNERS}
    window = {corner: [np.empty((0, WINDOW[0] * WINDOW[1]), np.float32)] for corner in CORNERS}
    number = -1
    for number, film in enumerate(films):
        if film.shape != (SIDE, SIDE):
            raise ValueError(f"a film is {film.shape}: expected ({SIDE}, {SIDE})")
        grey = film.astype(np.float32)
        for corner, (top, left) in places(grey):
            cut = grey[top : top + WINDOW[0], left : left + WINDOW[1]].reshape(1, -1)
            cut = cut - cut.mean()
            owner[corner].append(number)
            place[corner].append((top - CORNERS[corner][0].start, left - CORNERS[corner][1].start))
            window[corner].append(cut / np.linalg.norm(cut))
    return {
        corner: Windows(
            number + 1, np.array(owner[corner], np.int64), np.array(place[corner], np.int64).reshape(-1, 2),
            np.concatenate(window[corner]),
        )
        for corner in CORNERS
    }  # fmt: skip


def places(grey: Floats) -> Iterator[tuple[str, tuple[int, int]]]:
    """(corner, (top, left) in the film) of the windows of a film [SIDE, SIDE], PEAKS a corner, the highest first."""
    down, right = (side // 2 for side in WINDOW)
    held = cv2.cornerMinEigenVal(grey, BLOCK)[down : SIDE - down, right : SIDE - right]
    near = np.ones([2 * reach + 1 for reach in AROUND], np.uint8)
    for corner, (rows, columns) in CORNERS.items():
        inside = slice(rows.start, rows.stop - 2 * down), slice(columns.start, columns.stop - 2 * right)
        part, highest = held[inside], cv2.dilate(held, near)[inside]
        found = np.argwhere((part == highest) & (part > FLAT))
        kept: list[Ints] = []
        for at in found[np.argsort(-part[tuple(found.T)], kind="stable")]:
            if len(kept) < PEAKS and all((abs(at - other) > AROUND).any() for other in kept):
                kept.append(at)
                yield corner, (int(at[0]) + rows.start, int(at[1]) + columns.start)


def sided(known: dict[str, Windows], label: Ints) -> Iterator[tuple[str, int, Ints]]:
    """(corner, class, windows) of each mark: one-sided windows that are alike, in any chain."""
    from scipy.sparse import csr_matrix, vstack
    from scipy.sparse.csgraph import connected_components

    for corner, part in known.items():
        sides = one_sided(part.window, part.owner, label)
        for number in range(len(CLASSES)):
            some = np.flatnonzero(sides == number)
            if len(some):
                graph = vstack([csr_matrix(near) for _, near in alike(part.window[some], part.window[some])])
                count, group = connected_components(graph, directed=False)
                yield from ((corner, number, some[group == k]) for k in range(count))


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


def marked(groups: Iterable[tuple[str, int, Ints]], known: dict[str, Windows], others: dict[str, Windows]) -> Mask:
    """Which of the M films of `others` have the like of a mark of normal, of pneumonia: bool [2, M]; `groups` are the
    `sided` of the known ones."""
    has = np.zeros((len(CLASSES), others["upper left"].films), bool)
    for corner, number, group in groups:
        has[number, carriers(known[corner].window[group], others[corner])[0]] = True
    return has


def carriers(some: Floats, among: Windows) -> tuple[Ints, Ints]:
    """The films that have the like of any window of `some` among theirs, and how many are like each of `some`."""
    has, many = np.zeros(len(among.window), bool), np.empty(len(some), np.int64)
    for start, near in alike(some, among.window):
        has |= near.any(0)
        many[start : start + ROWS] = near.sum(1)
    return np.unique(among.owner[has]), many


def alike(some: Floats, window: Floats) -> Iterator[tuple[int, Mask]]:
    """(start, bool [ROWS, D]): which windows are like each of `some`, ROWS of these at a time."""
    for start in range(0, len(some), ROWS):
        yield start, some[start : start + ROWS] @ window.T > ALIKE

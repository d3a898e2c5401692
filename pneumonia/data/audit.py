"""What is wrong with a set of films before anything is trained: leaks, duplicates, sizes that tell the class.

Patients  that stand on both sides of a split, under the records' own key and under both keys of file names.
Copies    exact: the same bytes. Near: a difference hash of 256 bits (dHash, Krawetz 2013) within HASH_BITS proposes a
          pair, the correlation of both films at 64 x 64 decides. Chest films resemble each other: on every second film
          of Kermany's set the hash alone proposes hundreds of pairs; none of different films correlates above 0.965.
          Copies that were compressed anew (JPEG 20), resized to 160 pixels, brightened or given noise differ in at
          most 17 bits and correlate above 0.997. A crop is another picture to it (0.92 to 0.97).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pneumonia.data.records import CLASSES, SPLITS, Record, parse_name
from pneumonia.data.split import class_counts

Film = NDArray[np.uint8]  # [H, W]
Hashes = NDArray[np.uint64]
SIDE = 64  # of the thumbnails that decide
HASH_BITS = 24  # of 256
CORRELATION = 0.985
SHOWN = 5


def audit_records(records: Sequence[Record]) -> dict[str, Any]:
    """Everything that records alone tell, as plain values: classes, sizes, patients across splits, exact copies."""
    return {
        "classes": class_counts(records),
        "sizes": size_table(records),
        "patients": [patients_across(records, key) for key in ("recorded", "strict", "conservative")],
        "copies": exact_copies(records),
    }


def patients_across(records: Sequence[Record], key: str) -> dict[str, Any]:
    """Patients in more than one split under `key`: `recorded` is the records' own, the others read file names."""
    where: dict[str, set[str]] = defaultdict(set)
    for record in records:
        parsed = None if key == "recorded" else parse_name(record.path, key)
        where[parsed[0] if parsed else record.patient].add(record.split)
    pairs = {f"{a}-{b}": sum({a, b} <= splits for splits in where.values()) for a, b in combinations(SPLITS, 2)}
    shared = sorted(patient for patient, splits in where.items() if len(splits) > 1)
    return {"key": key, "shared": len(shared), **pairs, "examples": shared[:SHOWN]}


def exact_copies(records: Sequence[Record]) -> dict[str, Any]:
    """Groups of films with the same bytes; `across` counts those that stand in more than one split."""
    return described(same_bytes(records))


def same_bytes(records: Sequence[Record]) -> list[list[Record]]:
    """The films that are one file, of each that stands there more than once."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.sha256:
            groups[record.sha256].append(record)
    return [group for group in groups.values() if len(group) > 1]


def near_copies(records: Sequence[Record], films: Iterable[Film]) -> dict[str, Any]:
    """Groups of films that look the same though their bytes differ; films uint8 [S, S], one a record, read once.

    A thumbnail and a hash are kept of each, 4 kB; 5,528 films of 224 px take under 3 s on 2 cores.
    """
    from scipy.sparse import lil_matrix
    from scipy.sparse.csgraph import connected_components

    reduced = [(shrunk(film, SIDE, SIDE), shrunk(film, 17, 16)) for film in films]
    small = [thumbnail for thumbnail, _ in reduced]
    graph = lil_matrix((len(records), len(records)), dtype=bool)
    for a, b in alike(difference_hash(np.stack([cells for _, cells in reduced]))):
        if records[a].sha256 != records[b].sha256 and correlation(small[a], small[b]) >= CORRELATION:
            graph[a, b] = True
    groups: dict[int, list[Record]] = defaultdict(list)
    for group, record in zip(connected_components(graph, directed=False)[1], records, strict=True):
        groups[group].append(record)
    return described([group for group in groups.values() if len(group) > 1])


def standing(count: int, one: str, many: str) -> str:
    """`1 patient stands`, `2 patients stand`: the beginning of what is said of a leak."""
    return f"1 {one} stands" if count == 1 else f"{count:,} {many} stand"


def described(groups: Sequence[Sequence[Record]]) -> dict[str, Any]:
    """Counts and examples of groups of copies, those across splits and those of two classes first."""
    across = [group for group in groups if len({record.split for record in group}) > 1]
    torn = [group for group in groups if len({record.label for record in group}) > 1]
    first = sorted(groups, key=lambda group: (group not in across, group not in torn, group[0].path))
    return {
        "groups": len(groups),
        "films": sum(len(group) for group in groups),
        "across": len(across),
        "two_classes": len(torn),
        "examples": [[record.path for record in group] for group in first[:SHOWN]],
    }


def shrunk(film: Film, width: int, height: int) -> Film:
    """[S, S] -> [height, width], by area."""
    return np.asarray(cv2.resize(film, (width, height), interpolation=cv2.INTER_AREA))


def correlation(a: Film, b: Film) -> float:
    """Pearson's, of two films of one size; 0 where one of them is of one grey."""
    x, y = (film.astype(np.float64).ravel() - film.mean() for film in (a, b))
    return float(x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-6))


def difference_hash(cells: NDArray[np.uint8]) -> Hashes:
    """Films of 16 x 17 cells [N, 16, 17] -> uint64 [N, 4]: is each cell darker than its right neighbour."""
    bits = np.packbits(cells[:, :, 1:] > cells[:, :, :-1], axis=None).reshape(len(cells), 32)
    return bits.view(np.uint64)


def alike(hashes: Hashes, chunk: int = 256) -> Iterator[tuple[int, int]]:
    """Pairs a < b whose hashes differ in at most HASH_BITS bits."""
    for start in range(0, len(hashes), chunk):
        part = hashes[start : start + chunk]
        distance = np.zeros((len(part), len(hashes)), np.uint16)
        for word in range(hashes.shape[1]):
            distance += np.bitwise_count(part[:, word, None] ^ hashes[None, :, word])
        for a, b in zip(*np.nonzero(distance <= HASH_BITS), strict=True):
            if start + a < b:
                yield int(start + a), int(b)


def size_table(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Per class: films, native width and height (least, median, most), colour modes. A difference is a shortcut."""
    rows = []
    for label, name in enumerate(CLASSES):
        part = [record for record in records if record.label == label and record.width]
        if part:
            modes: Mapping[str, int] = {
                mode: sum(r.mode == mode for r in part) for mode in sorted({r.mode for r in part})
            }
            rows.append(
                {
                    "class": name,
                    "films": len(part),
                    "width": spread([record.width for record in part]),
                    "height": spread([record.height for record in part]),
                    "kilobytes": round(float(np.median([record.bytes for record in part])) / 1000, 1),
                    "modes": dict(modes),
                }
            )
    return rows


def spread(values: Sequence[int]) -> dict[str, int]:
    return {"least": min(values), "median": int(np.median(values)), "most": max(values)}

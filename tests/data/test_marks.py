"""A letter that comes with one class is found wherever it stands in a corner; what both classes share is not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pneumonia.data.decode import read_film
from pneumonia.data.marks import ALIKE, CORNERS, SIDE, one_sided, one_sided_marks, windows_of
from pneumonia.data.records import Record, scan_folder
from pneumonia.data.synthetic import draw_films
from pneumonia.workflows.audit import marks_of

K = ["1000100", "1001000", "1010000", "1110000", "1011000", "1001100", "1000110"]
LETTER = np.array([[bit == "1" for bit in row] for row in K])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    films = tmp_path_factory.mktemp("marks") / "films"
    draw_films(films, 240, seed=5)
    return films


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    return [record for record in scan_folder(folder, "strict")[0] if record.split == "train"]


@pytest.fixture(scope="module")
def films(folder: Path, records: list[Record]) -> np.ndarray:
    return np.stack([read_film(folder / record.path, SIDE, "squash") for record in records])


def marked(films: np.ndarray, chosen: np.ndarray, top: int, left: int) -> np.ndarray:
    """The films with a letter there, up to two pixels off, in those that are `chosen` [N]."""
    rng, spoiled = np.random.default_rng(0), films.copy()
    for index in np.flatnonzero(chosen):
        down, right = np.array([top, left]) + rng.integers(-2, 3, 2)
        spoiled[index, down : down + 7, right : right + 7][LETTER] = 235
    return spoiled


def test_clean_films_have_none(records: list[Record], films: np.ndarray) -> None:
    found = one_sided_marks(records, films)
    assert found["marks"] == [] and found["carrying"] == (0, 0)
    assert found["patients"] == tuple(len({r.patient for r in records if r.label == k}) for k in (0, 1))


@pytest.mark.parametrize("corner", CORNERS)
def test_a_letter_in_one_class_is_found_where_it_stands(records: list[Record], films: np.ndarray, corner: str) -> None:
    top, left = (8 if "upper" in corner else SIDE - 20), (8 if "left" in corner else SIDE - 24)
    ill = np.array([record.label == 1 for record in records])
    found = one_sided_marks(records, marked(films, ill, top, left))
    assert {(mark["corner"], mark["comes_with"]) for mark in found["marks"]} == {(corner, "PNEUMONIA")}
    assert found["carrying"][0] == 0 and found["carrying"][1] > 0.5 * found["patients"][1]
    first = found["marks"][0]
    assert abs(first["top"] - top) <= 4 and abs(first["left"] - left) <= 7
    assert first["patients"][0] <= first["patients"][1] / 10 and first["patients"][1] <= first["films"][1]


def test_a_letter_in_both_classes_is_no_mark(records: list[Record], films: np.ndarray) -> None:
    every = np.ones(len(records), bool)
    assert one_sided_marks(records, marked(films, every, SIDE - 20, SIDE - 24))["marks"] == []


def test_many_films_of_few_patients_are_chance(records: list[Record], films: np.ndarray) -> None:
    ill = np.array([record.label == 1 for record in records])
    spoiled = marked(films, ill, 8, 8)
    few = [replace(r, patient=f"child {place % 3}") if r.label else r for place, r in enumerate(records)]
    assert one_sided_marks(few, spoiled)["marks"] == []


def test_sides_are_those_of_the_plain_count(records: list[Record], films: np.ndarray) -> None:
    from scipy.stats import fisher_exact

    label = np.array([record.label for record in records])
    patient = np.unique([f"{r.label} {r.patient}" for r in records], return_inverse=True)[1]
    rows, columns = CORNERS["lower right"]
    part = marked(films, (label == 0) & (np.arange(len(label)) % 3 > 0), SIDE - 20, SIDE - 24)[:, rows, columns]
    owner, _, window = windows_of(list(part))
    total = [len(set(patient[label == k])) for k in (0, 1)]
    plain = []
    for one in window:
        alike = [set(patient[owner[(window @ one > ALIKE) & (label[owner] == k)]]) for k in (0, 1)]
        share = [len(some) / many for some, many in zip(alike, total, strict=True)]
        side = int(np.argmax(share))
        table = [[len(alike[k]), total[k] - len(alike[k])] for k in (side, 1 - side)]
        chance = fisher_exact(table, "greater").pvalue * len(window) * 4
        plain.append(side if share[side] >= 0.95 * sum(share) and chance < 0.01 else -1)
    assert one_sided(window, owner, label, patient, total).tolist() == plain
    assert 0 in plain and -1 in plain


def test_the_class_of_test_films_is_not_looked_at(folder: Path) -> None:
    every, _ = scan_folder(folder, "strict")
    turned = [replace(r, label=1 - r.label) if r.split == "test" else r for r in every]
    assert marks_of(folder, every, "squash") == marks_of(folder, turned, "squash")


def test_films_of_another_size_are_refused(records: list[Record]) -> None:
    with pytest.raises(ValueError, match=r"expected \(224, 224\)"):
        one_sided_marks(records[:1], [np.zeros((64, 64), np.uint8)])


@pytest.mark.slow
def test_voltages_in_the_corner_of_the_real_films_are_found(real_films: Path) -> None:
    """KV and two digits, in films with pneumonia alone; with the classes of patients dealt anew there is no mark."""
    records = [record for record in scan_folder(real_films, "strict")[0] if record.split == "train"]
    found = marks_of(real_films, records, "squash")["marks"]
    assert any(m["corner"] == "lower right" and m["patients"][0] == 0 and m["patients"][1] > 50 for m in found)
    label = {record.patient: record.label for record in records}
    dealt = dict(zip(label, np.random.default_rng(0).permutation(list(label.values())).tolist(), strict=True))
    assert marks_of(real_films, [replace(r, label=dealt[r.patient]) for r in records], "squash")["marks"] == []

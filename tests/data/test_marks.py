"""A letter that comes with one class is found wherever it stands in a corner; what both classes share is not."""

import logging
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pneumonia.data import marks
from pneumonia.data.decode import read_film
from pneumonia.data.marks import (
    ALIKE,
    CORNERS,
    HEIGHT,
    SIDE,
    WIDTH,
    marks_of,
    one_of_each,
    one_sided,
    one_sided_marks,
    windows_of,
)
from pneumonia.data.records import Record, scan_folder
from pneumonia.data.synthetic import draw_films
from pneumonia.workflows.audit import class_marks, describe_marks

K = ["1000100", "1001000", "1010000", "1110000", "1011000", "1001100", "1000110"]
LETTER = np.array([[bit == "1" for bit in row] for row in K]).repeat(
    2, 0
)  # 14 x 7 pixels, as letters of real films are


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    films = tmp_path_factory.mktemp("marks") / "films"
    draw_films(films, 600, seed=5)
    return films


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    """One training film of each patient."""
    return one_of_each([record for record in scan_folder(folder, "strict")[0] if record.split == "train"])[0]


@pytest.fixture(scope="module")
def films(folder: Path, records: list[Record]) -> np.ndarray:
    return np.stack([read_film(folder / record.path, SIDE, "squash") for record in records])


@pytest.fixture(scope="module")
def label(records: list[Record]) -> np.ndarray:
    return np.array([record.label for record in records])


def lettered(
    films: np.ndarray, chosen: np.ndarray, top: int, left: int, letter: np.ndarray = LETTER, grey: int = 235
) -> np.ndarray:
    """The films with a letter there, up to two pixels off, in those that are `chosen` [N]."""
    rng, spoiled = np.random.default_rng(0), films.copy()
    for index in np.flatnonzero(chosen):
        down, right = np.array([top, left]) + rng.integers(-2, 3, 2)
        spoiled[index, down : down + 14, right : right + 7][letter] = grey
    return spoiled


def test_clean_films_have_none(records: list[Record], films: np.ndarray, label: np.ndarray) -> None:
    found, _ = one_sided_marks(records, films)
    assert found["found"] == [] and set(found["carrying"].values()) == {(0, 0)}
    assert found["patients"] == ((label == 0).sum(), (label == 1).sum())


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("name", ["NORMAL", "PNEUMONIA"])
def test_a_letter_in_one_class_is_found_where_it_stands(
    records: list[Record], films: np.ndarray, label: np.ndarray, corner: str, name: str
) -> None:
    number, (down, right) = int(name == "PNEUMONIA"), (10, 12)
    top, left = (
        down if "upper" in corner else SIDE - HEIGHT + down,
        right if "left" in corner else SIDE - WIDTH + right,
    )
    found, _ = one_sided_marks(records, lettered(films, label == number, top, left))
    assert {mark["corner"] for mark in found["found"]} == {
        corner
    }  # it may hide a phantom's own L or R, which then is one
    assert found["found"][0]["comes_with"] == name
    own, other = (found["carrying"][name][k] for k in (number, 1 - number))
    assert own > 0.6 * (label == number).sum() and other < 0.05 * own
    first = found["found"][0]
    assert down - 9 < first["top"] < down + 14 and right - 13 < first["left"] < right + 7  # they overlap
    assert next(r for r in records if r.path == first["example"]).label == number
    assert [sum(m["patients"]) for m in found["found"]] == sorted(
        (sum(m["patients"]) for m in found["found"]), reverse=True
    )


def test_a_letter_in_both_classes_is_no_mark(records: list[Record], films: np.ndarray) -> None:
    spoiled = lettered(films, np.ones(len(records), bool), SIDE - 24, SIDE - 24)
    assert one_sided_marks(records, spoiled)[0]["found"] == []


def test_an_edge_without_noise_takes_no_place_from_a_letter() -> None:
    """A collimator's edge has the same contrast all along; a letter beside it that is less bright is found."""
    label = np.arange(200) % 2
    black = np.zeros((200, SIDE, SIDE), np.uint8)
    black[:, :, 40:] = 220
    found, _ = one_sided_marks(
        [Record(f"{k}.png", int(y), str(k)) for k, y in enumerate(label)],
        lettered(lettered(black, label >= 0, 10, 5, LETTER[::-1]), label == 1, 10, 22, grey=150),
    )
    assert found["carrying"] == {"NORMAL": (0, 0), "PNEUMONIA": (0, 100)}


def test_each_patient_has_one_film_and_copies_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [Record(f"{k}.png", k % 2, f"child {k // 10}", sha256=str(min(k, 94))) for k in range(100)]
    chosen, patients = one_of_each(many)
    assert [int(r.patient.split()[1]) for r in chosen] == list(range(10))
    twins = [replace(r, sha256="same") if r.patient in ("child 0", "child 1") else r for r in many]
    assert patients == 10 and one_of_each(twins)[1] == 9 and one_of_each([]) == ([], 0)
    monkeypatch.setattr(marks, "FILMS", 200)
    alternating = [Record(f"{k}.png", k % 2, str(k)) for k in range(1000)]
    some, patients = one_of_each(alternating)
    assert len(some) == 200 and patients == 1000 and 70 < sum(r.label for r in some) < 130
    assert some == sorted(some, key=alternating.index) and some == one_of_each(alternating)[0]


def test_sides_are_those_of_the_plain_count(records: list[Record], films: np.ndarray, label: np.ndarray) -> None:
    from scipy.stats import fisher_exact

    part = windows_of(lettered(films, label == 0, SIDE - 24, SIDE - 24))["lower right"]
    owner, window = part.owner, part.window
    total, plain = [int((label == k).sum()) for k in (0, 1)], []
    for one in window:
        near = {*owner[window @ one > ALIKE].tolist()}
        alike = [sum(label[film] == k for film in near) for k in (0, 1)]
        share = [some / many for some, many in zip(alike, total, strict=True)]
        side = int(np.argmax(share))
        table = [[alike[k], total[k] - alike[k]] for k in (side, 1 - side)]
        chance = fisher_exact(table, "greater").pvalue * len(window) * 4 * 2
        plain.append(side if share[side] >= 0.95 * sum(share) and chance < 0.01 else -1)
    assert one_sided(window, owner, label).tolist() == plain
    assert 0 in plain and -1 in plain


def test_other_films_with_such_a_mark_are_told_whatever_their_class(
    records: list[Record], films: np.ndarray, label: np.ndarray
) -> None:
    half = np.arange(len(label)) % 2 == 0
    spoiled = lettered(films, (label == 1) | half, 10, 12)
    known = np.flatnonzero(label == 1).tolist() + np.flatnonzero((label == 0) & ~half).tolist()
    others = np.flatnonzero(label == 0)
    _, marked = one_sided_marks([records[k] for k in known], spoiled[known], spoiled[others])
    assert not marked[0].any() and not marked[1][~half[others]].any()
    assert marked[1][half[others]].mean() > 0.6


def test_what_a_films_marks_come_with_is_told_by_other_patients_films(
    records: list[Record], films: np.ndarray, label: np.ndarray
) -> None:
    """A letter that all films with pneumonia have is found on each; one that forty normal films of a single patient
    have comes with normal by those films alone, so none of them is told to have it."""
    told = marks_of(records, lettered(films, label == 1, SIDE - 24, SIDE - 24))
    assert told[1, label == 1].mean() > 0.9 and not told[1, label == 0].any() and not told[0].any()
    same = np.flatnonzero(label == 0)[:40]
    of_one = [replace(record, patient="one") if k in same else record for k, record in enumerate(records)]
    spoiled = lettered(films, np.isin(np.arange(len(records)), same), SIDE - 24, SIDE - 24)
    assert not marks_of(of_one, spoiled)[0].any()
    assert marks_of(records, spoiled)[0, same].mean() > 0.5


def test_one_class_alone_has_no_marks(records: list[Record], films: np.ndarray, label: np.ndarray) -> None:
    ill = np.flatnonzero(label)
    spoiled = lettered(films, label == 1, 10, 10)
    assert one_sided_marks([records[k] for k in ill], spoiled[ill])[0]["found"] == []
    assert one_sided_marks([], [])[0]["patients"] == (0, 0)


def test_test_films_are_not_looked_at(folder: Path, tmp_path: Path) -> None:
    every = scan_folder(folder, "strict")[0]
    gone = [replace(record, path="gone.png") if record.split == "test" else record for record in every]
    found = class_marks(folder, gone)
    assert sum(found["patients"]) == len({record.patient for record in every if record.split == "train"})


def test_films_of_another_size_or_number_are_refused(records: list[Record]) -> None:
    with pytest.raises(ValueError, match=r"expected \(224, 224\)"):
        one_sided_marks(records[:1], [np.zeros((64, 64), np.uint8)])
    with pytest.raises(ValueError, match="1 films, 2 records"):
        one_sided_marks(records[:2], [np.zeros((SIDE, SIDE), np.uint8)])


def test_prepare_tells_them(caplog: pytest.LogCaptureFixture) -> None:
    mark = {
        "corner": "lower left",
        "comes_with": "NORMAL",
        "patients": (12, 0),
        "example": "a.png",
        "top": 1,
        "left": 2,
    }
    found = {"patients": (1200, 30), "carrying": {"NORMAL": (12, 0), "PNEUMONIA": (0, 0)}, "found": [mark] * 23}
    with caplog.at_level(logging.INFO):
        describe_marks(found | {"of": 1230})
        describe_marks(found | {"of": 4321})
    assert "each of 1,230 patients" in caplog.text and "each of 1,230 of 4,321 patients" in caplog.text
    assert "and 3 more" in caplog.text
    assert "those of NORMAL     12 of 1,200 normal patients, 0 of 30 with pneumonia" in caplog.text
    assert "border_swap=0.8" in caplog.text
    assert caplog.text.count("lower left   12 of 1,200 normal patients, 0 of 30 with pneumonia, as in a.png") == 40


def test_the_other_class_is_counted_on_films_that_did_not_choose_the_marks() -> None:
    """A letter on nine in ten films of one class and two in a hundred of the other."""
    rng = np.random.default_rng(0)
    films = np.zeros((400, SIDE, SIDE), np.uint8)
    label = np.arange(400) % 2
    for k in range(400):
        if rng.random() < (0.9 if label[k] else 0.02):
            films[k] = lettered(films[k : k + 1], np.ones(1, bool), 10, 12)[0]
    found, _ = one_sided_marks([Record(f"{k}.png", int(y), str(k)) for k, y in enumerate(label)], films)
    has = films.max((1, 2)) > 0
    assert found["carrying"]["PNEUMONIA"] == ((has & (label == 0)).sum(), (has & (label == 1)).sum())


def test_a_half_that_chose_the_marks_is_not_counted() -> None:
    """On two in five films with pneumonia; of the normal films on eight in a hundred of the one half (too many for a
    mark) and on none of the other, which chooses it."""
    label, half = np.arange(400) % 2, np.random.default_rng(0).permutation(400) % 2 == 0
    some = np.random.default_rng(1).random(400)
    has = np.where(label == 1, some < 0.4, half & (some < 0.08))
    films = lettered(np.zeros((400, SIDE, SIDE), np.uint8), has, 10, 12)
    found, _ = one_sided_marks([Record(f"{k}.png", int(y), str(k)) for k, y in enumerate(label)], films)
    normal, ill = ((has & half & (label == number)).sum() for number in (0, 1))
    assert 6 < normal < ill and found["carrying"]["PNEUMONIA"] == (normal, ill)


@pytest.mark.slow
def test_voltages_in_the_corner_of_the_real_films_are_found(real_films: Path) -> None:
    """KV and two digits, in films with pneumonia alone; with the classes of patients dealt anew there is no mark."""
    records = [record for record in scan_folder(real_films, "strict")[0] if record.split == "train"]
    found = class_marks(real_films, records)["found"]
    assert any(m["corner"] == "lower right" and m["patients"][0] < 3 and m["patients"][1] > 40 for m in found)
    label = {record.patient: record.label for record in records}
    dealt = dict(zip(label, np.random.default_rng(0).permutation(list(label.values())).tolist(), strict=True))
    assert class_marks(real_films, [replace(r, label=dealt[r.patient]) for r in records])["found"] == []


def test_oblong_films_are_looked_at_whole(tmp_path: Path) -> None:
    """Under resize=pad a film's corners lie within the square; the letters there are found all the same."""
    records = []
    for k in range(120):
        film = np.random.default_rng(k).normal(90, 5, (200, 320)).astype(np.uint8)
        if k % 2:
            cv2.putText(film, "R", (12, 28), cv2.FONT_HERSHEY_PLAIN, 1.6, 250, 2)
        cv2.imwrite(str(tmp_path / f"{k}.png"), film)
        records.append(Record(f"{k}.png", k % 2, str(k), split="train"))
    assert class_marks(tmp_path, records)["carrying"]["PNEUMONIA"][1] > 30

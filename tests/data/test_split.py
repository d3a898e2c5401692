"""No patient and no duplicate is on both sides; every film is on one."""

from dataclasses import replace

import numpy as np
import pytest

from pneumonia.data.records import Record, fingerprint_films, scan_folder
from pneumonia.data.split import class_counts, split_by_patient
from pneumonia.errors import UserError


def films(patients: int = 60, seed: int = 0) -> list[Record]:
    """1 to 5 films each of many patients; a third are normal; some bytes stand twice, under different patients."""
    rng = np.random.default_rng(seed)
    records = [
        Record(f"train/{p}-{n}.png", int(p % 3 > 0), f"patient-{p}", split="train", sha256=f"{p}-{n}")
        for p in range(patients)
        for n in range(rng.integers(1, 6))
    ]
    records[4] = replace(records[4], sha256=records[-1].sha256)
    return [*records, Record("test/1.png", 0, "t1", split="test"), Record("test/2.png", 1, "t2", split="test")]


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_and_no_duplicate_is_on_both_sides(seed: int) -> None:
    records = films()
    split = split_by_patient(records, 0.2, seed)
    train, val = ([r for r in split if r.split == name] for name in ("train", "val"))
    assert not {r.patient for r in train} & {r.patient for r in val}
    assert not {r.sha256 for r in train} & {r.sha256 for r in val}
    assert sorted(r.path for r in split) == sorted(r.path for r in records)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.35])
def test_the_share_of_each_class_is_kept_to_within_a_patient(fraction: float) -> None:
    split = split_by_patient(films(200), fraction, seed=0)
    counts = class_counts(split)
    for name in ("NORMAL", "PNEUMONIA"):
        total = counts["train"][name] + counts["val"][name]
        assert abs(counts["val"][name] - fraction * total) <= 5


@pytest.mark.parametrize(("fraction", "each", "held"), [(0.1, 4, 1), (0.95, 4, 3), (0.2, 13, 3), (0.2, 12, 2)])
def test_each_class_gives_its_share_rounded_and_never_all_or_none(fraction: float, each: int, held: int) -> None:
    records = [Record(f"train/{k}-{y}.png", y, f"{y}-{k}", split="train") for y in (0, 1) for k in range(each)]
    counts = class_counts(split_by_patient(records, fraction, seed=0))
    assert counts["val"] == {"NORMAL": held, "PNEUMONIA": held}


def test_a_split_that_is_given_has_both_classes_on_both_sides() -> None:
    given = [Record(f"{s}/{y}.png", y, f"{s}{y}", split=s) for s, y in (("train", 0), ("train", 1), ("val", 1))]
    with pytest.raises(UserError, match="val split has no NORMAL"):
        split_by_patient(given, 0.2, 0)


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_folder() -> None:
    records = films()

    def sides(records: list[Record], seed: int) -> set[str]:
        return {r.path for r in split_by_patient(records, 0.2, seed) if r.split == "val"}

    assert sides(records, 0) == sides(records[::-1], 0) != sides(records, 1)


def named(patients: int = 40) -> list[Record]:
    """Two films each of normal patients of two series, A- and B-, and of ill ones; patient A-0 has a film of B too."""
    records = [
        Record(f"train/{'AB'[p % 2] if normal else 'person'}-{p}-{n}.png", 1 - normal, f"{normal}-{p}", split="train")
        for normal in (0, 1)
        for p in range(patients)
        for n in range(2)
    ]
    return [*records, Record("train/B-x.png", 0, "1-0", split="train")]


def test_a_series_that_is_held_out_validates_whole_with_a_share_of_the_other_class() -> None:
    split = split_by_patient(named(), 0.2, 0, held_out="B-*")
    sides = {r.path: r.split for r in split}
    assert {sides[r.path] for r in named() if "/B-" in r.path} == {"val"}
    assert sides["train/A-0-0.png"] == "val"  # its patient has a film of the series
    assert {sides[r.path] for r in named() if "/A-" in r.path and r.patient != "1-0"} == {"train"}
    plain = {r.path: r.split for r in split_by_patient(named(), 0.2, 0)}
    assert all(sides[r.path] == plain[r.path] for r in named() if r.label == 1)
    assert not {r.patient for r in split if r.split == "val"} & {r.patient for r in split if r.split == "train"}


def test_a_patient_with_films_of_both_classes_stays_on_one_side_of_a_held_out_series() -> None:
    both = [
        Record(f"train/{name}-{p}.png", label, f"m{p}", split="train")
        for p in range(20)
        for name, label in (("A", 0), ("ill", 1))
    ]
    records = [*named(), *both, Record("train/B-m0.png", 0, "m0", split="train")]
    split = split_by_patient(records, 0.2, 0, held_out="B-*")
    assert not {r.patient for r in split if r.split == "val"} & {r.patient for r in split if r.split == "train"}
    assert sum(r.label == 1 and r.split == "val" for r in split) >= 20  # a fifth of 100, not those of m0 alone
    assert {r.split for r in split if "/B-" in r.path} == {"val"}


@pytest.mark.parametrize(("pattern", "told"), [("C-*", "no training film has such a name"), ("[AB]-*", "no NORMAL")])
def test_a_series_that_is_not_there_or_is_all_of_a_class_is_refused(pattern: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        split_by_patient(named(), 0.2, 0, held_out=pattern)


def test_a_series_is_not_held_out_of_a_split_that_is_given() -> None:
    given = [replace(named()[0], split="val"), *named()[1:]]
    with pytest.raises(UserError, match=r"data\.held_out: the manifest names its val films already"):
        split_by_patient(given, 0.2, 0, held_out="B-*")


def test_folds_validate_every_training_film_once_and_keep_patients_together() -> None:
    records = films()
    seen: list[str] = []
    for fold in range(4):
        split = split_by_patient(records, 0.2, 0, folds=4, fold=fold)
        val = [r for r in split if r.split == "val"]
        assert not {r.patient for r in val} & {r.patient for r in split if r.split == "train"}
        assert {r.label for r in val} == {0, 1}
        seen += [r.path for r in val]
    assert sorted(seen) == sorted(r.path for r in records if r.split == "train")


def test_nested_folds_are_of_the_training_films_alone() -> None:
    records = films()
    for whole in (records, split_by_patient(records, 0.3, 5)):  # by val_fraction and seed, or by the manifest
        train = {r.path for r in split_by_patient(whole, 0.3, 5) if r.split == "train"}
        parts = [split_by_patient(whole, 0.3, 5, folds=2, fold=fold, nested=True) for fold in (0, 1)]
        assert all({r.path for r in part} == train for part in parts)
        first, second = ({r.path for r in part if r.split == "val"} for part in parts)
        assert first | second == train and not first & second


def test_test_films_stay_and_a_given_val_split_is_kept() -> None:
    records = films()
    assert [r for r in split_by_patient(records, 0.2, 0) if r.split == "test"] == records[-2:]
    given = split_by_patient(records, 0.2, 3)
    assert split_by_patient(given, 0.5, seed=9) == given


def test_folds_of_a_split_that_is_given_are_refused() -> None:
    with pytest.raises(UserError, match="names its val films already"):
        split_by_patient(split_by_patient(films(), 0.2, 0), 0.2, 0, folds=3, fold=0)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([Record("a", 0, "p", split="train"), Record("b", 1, "q", split="train")], "Too few patients"),
        ([Record(f"{n}", 0, f"{n}", split="train") for n in range(9)], "PNEUMONIA has 0"),
        ([Record(f"{n}", n % 2, "one", split="train") for n in range(9)], "Too few patients"),
        ([*films(30)[:-1]], "The test split has no PNEUMONIA"),
    ],
)
def test_what_cannot_be_split_is_refused(records: list[Record], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_by_patient(records, 0.2, 0)


def test_the_way_out_of_too_few_patients_is_of_the_option_that_was_typed() -> None:
    few = [Record(f"{n}", n % 2, f"{n}", split="train") for n in range(8)]
    with pytest.raises(UserError, match=r"for data\.folds=5: NORMAL has 4 .* lower it"):
        split_by_patient(few, 0.2, 0, folds=5, fold=0)
    with pytest.raises(UserError, match=r"for data\.counterexamples=greys: NORMAL has 4 .* leave that out"):
        split_by_patient(few, 0.2, 0, counterexamples="greys", read=lambda records: np.zeros((8, 8, 8), np.uint8))


def test_real_films_split_by_patient(real_films) -> None:
    records, bad = fingerprint_films(real_films, scan_folder(real_films, "strict")[0])
    split = split_by_patient(records, 0.2, seed=0)
    assert not bad
    assert class_counts(split) == {
        "train": {"NORMAL": 1073, "PNEUMONIA": 3100},
        "val": {"NORMAL": 268, "PNEUMONIA": 775},
        "test": {"NORMAL": 117, "PNEUMONIA": 195},
    }
    sides = {name: {r.sha256 for r in split if r.split == name} for name in ("train", "val")}
    assert not sides["train"] & sides["val"]

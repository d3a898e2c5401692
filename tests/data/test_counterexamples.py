"""A shortcut sees what it says and no more; the films it gets wrong validate, whole patients on one side."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumonia.data.counterexamples import (
    FLOOR,
    FOLDS,
    SHORTCUTS,
    against_marks,
    against_shortcuts,
    border,
    greys,
    misjudged,
)
from pneumonia.data.records import Record
from pneumonia.data.split import class_counts, split_by_patient
from pneumonia.errors import UserError
from pneumonia.settings import DataConfig
from pneumonia.workflows.films import films_of

RNG = np.random.default_rng(0)


def exposed(levels: list[int], side: int = 32) -> np.ndarray:
    """Noise of a standard deviation of 10 around each level, [N, side, side]."""
    noise = RNG.normal(0, 10, (len(levels), side, side))
    return (np.array(levels)[:, None, None] + noise).clip(0, 255).astype(np.uint8)


def test_the_grey_values_know_no_place() -> None:
    films = exposed([90, 140])
    shuffled = np.stack([RNG.permutation(film.ravel()).reshape(film.shape) for film in films])
    np.testing.assert_array_equal(greys(films), greys(shuffled))
    np.testing.assert_allclose((greys(films) ** 2).sum(1), 1)
    assert not np.allclose(greys(films)[0], greys(films)[1])


@pytest.mark.parametrize("side", [32, 50])
def test_the_border_knows_nothing_of_the_middle(side: int) -> None:
    films = exposed([90, 140], side)
    changed = films.copy()
    edge = -(-side // 8)  # a cell that lies across the line sees both
    changed[:, edge:-edge, edge:-edge] = 0
    np.testing.assert_allclose(border(films), border(changed))
    changed[:, 0, :] = 0
    assert not np.allclose(border(films), border(changed))


def children(films_each: int = 2) -> tuple[list[Record], np.ndarray]:
    """60 children of each class, ill ones lighter; the first six of each are exposed as the other class is."""
    records, levels = [], []
    for label in (0, 1):
        for child in range(60):
            for n in range(films_each):
                name = f"train/{label}-{child}-{n}.png"
                records.append(Record(name, label, f"{label}-{child}", split="train", sha256=name))
                levels.append(150 if (label == 1) != (child < 6) else 100)
    return records, exposed(levels)


def test_no_child_is_on_both_sides_of_a_fold() -> None:
    """Each child's two films are alike and no other's, and the labels are chance: a torn child would be known."""
    rng = np.random.default_rng(1)
    levels = rng.permutation(np.linspace(20, 235, 80).astype(int))
    films = np.repeat(exposed(list(levels)), 2, axis=0)
    label, group = np.repeat(rng.permutation(np.arange(80) % 2), 2), np.repeat(np.arange(80), 2)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    features, expected = greys(films), np.empty(160)
    for fit, seen in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(features, label, group):
        expected[seen] = model.fit(features[fit], label[fit]).decision_function(features[seen])
    np.testing.assert_allclose(misjudged(films, label, group, "greys", 0), np.where(label == 1, -expected, expected))


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_films_exposed_as_the_other_class_are_the_most_misjudged(shortcut: str) -> None:
    records, films = children()
    label = np.array([record.label for record in records])
    group = np.arange(len(records)) // 2
    wrong = misjudged(films, label, group, shortcut, seed=0)
    odd = np.array([int(record.patient[2:]) < 6 for record in records])
    assert wrong[odd].min() > 0 > wrong[~odd].max()


def test_films_that_go_against_exposure_are_drawn_more_often() -> None:
    """A tenth goes against it: a calibrated shortcut puts 0.9 on the wrong class of these and 0.1 of the others."""
    records, films = children()
    label = np.array([record.label for record in records])
    weight = against_shortcuts(films, label, np.arange(len(records)) // 2, seed=0)
    light = films.mean((1, 2)) > 125
    agrees = label == light
    usual, odd = (FLOOR + len(SHORTCUTS) * share for share in (0.1, 0.9))
    assert weight[agrees].mean() == pytest.approx(usual, abs=0.1)
    assert weight[~agrees].mean() == pytest.approx(odd, abs=0.1)
    assert weight[agrees].max() < weight[~agrees].min()


def test_by_weight_marks_tell_the_root_of_what_they_told() -> None:
    """Of 100 normal films 10 have the mark, of 200 with pneumonia 120: the odds ratio is 13.5 by number."""
    label = np.repeat([0, 1], [100, 200])
    marked = np.concatenate([np.arange(100) < 10, np.arange(200) < 120])
    weight = against_marks(np.stack([np.zeros(300, bool), marked]), label)
    cells = [[weight[(label == y) & (marked == m)].sum() for m in (0, 1)] for y in (0, 1)]
    assert cells[1][1] * cells[0][0] / (cells[1][0] * cells[0][1]) == pytest.approx(13.5**0.5)
    assert weight[marked & (label == 0)].min() > 1 > weight[marked & (label == 1)].max()
    np.testing.assert_allclose(against_marks(np.zeros((2, 300), bool), label), 1)


def test_what_the_shortcut_gets_wrong_validates_whole_patients_in_each_class() -> None:
    records, films = children()
    rows = {record.path: row for row, record in enumerate(records)}
    read = lambda some: films[[rows[record.path] for record in some]]  # noqa: E731
    for order in (records, records[::-1]):
        split = split_by_patient(order, 0.1, 0, counterexamples="greys", read=read)
        chosen = {record.patient for record in split if record.split == "val"}
        assert chosen == {f"{label}-{child}" for label in (0, 1) for child in range(6)}
        assert {record.patient for record in split if record.split == "train"}.isdisjoint(chosen)


def test_a_split_that_is_given_or_too_few_patients_are_refused() -> None:
    records, films = children()
    given = [Record("train/v.png", 0, "v", split="val"), *records]
    with pytest.raises(UserError, match=r"data\.counterexamples: the manifest names its val films already"):
        split_by_patient(given, 0.1, 0, counterexamples="greys", read=lambda some: films)
    few = [record for record in records if record.label == 1 or int(record.patient[2:]) < 4]
    with pytest.raises(UserError, match="NORMAL has 4 in train, at least 5 are needed"):
        split_by_patient(few, 0.1, 0, counterexamples="greys", read=lambda some: films)


def test_a_folder_is_split_by_it_and_the_run_is_told_what_its_figures_are_of(phantoms: Path) -> None:
    films = films_of(DataConfig(root=str(phantoms), image_size=64, cache=False, counterexamples="border"), 0)
    counts = class_counts(films.records)
    assert all(counts["val"][name] >= 0.2 * (counts["val"][name] + counts["train"][name]) for name in counts["val"])
    assert any("data.counterexamples=border: those films validate" in note for note in films.warnings)
    plain = films_of(DataConfig(root=str(phantoms), image_size=64, cache=False), 0)
    assert films.of("test") == plain.of("test") and films.of("val") != plain.of("val")


def test_one_way_to_split_at_a_time() -> None:
    with pytest.raises(UserError, match=r"data\.held_out=B-\* and data\.counterexamples=greys: expected one of them"):
        DataConfig(held_out="B-*", counterexamples="greys")

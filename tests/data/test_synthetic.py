"""The phantoms look like the Kaggle set from outside, differ by class in the opacity only, and are never half drawn."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumonia.data import synthetic
from pneumonia.data.synthetic import draw_films

FILMS = 480
STATISTICS = {
    "mean": lambda film: film.mean(),
    "variance": lambda film: film.var(),
    "mean at 64": lambda film: at_64(film).mean(),
    "variance at 64": lambda film: at_64(film).var(),
    "width": lambda film: film.shape[1],
    "height": lambda film: film.shape[0],
    "aspect": lambda film: film.shape[1] / film.shape[0],
}


def at_64(film):
    return cv2.resize(film, (64, 64), interpolation=cv2.INTER_AREA)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> np.ndarray:
    film = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert film.dtype == np.uint8 and film.ndim == 2
    return film


def patient(path: Path) -> str:
    """IM-0012-0002.png -> IM-0012; person7_virus_12.png -> person7_virus."""
    separator = "-" if path.name.startswith("IM") else "_"
    return path.name.rsplit(separator, 1)[0]


def is_pneumonia(path: Path) -> bool:
    return path.parent.name == "PNEUMONIA"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "films"
    draw_films(folder, FILMS, seed=0)
    return folder


@pytest.fixture(scope="module")
def films(folder) -> dict[str, dict[Path, np.ndarray]]:
    paths = {split: sorted((folder / split).rglob("*.png")) for split in ("train", "test")}
    return {split: {path: read(path) for path in paths[split]} for split in paths}


def test_layout_and_names_are_kermanys(folder, films):
    assert sorted(path.name for path in folder.iterdir()) == ["masks", "test", "train"]
    assert {split: len(films[split]) for split in films} == {"train": FILMS * 3 // 4, "test": FILMS // 4}
    for path in [*films["train"], *films["test"]]:
        scheme = r"person\d+_(bacteria|virus)_\d+\.png" if is_pneumonia(path) else r"IM-\d{4}-\d{4}\.png"
        assert re.fullmatch(scheme, path.name), path.name
    for split in films:
        names = [path.name for path in films[split] if is_pneumonia(path)]
        assert len(names) == len(films[split]) / 2
        assert 0.35 < np.mean(["virus" in name for name in names]) < 0.65


def test_no_patient_is_on_both_sides(films):
    train, test = ({patient(path) for path in films[split]} for split in ("train", "test"))
    assert not train & test


def test_patients_have_one_to_four_films(films):
    patients = [patient(path) for path in films["train"]]
    assert {patients.count(name) for name in set(patients)} == {1, 2, 3, 4}


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        draw_films(tmp_path / name, 40, seed)
    one, again, other = (files(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert not set(one.values()) & set(other.values())


def test_every_pneumonia_film_has_a_mask_on_its_grid_and_no_normal_film_has_one(folder, films):
    masks = {path.relative_to(folder / "masks"): read(path) for path in (folder / "masks").rglob("*.png")}
    drawn = films["train"] | films["test"]
    sick = {path.relative_to(folder): film for path, film in drawn.items() if is_pneumonia(path)}
    assert masks.keys() == sick.keys()
    for name, mask in masks.items():
        assert mask.shape == sick[name].shape
        assert set(np.unique(mask)) == {0, 255}
        assert 0.005 < (mask == 255).mean() < 0.5, name


def test_a_patch_is_brighter_than_the_lung_around_it(folder, films):
    """Compared with the darker half of a rim of 7 pixels, which leaves out the chest wall and the heart."""
    brighter = []
    for path, film in films["train"].items():
        if "bacteria" in path.name:
            mask = read(folder / "masks" / path.relative_to(folder))
            rim = film[(cv2.dilate(mask, np.ones((15, 15), np.uint8)) > 0) & (mask == 0)]
            brighter.append(film[mask > 0].mean() > np.sort(rim)[: rim.size // 2].mean())
    assert np.mean(brighter) > 0.8


@pytest.mark.parametrize(("subtype", "opacity"), [("bacteria", "draw_patches"), ("virus", "draw_streaks")])
def test_a_film_drawn_again_without_its_opacity_differs_in_texture_under_the_mask(monkeypatch, subtype, opacity):
    sick = [film for film in synthetic.roster(96, seed=0) if film.subtype == subtype]
    drawn = [synthetic.draw(film, seed=0) for film in sick]
    real = getattr(synthetic, opacity)

    def nothing(*args):
        tissue, region = real(*args)
        return 0 * tissue, region

    monkeypatch.setattr(synthetic, opacity, nothing)
    for film, (pixels, mask) in zip(sick, drawn, strict=True):
        change = pixels.astype(float) - synthetic.draw(film, seed=0)[0]
        texture = np.abs(change - cv2.GaussianBlur(change, (0, 0), 3))
        near = cv2.dilate(mask, np.ones((7, 7), np.uint8)) > 0
        assert texture[mask > 0].mean() > 2 * texture[~near].mean(), film.path


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_no_statistic_alone_tells_the_classes_apart(films, split, statistic):
    values = [STATISTICS[statistic](film) for film in films[split].values()]
    assert 0.45 < roc_auc_score([is_pneumonia(path) for path in films[split]], values) < 0.55


@pytest.mark.parametrize("split", ["train", "test"])
def test_file_size_does_not_tell_the_classes_apart(films, split):
    sizes = [path.stat().st_size for path in films[split]]
    assert 0.45 < roc_auc_score([is_pneumonia(path) for path in films[split]], sizes) < 0.55


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_histogram_does_not_tell_the_classes_apart(films, split):
    target = [is_pneumonia(path) for path in films[split]]
    shares = [np.histogram(film, 32, (0, 256))[0] / film.size for film in films[split].values()]
    groups = [patient(path) for path in films[split]]
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    judge = make_pipeline(StandardScaler(), LogisticRegression())  # finds one grey level more in every sick film
    within = cross_val_score(judge, shares, target, groups=groups, cv=folds, scoring="roc_auc")  # intercepts differ
    assert 0.45 < within.mean() < 0.55


def test_the_test_films_come_from_another_machine(films):
    train, test = (np.array([film.mean() for film in films[split].values()]) for split in ("train", "test"))
    assert roc_auc_score([0] * len(train) + [1] * len(test), [*train, *test]) > 0.65


def test_a_killed_drawing_leaves_nothing(tmp_path, monkeypatch):
    real, calls = synthetic.write_png, []

    def dies_at_the_tenth(path, pixels):
        calls.append(path)
        if len(calls) == 10:
            raise KeyboardInterrupt
        real(path, pixels)

    monkeypatch.setattr(synthetic, "write_png", dies_at_the_tenth)
    with pytest.raises(KeyboardInterrupt):
        draw_films(tmp_path / "films", 40, seed=0)
    assert len(calls) == 10
    assert list(tmp_path.iterdir()) == []


def test_two_drawings_at_once_both_succeed(tmp_path, monkeypatch):
    """The other process finishes while this one draws its first film."""
    real = synthetic.roster

    def roster_after_the_other(films, seed):
        monkeypatch.setattr(synthetic, "roster", real)
        draw_films(tmp_path / "films", films, seed)
        return real(films, seed)

    monkeypatch.setattr(synthetic, "roster", roster_after_the_other)
    draw_films(tmp_path / "films", 40, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["films"]
    assert len(files(tmp_path / "films")) == 40 + 20


@pytest.mark.parametrize("films", [0, 38, 101])
def test_too_few_or_unpaired_films_are_refused(tmp_path, films):
    with pytest.raises(ValueError, match=f"films={films}"):
        draw_films(tmp_path / "films", films, seed=0)


@pytest.mark.parametrize("seed", range(20))
def test_the_smallest_set_has_both_subtypes_on_both_sides(seed):
    drawn = {(film.split, film.subtype) for film in synthetic.roster(synthetic.FEWEST, seed)}
    assert drawn == {(split, subtype) for split in ("train", "test") for subtype in ("normal", "bacteria", "virus")}

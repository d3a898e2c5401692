import numpy as np
import pytest

from pneumonia.evaluation import shortcuts
from pneumonia.evaluation.shortcuts import (
    FILL,
    metadata_auroc,
    metadata_features,
    shortcut_table,
    variants,
)


@pytest.fixture
def children():
    """label [N], patient [N]: 120 children with two films each, of one class."""
    label = np.repeat(np.random.default_rng(0).integers(0, 2, 120), 2)
    return label, np.repeat(np.arange(120), 2).astype(str)


@pytest.fixture
def films(children):
    """uint8 [240, 40, 40]: noise; the lungs (centre) of ill children are brighter."""
    label, _ = children
    images = np.random.default_rng(1).integers(60, 100, (240, 40, 40))
    images[:, 12:28, 12:28] += 40 * label[:, None, None]
    return images.astype(np.uint8)


def audit(images, children, predict):
    label, patient = children
    return {row.name: row for row in shortcut_table(predict, images, label, patient)}


def test_a_planted_size_difference_is_found(children):
    label, patient = children
    rng = np.random.default_rng(2)
    width = np.where(label == 1, 1200, 1700) + rng.normal(0, 300, 240)
    table = metadata_features(width, width * 0.8, rng.normal(1e5, 1e4, 240), np.full(240, "L"))
    found = metadata_auroc(table, label, patient)
    assert found.interval[0] > 0.6
    assert found.auroc == metadata_auroc(table, label, patient).auroc


def test_a_colour_mode_of_one_class_is_found(children):
    label, patient = children
    ones = np.ones(240)
    table = metadata_features(ones, ones, ones, np.where((label == 1) & (np.arange(240) % 3 > 0), "RGB", "L"))
    assert table.shape == (240, 6)
    assert metadata_auroc(table, label, patient).interval[0] > 0.7


def test_clean_metadata_stays_quiet(children):
    label, patient = children
    quiet = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        table = metadata_features(*rng.normal(1000, 100, (3, 240)), np.full(240, "L"))
        quiet.append(metadata_auroc(table, label, patient, seed).interval[0] <= 0.5)
    assert sum(quiet) >= 4


def test_a_fingerprint_of_the_child_does_not_leak_over_folds():
    """A feature that names the child tells its class only if another of its films was in training."""
    rng = np.random.default_rng(3)
    label, child = np.repeat(rng.permutation([0, 1] * 12), 30), np.repeat(np.arange(24), 30)
    fingerprint = np.repeat(rng.permutation(24), 30).astype(float)[:, None]
    assert metadata_auroc(fingerprint, label, child).interval[0] <= 0.5
    assert metadata_auroc(fingerprint, label, np.arange(720)).auroc > 0.95


def test_undefined_metadata_audits_say_why(children):
    label, patient = children
    same = metadata_auroc(np.ones((240, 3)), label, patient)
    assert (same.auroc, same.interval, same.reason) == (None, None, "all films have the same metadata")
    one = metadata_auroc(np.arange(240.0)[:, None], np.ones(240, int), patient)
    assert (one.auroc, one.reason) == (None, "fewer than two patients in a class")
    with pytest.raises(ValueError, match=r"features has shape \(3, 2\): expected \(240, F\)"):
        metadata_auroc(np.ones((3, 2)), label, patient)


def test_variants_hide_what_they_say(films):
    before = films.copy()
    mean = np.rint(films.mean(0)).astype(np.uint8)
    found = {name: hide(films) for name, hide in variants(mean).items()}
    np.testing.assert_array_equal(films, before)
    assert list(found) == ["border_only", "common_centre", "centre_only", "corners_masked", "blurred"]
    assert all(images.dtype == np.uint8 and images.shape == films.shape for images in found.values())
    centre = np.zeros((40, 40), bool)
    centre[6:34, 6:34] = True
    for name, hidden in (("border_only", centre), ("centre_only", ~centre)):
        assert (found[name][:, hidden] == FILL).all()
        np.testing.assert_array_equal(found[name][:, ~hidden], films[:, ~hidden])
    np.testing.assert_array_equal(found["common_centre"][:, ~centre], films[:, ~centre])
    assert (found["common_centre"][:, centre] == mean[centre]).all()
    corner = np.zeros((40, 40), bool)
    for rows in (slice(8), slice(32, None)):
        corner[rows, :8] = corner[rows, 32:] = True
    assert (found["corners_masked"][:, corner] == FILL).all()
    np.testing.assert_array_equal(found["corners_masked"][:, ~corner], films[:, ~corner])


def test_blur_keeps_brightness_removes_texture_and_mixes_no_films(films):
    smooth = shortcuts.blurred(films)
    np.testing.assert_allclose(smooth.mean(axis=(1, 2)), films.mean(axis=(1, 2)), atol=1)
    assert smooth[:, :8].std() < 0.3 * films[:, :8].std()
    np.testing.assert_array_equal(shortcuts.blurred(films[:1])[0], smooth[0])


def test_a_model_that_reads_the_lungs_passes(films, children):
    found = audit(films, children, lambda batch: batch[:, 12:28, 12:28].mean(axis=(1, 2)) / 255)
    assert found["as_is"].auroc == found["centre_only"].auroc == found["corners_masked"].auroc == 1.0
    assert found["border_only"].auroc == found["common_centre"].auroc == 0.5


def test_a_model_that_says_nothing_of_blanked_centres_is_asked_with_lungs_in_them(films, children):
    """As a net does that was trained with lungs_out: it reads the border, but not around a blank."""
    label, _ = children
    films[:, :3, 10:30] = np.where(label == 1, 250, 20)[:, None, None]

    def predict(batch):
        blank = (batch[:, 10:30, 10:30] == FILL).all((1, 2))
        return np.where(blank, 0.5, batch[:, :3, 10:30].mean((1, 2)) / 255)

    found = audit(films, children, predict)
    assert found["border_only"].auroc == 0.5 and found["common_centre"].auroc == 1.0


def test_a_planted_marker_is_found(films, children):
    label, _ = children
    films[:, :3, :3] = np.where(label == 1, 250, 20)[:, None, None]
    found = audit(films, children, lambda batch: batch[:, :3, :3].mean(axis=(1, 2)) / 255)
    assert found["border_only"].auroc == 1.0
    assert 0.9 < found["border_only"].interval[0] < 1 == found["border_only"].interval[1]  # perfect is not certain
    assert found["corners_masked"].auroc == found["centre_only"].auroc == 0.5


def test_batches_do_not_change_the_table(films, children, monkeypatch):
    sizes = []

    def predict(batch):
        sizes.append(len(batch))
        return batch.mean(axis=(1, 2)) / 255

    whole = audit(films, children, predict)
    monkeypatch.setattr(shortcuts, "FILMS_AT_ONCE", 100)
    assert audit(films, children, predict) == whole
    assert sizes[:1] + sizes[6:9] == [240, 100, 100, 40]


def test_bad_films_and_one_class_are_told(films, children):
    label, patient = children
    with pytest.raises(ValueError, match=r"images are float64 \(240, 40, 40\): expected uint8 \(240, H, W\)"):
        shortcut_table(len, films.astype(float), label, patient)
    rows = shortcut_table(lambda batch: batch.mean(axis=(1, 2)) / 255, films, label * 0, patient)
    assert {(row.auroc, row.interval, row.reason) for row in rows} == {(None, None, "one class only")}

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pneumonia.evaluation.stress import CORRUPTIONS, FRAMED, corrupted, stress_scores, stress_table


@pytest.fixture
def films():
    """uint8 [60, 96, 80]: smooth fields with grain, so that every corruption has something to change."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :80]
    slopes = rng.uniform(1, 3, (60, 1, 1))
    return (40 + 0.4 * slopes * (x + 0.6 * y) + rng.integers(0, 25, (60, 96, 80))).clip(0, 255).astype(np.uint8)


@pytest.fixture
def label():
    return np.arange(60) % 2


def brightness(images):
    return images.mean(axis=(1, 2)) / 255


def stress(predict, images, label, threshold, patient=None, seed=0, level=0.95, resamples=100):
    return stress_table(stress_scores(predict, [images]), label, threshold, patient, seed, level, resamples)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_every_film_and_nothing_else_of_it(films, name):
    before = films.copy()
    changed = corrupted(films, name, seed=3)
    np.testing.assert_array_equal(films, before)
    assert changed.shape == films.shape and changed.dtype == np.uint8
    assert (changed != films).any(axis=(1, 2)).all()
    assert corrupted(films, name, seed=3).tobytes() == changed.tobytes()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_film_meets_the_same_whatever_batch_it_is_in(films, name):
    np.testing.assert_array_equal(corrupted(films, name)[40:], corrupted(films[40:], name, first=40))


def test_only_what_is_random_depends_on_the_seed(films):
    differ = {name for name in CORRUPTIONS if (corrupted(films, name, 0) != corrupted(films, name, 1)).any()}
    placed = {"zoom_in", "zoom_out", "aspect_tall", "aspect_wide", "rotation_mild", "rotation_strong"}
    assert differ == placed | {"noise_mild", "noise_strong"}


def test_the_stronger_of_two_severities_changes_more(films):
    moved = {name: np.abs(corrupted(films, name).astype(int) - films).mean() for name in CORRUPTIONS}
    for kind in ("blur", "noise", "jpeg", "rotation", "downsampling"):
        assert moved[f"{kind}_strong"] > moved[f"{kind}_mild"], kind


def test_each_corruption_does_what_its_name_says(films):
    shown = {name: corrupted(films, name).astype(float) for name in CORRUPTIONS}
    assert (shown["gamma_darker"].mean((1, 2)) < films.mean((1, 2))).all()
    assert (shown["gamma_lighter"].mean((1, 2)) > films.mean((1, 2))).all()
    assert (shown["contrast_low"].std((1, 2)) < films.std((1, 2))).all()
    assert (shown["contrast_high"].std((1, 2)) > films.std((1, 2))).all()
    np.testing.assert_array_equal(shown["margins_inverted"][:, 0], 255 - films[:, 0])
    assert (shown["margins_white"][:, :, -1] == 255).all()
    for name in ("margins_inverted", "margins_white"):
        np.testing.assert_array_equal(shown[name][:, 8:-8, 8:-8], films[:, 8:-8, 8:-8])
    assert (shown["zoom_out"] == 0).mean() == pytest.approx(1 - 0.85**2, abs=0.02)


def test_severities_are_those_that_are_told():
    """Figures under stress compare runs of different days: what they are made by must not drift."""
    flat = np.full((1, 96, 80), 128, np.uint8)
    grey = {name: int(corrupted(flat, name)[0, 48, 40]) for name in ("gamma_lighter", "gamma_darker")}
    assert grey == {"gamma_lighter": round(255 * (128 / 255) ** 0.6), "gamma_darker": round(255 * (128 / 255) ** 1.7)}
    for name, sigma in (("noise_mild", 8), ("noise_strong", 20)):
        assert (corrupted(flat, name).astype(float) - 128).std() == pytest.approx(sigma, rel=0.03)
    halves = np.where(np.arange(80) < 40, 90, 110).astype(np.uint8)[None, None].repeat(96, 1)
    for name, factor in (("contrast_low", 0.6), ("contrast_high", 1.5)):
        assert np.unique(corrupted(halves, name)).tolist() == [100 - 10 * factor, 100 + 10 * factor]
    line = np.zeros((1, 200, 200), np.uint8)
    line[:, 99:101] = 255
    for name, degrees in (("rotation_mild", 5), ("rotation_strong", 12)):
        row, column = np.nonzero(corrupted(line, name)[0] > 127)
        assert abs(np.degrees(np.arctan(np.polyfit(column, row, 1)[0]))) == pytest.approx(degrees, abs=0.2)


def test_blur_is_a_share_of_the_height_and_keeps_an_even_film():
    spread = []
    for side in (100, 200):
        dot = np.zeros((1, side, side), np.uint8)
        dot[:, side // 2 - 10 : side // 2 + 10] = 255
        profile = np.diff(corrupted(dot, "blur_strong")[0, : side // 2, 0].astype(float))
        place = np.arange(profile.size)
        spread.append(np.sqrt(np.average((place - np.average(place, weights=profile)) ** 2, weights=profile)))
    assert spread[0] == pytest.approx(1.2, rel=0.1) and spread[1] == pytest.approx(2.4, rel=0.1)
    assert (corrupted(np.full((1, 64, 64), 200, np.uint8), "blur_strong") == 200).all()


def test_downsampling_means_what_it_leaves_out():
    board = (255 * (np.indices((64, 64)).sum(0) % 2)).astype(np.uint8)[None]
    assert np.abs(corrupted(board, "downsampling_mild").astype(int) - 127.5).max() <= 1


def test_aspect_enlarges_one_side_and_leaves_the_other(label):
    ramps = np.broadcast_to(np.arange(0, 240, 3, np.uint8), (60, 80, 80))  # grey grows by 3 a column
    wide, tall = corrupted(ramps, "aspect_wide"), corrupted(ramps.transpose(0, 2, 1), "aspect_tall")
    for ramp in (wide[:, 0], tall[:, :, 0]):
        rise = (ramp[:, -1].astype(float) - ramp[:, 0]) / 237
        np.testing.assert_allclose(rise, 0.85, atol=0.02)
    np.testing.assert_array_equal(wide, wide[:, :1].repeat(80, 1))
    np.testing.assert_array_equal(corrupted(ramps, "aspect_tall"), ramps)


def test_a_model_that_reads_brightness_at_a_threshold_falls_under_gamma_and_one_that_reads_shape_stays(label):
    """Ill films are brighter by a little, and have a step from left to right; gamma moves the first over the line."""
    rng = np.random.default_rng(1)
    images = rng.integers(90, 110, (60, 32, 32)) + 10 * label[:, None, None]
    images[:, :, 16:] += 20 * label[:, None, None]
    images = images.astype(np.uint8)
    reads_grey = stress(brightness, images, label, 115 / 255)
    reads_shape = stress(
        lambda batch: (batch[:, :, 16:].mean((1, 2)) > batch[:, :, :16].mean((1, 2)) + 5) * 1.0, images, label, 0.5,
    )  # fmt: skip
    grey, shape = ({row.name: row for row in found.rows} for found in (reads_grey, reads_shape))
    assert reads_grey.clean.sensitivity.value == reads_grey.clean.specificity.value == 1
    assert grey["gamma_darker"].sensitivity.value == 0 and grey["gamma_lighter"].specificity.value == 0
    for name in ("gamma_darker", "gamma_lighter"):
        assert shape[name].sensitivity.value == shape[name].specificity.value == shape[name].auroc.value == 1


def test_a_model_that_reads_the_margin_ranks_wrongly_when_it_is_inverted(label):
    images = np.random.default_rng(2).integers(90, 110, (60, 48, 48)).astype(np.uint8)
    images[:, 0] += (40 * label[:, None]).astype(np.uint8)
    found = stress(lambda batch: batch[:, 0].mean(1) / 255, images, label, 0.5)
    rows = {row.name: row.auroc.value for row in found.rows}
    assert found.clean.auroc.value == 1 and found.clean.auroc.interval[0] < 1
    assert found.worst == "margins_inverted" and rows["margins_inverted"] == 0 and rows["margins_white"] == 0.5
    assert found.mean.value == pytest.approx(np.mean(list(rows.values())))
    assert found.mean.interval[0] <= found.mean.value <= found.mean.interval[1]


def test_the_figures_are_those_of_the_libraries_and_level_widens_them(films, label):
    patient = np.arange(60) // 3
    found = stress(brightness, films, label, 0.3, patient, seed=5, resamples=200)
    wide = stress(brightness, films, label, 0.3, patient, seed=5, level=0.99, resamples=200)
    for row, wider in zip(found.rows, wide.rows, strict=True):
        score = brightness(corrupted(films, row.name))
        assert row.auroc.value == pytest.approx(roc_auc_score(label, score))
        assert row.sensitivity.value == pytest.approx((score >= 0.3)[label == 1].mean())
        assert row.specificity.value == pytest.approx((score < 0.3)[label == 0].mean())
        for key in ("auroc", "sensitivity", "specificity"):
            low, high = getattr(row, key).interval
            assert getattr(wider, key).interval[0] <= low <= high <= getattr(wider, key).interval[1]
    assert wide.mean.interval[0] < found.mean.interval[0] < found.mean.interval[1] < wide.mean.interval[1]


def test_a_shift_of_all_films_leaves_each_ranking_and_lowers_the_pooled_one(label):
    """Ill films score 0.2 higher; one look adds 0.3 to all, so that its well ones pass the ill ones as they are."""
    base = 0.1 + 0.2 * label + np.linspace(0, 0.05, 60)
    found = stress_table({"as_is": base, "gamma_lighter": base + 0.3}, label, 0.2, resamples=200)
    assert found.clean.auroc.value == found.mean.value == 1
    both, truth = np.concatenate([base, base + 0.3]), np.tile(label, 2)
    assert found.pooled.value == pytest.approx(roc_auc_score(truth, both)) == pytest.approx(0.75)
    assert found.pooled.n == 60 and found.pooled.interval is None  # every resample ranks alike
    assert found.framing is None
    framed = {name: base + 0.3 * (name == "aspect_tall") for name in FRAMED}
    found = stress_table(framed | {"noise_mild": np.flip(base)}, label, 0.2, resamples=200)
    seen = np.concatenate([framed[name] for name in FRAMED])
    assert found.framing.value == pytest.approx(roc_auc_score(np.tile(label, 5), seen))
    assert found.framing.value > found.pooled.value


def test_a_perfect_model_is_not_certain(label):
    found = stress_table(dict.fromkeys(("as_is", *CORRUPTIONS), label * 0.8 + 0.1), label, 0.5, resamples=100)
    assert found.mean.value == 1 and found.mean.interval is None
    assert all(row.auroc.interval[0] < 1 for row in found.rows)


def test_batches_change_nothing_and_each_is_read_once(films):
    sizes = []

    def predict(batch):
        sizes.append(len(batch))
        return brightness(batch)

    whole = stress_scores(brightness, [films])
    parted = stress_scores(predict, (films[k : k + 25] for k in (0, 25, 50)))
    assert set(sizes) == {25, 10} and len(sizes) == 3 * (1 + len(CORRUPTIONS))
    assert list(parted) == list(whole) == ["as_is", *CORRUPTIONS]
    for name, score in whole.items():
        np.testing.assert_array_equal(parted[name], score)


def test_one_class_and_bad_probabilities_are_told(films, label):
    found = stress(brightness, films, label * 0, 0.5)
    assert found.mean.value is found.mean.interval is found.worst is found.clean.auroc.value is None
    assert found.clean.sensitivity.value is None and found.clean.specificity.value is not None
    with pytest.raises(ValueError, match="not finite"):
        stress(lambda batch: np.full(len(batch), np.nan), films, label, 0.5)
    with pytest.raises(ValueError, match="expected one value per film"):
        stress(brightness, films, label[:-1], 0.5)
    assert stress_scores(brightness, [])["as_is"].size == 0

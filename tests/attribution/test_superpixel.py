"""LIME against lime_image itself, and against a regression by hand."""

import numpy as np
import pytest
import torch
from attribution_cases import grey, method_of, random_films, small_cnn, weighing
from lime.lime_image import LimeImageExplainer
from scipy.ndimage import gaussian_filter
from skimage.color import gray2rgb
from skimage.segmentation import quickshift

from pneumonia.attribution.segmentation import grid_segments, quickshift_segments, slic_segments
from pneumonia.attribution.superpixel import draw_samples, fit, sample_outputs, to_bytes
from pneumonia.data.decode import read_film


@pytest.fixture(scope="module")
def picture():
    """Clouds of every grey, uint8 [96, 96]."""
    clouds = gaussian_filter(np.random.default_rng(0).normal(size=(96, 96)), 6)
    return np.interp(clouds, [clouds.min(), clouds.max()], [0, 255]).round().astype(np.uint8)


def explained_by_lime_image(net, pixels, segments, seed, num_samples, output, hide_color):
    def classify(images):
        with torch.inference_mode():
            logits = net(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).double()
        return (logits.sigmoid() if output == "probability" else logits).numpy()[:, None]

    explainer = LimeImageExplainer(random_state=seed)
    return explainer.explain_instance(
        gray2rgb(pixels), classify, top_labels=1, hide_color=hide_color, num_samples=num_samples,
        segmentation_fn=lambda image: segments,
    )  # fmt: skip


@pytest.mark.parametrize("output", ["probability", "logit"])
@pytest.mark.parametrize("segmentation", ["quickshift", "slic", "grid"])
@pytest.mark.parametrize("hide_color", [0, 128])
def test_equals_lime_image_for_the_same_seed(picture, segmentation, output, hide_color):
    net = small_cnn(size=96).eval()
    lime = method_of("lime", num_samples=200, segmentation=segmentation, output=output, hide_color=hide_color, seed=3)
    ours = lime.explain(net, grey(torch.from_numpy(picture)))[0]
    theirs = explained_by_lime_image(net, picture, ours.segments, 3, 200, output, hide_color)
    weights = np.zeros_like(ours.weights)
    for segment, weight in theirs.local_exp[0]:
        weights[segment] = weight
    scale = np.abs(weights).max()
    assert len(ours.weights) > 5 and scale > 0
    np.testing.assert_allclose(ours.weights, weights, atol=1e-5 * scale)
    np.testing.assert_allclose(ours.intercept, theirs.intercept[0], rtol=1e-5)
    np.testing.assert_allclose(ours.score, theirs.score, rtol=1e-4)
    np.testing.assert_allclose(ours.local_prediction, theirs.local_pred[0], rtol=1e-5)


def test_the_superpixels_shown_are_lime_images(picture):
    net = small_cnn(size=96).eval()
    ours = method_of("lime", num_samples=200).explain(net, grey(torch.from_numpy(picture)))[0]
    theirs = explained_by_lime_image(net, picture, ours.segments, 0, 200, "probability", 0)
    _, mask = theirs.get_image_and_mask(0, positive_only=False, num_features=5)
    assert len(np.unique(ours.painted(5))) == 6  # five weights and the rest
    assert np.array_equal(np.sign(ours.painted(5)), mask)


def test_the_fit_by_hand():
    samples = np.array([[1, 1], [1, 0], [0, 1], [0, 0], [1, 0]])
    outputs = np.array([0.9, 0.6, 0.2, 0.1, 0.7])
    segments = np.array([[0, 1]])
    # cosine distance from (1, 1): 0 for itself, 1 - 1/sqrt(2) for one of two, 1 for none; weight exp(-d^2 / .25^2)^.5
    distance = np.array([0, 1 - 0.5**0.5, 1 - 0.5**0.5, 1, 1 - 0.5**0.5])
    root = np.exp(-(distance**2) / 0.25**2) ** 0.25  # ridge with weights: scale the rows by the root of the weight
    design = np.column_stack([samples, np.ones(5)]) * root[:, None]
    penalty = np.diag([1.0, 1.0, 0.0])  # the intercept is free
    expected = np.linalg.solve(design.T @ design + penalty, design.T @ (outputs * root))
    explanation = fit(segments, samples, outputs, 0.25, np.random.RandomState(0))
    np.testing.assert_allclose([*explanation.weights, explanation.intercept], expected, rtol=1e-8)
    np.testing.assert_allclose(explanation.local_prediction, expected.sum(), rtol=1e-8)


def test_on_a_linear_net_a_segments_weight_is_nearly_its_part_of_the_logit():
    weights = torch.zeros(8, 8)
    weights[:4, :4], weights[4:, 4:] = 1.0, -0.5
    lime = method_of("lime", segmentation="grid", n_segments=4, output="logit", num_samples=4000, kernel_width=100.0)
    explanation = lime.explain(weighing(weights, bias=1.0), torch.ones(1, 3, 8, 8))[0]
    np.testing.assert_allclose(explanation.weights, [16.0, 0.0, 0.0, -8.0], atol=0.05)
    np.testing.assert_allclose(explanation.intercept, 1.0, atol=0.05)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("hide_color", [0, 200])
def test_a_sample_hides_its_segments_and_nothing_else(channels, hide_color):
    pixels = torch.randint(1, 256, (channels, 4, 4), dtype=torch.uint8)
    segments = grid_segments(np.zeros((4, 4), np.uint8), 4)
    seen = []

    class Watching(torch.nn.Module):
        def forward(self, image):
            seen.append(image.clone())
            return image.sum((1, 2, 3))

    samples = np.array([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]])
    sample_outputs(Watching(), pixels, segments, samples, hide_color, batch=2)
    images = torch.cat(seen)
    expected = pixels.expand(3, 4, 4).repeat(3, 1, 1, 1).float()
    expected[1, :, :2, :2] = expected[1, :, 2:, 2:] = expected[2] = hide_color
    assert [len(batch) for batch in seen] == [2, 1]
    torch.testing.assert_close(images * 255, expected, atol=1e-4, rtol=0)


def test_samples_are_those_of_lime_image():
    samples = draw_samples(np.random.RandomState(5), 10, 4)
    expected = np.random.RandomState(5).randint(0, 2, 40).reshape(10, 4)
    assert np.array_equal(samples[1:], expected[1:]) and (samples[0] == 1).all()


def test_bytes_survive_the_way_through_the_unit_interval():
    every = torch.arange(256).view(1, 16, 16)
    assert torch.equal(to_bytes(grey(every)[0]), every.to(torch.uint8))
    assert to_bytes(torch.rand(3, 4, 4)).shape == (3, 4, 4)


def test_quickshift_at_full_size_gives_limes_own_superpixels(picture):
    ours = quickshift_segments(picture, 4, 200, 0.2, shrink=1, seed=42)
    theirs = quickshift(gray2rgb(picture), kernel_size=4, max_dist=200, ratio=0.2, rng=42)
    assert ours.max() > 3 and np.array_equal(ours, theirs)


@pytest.mark.parametrize("size", [(96, 96), (63, 85)])
@pytest.mark.parametrize(
    "segment",
    [
        lambda film: quickshift_segments(film, 4, 200, 0.2, 2, 0),
        lambda film: slic_segments(film, 20, 0.1),
        lambda film: grid_segments(film, 20),
    ],
)
def test_segments_are_numbered_without_gaps_and_cover_the_film(picture, size, segment):
    segments = segment(picture[: size[0], : size[1]])
    assert segments.shape == size
    assert np.array_equal(np.unique(segments), np.arange(segments.max() + 1)) and segments.max() > 2


def test_small_films_have_superpixels_enough_and_224_pixels_those_of_before(phantoms):
    lime = method_of("lime")
    file = next(iter(sorted((phantoms / "test" / "PNEUMONIA").iterdir())))
    whole = read_film(file, 224, "squash")
    assert np.array_equal(lime.segment(whole, 7), quickshift_segments(whole, 4, 200, 0.2, 2, 7))
    for size in (64, 128):
        assert 20 <= lime.segment(read_film(file, size, "squash"), 7).max() + 1 <= 60
    lime.segment(read_film(file, 32, "squash"), 7)  # a kernel below one pixel is refused by scikit-image


def test_only_the_strongest_are_painted():
    explanation = fit(np.array([[0, 1, 2]]), np.eye(3, dtype=int)[[0, 1, 2, 0]], np.array([0.9, 0.1, 0.5, 0.8]), 9.0,
                      np.random.RandomState(0))  # fmt: skip
    strongest = int(np.abs(explanation.weights).argmax())
    painted = explanation.painted(1)[0]
    assert painted[strongest] == np.float32(explanation.weights[strongest])
    assert np.count_nonzero(painted) == 1 and np.count_nonzero(explanation.painted()) == 3


def test_another_seed_is_another_set_of_samples():
    net, films = small_cnn(), random_films(1, 17)
    maps = [method_of("lime", segmentation="grid", num_samples=50, seed=seed).attribute(net, films) for seed in (0, 1)]
    assert not torch.equal(*maps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": "watershed"}, "expected one of quickshift, slic, grid"),
        ({"output": "class"}, "expected one of probability, logit"),
        ({"hide_color": 256}, "hide_color=256"),
        ({"num_samples": 0}, "num_samples=0"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        method_of("lime", **change)

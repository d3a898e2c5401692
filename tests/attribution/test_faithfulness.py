"""Measures of faithfulness on nets whose right answer is known."""

import pytest
import torch
from attribution_cases import method_of, random_films, small_cnn, weighing

from pneumonia.attribution import faithfulness


@pytest.fixture
def bright():
    """A net that says pneumonia when a 3 x 3 corner of an 8 x 8 film is bright, a white film, and the perfect map."""
    weights = torch.zeros(8, 8)
    weights[:3, :3] = 1.0
    return weighing(weights, bias=-4.5), torch.ones(1, 3, 8, 8), weights[None]


def test_deletion_and_insertion_prefer_the_perfect_map_to_a_random_one(bright):
    net, film, perfect = bright
    film = film * torch.linspace(0, 1, 64).flip(0).view(8, 8)  # not flat: a blurred film must differ
    random = torch.rand(20, 8, 8, generator=torch.Generator().manual_seed(0))
    many = film.expand(20, -1, -1, -1)
    assert (
        faithfulness.deletion_auc(net, film, perfect, steps=64) < faithfulness.deletion_auc(net, many, random, steps=64)
    ).all()
    point = torch.zeros(1, 3, 8, 8)
    point[..., 1, 1] = 9.0  # blur takes it away, the perfect map brings it back first
    perfect_insertion = faithfulness.insertion_auc(net, point, perfect, steps=64)
    assert (perfect_insertion >= faithfulness.insertion_auc(net, point.expand(20, -1, -1, -1), random, steps=64)).all()


def test_deletion_by_hand(bright):
    net, film, perfect = bright
    curve = faithfulness.replacement_curve(net, film[0], torch.zeros(3, 8, 8), perfect[0], steps=64)
    expected = torch.tensor(
        [max(9 - k, 0) - 4.5 for k in range(65)]
    ).sigmoid()  # one of nine white pixels after another
    torch.testing.assert_close(curve, expected, atol=1e-5, rtol=0)
    by_hand = (expected.sum() - (expected[0] + expected[-1]) / 2) / 64
    found = faithfulness.deletion_auc(net, film, perfect, steps=64)
    torch.testing.assert_close(found, by_hand[None], atol=1e-5, rtol=0)


def test_the_curve_starts_with_the_film_and_ends_with_what_it_becomes():
    net, films = small_cnn().eval(), random_films(2, 17)
    curve = faithfulness.replacement_curve(net, films[0], films[1], torch.rand(17, 17), steps=10)
    with torch.no_grad():
        torch.testing.assert_close(curve[[0, -1]], net(films).sigmoid())
    assert len(curve) == 11


def test_area_by_trapezoids():
    torch.testing.assert_close(faithfulness.area(torch.tensor([1.0, 0.0, 0.5])), torch.tensor(0.375))


@pytest.mark.parametrize("size", [4, 32])
def test_a_blur_keeps_a_flat_film_and_spreads_a_point(size):
    flat = torch.full((1, 3, size, size), 0.4)
    torch.testing.assert_close(faithfulness.blurred(flat), flat)
    point = torch.zeros(1, 3, size, size)
    point[..., size // 2, size // 2] = 1.0
    assert faithfulness.blurred(point).max() < 0.2
    assert faithfulness.blurred(point).isfinite().all()


def test_infidelity_is_zero_for_the_exact_map_of_a_linear_net_in_any_unit(bright):
    net, film, _ = bright
    exact = method_of("integrated_gradients").attribute(net, film)
    wrong = exact.flip(1)
    for scale in (1.0, 100.0):
        torch.testing.assert_close(faithfulness.infidelity(net, film, scale * exact), torch.zeros(1), atol=1e-4, rtol=0)
    assert faithfulness.infidelity(net, film, wrong) > 0.05


def test_infidelity_is_the_same_for_the_same_seed_and_any_memory(monkeypatch):
    net, films = small_cnn(), random_films(2, 17)
    maps = method_of("integrated_gradients").attribute(net, films)
    first = faithfulness.infidelity(net, films, maps, samples=40, seed=1)
    assert torch.equal(first, faithfulness.infidelity(net, films, maps, samples=40, seed=1))
    assert not torch.equal(first, faithfulness.infidelity(net, films, maps, samples=40, seed=2))
    monkeypatch.setattr(faithfulness, "AT_MOST", 3)
    torch.testing.assert_close(first, faithfulness.infidelity(net, films, maps, samples=40, seed=1))


def test_squares_are_hidden_where_it_is_said():
    films = random_films(500, 8) * 0.9 + 0.1
    hidden, changed = faithfulness.hide_square(films, 3)
    assert (hidden.sum((2, 3)) == 9).all()
    assert torch.equal(changed == 0.0, hidden == 1) and torch.equal(changed[hidden == 0], films[hidden == 0])
    assert (hidden.sum(0) > 0).all()  # every pixel is hidden at some time, the corners too


def test_max_sensitivity_is_zero_where_the_map_does_not_move_and_above_where_it_does(bright):
    net, film, _ = bright
    assert faithfulness.max_sensitivity(method_of("saliency"), net, film).item() == pytest.approx(0, abs=1e-5)
    # integrated gradients of a linear net follow the film: noise of up to 0.02 on white moves them by up to 2 %
    moved = faithfulness.max_sensitivity(method_of("integrated_gradients"), net, film, samples=5)
    assert 0.002 < moved.item() < 0.02
    assert torch.equal(moved, faithfulness.max_sensitivity(method_of("integrated_gradients"), net, film, samples=5))


def test_max_sensitivity_of_lime_and_of_many_films():
    lime = method_of("lime", segmentation="grid", n_segments=9, num_samples=30)
    found = faithfulness.max_sensitivity(lime, small_cnn(), random_films(3, 17), samples=2)
    assert found.shape == (3,) and found.isfinite().all()


@pytest.mark.parametrize("measure", [faithfulness.deletion_auc, faithfulness.insertion_auc, faithfulness.infidelity])
def test_maps_that_do_not_belong_to_the_films_are_refused(measure):
    with pytest.raises(ValueError, match=r"Expected an attribution \[2, 17, 17\], got \[2, 16, 17\]"):
        measure(small_cnn(), random_films(2, 17), torch.zeros(2, 16, 17))

import copy

import numpy as np
import pytest
import torch
from attribution_cases import method_of, random_films, small_cnn
from scipy.stats import spearmanr
from torch import nn

from pneumonia.attribution.agreement import agreement, randomised, rank_correlation, seed_stability
from pneumonia.attribution.contract import seeded


@pytest.fixture
def maps():
    torch.manual_seed(0)
    return torch.randn(3, 6, 7), torch.randn(3, 6, 7).round(decimals=0)


def test_rank_correlation_is_scipys_with_ties(maps):
    one, other = maps
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(rank_correlation(one, other), expected, atol=1e-12)


def test_rank_correlation_by_hand():
    one = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    np.testing.assert_allclose(rank_correlation(one, one**3), [1.0])
    np.testing.assert_allclose(rank_correlation(one, -one), [-1.0])
    np.testing.assert_allclose(rank_correlation(one, torch.tensor([[[1.0, 3.0, 2.0, 4.0]]])), [0.8])  # 1 - 6 x 2 / 60
    assert np.isnan(rank_correlation(one, torch.ones(1, 1, 4))).all()


def test_maps_of_other_films_are_not_compared():
    with pytest.raises(ValueError, match=r"\[1, 2, 2\] and \[2, 2, 2\]"):
        rank_correlation(torch.rand(1, 2, 2), torch.rand(2, 2, 2))


def test_agreement_is_a_symmetric_table_of_absolute_values(maps):
    one, other = maps
    table = agreement({"one": one, "opposite": -one, "other": other})
    assert table.shape == (3, 3, 3)
    np.testing.assert_allclose(table[:, 0, 1], 1.0)
    np.testing.assert_allclose(table[:, 0, 2], rank_correlation(one.abs(), other.abs()))
    np.testing.assert_allclose(table, table.transpose(0, 2, 1))


def test_stability_is_one_without_a_seed_and_grows_with_the_samples():
    net, films = small_cnn(), random_films(2, 17)
    assert (seed_stability(method_of("saliency"), net, films, [0, 1]) == 1).all()
    few, many = (
        seed_stability(method_of("smoothgrad", n_samples=count, absolute=False), net, films, [0, 1, 2])
        for count in (2, 200)
    )
    assert (few < many).all() and (many < 1).all() and (many > 0.9).all()
    with pytest.raises(ValueError, match="at least two"):
        seed_stability(method_of("lime"), net, films, [0])


def randomisation_check(method, net, images, seed):
    """Rank correlation of |attribution| between `net` and a randomised copy, [N] (Adebayo 2018, arXiv:1810.03292)."""
    untrained = method.attribute(randomised(net, seed), images)
    return rank_correlation(method.attribute(net, images).abs(), untrained.abs())


def test_randomised_weights_change_the_attributions_and_not_the_net():
    net, films = small_cnn(), random_films(2, 17)
    weights = copy.deepcopy(net.state_dict())
    assert (randomisation_check(method_of("integrated_gradients"), net, films, seed=1) < 0.9).all()
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


def test_an_attribution_that_ignores_the_net_fails_the_randomisation_check():
    class Edges:
        """Shows the film's brightness and calls it an explanation."""

        def attribute(self, net, images):
            return images[:, 0]

    np.testing.assert_allclose(randomisation_check(Edges(), small_cnn(), random_films(2, 17), seed=1), 1.0)


def test_randomised_resets_every_weight_from_the_seed():
    net = small_cnn()
    one, same, other = randomised(net, 1), randomised(net, 1), randomised(net, 2)
    for trained, *copies in zip(*(candidate.parameters() for candidate in (net, one, same, other)), strict=True):
        assert torch.equal(copies[0], copies[1]) and not torch.equal(copies[0], copies[2])
        assert not torch.equal(trained, copies[0])


def test_weights_that_cannot_be_reset_are_named():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

    with pytest.raises(ValueError, match=r"Layer '1' \(Scale\) has weights but no reset_parameters"):
        randomised(nn.Sequential(nn.Conv2d(3, 1, 1), Scale()), 0)


def _draw_and_fail():
    torch.rand(5), np.random.rand(5)
    raise RuntimeError


def test_seeded_puts_the_generators_back_even_after_an_error():
    torch.manual_seed(7), np.random.seed(7)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(7), np.random.seed(7)
    with pytest.raises(RuntimeError), seeded(0, torch.device("cpu")):
        _draw_and_fail()
    assert torch.equal(torch.rand(2), expected[0]) and np.array_equal(np.random.rand(2), expected[1])

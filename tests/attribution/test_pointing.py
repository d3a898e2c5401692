import pytest
import torch

from pneumonia.attribution.pointing import central_share, iou_at_equal_area, mass_in_mask, pointing_game


@pytest.fixture
def mask():
    """A 2 x 2 opacity in rows 1-2 and columns 1-2 of a 6 x 6 film."""
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[:, 1:3, 1:3] = True
    return mask


def point(row, column):
    attribution = torch.zeros(1, 6, 6)
    attribution[0, row, column] = 1.0
    return attribution


@pytest.mark.parametrize(("place", "hit"), [((1, 2), 1.0), ((3, 2), 0.0), ((5, 5), 0.0)])
def test_pointing_game_by_hand(mask, place, hit):
    assert pointing_game(point(*place), mask).item() == hit


def test_a_plateau_and_a_flat_map_score_their_share(mask):
    plateau = torch.zeros(1, 6, 6)
    plateau[0, 1:3, 2:4] = 2.0  # two of its four pixels are in the mask
    assert pointing_game(plateau, mask).item() == 0.5
    assert pointing_game(torch.zeros(1, 6, 6), mask).item() == pytest.approx(4 / 36)


def test_only_the_highest_counts_not_the_lowest(mask):
    assert pointing_game(point(5, 5) - 9 * point(1, 1), mask).item() == 0.0


def test_mass_in_mask_by_hand(mask):
    attribution = 3 * point(1, 1) + point(5, 5) - 8 * point(2, 2)  # what speaks against does not count
    assert mass_in_mask(attribution, mask).item() == pytest.approx(0.75)
    assert mass_in_mask(torch.ones(1, 6, 6), mask).item() == pytest.approx(4 / 36)
    assert mass_in_mask(-torch.ones(1, 6, 6), mask).isnan().all()


def test_iou_at_equal_area_by_hand(mask):
    three = 4 * point(1, 1) + 3 * point(1, 2) + 2 * point(2, 1) + point(0, 0)  # top four: three in the mask
    assert iou_at_equal_area(three, mask).item() == pytest.approx(3 / 5)
    assert iou_at_equal_area(mask.float(), mask).item() == 1.0
    chance = 4 * 4 / 36
    assert iou_at_equal_area(torch.zeros(1, 6, 6), mask).item() == pytest.approx(chance / (8 - chance))


def test_an_empty_mask_has_no_score():
    empty = torch.zeros(2, 4, 4, dtype=torch.bool)
    for measure in (pointing_game, mass_in_mask, iou_at_equal_area):
        assert measure(torch.rand(2, 4, 4), empty).isnan().all()


def test_central_share_by_hand():
    attribution = torch.zeros(1, 8, 8)
    attribution[0, 4, 4], attribution[0, 0, 0] = -3.0, 1.0
    assert central_share(attribution).item() == pytest.approx(0.75)
    assert central_share(torch.ones(1, 8, 8)).item() == pytest.approx(36 / 64)
    assert central_share(torch.zeros(1, 8, 8)).isnan().all()


def test_masks_of_another_shape_or_kind_are_refused(mask):
    with pytest.raises(ValueError, match="bool mask"):
        pointing_game(torch.rand(1, 5, 6), mask)
    with pytest.raises(ValueError, match=r"torch\.uint8"):
        pointing_game(torch.rand(1, 6, 6), mask.to(torch.uint8))

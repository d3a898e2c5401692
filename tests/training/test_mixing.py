"""What a batch is mixed with: shares, targets, and the same draw from the same seed."""

import inspect

import numpy as np
import pytest
import torch

from pneumonia.training import mixing
from pneumonia.training.mixing import GREY, Mix
from pneumonia.workflows.experiment import MIXED


def batch(films: int = 64, side: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    film = torch.randint(0, 256, (films, 1, side, side), generator=generator, dtype=torch.uint8)
    return film, (torch.arange(films) % 2).float()


def test_every_way_to_mix_can_be_typed_and_reaches_the_training() -> None:
    assert set(MIXED) == set(inspect.signature(Mix).parameters)


def test_nothing_asked_for_changes_nothing() -> None:
    film, target = batch()
    mixed, mixed_target = Mix()(film, target)
    assert torch.equal(mixed, film.float()) and torch.equal(mixed_target, target)


def test_mixup_blends_films_and_targets_by_the_same_share() -> None:
    film, target = batch()
    torch.manual_seed(1)
    mixed, mixed_target = Mix(mixup=1.0)(film, target)
    share = mixed_target.unique()  # of two alternating classes only two blends can come
    assert len(share) == 2 and share.sum() == pytest.approx(1, abs=1e-6)
    other, weight = film.float().roll(1, 0), mixed_target[1]
    torch.testing.assert_close(mixed, weight * film.float() + (1 - weight) * other, atol=1e-3, rtol=0)


def test_cutmix_pastes_a_rectangle_whose_area_is_the_targets_share() -> None:
    film, target = batch()
    torch.manual_seed(1)
    mixed, mixed_target = Mix(cutmix=1.0)(film, target)
    kept = (mixed == film.float()).float().mean().item()
    assert 0 < kept < 1 and mixed_target[1].item() == pytest.approx(kept, abs=0.02)  # a few pixels agree by chance


def test_without_lungs_the_target_is_one_half_and_the_border_stays() -> None:
    film, target = batch(2000)
    torch.manual_seed(0)
    mixed, mixed_target = Mix(lungs_out=0.2)(film, target)
    out = mixed_target == 0.5
    assert out.float().mean() == pytest.approx(0.2, abs=0.03)
    assert (mixed[out][:, :, 3:17, 3:17] == GREY).all() and torch.equal(
        mixed[out][:, :, :3], film[out][:, :, :3].float()
    )
    assert torch.equal(mixed[~out], film[~out].float()) and torch.equal(mixed_target[~out], target[~out])


def test_without_border_the_target_and_the_centre_stay_and_the_frame_is_one_grey_a_film() -> None:
    film, target = batch(2000)
    torch.manual_seed(0)
    mixed, mixed_target = Mix(border_out=0.3, lungs_out=0.2)(film, target)
    frame = torch.cat([mixed[:, 0, :3].flatten(1), mixed[:, 0, -3:].flatten(1), mixed[:, 0, :, 0]], 1)
    bare = (frame == frame[:, :1]).all(1)
    assert bare.float().mean() == pytest.approx(0.3, abs=0.03) and len(frame[bare, 0].unique()) > 300
    assert torch.equal(mixed[bare][:, :, 3:17, 3:17], film[bare][:, :, 3:17, 3:17].float())
    assert torch.equal(mixed_target[bare], target[bare])


def test_a_swapped_border_is_another_films_and_fades_into_the_films_own_centre() -> None:
    levels = torch.arange(1, 251, dtype=torch.uint8).repeat(8)  # a film is one grey: where its pixels come from is seen
    film, target = levels.view(-1, 1, 1, 1).expand(-1, 1, 40, 40), (levels % 2).float()
    torch.manual_seed(0)
    mixed, mixed_target = Mix(border_out=0.3, lungs_out=0.1, border_swap=0.4)(film, target)
    own, other = levels.float(), levels.float().roll(2, 0)
    swapped = (mixed[:, 0, 0, 0] == other) & (mixed[:, 0, 20, 20] == own)
    assert swapped.float().mean() == pytest.approx(0.4, abs=0.03) and torch.equal(
        mixed_target[swapped], target[swapped]
    )
    across = ((mixed[:, 0, 20] - other[:, None]) / (own - other)[:, None])[swapped]  # 0: the other film's, 1: its own
    assert (across[:, :5] == 0).all() and (across[:, 7:33] == 1).all() and (across[:, 35:] == 0).all()
    torch.testing.assert_close(across[:, 5:7], torch.tensor([[1 / 3, 2 / 3]]).expand(len(across), 2), atol=1e-3, rtol=0)
    untouched = (mixed == film.float()).flatten(1).all(1)
    assert untouched.float().mean() == pytest.approx(0.2, abs=0.03)


def test_a_swapped_border_tells_nothing_of_the_target_though_films_are_blended() -> None:
    """A film is its class's grey, so a border's grey is the mean target of the films that it comes from."""
    target = torch.rand(20_000, generator=torch.Generator().manual_seed(0)).round()
    film = (255 * target).byte().view(-1, 1, 1, 1).expand(-1, 1, 20, 20)
    torch.manual_seed(0)
    mixed, mixed_target = Mix(mixup=1.0, border_swap=1.0)(film, target)
    border, centre = mixed[:, 0, 0, 0], mixed[:, 0, 10, 10]
    assert torch.corrcoef(torch.stack([centre, mixed_target]))[0, 1] > 0.999
    assert 0.1 < mixed_target[target == 1].min() < 0.9  # the batch is blended, so that a shared film would be seen
    assert torch.corrcoef(torch.stack([border, mixed_target]))[0, 1].abs() < 0.03


def test_a_share_is_seen_through_filters_of_their_own_and_keeps_its_tone() -> None:
    """Smooth films, alike but for their places in the batch: the filtered ones differ from each other, too."""
    ramp = torch.linspace(60, 190, 40)
    film = (ramp + ramp[:, None]).div(2).round().byte().expand(2000, 1, 40, 40)
    torch.manual_seed(0)
    mixed, target = Mix(random_conv=0.4)(film, torch.zeros(2000))
    same = (mixed == film.float()).flatten(1).all(1)
    assert 1 - same.float().mean() == pytest.approx(0.4, abs=0.03) and not target.any()
    assert len(mixed[~same].unique(dim=0)) == (~same).sum()
    assert mixed.min() >= 0 and mixed.max() <= 255
    assert mixed[~same].mean((1, 2, 3)) == pytest.approx(film[0].float().mean().item(), abs=12)
    assert (mixed[~same].std((1, 2, 3)) <= film[0].float().std() + 1).all()


@pytest.mark.parametrize("side", [1, 3, 5, 7])
def test_a_filter_is_the_films_own_convolution(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    """With nothing of the film itself left, what comes is an affine map of a convolution by some kernel."""
    monkeypatch.setattr(mixing, "KERNELS", (side,))
    monkeypatch.setattr(mixing, "FILTERED", 1.0)
    monkeypatch.setattr(torch, "rand", torch.ones)
    film = batch(4, 30)[0].float() * 0.2 + 100  # far from 0 and 255, so that nothing is cut
    seen = mixing.through_random_filters(film)
    inner = slice(3, -3)
    for before, after in zip(film[:, 0], seen[:, 0], strict=True):
        patches = torch.nn.functional.unfold(before[None, None], 7)[0].T
        design = torch.cat([patches, torch.ones(len(patches), 1)], 1)
        wanted = after[inner, inner].reshape(-1, 1)
        fitted = design @ torch.linalg.lstsq(design.double(), wanted.double()).solution.float()
        torch.testing.assert_close(fitted, wanted, atol=0.05, rtol=0)
    torch.testing.assert_close(seen.std((1, 2, 3)), film.std((1, 2, 3)), rtol=1e-3, atol=0)
    if side > 1:  # one pixel's filter is an affine map, which the film's own mean and deviation undo
        alike = mixing.through_random_filters(film[:1].expand(4, -1, -1, -1))
        assert len(alike.unique(dim=0)) == 4  # a filter for each film, not for the batch


def test_the_share_of_mixup_is_drawn_as_typed() -> None:
    """Of Beta(a, a) the mean of share (1 - share) is a / (4 a + 2)."""
    film = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    for alpha in (0.2, 1.0):
        mix, products = Mix(mixup=alpha), []
        torch.manual_seed(0)
        for _ in range(1000):
            share = mix(film, torch.tensor([0.0, 1.0]))[1][0].item()
            products.append(share * (1 - share))
        assert np.mean(products) == pytest.approx(alpha / (4 * alpha + 2), abs=0.01)


def test_of_mixup_and_cutmix_each_gets_half_of_the_batches() -> None:
    film, target = (
        torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 16, 16),
        torch.tensor([0.0, 1]),
    )
    torch.manual_seed(0)
    mix = Mix(mixup=1.0, cutmix=1.0)
    cut = sum(bool(((mixed == 0) | (mixed == 255)).all()) for mixed, _ in (mix(film, target) for _ in range(200)))
    assert cut == pytest.approx(100, abs=25)


def test_the_same_seed_gives_the_same_batch() -> None:
    mix, drawn = Mix(0.4, 1.0, 0.1, 0.1, 0.5), []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(mix(*batch()))
    assert torch.equal(drawn[0][0], drawn[1][0]) and torch.equal(drawn[0][1], drawn[1][1])

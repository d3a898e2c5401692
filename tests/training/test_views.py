"""What of a film the net is shown: standardised grey values, less noise, and its middle."""

import cv2
import torch

from pneumonia.training.views import averages, blurred, by_centre, by_surroundings, middle


def test_by_the_centre_of_each_film_in_range_and_finite_on_a_blank_one() -> None:
    grey = 0.4 + 0.2 * torch.rand(2, 1, 20, 20) * torch.tensor([1.0, 0.1]).view(2, 1, 1, 1)
    centre = by_centre(grey)[:, :, 3:17, 3:17]
    torch.testing.assert_close(centre.mean((1, 2, 3)), torch.full((2,), 0.5))
    torch.testing.assert_close(centre.std((1, 2, 3), correction=0), torch.full((2,), 1 / 6))
    grey[:, :, :3] = 1  # a white frame is cut, and changes nothing within
    assert (by_centre(grey)[:, :, :3] == 1).all() and torch.equal(by_centre(grey)[:, :, 3:17, 3:17], centre)
    blank = torch.full((1, 1, 20, 20), 0.7)
    torch.testing.assert_close(by_centre(blank), torch.full_like(blank, 0.5), atol=1e-3, rtol=0)


def test_by_surroundings_is_each_pixel_by_the_square_around_it() -> None:
    grey = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    square = grey[0, 0, 12 - 10 : 12 + 11, 25 - 10 : 25 + 11]  # a quarter of the side to every side
    value = (grey[0, 0, 12, 25] - square.mean()) / (6 * (square.var(correction=0) + 0.03**2).sqrt()) + 0.5
    torch.testing.assert_close(by_surroundings(grey)[0, 0, 12, 25], value.clamp(0, 1))


def test_what_a_prediction_kept_of_the_squares_serves_training_too() -> None:
    averages.cache_clear()
    with torch.inference_mode():
        seen = by_surroundings(torch.rand(1, 1, 22, 26, generator=torch.Generator().manual_seed(5)))
    grey = torch.rand(1, 1, 22, 26, generator=torch.Generator().manual_seed(5)).requires_grad_()
    learnt = by_surroundings(grey)
    learnt.sum().backward()
    torch.testing.assert_close(learnt.detach(), seen.clone())
    assert grey.grad is not None and grey.grad.abs().max() > 0


def test_by_surroundings_loses_exposure_and_contrast_but_not_tone() -> None:
    grey = 0.2 + 0.6 * torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(by_surroundings(0.5 * grey + 0.2), by_surroundings(grey), atol=0.02, rtol=0)
    assert (by_surroundings(grey**2) - by_surroundings(grey)).abs().max() > 0.05  # a curve is no contrast


def test_by_surroundings_takes_shading_away_that_the_centre_leaves() -> None:
    grey = 0.4 + 0.1 * torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    shaded = grey + torch.linspace(0, 0.3, 64)  # a wedge filter: one side is lighter
    change = [(way(shaded) - way(grey))[..., 8:-8].abs().mean() for way in (by_surroundings, by_centre)]
    assert change[0] < 0.25 * change[1]


def test_by_surroundings_is_in_range_with_a_gradient_everywhere_even_on_a_blank_film() -> None:
    grey = torch.cat([torch.full((1, 1, 16, 16), 0.7), torch.rand(1, 1, 16, 16).round()]).requires_grad_()
    shown = by_surroundings(grey)
    torch.testing.assert_close(shown[0], torch.full((1, 16, 16), 0.5), atol=1e-3, rtol=0)
    assert shown.min() >= 0 and shown.max() <= 1
    shown.sum().backward()
    assert grey.grad is not None and grey.grad.isfinite().all()


def test_the_middle_is_drawn_out_in_height_alone_and_the_whole_of_a_film_is_itself() -> None:
    film = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    film[:, :, 24:40, 24:40] = 200
    assert torch.equal(middle(film, 1.0), film.float())
    drawn = middle(film, 0.5)[0, 0]
    assert drawn[20:44, 26:38].min() == 200  # 16 rows became 32
    assert drawn[:15].max() == drawn[49:].max() == drawn[:, :24].max() == drawn[:, 40:].max() == 0


def test_a_blur_is_a_share_of_the_height_and_keeps_greys_in_float32_under_autocast() -> None:
    film = (255 * torch.rand(1, 1, 100, 80, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        shown = blurred(film, 0.01)
    by_hand = cv2.GaussianBlur(film[0, 0].float().numpy(), (9, 9), 1.0, borderType=cv2.BORDER_REFLECT_101)
    torch.testing.assert_close(shown[0, 0], torch.from_numpy(by_hand), atol=0.01, rtol=0)

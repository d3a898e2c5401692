import pytest
import torch
from attribution_cases import method_of, random_films, small_cnn, weighing


def test_windows_side_by_side_have_their_share_of_a_linear_logit():
    weights = torch.arange(16.0).view(4, 4) - 5
    net, film = weighing(weights), random_films(1, 4)
    falls = method_of("occlusion", window=2, stride=2).attribute(net, film)[0]
    product = weights * film[0, 0]
    for row in (0, 2):
        for column in (0, 2):
            block = product[row : row + 2, column : column + 2].sum()
            torch.testing.assert_close(falls[row : row + 2, column : column + 2], block.expand(2, 2), atol=1e-4, rtol=0)


def test_a_pixel_has_the_mean_of_the_windows_that_cover_it():
    net, film = small_cnn(size=16).eval(), random_films(1, 16)
    falls = method_of("occlusion", window=8, stride=4, baseline=0.3).attribute(net, film)[0]
    total, count = torch.zeros(16, 16), torch.zeros(16, 16)
    with torch.no_grad():
        for row in (0, 4, 8):
            for column in (0, 4, 8):
                covered = film.clone()
                covered[:, :, row : row + 8, column : column + 8] = 0.3
                total[row : row + 8, column : column + 8] += (net(film) - net(covered)).item()
                count[row : row + 8, column : column + 8] += 1
    torch.testing.assert_close(falls, total / count, atol=1e-5, rtol=1e-4)


def test_a_window_larger_than_the_film_or_a_stride_that_skips_pixels_is_refused():
    with pytest.raises(ValueError, match=r"window=32.*17"):
        method_of("occlusion", window=32).attribute(small_cnn(), random_films(1, 17))
    with pytest.raises(ValueError, match="stride=9: expected at most window=8"):
        method_of("occlusion", window=8, stride=9)


def test_by_default_the_window_is_a_seventh_of_the_film_and_moves_by_half():
    method = method_of("occlusion")
    assert [method.sizes(side) for side in (224, 64, 7)] == [(32, 16), (9, 4), (1, 1)]
    with pytest.raises(ValueError, match="stride=40: expected at most window=32"):
        method_of("occlusion", stride=40).sizes(224)

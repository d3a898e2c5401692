"""Films brought to the place of a mean film, so that zoom, aspect, position and rotation differ less between machines.

Layout  film grey [N, 1, S, S] from 0 to 255; thumb float32 [N, 1, SIDE, SIDE], mean 0 and deviation 1.
        place float32 [N, 5]: logarithms of the zoom of width and height, the shift to the right and down as shares of
        half a side, the rotation in radians; 0 is the film as it is.
Source  after inverse compositional Lucas-Kanade (Baker and Matthews 2004, doi:10.1023/B:VISI.0000011205.11775.fd), with
        steps that are added: the slopes are the mean film's, so no slope of any film is needed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate

from pneumonia.evaluation.frame import BORDER

SIDE = 32  # pixels of the mean film
REACH = 1 - 2 * BORDER  # of half a side, from the middle: what is around the lungs has no say
ROUNDS = 5  # in which the mean film is made: of films as they are, then of films aligned to the last one
FILMS = 600  # at most, that it is made of
STEPS = (5, 6)  # on half the pixels, on all of them
LIMIT = (0.5, 0.5, 0.35, 0.35, 0.35)
HELD = (0.275, 0.275, 0.625, 0.625, 1.1)  # what the square of each change costs, in correlation
STARTS = (
    (0.0, 0.0, 0.0, 0.0, 0.0), (0.22, 0.0, 0.0, 0.0, 0.0), (-0.22, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.22, 0.0, 0.1, 0.0), (0.0, -0.22, 0.0, 0.1, 0.0), (0.0, 0.22, 0.0, -0.1, 0.0), (0.0, -0.22, 0.0, -0.1, 0.0),
)  # fmt: skip


class Alignment(nn.Module):
    """film grey [N, 1, S, S] from 0 to 255 -> float of the same shape: each where it looks most like the mean film.

    The mean film is a buffer, so that it goes wherever the weights go. As long as it is blank, films stay as they are.
    """

    mean_film: Tensor
    starts: Tensor
    limit: Tensor
    held: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_film", torch.zeros(SIDE, SIDE))
        for name, rows in (("starts", STARTS), ("limit", LIMIT), ("held", HELD)):  # on the device: a copy would wait
            self.register_buffer(name, torch.tensor(rows), persistent=False)

    def learn(self, film: Tensor) -> None:
        """Make the mean film, blank until then, of grey films [N, 1, S, S], N at least 1; no label is looked at."""
        thumb = thumbs(film)
        for _ in range(ROUNDS):
            place = self.places(thumb)  # of a blank mean film 0
            mean = thumbs(moved(thumb, place - place.mean(0))).mean((0, 1))
            self.mean_film.copy_(((mean + mean.flip(-1)) / 2).half())  # as an exported model has it

    def forward(self, film: Tensor) -> Tensor:
        with torch.no_grad():
            place = self.places(thumbs(film))
        return moved(film.float(), place)

    def places(self, thumb: Tensor) -> Tensor:
        """thumb -> place, by the best of STARTS on half the pixels, then on all of them."""
        with torch.autocast(thumb.device.type, enabled=False):
            count, starts = len(thumb), len(self.starts)
            small = Slopes.of(avg_pool2d(self.mean_film[None], 2)[0], self.limit, self.held)
            many = avg_pool2d(thumb, 2).repeat_interleave(starts, 0)
            found = small.climbed(many, self.starts.repeat(count, 1), STEPS[0])
            best = small.likeness(many, found).view(count, starts).argmax(1)
            chosen = found.view(count, starts, -1).gather(1, best.view(-1, 1, 1).expand(-1, 1, len(self.limit)))[:, 0]
            return Slopes.of(self.mean_film, self.limit, self.held).climbed(thumb, chosen, STEPS[1])


def thumbs(film: Tensor) -> Tensor:
    """Grey [N, 1, S, S] -> thumb; of a blank film 0."""
    small = interpolate(film.float(), (SIDE, SIDE), mode="area")
    std, mean = torch.std_mean(small, (1, 2, 3), keepdim=True)
    return (small - mean) / std.clamp(min=1e-3)


@dataclass(frozen=True)
class Slopes:
    """A mean film over its D pixels, and what a difference from it tells of the place.

    mean     [D] of length 1; seen: [D], 1 where pixels have a say; limit, held: [5]
    change   [5, D]: by each part of a place, exposure and contrast left out
    inverse  [5, 5]: of the curvature, by which a step is as long as the slope asks for
    """

    mean: Tensor
    seen: Tensor
    limit: Tensor
    held: Tensor
    change: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, mean_film: Tensor, limit: Tensor, held: Tensor) -> "Slopes":
        """From a mean film [side, side]."""
        side = mean_film.shape[-1]
        centre = (torch.arange(side, device=mean_film.device) + 0.5) / side * 2 - 1
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        seen = ((x.abs() < REACH) & (y.abs() < REACH)).float().flatten()
        mean, length = levelled(mean_film.flatten(), seen)
        down, right = (slope * side / 2 / length for slope in torch.gradient(mean_film))  # uncut: no step at the edge
        change = torch.stack([right * x, down * y, right, down, down * x - right * y]).flatten(1) * seen
        change = change - (change @ seen / seen.sum())[:, None] * seen
        change = change - (change @ mean)[:, None] * mean
        curvature = change @ change.T + torch.diag(2 * held + 1e-3)
        return cls(mean, seen, limit, held, change, torch.linalg.inv_ex(curvature).inverse)  # inv would wait for a GPU

    def looked(self, thumb: Tensor, place: Tensor) -> Tensor:
        """[N, D] of length 1: the films where `place` puts them."""
        return levelled(moved(thumb, place).flatten(1), self.seen)[0]

    def climbed(self, thumb: Tensor, place: Tensor, steps: int) -> Tensor:
        """The place after so many steps from `place`, within `limit` either way."""
        for _ in range(steps):
            slope = (self.looked(thumb, place) - self.mean) @ self.change.T + 2 * self.held * place
            place = (place - slope @ self.inverse).clamp(-self.limit, self.limit)
        return place

    def likeness(self, thumb: Tensor, place: Tensor) -> Tensor:
        """[N]: the correlation with the mean film, less what the place costs."""
        return self.looked(thumb, place) @ self.mean - place**2 @ self.held


def levelled(film: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """[..., D] -> (the same with mean 0 and length 1 where `seen`, 0 elsewhere; the length [..., 1] it had); of a blank
    film 0."""
    film = film * seen
    film = film - film.sum(-1, keepdim=True) / seen.sum() * seen
    length = film.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return film / length, length


def moved(film: Tensor, place: Tensor) -> Tensor:
    """Float [N, 1, S, S] as `place` shows it: what is beyond a film repeats its edge."""
    zoom, shift, angle = place[:, :2].exp(), place[:, 2:4], place[:, 4]
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos, -sin, sin, cos], -1).view(-1, 2, 2) * zoom[:, None]
    with torch.autocast(film.device.type, enabled=False):
        grid = affine_grid(torch.cat([turn, shift[:, :, None]], -1), list(film.shape), align_corners=False)
        return grid_sample(film, grid, padding_mode="border", align_corners=False)

"""What a training batch is mixed with: other films (mixup, CutMix), or films whose lungs are out."""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, pad
from torchvision.transforms.v2 import CutMix, MixUp

from pneumonia.evaluation.frame import BORDER, inner

KERNELS = (1, 3, 5, 7)  # pixels a side
FILTERED = 0.8  # the most that a filtered film counts beside the film itself
GREY = 128.0  # what takes the place of the centre: one value for all films, since a film's own mean tells its exposure


class Mix(nn.Module):
    """film uint8 [N, 1, S, S] and target [N] -> float [N, 1, S, S] in 0 .. 255, target [N] between 0 and 1.

    mixup      Zhang et al. 2018, arXiv:1710.09412, by torchvision; 0: none.
    cutmix     Yun et al. 2019, arXiv:1905.04899, by torchvision; 0: none. With both, half of the batches get each.
    random_conv share of the batch that is seen through a random filter (RandConv, Xu et al. 2021, arXiv:2007.13003): a
               mix of the film and its convolution with a kernel of its own, of 1, 3, 5 or 7 pixels a side, at the
               film's mean and deviation. Texture and sharpness, by which machines differ, tell nothing; shapes stay.
    border_out share of the batch whose border becomes one grey, drawn for each film, its target kept: the lungs must be
               enough, whatever frame or page is around them.
    lungs_out  share of the batch whose centre is blanked and whose target is 1/2: where there are no lungs there is
               nothing to call. It takes away the reward for reading the border of a film, by which two hospitals' or
               two machines' films differ (the lungs-out test of Maguolo and Nanni 2021, arXiv:2004.12823, as training).
    border_swap share of the batch whose border is another film's, its target kept: something is around the lungs, but
               tells nothing of them (backgrounds "mixed at random", Xiao et al. 2021, arXiv:2006.09994, as training).
               It is the film two before in the batch: with the one before, mixup blends a film and its target.
    The last three take different films: their shares make at most 1. Every draw is from torch's global generator.
    """

    def __init__(
        self, mixup: float = 0.0, cutmix: float = 0.0, border_out: float = 0.0, lungs_out: float = 0.0,
        random_conv: float = 0.0, border_swap: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.random_conv = random_conv
        self.border_out = border_out
        self.lungs_out = lungs_out
        self.border_swap = border_swap
        self.mixers: list[nn.Module] = []
        self.mixers += [MixUp(alpha=mixup, num_classes=2)] if mixup else []
        self.mixers += [CutMix(alpha=cutmix, num_classes=2)] if cutmix else []

    def forward(self, film: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        film = film.float()
        if self.random_conv:
            seen = torch.rand(len(film), device=film.device) < self.random_conv
            film = torch.where(seen.view(-1, 1, 1, 1), through_random_filters(film), film)
        if self.mixers:
            mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
            film, both = mixer(film, target.long())
            target = both[:, 1]
        if not (self.border_out or self.lungs_out or self.border_swap):
            return film, target
        draw = torch.rand(len(film), device=film.device)
        without_lungs = draw < self.lungs_out
        without_border = (draw >= self.lungs_out) & (draw < self.lungs_out + self.border_out)
        if self.border_swap:
            swapped = draw >= 1 - self.border_swap
            film = torch.where(swapped.view(-1, 1, 1, 1), framed_by(film, film.roll(2, 0)), film)
        film = torch.where(without_lungs.view(-1, 1, 1, 1) & centre_of(film), GREY, film)
        frame = 255 * torch.rand(len(film), 1, 1, 1, device=film.device)
        film = torch.where(without_border.view(-1, 1, 1, 1) & ~centre_of(film), frame, film)
        return film, torch.where(without_lungs, 0.5, target)


def through_random_filters(film: Tensor) -> Tensor:
    """Grey [N, 1, S, S] in 0 .. 255 -> the same, each film through a filter of its own; at most FILTERED of it."""
    side = KERNELS[int(torch.randint(len(KERNELS), ()))]
    kernel = torch.randn(len(film), 1, side, side, device=film.device)
    padded = pad(film.transpose(0, 1), [side // 2] * 4, mode="reflect")
    with torch.autocast(film.device.type, enabled=False):
        filtered = conv2d(padded, kernel, groups=len(film)).transpose(0, 1)
    share = FILTERED * torch.rand(len(film), 1, 1, 1, device=film.device)
    mean, std = film.mean((1, 2, 3), keepdim=True), film.std((1, 2, 3), keepdim=True)
    like = (filtered - filtered.mean((1, 2, 3), keepdim=True)) / filtered.std((1, 2, 3), keepdim=True).clamp(min=1e-3)
    return (share * (like * std + mean) + (1 - share) * film).clamp(0, 255)


def framed_by(film: Tensor, other: Tensor) -> Tensor:
    """Grey [N, 1, S, S] with the borders of `other`, fading over half a border's width at most, without a seam."""
    border = (~centre_of(film)).to(film.dtype)[None, None]
    fade = round(BORDER * film.shape[-1]) // 4
    return film.lerp(other, avg_pool2d(border, 2 * fade + 1, 1, fade, count_include_pad=False))


def centre_of(film: Tensor) -> Tensor:
    """bool [S, S]: what is no border of films [N, 1, S, S]."""
    centre = torch.zeros(film.shape[-2:], dtype=torch.bool, device=film.device)
    centre[inner(film.shape[-2:], BORDER)] = True
    return centre

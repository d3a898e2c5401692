"""What a training batch is mixed with: other films (mixup, CutMix), or films whose lungs are out."""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, pad
from torchvision.transforms.v2 import CutMix, MixUp

BORDER = 0.15  # share of each side that is border, as in the shortcut audit
KERNELS = (1, 3, 5, 7)  # pixels a side
FILTERED = 0.8  # the most that a filtered film counts beside the film itself
LEVELS = 64  # quantiles by which tones are compared
GREY = 128.0  # what takes the place of the centre: one value for all films, since a film's own mean tells its exposure


class Mix(nn.Module):
    """film uint8 [N, 1, S, S] and target [N] -> float [N, 1, S, S] in 0 .. 255, target [N] between 0 and 1.

    mixup      Zhang et al. 2018, arXiv:1710.09412, by torchvision; 0: none.
    cutmix     Yun et al. 2019, arXiv:1905.04899, by torchvision; 0: none. With both, half of the batches get each.
    random_conv share of the batch that is seen through a random filter (RandConv, Xu et al. 2021, arXiv:2007.13003): a
               mix of the film and its convolution with a kernel of its own, of 1, 3, 5 or 7 pixels a side, at the
               film's mean and deviation. Texture and sharpness, by which machines differ, tell nothing; shapes stay.
    tone_swap  share of the batch whose tones are another film's, its target kept: by the rising curve that gives its
               centre the other one's distribution of greys (histogram matching as augmentation, Ma 2020,
               arXiv:2012.13871). A machine's own curve, which films of one class may share, tells nothing. It is the
               film three before in the batch, of which nothing else is mixed in.
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
        random_conv: float = 0.0, border_swap: float = 0.0, tone_swap: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.random_conv = random_conv
        self.border_out = border_out
        self.lungs_out = lungs_out
        self.border_swap = border_swap
        self.tone_swap = tone_swap
        self.mixers: list[nn.Module] = []
        self.mixers += [MixUp(alpha=mixup, num_classes=2)] if mixup else []
        self.mixers += [CutMix(alpha=cutmix, num_classes=2)] if cutmix else []

    def forward(self, film: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.tone_swap:
            swapped = torch.rand(len(film), device=film.device) < self.tone_swap
            film = torch.where(swapped.view(-1, 1, 1, 1), retoned(film), film)
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


def retoned(film: Tensor) -> Tensor:
    """uint8 [N, 1, S, S] -> float of the same shape, each film by the rising curve that takes LEVELS quantiles of its
    centre to those of the film three before; greys beyond its centre's become that centre's darkest or lightest."""
    own = quantiles(film)
    wanted = own.roll(3, 0)
    grey = torch.arange(256.0, device=film.device).expand(len(film), -1).contiguous()
    upper = torch.searchsorted(own, grey).clamp(1, LEVELS - 1)
    low, high = own.gather(1, upper - 1), own.gather(1, upper)
    share = ((grey - low) / (high - low).clamp(min=1)).clamp(0, 1)
    curve = wanted.gather(1, upper - 1).lerp(wanted.gather(1, upper), share)
    return curve.gather(1, film.flatten(1).long()).view(film.shape)


def quantiles(film: Tensor) -> Tensor:
    """uint8 [N, 1, S, S] -> LEVELS quantiles of each centre from its darkest to its lightest, float [N, LEVELS]."""
    rows, columns = inner(film)
    ranked = film[:, 0, rows, columns].flatten(1).sort(1).values
    places = torch.linspace(0, ranked.shape[1] - 1, LEVELS, device=film.device).round().long()
    return ranked[:, places].float().contiguous()


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
    centre[inner(film)] = True
    return centre


def inner(film: Tensor) -> tuple[slice, slice]:
    """The rows and columns of films [N, 1, S, S] that are no border."""
    rows, columns = (slice(round(BORDER * side), side - round(BORDER * side)) for side in film.shape[-2:])
    return rows, columns

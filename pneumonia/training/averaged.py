"""A classifier's whole answer to one film as a net that attributions take: the mean over all views of a prediction."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pneumonia.training.alignment import moved, thumbs
from pneumonia.training.classifier import Classifier
from pneumonia.training.views import KEPT, LEVELS, in_range, middle


class Averaged(nn.Module):
    """images [N, 3, S, S] in [0, 1], changed copies of one film -> logit [N]; of the film itself the classifier's.

    Where the mean film has it, and the means and deviations it is standardised by, stay those of the film, so that a
    map tells what its pixels show: else a covered corner would change the exposure of all the rest, and a film that
    fades to black, as integrated gradients have it, would look the same to the net all the way. All views of an image
    go through the net at once, side by side: F mirror images x L ways to standardise x K places.
    """

    def __init__(self, classifier: Classifier, film: Tensor) -> None:
        """`film`: grey [1, 1, S, S] from 0 to 255, as `classifier.as_predicted` has it."""
        super().__init__()
        self.net = classifier.net
        self.memory_format = classifier.memory_format
        self.flips = 2 if classifier.flip_average else 1
        self.kept = KEPT if classifier.crop_average else (1.0,)
        ways = [classifier.standardize, *(["local"] if classifier.local_view else [])]
        with torch.no_grad():
            self.place = None if classifier.alignment is None else classifier.alignment.places(thumbs(film))
            placed = self.placed(film.float() / 255).transpose(0, 1)
            levels = [LEVELS[way](placed) if way in LEVELS else None for way in ways]
        self.levels = [level and (level[0].transpose(0, 1), level[1].transpose(0, 1)) for level in levels]
        middles = torch.full((len(self.kept),), 1 / len(self.kept), device=film.device)
        self.share = middles if self.place is None else torch.cat([middles, torch.ones_like(middles[:1])]) / 2
        self.copies = self.flips * len(ways) * len(self.share)  # of each image; attribution.batching asks

    def forward(self, images: Tensor) -> Tensor:
        logit = self.net(self.views(images)).float().view(len(images), -1, len(self.share))
        return logit.mean(1) @ self.share

    def placed(self, grey: Tensor) -> Tensor:
        """Grey [N, 1, S, S] -> [N, K, S, S]: its middles, then where the mean film has it."""
        middles = [middle(grey, kept) for kept in self.kept]
        aligned = [] if self.place is None else [moved(grey, self.place.expand(len(grey), -1))]
        return torch.cat(middles + aligned, 1)

    def views(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] in [0, 1] -> [N * F * L * K, 3, S, S] as the net takes them."""
        placed = self.placed(images.mean(1, keepdim=True))
        seen = torch.cat([in_range(placed, *level) if level else placed for level in self.levels], 1)
        if self.flips == 2:
            seen = torch.cat([seen, seen.flip(-1)], 1)
        grey = seen.flatten(0, 1)[:, None]
        return grey.expand(-1, 3, -1, -1).contiguous(memory_format=self.memory_format)

    def by_view(
        self, attribute: Callable[[nn.Module, Tensor], Tensor], images: Tensor, *, heat: bool = False
    ) -> Tensor:
        """The maps [N, S, S] of images [N, 3, S, S] by a method that reads layers, which see one view at a time.

        Each view's own map goes back to the pixels that the view was made of, and the mean is taken. A pixel gets the
        sum of what it became, so that sums stay; with `heat`, which has no unit, the mean.
        """
        return torch.cat([self._by_view(attribute, image, heat) for image in images.split(1)])

    def _by_view(self, attribute: Callable[[nn.Module, Tensor], Tensor], image: Tensor, heat: bool) -> Tensor:
        maps = attribute(self.net, self.views(image)).view(self.flips, -1, len(self.share), *image.shape[-2:])
        maps = torch.cat([maps[:1], maps[1:].flip(-1)]).mean((0, 1))
        grey, total = image[:, :1].detach().requires_grad_(), torch.zeros_like(maps[:1])
        with torch.enable_grad():
            for share, seen, part in zip(self.share, self.placed(grey)[0], maps, strict=True):
                total += share * moved_back(part, seen, grey, heat)
        return total


def moved_back(part: Tensor, seen: Tensor, grey: Tensor, heat: bool) -> Tensor:
    """A map [S, S] of `seen` [S, S], which was made of `grey` [1, 1, S, S] -> [1, S, S] of that."""
    back = torch.autograd.grad(seen, grey, part, retain_graph=True)[0][0]
    if not heat:
        return back
    count = torch.autograd.grad(seen, grey, torch.ones_like(part), retain_graph=True)[0][0]
    return back / count.clamp(min=1e-6)

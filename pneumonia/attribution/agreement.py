"""Do attributions agree: with themselves under another seed, with other methods, with a net that knows nothing?

Agreement is Spearman's rank correlation over the pixels of a film; NaN where a map is constant and so has no ranks.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

from pneumonia.attribution.contract import Method, seeded

Floats = NDArray[np.float64]
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def _centred_ranks(maps: Tensor) -> Floats:
    """Ranks of [N, H, W] within each film, ties shared, with mean 0 and length 1, [N, H W]; NaN for a constant map."""
    ranks: Floats = rankdata(maps.detach().flatten(1).cpu().double().numpy(), axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    length = np.linalg.norm(ranks, axis=1, keepdims=True)
    centred: Floats = np.divide(ranks, length, out=np.full_like(ranks, np.nan), where=length > 0)
    return centred


def rank_correlation(one: Tensor, other: Tensor) -> Floats:
    """Spearman's correlation of two sets of maps [N, H, W], film by film, [N]."""
    if one.shape != other.shape:
        raise ValueError(f"Expected maps of one shape, got {list(one.shape)} and {list(other.shape)}")
    correlation: Floats = (_centred_ranks(one) * _centred_ranks(other)).sum(axis=1)
    return correlation


def agreement(maps: Mapping[str, Tensor]) -> Floats:
    """Spearman's correlation of |attribution| between the M methods of `maps` ([N, H, W] each), [N, M, M].

    Absolute values, for some methods have no sign: the question is whether they point at the same pixels.
    """
    ranks = np.stack([_centred_ranks(attribution.abs()) for attribution in maps.values()], axis=1)
    table: Floats = ranks @ ranks.transpose(0, 2, 1)
    return table


def seed_stability(method: Method, net: nn.Module, images: Tensor, seeds: Sequence[int]) -> Floats:
    """Mean rank correlation of a film's maps over all pairs of seeds, [N]; 1 for a method that draws nothing."""
    if len(seeds) < 2:
        raise ValueError(f"seeds={list(seeds)}: expected at least two to compare")
    drawn: Any = method  # a Method is a dataclass; whether it has a seed is what is asked here
    if "seed" not in {field.name for field in dataclasses.fields(drawn)}:
        return np.ones(len(images))
    maps = [dataclasses.replace(drawn, seed=seed).attribute(net, images) for seed in seeds]
    correlations = np.stack([rank_correlation(one, other) for one, other in combinations(maps, 2)])
    stability: Floats = correlations.mean(axis=0)
    return stability


def randomised(net: AnyModule, seed: int) -> AnyModule:
    """A copy of `net` with every layer set back to a random start; ValueError for weights that no layer can reset."""
    other = copy.deepcopy(net)
    with seeded(seed, next(net.parameters()).device):
        for name, module in other.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
            elif any(True for _ in module.parameters(recurse=False)):
                raise ValueError(f"Layer {name!r} ({type(module).__name__}) has weights but no reset_parameters()")
    return other

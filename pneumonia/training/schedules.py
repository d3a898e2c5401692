"""Learning-rate schedules as pure functions: factor(step) multiplies the optimizer's rate.

Each takes the step that is about to run (0, 1, ...), its own settings, and the length of the training:
`steps_per_epoch` and `total_steps`. Warm-up multiplies whatever the schedule says by a linear rise over a share of all
steps.
"""

import math
from collections.abc import Callable, Sequence

Factor = Callable[[int], float]


def constant(warmup: float, steps_per_epoch: int, total_steps: int) -> Factor:
    """1 throughout."""
    return with_warmup(lambda step: 1.0, warmup, total_steps)


def step(milestones: Sequence[int], gamma: float, warmup: float, steps_per_epoch: int, total_steps: int) -> Factor:
    """gamma^k in the epoch after k milestones (epochs counted from 0)."""
    if not all(isinstance(milestone, int) and milestone > 0 for milestone in milestones):
        raise ValueError(f"milestones={list(milestones)}: expected whole numbers of epochs above 0, as [5, 8]")
    check_share("gamma", gamma)

    def factor(step: int) -> float:
        return gamma ** sum(step // steps_per_epoch >= milestone for milestone in milestones)

    return with_warmup(factor, warmup, total_steps)


def cosine(floor: float, per: str, warmup: float, steps_per_epoch: int, total_steps: int) -> Factor:
    """floor + (1 - floor) (1 + cos(pi t)) / 2 after the warm-up, t from 0 to 1 (Loshchilov and Hutter 2017).

    `per` is "step", or "epoch" when the rate stays the same within an epoch.
    """
    check_share("floor", floor)
    if per not in ("step", "epoch"):
        raise ValueError(f"per={per}: expected step or epoch")
    start = round(warmup * total_steps)

    def factor(step: int) -> float:
        position = step if per == "step" else step // steps_per_epoch * steps_per_epoch
        t = min(1.0, max(0.0, (position - start) / max(1, total_steps - start)))
        return floor + (1 - floor) * (1 + math.cos(math.pi * t)) / 2

    return with_warmup(factor, warmup, total_steps)


def one_cycle(peak: float, start: float, floor: float, warmup: float, steps_per_epoch: int, total_steps: int) -> Factor:
    """Half a cosine up from `start` to 1, which it reaches after the share `peak` of all steps, half a cosine down to
    `floor` at the last (Smith and Topin 2018, arXiv:1708.07120; torch's OneCycleLR of two phases)."""
    if not 0 < peak < 1:
        raise ValueError(f"peak={peak}: expected a share of all steps between 0 and 1")
    check_share("start", start)
    check_share("floor", floor)
    top = peak * total_steps - 1

    def factor(step: int) -> float:
        if step < top:
            return between(start, 1.0, step / top)
        return between(1.0, floor, min(1.0, (step - top) / max(1.0, total_steps - 1 - top)))

    return with_warmup(factor, warmup, total_steps)


def between(a: float, b: float, t: float) -> float:
    """From a at t = 0 to b at t = 1 by half a cosine."""
    return b + (a - b) * (1 + math.cos(math.pi * t)) / 2


def exponential(gamma: float, steps: int, warmup: float, steps_per_epoch: int, total_steps: int) -> Factor:
    """gamma^(step / steps): Keras's ExponentialDecay without staircase."""
    check_share("gamma", gamma)
    if steps < 1:
        raise ValueError(f"steps={steps}: expected a whole number from 1")
    return with_warmup(lambda step: gamma ** (step / steps), warmup, total_steps)


def with_warmup(factor: Factor, warmup: float, total_steps: int) -> Factor:
    """`factor` times (step + 1) / n in the first n = warmup * total_steps steps."""
    check_share("warmup", warmup)
    rise = round(warmup * total_steps)
    return lambda step: factor(step) * min(1.0, (step + 1) / rise if rise else 1.0)


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless 0 <= value <= 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: expected a number from 0 to 1")

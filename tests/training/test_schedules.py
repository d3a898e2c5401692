"""Every schedule, value by value, against numbers worked out by hand."""

import math

import pytest
import torch

from pneumonia.training.schedules import constant, cosine, exponential, one_cycle, step

LENGTH = {"steps_per_epoch": 10, "total_steps": 100}


def test_constant() -> None:
    assert [constant(0.0, **LENGTH)(s) for s in (0, 50, 99)] == [1, 1, 1]


def test_step_divides_by_ten_from_the_milestone_epoch_on() -> None:
    factor = step([5, 8], 0.1, 0.0, **LENGTH)
    assert [factor(s) for s in (0, 49, 50, 79, 80, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_per_step() -> None:
    factor = cosine(0.2, "step", 0.0, **LENGTH)
    assert [factor(s) for s in (0, 25, 50, 75, 100)] == pytest.approx(
        [1.0, 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2, 0.6, 0.2 + 0.8 * (1 - math.sqrt(0.5)) / 2, 0.2]
    )


def test_cosine_per_epoch_stays_the_same_within_an_epoch() -> None:
    factor = cosine(0.0, "epoch", 0.0, **LENGTH)
    assert factor(50) == factor(59) == pytest.approx(0.5)
    assert factor(60) < factor(59)


def test_cosine_begins_where_its_warm_up_ends() -> None:
    factor = cosine(0.0, "step", 0.2, **LENGTH)
    assert [factor(s) for s in (0, 9, 19, 20, 60)] == pytest.approx([0.05, 0.5, 1.0, 1.0, 0.5])


def test_one_cycle_is_torchs() -> None:
    factor = one_cycle(0.3, 0.04, 0.0001, 0.0, **LENGTH)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=100, pct_start=0.3, div_factor=25, final_div_factor=400, cycle_momentum=False
    )
    for step_number in range(100):
        assert factor(step_number) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step_number < 99:
            peer.step()


def test_exponential_is_kerass_decay() -> None:
    factor = exponential(0.96, 2500, 0.0, **LENGTH)
    assert [factor(s) for s in (0, 1250, 2500, 5000)] == pytest.approx([1, math.sqrt(0.96), 0.96, 0.9216])


def test_warm_up_rises_linearly_and_ends_at_the_full_rate() -> None:
    factor = constant(0.1, **LENGTH)
    assert [factor(s) for s in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant(1.5, **LENGTH), "warmup=1.5"),
        (lambda: step([1], -1.0, 0.0, **LENGTH), "gamma=-1"),
        (lambda: one_cycle(0.0, 0.1, 0.0, 0.0, **LENGTH), "peak=0"),
        (lambda: one_cycle(0.3, 1.1, 0.0, 0.0, **LENGTH), "start=1.1"),
        (lambda: cosine(2.0, "step", 0.0, **LENGTH), "floor=2"),
        (lambda: cosine(0.0, "batch", 0.0, **LENGTH), "per=batch"),
        (lambda: step(["a"], 0.1, 0.0, **LENGTH), "milestones="),
        (lambda: step([-1], 0.1, 0.0, **LENGTH), "milestones="),
        (lambda: exponential(0.9, 0, 0.0, **LENGTH), "steps=0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

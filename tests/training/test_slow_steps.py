"""Slow steps are told once, with their likely cause; the clock and the machine's rate are made up."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cellwright.config import recipe as recipes
from cellwright.models.build import build_network
from cellwright.training.slow_steps import Setting, StepWatch, Usage, counted_operations, likely_cause

NORMAL = Setting(is_slow_bf16=False, threads=2, cores=2)
LAYER_OPERATIONS = 2.0 * 8 * 4 * 5  # 8 rows, from 4 to 5 values


def warnings(step_s: list[float], setting: Setting | None = NORMAL, expected_s: float = 0.5) -> list[str]:
    """The warnings of a run whose steps take ``step_s``."""
    layer, notes, clock = nn.Linear(4, 5), [], [0.0]
    rate = 3 * LAYER_OPERATIONS / expected_s / 2  # of each of two cores
    watch = StepWatch(layer, setting, notes.append, rate=lambda: rate, usage=lambda: Usage(clock[0], 2 * clock[0], 0))
    for seconds in step_s:
        with watch.step():
            layer(torch.ones(8, 4))
            clock[0] += seconds
    assert not layer._forward_hooks
    return notes


def test_steps_ten_times_slower_than_their_arithmetic_are_told_once() -> None:
    assert warnings([4.9] * 5) == []
    assert warnings([30, 4, 30, 30, 4]) == []  # not in a row
    (text,) = warnings([1, 1, 6, 5.5, 7, 6, 6, 6])
    assert text.startswith(
        "warning: a step takes 5.5 s, but its arithmetic should take about 0.5 s on this machine; no "
    )
    assert warnings([0.9] * 5, expected_s=0.01) == []  # short anyway
    assert warnings([100] * 5, None) == []


@pytest.mark.parametrize(
    ("setting", "used", "cause"),
    [
        (Setting(is_slow_bf16=True, threads=8, cores=2), Usage(10, 20, 0), "no instructions for bf16"),
        (Setting(is_slow_bf16=False, threads=8, cores=2), Usage(10, 20, 0), "train.threads=2"),
        (NORMAL, Usage(10, 5, 5000), "memory is short"),
        (NORMAL, Usage(10, 5, 3), "only 25% of the time of its cores"),
    ],
)
def test_the_likely_cause_is_named(setting: Setting, used: Usage, cause: str) -> None:
    assert cause in likely_cause(setting, [used, used])


def test_operations_are_those_that_torch_counts() -> None:
    """In the convolutional part of both families."""
    for name, part_name in (("dsb2018/nuclei", "unet"), ("synthetic/demo", "backbone")):
        part = getattr(build_network(recipes.load(name).resolved(), 1), part_name)
        with counted_operations(part) as operations, FlopCounterMode(display=False) as counter:
            part(torch.zeros(1, 3, 64, 64))
        assert sum(operations) == counter.get_total_flops() > 1e6

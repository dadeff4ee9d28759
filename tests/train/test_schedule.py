"""Learning rates computed by hand."""

from __future__ import annotations

import pytest

from cellwright.config.train_schema import TrainConfig
from cellwright.train.schedule import learning_rate


def test_warm_up_is_linear_from_the_start_factor() -> None:
    config = TrainConfig(lr=0.2, warmup_steps=4, warmup_start_factor=0.5, schedule="constant")
    rates = [learning_rate(config, step, 100) for step in range(6)]
    assert rates == pytest.approx([0.1, 0.125, 0.15, 0.175, 0.2, 0.2])


def test_steps_fall_at_their_shares() -> None:
    config = TrainConfig(lr=1, steps=10, warmup_steps=0, milestones=(0.5, 0.8), decay_factor=0.1)
    rates = [learning_rate(config, step, 10) for step in range(10)]
    assert rates == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)


def test_cosine_falls_from_the_end_of_warm_up_to_the_final_factor() -> None:
    config = TrainConfig(lr=1, steps=12, warmup_steps=2, warmup_start_factor=0.1, schedule="cosine", final_factor=0.2)
    assert learning_rate(config, 0, 12) == pytest.approx(0.1)
    assert learning_rate(config, 1, 12) == pytest.approx(0.55)
    assert learning_rate(config, 2, 12) == pytest.approx(1)
    assert learning_rate(config, 7, 12) == pytest.approx(0.6)
    assert learning_rate(config, 12, 12) == pytest.approx(0.2)


def test_no_warm_up_and_one_step() -> None:
    config = TrainConfig(lr=0.3, steps=1, warmup_steps=0, schedule="cosine")
    assert learning_rate(config, 0, 1) == 0.3

"""The averaged weights of a training state."""

from __future__ import annotations

import pytest
from torch import nn

from cellwright.config.training import TrainConfig
from cellwright.training.optimiser import build_optimiser
from cellwright.training.state import Position, TrainState, initial_average


def test_averaged_weights_against_values_computed_by_hand() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    optimiser = build_optimiser(network, TrainConfig())
    state = TrainState(network, optimiser, Position(step=1), initial_average(network))
    nn.init.constant_(network.weight, 1.0)
    state.update_average(0.9)  # step 1: decay 2/11
    assert state.averaged is not None
    assert state.averaged["weight"].item() == pytest.approx(9 / 11)
    state.position.step = 1000
    nn.init.constant_(network.weight, 0.0)
    state.update_average(0.9)
    assert state.averaged["weight"].item() == pytest.approx(0.9 * 9 / 11)

"""Checkpoints are exact and complete, and a checkpoint that does not fit is refused with a clear error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from cellwright.config.training import TrainConfig
from cellwright.core.errors import FormatError, OutputError
from cellwright.training.optimiser import build_optimiser
from cellwright.training.state import (
    Position,
    TrainState,
    initial_average,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)


def make_state(seed: int, optimiser: str = "sgd", width: int = 4) -> TrainState:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    network[2].bias.requires_grad_(False)
    config = TrainConfig(optimiser=optimiser, length="10 steps", warmup="1 step")  # type: ignore[arg-type]
    state = TrainState(network, build_optimiser(network, config), Position(threads=1), initial_average(network))
    for _ in range(3):
        network(torch.randn(5, 3)).square().sum().backward()
        state.optimiser.step()
        state.position.step += 1
        state.update_average(0.5)
    return state


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_loaded_checkpoint_is_bit_identical(tmp_path: Path, optimiser: str) -> None:
    saved, other = make_state(0, optimiser), make_state(1, optimiser)
    saved.position.metrics = {"a": 0.1 + 0.2}
    path = save_checkpoint(tmp_path, saved, keep=2)
    assert path.name == "step_00000003"
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}  # nothing is pickled
    load_checkpoint(path, other)
    assert other.position == saved.position
    for state in (saved, other):
        torch.manual_seed(5)
        state.optimiser.zero_grad()
        state.network(torch.randn(5, 3)).square().sum().backward()
        state.optimiser.step()
        state.position.step += 1
        state.update_average(0.5)
    assert saved.averaged is not None
    assert other.averaged is not None
    for name, value in saved.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[name])
        assert torch.equal(saved.averaged[name], other.averaged[name])


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


def test_an_incomplete_checkpoint_is_never_loaded(tmp_path: Path) -> None:
    state = make_state(0)
    assert newest_checkpoint(tmp_path / "absent") is None
    assert newest_checkpoint(tmp_path) is None
    first = save_checkpoint(tmp_path, state, keep=3)
    incomplete = tmp_path / f".step_00000009.{os.getpid() + 1}.partial"
    incomplete.mkdir()
    (incomplete / "weights.safetensors").write_bytes(b"half")
    (tmp_path / "step_00000010.zip").write_bytes(b"")
    assert newest_checkpoint(tmp_path) == first
    assert not incomplete.exists()


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    state = make_state(0)
    for step in (5, 10, 123456789, 20):
        state.position.step = step
        save_checkpoint(tmp_path, state, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000020", "step_123456789"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "step_123456789"


def test_a_state_with_other_fields_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make_state(0), keep=2)
    state_file = path / "state.json"
    state_file.write_text(state_file.read_text().replace('"best_step"', '"bst"'))
    with pytest.raises(FormatError, match=r"damaged\n  where: .*state\.json"):
        load_checkpoint(path, make_state(1))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make_state(0), keep=2)
    weights = path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(FormatError, match="damaged") as caught:
        load_checkpoint(path, make_state(1))
    assert str(weights) in str(caught.value)
    assert "remove the folder step_00000003" in str(caught.value)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make_state(0), keep=2)
    with pytest.raises(FormatError, match="another network"):
        load_checkpoint(path, make_state(1, width=5))


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make_state(0), keep=2)
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(FormatError, match="another schema version"):
        load_checkpoint(path, make_state(1))


def test_the_checkpoint_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_checkpoint(tmp_path / "checkpoints", make_state(0), keep=2)

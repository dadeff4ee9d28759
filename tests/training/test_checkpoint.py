"""Checkpoints are exact, complete and verified; a damaged one is never used, and the best model belongs to it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from cellwright.config.training import TrainConfig
from cellwright.core.errors import FormatError, OutputError
from cellwright.models.weights.model_folder import MODEL_FILES
from cellwright.training.checkpoint import DamagedCheckpoint, Resumed, load_checkpoint, resume, save_checkpoint
from cellwright.training.optimiser import build_optimiser
from cellwright.training.state import Position, TrainState, initial_average


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


def test_an_incomplete_checkpoint_is_never_loaded(tmp_path: Path) -> None:
    state = make_state(0)
    assert resume(tmp_path / "absent", state, tmp_path / "model") == Resumed(None)
    assert resume(tmp_path, state, tmp_path / "model") == Resumed(None)
    first = save_checkpoint(tmp_path, state, keep=3)
    incomplete = tmp_path / f".step_00000009.{os.getpid() + 1}.partial"
    incomplete.mkdir()
    (incomplete / "weights.safetensors").write_bytes(b"half")
    (tmp_path / "step_00000010.zip").write_bytes(b"")
    assert resume(tmp_path, state, tmp_path / "model") == Resumed(first)
    assert not incomplete.exists()


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    state = make_state(0)
    for step in (5, 10, 123456789, 20):
        state.position.step = step
        save_checkpoint(tmp_path, state, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000020", "step_123456789"]
    assert resume(tmp_path, state, tmp_path / "model") == Resumed(tmp_path / "step_123456789")


def test_a_file_of_the_user_in_a_checkpoint_stays(tmp_path: Path) -> None:
    state = make_state(0)
    first = save_checkpoint(tmp_path, state, keep=1)
    (first / "notes.txt").write_text("only copy")
    state.position.step += 1
    save_checkpoint(tmp_path, state, keep=1)
    assert [file.name for file in first.iterdir()] == ["notes.txt"]
    first.rename(tmp_path / f".{first.name}.partial")  # a kill while the checkpoint was removed
    resume(tmp_path, state, tmp_path / "model")
    assert (first / "notes.txt").read_text() == "only copy"


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


def write_model(folder: Path, text: str) -> Path:
    """Something in place of a model."""
    folder.mkdir(exist_ok=True)
    for name in MODEL_FILES:
        (folder / f"new.{name}").write_text(f"{text} {name}")
        (folder / f"new.{name}").replace(folder / name)
    return folder


def weights_of(model: Path) -> str:
    return (model / "weights.safetensors").read_text()


def two_checkpoints(root: Path) -> tuple[Path, Path, TrainState]:
    """Checkpoints of steps 3 and 6, each with another best model; then, after step 7, a better one."""
    state, model = make_state(0), root / "model"
    saved = []
    for step in (3, 6):
        state.position.step = state.position.best_step = step
        saved.append(save_checkpoint(root / "checkpoints", state, 2, write_model(model, f"best of {step}")))
    write_model(model, "best of 7")
    return *saved, state


FILES = ["averaged.safetensors", *(f"best_model/{name}" for name in sorted(MODEL_FILES))]
FILES += ["optimiser.safetensors", "state.json", "weights.safetensors"]


@pytest.mark.parametrize("damage", ["emptied", "changed", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(tmp_path: Path, name: str, damage: str) -> None:
    first, second, _ = two_checkpoints(tmp_path)
    assert sorted(path.relative_to(second).as_posix() for path in second.rglob("*") if path.is_file()) == FILES
    content = (second / name).read_bytes()
    (second / name).unlink()  # the weights of the model may be another name of the same file
    if damage != "missing":
        changed = content.replace(b'": 6', b'": 5') if name == "state.json" else bytes([content[0] ^ 1, *content[1:]])
        (second / name).write_bytes(b"" if damage == "emptied" else changed)
    state = make_state(1)
    resumed = resume(tmp_path / "checkpoints", state, tmp_path / "model")
    assert resumed.path == first
    assert resumed.damaged[0].startswith(f"step_00000006 is damaged ({second / name}: ")
    assert state.position.step == 3
    assert weights_of(tmp_path / "model") == "best of 3 weights.safetensors"
    assert not second.exists()


def test_without_any_checkpoint_the_state_is_as_before(tmp_path: Path) -> None:
    first, second, _ = two_checkpoints(tmp_path)
    for path in (first, second):
        (path / "optimiser.safetensors").write_bytes(b"")
    state, same = make_state(1), make_state(1)
    resumed = resume(tmp_path / "checkpoints", state, tmp_path / "model")
    assert (resumed.path, len(resumed.damaged)) == (None, 2)
    assert all(map(torch.equal, state.network.state_dict().values(), same.network.state_dict().values()))
    assert state.position == same.position


def test_the_best_model_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    _, second, _ = two_checkpoints(tmp_path)
    (tmp_path / "model" / "README.md").unlink()
    assert resume(tmp_path / "checkpoints", make_state(1), tmp_path / "model") == Resumed(second)
    assert [(tmp_path / "model" / name).read_text() for name in MODEL_FILES] == [f"best of 6 {n}" for n in MODEL_FILES]


def test_a_checkpoint_of_the_same_step_is_kept_unless_an_evaluation_was_added(tmp_path: Path) -> None:
    state = make_state(0)
    path = save_checkpoint(tmp_path, state, keep=2)
    before = (path / "weights.safetensors").stat().st_ino
    save_checkpoint(tmp_path, state, keep=2)
    assert (path / "weights.safetensors").stat().st_ino == before
    state.position.evaluated_step, state.position.metrics = 3, {"a": 0.5, "undefined": float("nan")}
    save_checkpoint(tmp_path, state, keep=2)
    assert json.loads((path / "state.json").read_text())["metrics"] == {"a": 0.5, "undefined": None}
    (path / "weights.safetensors").write_bytes(b"")
    save_checkpoint(tmp_path, state, keep=2)  # a damaged one is written again
    load_checkpoint(path, make_state(1))


@pytest.mark.parametrize("model", ["missing", "damaged"])
def test_checkpoints_of_earlier_versions(tmp_path: Path, model: str) -> None:
    """They have no digests and no model; the best model is that of the run, if it can be read."""
    state = make_state(0)
    path = save_checkpoint(tmp_path, state, keep=2)
    content = json.loads((path / "state.json").read_text())
    del content["digest"], content["files"]
    (path / "state.json").write_text(json.dumps(content))
    load_checkpoint(path, make_state(1), tmp_path / "model")
    (path / "state.json").write_text(json.dumps({**content, "best_step": 2}))
    if model == "damaged":
        write_model(tmp_path / "model", "no")
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(path, make_state(1), tmp_path / "model")
    for wrong in ({"step": "3"}, {"metrics": []}, {"metrics": {"a": "b"}}, {"patience_best": "x"}):
        (path / "state.json").write_text(json.dumps({**content, **wrong}))
        with pytest.raises(DamagedCheckpoint):
            load_checkpoint(path, make_state(1))

"""Model folders: saving, loading, starting from one, and errors."""

from __future__ import annotations

import dataclasses
import doctest
import errno
import json
import os
from pathlib import Path

import pytest
import torch

from cellwright.config.recipe import Recipe
from cellwright.core.errors import ModelError, OutputError
from cellwright.models.build import build_network
from cellwright.models.weights import model_folder as module
from cellwright.models.weights.initial import start_from
from cellwright.models.weights.model_folder import ModelInfo, model_folder, read_model_info
from cellwright.models.weights.sources import Weights
from cellwright.models.weights.torch_io import load_network, load_weights, read_weights, save_model, save_tensors

MODEL = {
    "kind": "mask_rcnn",
    "backbone": {"depth": 18},
    "fpn": {"channels": 16},
    "box_head": {"fc_channels": 32},
    "mask_head": {"channels": 16, "convs": 1},
}


def recipe() -> Recipe:
    return Recipe.model_validate({"name": "tiny", "description": "A test.", "classes": 2, "model": MODEL})


def info(**changes: object) -> ModelInfo:
    default = ModelInfo(
        kind="mask_rcnn",
        recipe=recipe().resolved().to_dict(),
        class_names=("nucleus", "debris"),
        normalisation=recipe().input.model_dump(mode="json"),
        thresholds={"score": 0.4},
        data_licence="CC0-1.0",
        version="0.1.0",
        metrics={"AP@100": 0.31},
    )
    return dataclasses.replace(default, **changes)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    return save_model(tmp_path / "run" / "model", build_network(recipe(), 2).state_dict(), info())


def test_round_trip(saved: Path) -> None:
    network, loaded = load_network(saved, kind="mask_rcnn")
    assert loaded == info()
    assert not network.training
    stored = read_weights(saved)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, stored[name]), name
    torch.manual_seed(1)
    same = build_network(recipe(), 2).state_dict()
    assert all(torch.equal(same[name], stored[name]) for name in same)
    card = (saved / "README.md").read_text()
    assert "CC0-1.0" in card
    assert "AP@100" in card
    assert str(saved) not in card + (saved / "model.json").read_text()


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(module).failed == 0


def test_file_permissions_are_the_default_ones(saved: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in saved.iterdir()}
    assert len(modes) == 1, "safetensors makes its files readable by the owner only"


def test_a_full_disk_is_reported_and_the_old_model_kept(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="the disk is full"):
        save_model(saved, build_network(recipe(), 2).state_dict(), info())
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_weights_are_not_written_by_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its temporary files, which have names of its own, would stay if the process is killed."""

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("safetensors.torch.serialize_file", never)
    save_model(tmp_path / "model", build_network(recipe(), 2).state_dict(), info())
    assert read_weights(tmp_path / "model")


def test_a_run_folder_is_a_model(saved: Path) -> None:
    assert model_folder(saved.parent) == saved
    assert load_network(saved.parent)[1].kind == "mask_rcnn"


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model here[\s\S]*model\.json"):
        read_model_info(tmp_path)


def test_a_folder_of_another_kind_is_rejected(saved: Path) -> None:
    content = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps({**content, "kind": "unet"}))
    with pytest.raises(ModelError, match=r"contains a 'unet' model, not a 'mask_rcnn' model") as caught:
        read_model_info(saved, kind="mask_rcnn")
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "another schema version"),
        ({"surprise": 1}, "missing or unknown"),
        ({"kind": None}, "missing or unknown"),
        (
            {"recipe": {"name": "x", "model": {"kind": "mask_rcnn", "depth": 3}}},
            "recipe in this model folder is invalid",
        ),
    ],
)
def test_a_damaged_description(saved: Path, change: dict[str, object], message: str) -> None:
    content = {**json.loads((saved / "model.json").read_text()), **change}
    content = {key: value for key, value in content.items() if value is not None or key == "calibration"}
    (saved / "model.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message):
        load_network(saved)


def test_damaged_weights(saved: Path) -> None:
    (saved / "weights.safetensors").write_bytes((saved / "weights.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot read the weights"):
        load_network(saved)


def test_values_that_are_not_finite(saved: Path) -> None:
    """An R-CNN drops objects that are not finite, so that a damaged network would only find fewer."""
    weights = read_weights(saved)
    weights["mask_head.logits.bias"][0] = torch.inf
    save_tensors(saved / "weights.safetensors", weights)
    for read in (load_network, read_weights, module.read_arrays):
        with pytest.raises(ModelError, match=r"not finite[\s\S]*mask_head\.logits\.bias"):
            read(saved)
    with pytest.raises(ModelError, match=r"not finite[\s\S]*mask_head\.logits\.bias"):
        Weights(weights, "cellwright", "a.pth")


def test_loading_is_strict(saved: Path) -> None:
    weights = read_weights(saved)
    network = build_network(recipe(), 2)
    for changed, message in (
        ({k: v for k, v in weights.items() if k != "box_head.0.deltas.bias"}, r"box_head\.0\.deltas\.bias is missing"),
        ({**weights, "extra": torch.zeros(1)}, "extra is unknown"),
        (
            {**weights, "mask_head.logits.bias": torch.zeros(7)},
            r"mask_head\.logits\.bias is \(7,\) in the file, \(3,\) in",
        ),
    ):
        with pytest.raises(ModelError, match=message):
            load_weights(network, changed, where="test")


def test_start_from_a_model_with_other_classes(saved: Path) -> None:
    network = build_network(recipe(), 5)
    with pytest.raises(
        ModelError, match=r"different numbers of classes[\s\S]*2 classes in the file, 5 classes in[\s\S]*=\[classes\]"
    ):
        start_from(network, str(saved))
    report = start_from(network, str(saved), fresh=("box_head", "mask_head"))
    assert {name.split(".")[0] for name in report.fresh} == {"box_head", "mask_head"}
    own, stored = network.state_dict(), read_weights(saved)
    assert torch.equal(own["rpn.head.deltas.bias"], stored["rpn.head.deltas.bias"])
    report = start_from(network, str(saved), fresh=("classes",))
    assert set(report.fresh) == {
        f"{layer}.{leaf}"
        for layer in ("box_head.0.class_logits", "box_head.0.deltas", "mask_head.logits")
        for leaf in ("weight", "bias")
    }
    assert torch.equal(network.state_dict()["box_head.0.fcs.1.weight"], stored["box_head.0.fcs.1.weight"])


def test_a_head_that_the_model_does_not_have(saved: Path) -> None:
    scored = Recipe.model_validate({**recipe().to_dict(), "model": {**MODEL, "mask_scoring": {"channels": 16}}})
    with pytest.raises(ModelError, match=r"not in the file[\s\S]*model\.init_fresh=\[mask_scoring\]"):
        start_from(build_network(scored, 2), str(saved))
    report = start_from(build_network(scored, 2), str(saved), fresh=("mask_scoring",))
    assert {name.split(".")[0] for name in report.fresh} == {"mask_scoring"}


def test_the_card_states_the_origin_of_imported_weights(tmp_path: Path) -> None:
    imported = info(origin="model_final.pkl (detectron2, sha256 0123)")
    folder = save_model(tmp_path / "model", build_network(recipe(), 2).state_dict(), imported)
    assert read_model_info(folder).origin == imported.origin
    card = (folder / "README.md").read_text()
    assert "imported from model_final.pkl (detectron2, sha256 0123); check what their licence permits" in card


def test_a_model_loads_whatever_its_training_section(saved: Path) -> None:
    """The section is kept as it was written, whether or not this version understands it."""
    content = json.loads((saved / "model.json").read_text())
    content["recipe"]["train"] = {"a_key_of_an_older_version": 1}
    (saved / "model.json").write_text(json.dumps(content))
    _, info = load_network(saved)
    assert info.recipe["train"] == {"a_key_of_an_older_version": 1}

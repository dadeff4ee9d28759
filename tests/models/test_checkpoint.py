"""Model folders, foreign weights, and what is said when they do not fit."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from cellwright.config.schema import Recipe
from cellwright.core.errors import CellwrightError, ModelError
from cellwright.models.build import build_network
from cellwright.models.checkpoint import (
    ModelInfo,
    load_network,
    load_weights,
    model_folder,
    read_model_info,
    read_weights,
    save_model,
    start_from,
)
from cellwright.models.foreign import load_foreign, our_name, read_foreign

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
    one = ModelInfo(
        kind="mask_rcnn",
        recipe=recipe().resolved().to_dict(),
        class_names=("nucleus", "debris"),
        normalisation=recipe().input.model_dump(mode="json"),
        thresholds={"score": 0.4},
        data_licence="CC0-1.0",
        version="0.1.0",
        metrics={"AP@100": 0.31},
    )
    return dataclasses.replace(one, **changes)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    return save_model(tmp_path / "run" / "model", build_network(recipe(), 2).state_dict(), info())


def test_round_trip(saved: Path) -> None:
    network, found = load_network(saved, kind="mask_rcnn")
    assert found == info()
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


def test_a_run_folder_is_a_model(saved: Path) -> None:
    assert model_folder(saved.parent) == saved
    assert load_network(saved.parent)[1].kind == "mask_rcnn"


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model here[\s\S]*model\.json"):
        read_model_info(tmp_path)


def test_a_folder_of_another_kind_is_named(saved: Path) -> None:
    content = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps({**content, "kind": "unet"}))
    with pytest.raises(ModelError, match=r"holds a 'unet' model, not a 'mask_rcnn' one") as caught:
        read_model_info(saved, kind="mask_rcnn")
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "another schema version"),
        ({"surprise": 1}, "missing or unknown"),
        ({"kind": None}, "missing or unknown"),
        ({"recipe": {"name": "x", "model": {"kind": "mask_rcnn", "depth": 3}}}, "recipe in this model folder"),
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
    with pytest.raises(ModelError, match="cannot be read"):
        load_network(saved)


def test_loading_is_strict(saved: Path) -> None:
    weights = read_weights(saved)
    network = build_network(recipe(), 2)
    for changed, message in (
        ({k: v for k, v in weights.items() if k != "box_head.deltas.bias"}, r"box_head\.deltas\.bias is missing"),
        ({**weights, "extra": torch.zeros(1)}, "extra is unknown"),
        ({**weights, "mask_head.logits.bias": torch.zeros(7)}, r"mask_head\.logits\.bias is \(7,\), .* \(2,\)"),
    ):
        with pytest.raises(ModelError, match=message):
            load_weights(network, changed, where="test")


def test_start_from_a_model_with_other_classes(saved: Path) -> None:
    network = build_network(recipe(), 5)
    with pytest.raises(ModelError, match="do not fit"):
        start_from(network, str(saved))
    report = start_from(network, str(saved), fresh=("box_head", "mask_head"))
    assert {name.split(".")[0] for name in report.fresh} == {"box_head", "mask_head"}
    assert torch.equal(network.state_dict()["rpn.head.deltas.bias"], read_weights(saved)["rpn.head.deltas.bias"])


def test_start_from_imagenet_weights(tmp_path: Path) -> None:
    classifier = resnet18(weights=None)
    torch.save(classifier.state_dict(), tmp_path / "resnet18.pth")
    network = build_network(recipe(), 2)
    report = start_from(network, f"torchvision:{tmp_path / 'resnet18.pth'}")
    own = network.state_dict()
    assert torch.equal(
        own["backbone.res3.0.shortcut.conv.weight"], classifier.state_dict()["layer2.0.downsample.0.weight"]
    )
    assert {name for name, _ in report.left_out} == {"fc.weight", "fc.bias"}
    assert {name.split(".")[0] for name in report.fresh} == {"fpn", "rpn", "box_head", "mask_head"}
    assert len(report.text().splitlines()) == 1 + len(report.taken) + len(report.left_out) + len(report.fresh)


def test_unknown_names_and_wrong_shapes_are_errors() -> None:
    network = build_network(recipe(), 2)
    state = resnet18(weights=None).state_dict()
    with pytest.raises(ModelError, match=r"no place[\s\S]*layer9"):
        load_foreign(network, {**state, "layer9.weight": torch.zeros(1)}, "torchvision", fresh=(), where="x")
    with pytest.raises(ModelError, match=r"conv1\.weight: \(1, 2\) in the file"):
        load_foreign(network, {**state, "conv1.weight": torch.zeros(1, 2)}, "torchvision", fresh=(), where="x")
    with pytest.raises(ModelError, match=r"not in the file"):
        load_foreign(network, {k: v for k, v in state.items() if k != "bn1.bias"}, "torchvision", fresh=(), where="x")


class _Attack:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this must not run",)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_nothing_but_data_is_unpickled(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {"a": np.zeros(2)}, "b": _Attack()}))
    else:
        torch.save({"model": {"a": torch.zeros(2)}, "b": _Attack()}, path)
    with pytest.raises(CellwrightError):
        read_foreign(path)
    assert "this must not run" not in capsys.readouterr().out


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read these weights"):
        read_foreign(tmp_path / "nothing.pth")


@pytest.mark.parametrize("name", ["mask_rcnn_R_50_FPN_3x", "mask_rcnn_R_101_FPN_3x"])
def test_zoo_names_all_have_a_place(fixtures_root: Path, name: str) -> None:
    """Every tensor of the published Detectron2 checkpoints meets one of ours of the same shape, and none is left."""
    lines = (fixtures_root / "zoo_keys" / f"{name}.txt").read_text().splitlines()
    theirs = {
        key: tuple(int(side) for side in shape.split("x") if side)
        for key, shape, _ in (line.split("\t") for line in lines)
    }
    depth = 101 if "101" in name else 50
    model = {"kind": "mask_rcnn", "backbone": {"depth": depth, "norm": "frozen_batch_norm"}}
    zoo = Recipe.model_validate({"name": "zoo", "conventions": "detectron2", "model": model})
    with torch.device("meta"):
        own = {key: tuple(tensor.shape) for key, tensor in build_network(zoo, 80).state_dict().items()}
    assert {our_name(key, "detectron2"): shape for key, shape in theirs.items()} == own


def test_pth_and_pkl_hold_the_same(fixtures_root: Path) -> None:
    folder = fixtures_root / "mask_rcnn_R_50_FPN"
    a, b = read_foreign(folder / "model.pth"), read_foreign(folder / "model.pkl")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)

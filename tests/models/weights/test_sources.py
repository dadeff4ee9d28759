"""Reading weights of other frameworks: files, published weights, and errors."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet34_Weights, resnet34

from cellwright.config.conventions import CONVENTIONS
from cellwright.config.model_rcnn import MaskRCNNConfig
from cellwright.core.errors import CellwrightError, ModelError
from cellwright.models.build import build_mask_rcnn
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.weights.initial import start_from
from cellwright.models.weights.sources import find_weights, read_foreign


def network(**backbone: object) -> MaskRCNN:
    sections = {
        "backbone": {"depth": 34, **backbone},
        "fpn": {"channels": 32},
        "box_head": {"fc_channels": 64},
        "mask_head": {"channels": 32},
    }
    config = MaskRCNNConfig.model_validate(sections)
    return build_mask_rcnn(config, CONVENTIONS["detectron2"], in_channels=3, n_classes=4).eval()


@pytest.fixture(scope="module")
def detector(fixtures_root: Path) -> dict[str, Tensor]:
    return read_foreign(fixtures_root / "mask_rcnn_R_50_FPN" / "model.pkl")


class _Attack:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this must not run",)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_only_data_is_unpickled(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {"a": np.zeros(2)}, "b": _Attack()}))
    else:
        torch.save({"model": {"a": torch.zeros(2)}, "b": _Attack()}, path)
    with pytest.raises(CellwrightError, match=r"more than[\s\S]*(builtins\.)?print"):
        read_foreign(path)
    assert "this must not run" not in capsys.readouterr().out


def _cut(name: str) -> Callable[[Path, Path], bytes]:
    return lambda root, _: (root / "mask_rcnn_R_50_FPN" / name).read_bytes()[:100_000]


def _saved(content: object) -> Callable[[Path, Path], bytes]:
    def write(_: Path, path: Path) -> bytes:
        torch.save(content, path)
        return path.read_bytes()

    return write


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", _cut("model.pth"), "damaged or truncated"),
        ("a.pkl", _cut("model.pkl"), "pickle is damaged"),
        ("a.safetensors", lambda *_: b"\x10\0\0\0\0\0\0\0{", "damaged or truncated"),
        ("a.pth", lambda *_: b"hello", "not a file of weights"),
        ("a.pkl", lambda *_: b"", "this file is empty"),
        ("a.pkl", lambda *_: b"\n<!DOCTYPE html>\n<html>", "a web page, not weights"),
        ("a.png", lambda *_: b"\x89PNG\r\n\x1a\n" + bytes(300), "an image, not weights"),
        ("a.pth", lambda *_: b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        ("a.pth", _saved([1, 2]), "does not contain named tensors"),
        ("a.pth", _saved({"epoch": 3}), "contains no tensors"),
        ("a.pth", _saved({"encoder.weight": torch.zeros(2)}), "no tensor of these weights is known"),
    ],
)
def test_files_without_weights_are_rejected(
    fixtures_root: Path, tmp_path: Path, name: str, content: Callable[[Path, Path], bytes], message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content(fixtures_root, path))
    with pytest.raises(CellwrightError, match=message) as caught:
        find_weights(str(path))
    assert str(path) in str(caught.value)


def test_pth_pkl_and_safetensors_give_the_same_tensors(
    fixtures_root: Path, detector: dict[str, Tensor], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    save_file(detector, tmp_path / "a.safetensors")
    for path in (fixtures_root / "mask_rcnn_R_50_FPN" / "model.pth", tmp_path / "a.safetensors"):
        other = read_foreign(path)
        assert detector.keys() == other.keys()
        assert all(torch.equal(detector[name], other[name]) for name in detector)


# --- where weights come from --------------------------------------------------------------------------------------


def test_published_torchvision_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    state = resnet34(weights=None).state_dict()
    monkeypatch.setattr(ResNet34_Weights, "get_state_dict", lambda self, **_: state)
    resnet = network()
    report = start_from(resnet, "torchvision:resnet34:IMAGENET1K_V1")
    assert len(report.taken) == len(state) - 2

    def offline(self: object, **_: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(ResNet34_Weights, "get_state_dict", offline)
    with pytest.raises(
        ModelError, match=r"cannot download[\s\S]*not known[\s\S]*resnet34-b627a593\.pth on another machine"
    ):
        start_from(resnet, "torchvision:resnet34")


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("torchvision:vgg16", r"no such weights[\s\S]*resnext101_32x8d"),
        ("torchvision:resnet34:V9", r"no such version[\s\S]*IMAGENET1K_V1"),
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", r"detectron2:FILE\.pkl"),
        ("weights.pth", "no such weights"),
        ("detectron2:nothing.pkl", "cannot read these weights"),
        ("nothing", "no model here"),
    ],
)
def test_invalid_init_is_rejected(init: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        start_from(network(), init)


def test_a_file_without_a_framework_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.touch()
    with pytest.raises(
        ModelError, match=r"framework of these weights is missing[\s\S]*torchvision:.*weights\.pth or detectron2:"
    ):
        start_from(network(), str(path))


def test_a_file_of_another_framework_is_rejected(fixtures_root: Path) -> None:
    path = fixtures_root / "mask_rcnn_R_50_FPN" / "model.pkl"
    with pytest.raises(ModelError, match=r"do not have torchvision's names[\s\S]*write detectron2:"):
        find_weights(f"torchvision:{path}")

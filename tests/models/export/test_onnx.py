"""Graphs as ONNX files: ONNX Runtime agrees with torch, and modules for which it does not are rejected."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cellwright.config.model_rcnn import BackboneConfig
from cellwright.core.errors import ModelError, UsageError
from cellwright.models.export.onnx import TOLERANCE, Axis, Graph, trace, write_graph
from cellwright.models.layers import DeformConvNorm

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")


def images(name: str, channels: int, **axes: Axis) -> Graph:
    """A small fully convolutional network."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 2, 2, 2)
    )
    inputs = {"images": (Axis("batch"), channels, axes["height"], axes["width"])}
    return Graph(name=name, module=module, inputs=inputs, outputs={"maps": ("batch", 2, "height", "width")})


def test_images_of_any_size(tmp_path: Path) -> None:
    import onnx

    graph = images("net", 3, height=Axis("height", 2), width=Axis("width", 2))
    written = write_graph(graph, tmp_path)
    assert written["largest_difference"] <= TOLERANCE
    assert (written["file"], written["inputs"]) == ("net.onnx", {"images": ["batch", 3, "height", "width"]})
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model, full_check=True)
    sizes = [size.dim_param or size.dim_value for size in model.graph.output[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 2, "height", "width"]
    # Tracing records local paths for every node.
    assert str(Path(__file__).parents[3]).encode() not in (tmp_path / "net.onnx").read_bytes()


class Drifting(nn.Module):
    """Returns different values each time."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Branching(nn.Module):
    """Has control flow that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float("nan")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Drifting(), "give different results"),
        (Broken(), "got: nan"),
        (Branching(), "cannot be exported to ONNX"),
    ],
)
def test_modules_that_disagree_are_rejected(module: nn.Module, message: str, tmp_path: Path) -> None:
    inputs = {"x": (Axis("batch"), 3)}
    with pytest.raises(ModelError, match=message):
        write_graph(Graph(name="odd", module=module, inputs=inputs, outputs={"y": ("batch", 3)}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"no onnxscript\n  fix: pip install \"cellwright\[onnx\]\""):
        write_graph(images("net", 1, height=Axis("height", 2), width=Axis("width", 2)), tmp_path)


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convolution(modulated: bool, tmp_path: Path) -> None:
    """With the DeformConv operator of ONNX, and offsets of whole pixels."""
    torch.manual_seed(0)
    config = BackboneConfig(deformable_stages=(5,), deformable_groups=2, deformable_modulated=modulated)
    layer = DeformConvNorm(4, 8, config, stride=1, norm="frozen_batch_norm")
    nn.init.normal_(layer.offset.weight, std=0.3)
    inputs = {"x": (Axis("batch"), 4, Axis("height", smallest=5), Axis("width", smallest=5))}
    graph = Graph(name="deform", module=layer, inputs=inputs, outputs={"y": ("batch", 8, "height", "width")})
    assert write_graph(graph, tmp_path)["largest_difference"] <= TOLERANCE
    assert "DeformConv" in {node.op_type for node in trace(graph).graph.node}

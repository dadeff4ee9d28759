"""Networks as ONNX: graphs equal torch, the folder alone is enough to run them, and what differs is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cellwright.api.export_model import ExportModelPlan, run
from cellwright.config.conventions import TORCHVISION
from cellwright.config.model_rcnn import BackboneConfig, C4Config, CascadeConfig, MaskRCNNConfig, PointRendConfig
from cellwright.config.recipe import Recipe
from cellwright.core.errors import ModelError, OutputError, UsageError
from cellwright.models.build import build_mask_rcnn, build_network
from cellwright.models.export.onnx import TOLERANCE, Axis, Graph, trace, write_graph
from cellwright.models.export.rcnn import graphs_of
from cellwright.models.layers import DeformConvNorm
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.pointrend import CoarseMaskHead
from cellwright.models.weights.model_folder import ModelInfo
from cellwright.models.weights.torch_io import save_model

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

SMALL: dict[str, Any] = {
    "backbone": {"depth": 18, "width": 8},
    "fpn": {"channels": 16},
    "anchors": {"sizes_px": ((8,), (16,), (32,), (64,), (128,))},
    "roi": {"canonical_box_px": 56, "canonical_level": 3},
    "box_head": {"fc_channels": 32, "score_threshold": 0.3, "detections_per_image": 40},
    "mask_head": {"channels": 16, "convs": 1},
}
C4 = {
    "backbone": {"depth": 50, "width": 8},
    "anchors": {"sizes_px": ((8, 16, 32),)},
    "box_head": {"score_threshold": 0.3, "detections_per_image": 40},
    "mask_head": {"channels": 16},
}
SCORING = {"convs": 2, "channels": 8, "fcs": 1, "fc_channels": 16}


def images(name: str, channels: int, **axes: Axis) -> Graph:
    """A dense network: any module from images to maps."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 2, 2, 2)
    )
    inputs = {"images": (Axis("batch"), channels, axes["height"], axes["width"])}
    return Graph(name=name, module=module, inputs=inputs, outputs={"maps": ("batch", 2, "height", "width")})


def test_a_dense_network_of_any_size(tmp_path: Path) -> None:
    import onnx

    graph = images("net", 3, height=Axis("height", 2), width=Axis("width", 2))
    said = write_graph(graph, tmp_path)
    assert said["largest_difference"] <= TOLERANCE
    assert (said["file"], said["inputs"]) == ("net.onnx", {"images": ["batch", 3, "height", "width"]})
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model, full_check=True)
    sides = [side.dim_param or side.dim_value for side in model.graph.output[0].type.tensor_type.shape.dim]
    assert sides == ["batch", 2, "height", "width"]
    # Tracing notes the source lines of this machine beside every node.
    assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "net.onnx").read_bytes()


class Drifting(nn.Module):
    """Gives something else every time."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Branching(nn.Module):
    """Looks at its values to decide what to do."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float("nan")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Drifting(), "does not give what torch gives"),
        (Broken(), "got: nan"),
        (Branching(), "cannot become ONNX"),
    ],
)
def test_what_does_not_agree_is_refused(module: nn.Module, message: str, tmp_path: Path) -> None:
    inputs = {"x": (Axis("batch"), 3)}
    with pytest.raises(ModelError, match=message):
        write_graph(Graph(name="odd", module=module, inputs=inputs, outputs={"y": ("batch", 3)}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"no onnxscript\n  fix: pip install \"cellwright\[onnx\]\""):
        write_graph(images("net", 1, height=Axis("height", 2), width=Axis("width", 2)), tmp_path)


def saved(folder: Path, sections: dict[str, Any], conventions: str) -> MaskRCNN:
    """A model folder with random weights whose classes and boxes are far from even; the network in it."""
    recipe = Recipe.model_validate({"name": "t", "classes": 2, "conventions": conventions, "model": sections})
    torch.manual_seed(0)
    network = build_network(recipe, 2)
    for head in network.box_head:
        nn.init.normal_(head.class_logits.weight, std=0.3)
        nn.init.normal_(head.deltas.weight, std=0.05)
    nn.init.normal_(network.rpn.head.objectness.weight, std=0.1)
    values = recipe.resolved()
    kind = values.model.kind
    info = ModelInfo(
        kind=kind,
        recipe=values.to_dict(),
        class_names=("nucleus", "debris"),
        normalisation=recipe.input.model_dump(mode="json"),
        thresholds={"score/nucleus": 0.4},
    )
    save_model(folder, network.state_dict(), info)
    return network.eval()


CASES = {
    "mask_scoring": ({"kind": "mask_rcnn", **SMALL, "mask_scoring": SCORING}, "torchvision"),
    "cascade": ({"kind": "cascade_mask_rcnn", **SMALL}, "detectron2"),
    "c4": ({"kind": "mask_rcnn_c4", **C4}, "detectron2"),
}


@pytest.mark.parametrize(
    "case", ["mask_scoring", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cascade", "c4"))]
)
def test_the_folder_alone_gives_the_detections(case: str, tmp_path: Path) -> None:
    """What `export.json` says, done with numpy and torchvision, equals the network: boxes, scores, classes, masks."""
    from exported import Exported

    network = saved(tmp_path / "model", *CASES[case])
    done = run(ExportModelPlan(tmp_path / "model", to="onnx", out=tmp_path / "out"))
    assert set(done.manifest) >= {"class_names", "input", "proposals", "boxes", "masks", "result", "steps"}
    assert done.manifest["result"]["thresholds"] == {"score/nucleus": 0.4}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        [*(f"{name}.onnx" for name in done.manifest["graphs"]), "export.json"]
    )
    stored = sum(p.stat().st_size for p in (tmp_path / "out").glob("*.onnx"))
    weights = sum(4 * tensor.numel() for tensor in network.state_dict().values())
    assert stored < 1.5 * weights + 400_000  # every part holds its own weights only; C4's res5 is in both heads

    image_hw, padded = (90, 120), (96, 128)
    image = np.zeros((3, *padded), np.float32)
    image[:, :90, :120] = np.random.default_rng(0).normal(size=(3, *image_hw))
    boxes, scores, class_ids, probs = Exported(tmp_path / "out").detect(image, image_hw)
    with torch.inference_mode():
        features = network.features(torch.from_numpy(image)[None])
        (wanted,) = network.boxes(features, network.proposals(features, [image_hw]), [image_hw])
        scored, masks = network.masks(network.region_features(features), wanted)
    assert len(boxes) > 10
    np.testing.assert_array_equal(class_ids, wanted.class_ids.numpy())
    np.testing.assert_allclose(boxes, wanted.boxes.numpy(), atol=1e-2)
    np.testing.assert_allclose(scores, scored.scores.numpy(), atol=1e-4)
    np.testing.assert_allclose(probs, masks.numpy(), atol=1e-4)


def test_pointrend_heads(tmp_path: Path) -> None:
    sections = {**SMALL, "mask_head": {"channels": 8, "fc_channels": 16}, "point_head": {"channels": 8}}
    network = build_mask_rcnn(PointRendConfig.model_validate(sections), TORCHVISION, in_channels=3, n_classes=2)
    assert isinstance(network.mask_head, CoarseMaskHead)
    graphs = {graph.name: graph for graph in graphs_of(network.eval())}
    assert list(graphs) == ["features", "box_head", "mask_head", "point_head"]
    for name in ("mask_head", "point_head"):
        assert write_graph(graphs[name], tmp_path)["largest_difference"] <= TOLERANCE


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convolution(modulated: bool, tmp_path: Path) -> None:
    """ONNX's own DeformConv, with offsets of whole pixels."""
    torch.manual_seed(0)
    config = BackboneConfig(deformable_stages=(5,), deformable_groups=2, deformable_modulated=modulated)
    layer = DeformConvNorm(4, 8, config, stride=1, norm="frozen_batch_norm")
    nn.init.normal_(layer.offset.weight, std=0.3)
    inputs = {"x": (Axis("batch"), 4, Axis("height", usual=5), Axis("width", usual=5))}
    graph = Graph(name="deform", module=layer, inputs=inputs, outputs={"y": ("batch", 8, "height", "width")})
    assert write_graph(graph, tmp_path)["largest_difference"] <= TOLERANCE
    assert "DeformConv" in {node.op_type for node in trace(graph).graph.node}


def test_every_kind_names_its_parts() -> None:
    """Shapes and names, without tracing."""
    kinds = {MaskRCNNConfig: SMALL, CascadeConfig: SMALL, C4Config: C4}
    parts = {}
    for kind, sections in kinds.items():
        network = build_mask_rcnn(kind.model_validate(sections), TORCHVISION, in_channels=4, n_classes=2)
        parts[kind] = {graph.name: graph for graph in graphs_of(network.eval())}
        with torch.no_grad():
            for graph in parts[kind].values():
                inputs = graph.random_inputs([2] * len(graph.axes()), seed=0)
                outputs = graph.module(*inputs)
                for shape, one in zip(
                    graph.outputs.values(), [outputs] if isinstance(outputs, Tensor) else outputs, strict=True
                ):
                    assert [a if isinstance(a, int) else b for a, b in zip(shape, one.shape, strict=True)] == list(
                        one.shape
                    )
    assert list(parts[CascadeConfig]) == ["features", "box_head_0", "box_head_1", "box_head_2", "mask_head"]
    assert list(parts[C4Config]["features"].outputs) == ["res4", "logits_res4", "deltas_res4"]
    assert list(parts[MaskRCNNConfig]["features"].outputs)[:5] == ["p2", "p3", "p4", "p5", "logits_p2"]


def test_refusals_of_the_front_door(tmp_path: Path) -> None:
    plan = ExportModelPlan(Path("classical"), to="onnx", out=tmp_path / "out")
    with pytest.raises(UsageError, match="no network to export"):
        run(plan)
    with pytest.raises(UsageError, match="unknown export target"):
        run(ExportModelPlan(tmp_path, to="tflite", out=tmp_path / "out"))
    saved(tmp_path / "model", *CASES["mask_scoring"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text(json.dumps({}))
    with pytest.raises(OutputError, match="exists"):
        run(ExportModelPlan(tmp_path / "model", to="onnx", out=tmp_path / "out"))

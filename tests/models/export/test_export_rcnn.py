"""Exported R-CNN models: the export alone is enough to run them, and gives the detections of the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cellwright.api.export_model import run
from cellwright.api.export_parts import ExportModelPlan
from cellwright.config.conventions import TORCHVISION
from cellwright.config.model_rcnn import C4Config, CascadeConfig, MaskRCNNConfig, PointRendConfig
from cellwright.config.recipe import Recipe
from cellwright.core.errors import OutputError, UsageError
from cellwright.models.build import build_mask_rcnn, build_network
from cellwright.models.export.onnx import TOLERANCE, write_graph
from cellwright.models.export.rcnn import graphs_of
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


def saved(folder: Path, sections: dict[str, Any], conventions: str) -> MaskRCNN:
    """Save a model with random weights that give distinct classes and boxes; returns its network."""
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
def test_the_export_alone_gives_the_detections(case: str, tmp_path: Path) -> None:
    """The steps of `export.json` in NumPy and torchvision give the boxes, scores, classes and masks of the network."""
    from exported import Exported

    network = saved(tmp_path / "model", *CASES[case])
    exported = run(ExportModelPlan(tmp_path / "model", to="onnx", out=tmp_path / "out"))
    assert set(exported.manifest) >= {"class_names", "input", "proposals", "boxes", "masks", "result", "steps"}
    assert exported.manifest["result"]["thresholds"] == {"score/nucleus": 0.4}
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.name != ".cellwright") == sorted(
        [*(f"{name}.onnx" for name in exported.manifest["graphs"]), "export.json"]
    )
    stored = sum(p.stat().st_size for p in (tmp_path / "out").glob("*.onnx"))
    weights = sum(4 * tensor.numel() for tensor in network.state_dict().values())
    assert stored < 1.5 * weights + 400_000  # each part contains its own weights only; res5 of C4 is in both heads

    image_hw, padded = (90, 120), (96, 128)
    image = np.zeros((3, *padded), np.float32)
    image[:, :90, :120] = np.random.default_rng(0).normal(size=(3, *image_hw))
    boxes, scores, class_ids, probs = Exported(tmp_path / "out").detect(image, image_hw)
    with torch.inference_mode():
        features = network.features(torch.from_numpy(image)[None])
        (detections,) = network.boxes(features, network.proposals(features, [image_hw]), [image_hw])
        scored, masks = network.masks(network.region_features(features), detections)
    assert len(boxes) > 10
    np.testing.assert_array_equal(class_ids, detections.class_ids.numpy())
    np.testing.assert_allclose(boxes, detections.boxes.numpy(), atol=1e-2)
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


def test_names_and_shapes_of_the_parts() -> None:
    """Of every kind, without tracing."""
    kinds = {MaskRCNNConfig: SMALL, CascadeConfig: SMALL, C4Config: C4}
    parts = {}
    for kind, sections in kinds.items():
        network = build_mask_rcnn(kind.model_validate(sections), TORCHVISION, in_channels=4, n_classes=2)
        parts[kind] = {graph.name: graph for graph in graphs_of(network.eval())}
        with torch.no_grad():
            for graph in parts[kind].values():
                inputs = graph.random_inputs([2] * len(graph.axes()), seed=0)
                outputs = graph.module(*inputs)
                outputs = [outputs] if isinstance(outputs, Tensor) else outputs
                for shape, output in zip(graph.outputs.values(), outputs, strict=True):
                    sizes = list(output.shape)
                    assert [a if isinstance(a, int) else b for a, b in zip(shape, sizes, strict=True)] == sizes
    assert list(parts[CascadeConfig]) == ["features", "box_head_0", "box_head_1", "box_head_2", "mask_head"]
    assert list(parts[C4Config]["features"].outputs) == ["res4", "logits_res4", "deltas_res4"]
    assert list(parts[MaskRCNNConfig]["features"].outputs)[:5] == ["p2", "p3", "p4", "p5", "logits_p2"]


def test_invalid_exports_are_rejected(tmp_path: Path) -> None:
    plan = ExportModelPlan(Path("classical"), to="onnx", out=tmp_path / "out")
    with pytest.raises(UsageError, match="no network to export"):
        run(plan)
    with pytest.raises(UsageError, match="unknown export target"):
        run(ExportModelPlan(tmp_path, to="tflite", out=tmp_path / "out"))
    saved(tmp_path / "model", *CASES["mask_scoring"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text(json.dumps({}))
    with pytest.raises(OutputError, match="not an output of this command"):
        run(ExportModelPlan(tmp_path / "model", to="onnx", out=tmp_path / "out"))

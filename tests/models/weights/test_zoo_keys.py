"""Ten published Detectron2 checkpoints: every tensor matches one of ours of the same shape, and none of ours is left.

Nothing is allocated: networks and files are on PyTorch's meta device. The numbers of tensors and values are those of
``fixtures/zoo_keys/README.md``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import detection

from cellwright.config.recipe import Recipe
from cellwright.models.build import build_network
from cellwright.models.weights.architecture import architecture, summary
from cellwright.models.weights.foreign import framework_of, load_foreign, matched_names, shapes_of

X101 = {"depth": 101, "groups": 32, "group_width": 8, "stride_in_1x1": False}
X152 = {**X101, "depth": 152, "deformable_stages": [3, 4, 5]}
GN_BOX, GN_MASK = {"convs": 4, "fcs": 1, "norm": "group_norm"}, {"convs": 8, "norm": "group_norm"}
# name: tensors, millions of values, description in `model inspect`, model section of the recipe
ZOO = {
    "mask_rcnn_R_50_C4_3x": (279, 36.02, "Mask R-CNN C4, ResNet-50", {"kind": "mask_rcnn_c4"}),
    "mask_rcnn_R_50_FPN_3x": (307, 44.45, "Mask R-CNN with FPN, ResNet-50", {"kind": "mask_rcnn"}),
    "mask_rcnn_R_101_C4_3x": (
        534,
        55.06,
        "Mask R-CNN C4, ResNet-101",
        {"kind": "mask_rcnn_c4", "backbone": {"depth": 101}},
    ),
    "mask_rcnn_R_101_FPN_3x": (
        562,
        63.49,
        "Mask R-CNN with FPN, ResNet-101",
        {"kind": "mask_rcnn", "backbone": {"depth": 101}},
    ),
    "mask_rcnn_X_101_32x8d_FPN_3x": (
        562,
        107.83,
        "Mask R-CNN with FPN, ResNeXt-101 32x8d",
        {"kind": "mask_rcnn", "backbone": X101},
    ),
    "cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv": (
        973,
        183.08,
        "Cascade Mask R-CNN, ResNeXt-152 32x8d, deformable v1 in res3, res4, res5, group norm",
        {"kind": "cascade_mask_rcnn", "backbone": X152, "box_head": GN_BOX, "mask_head": GN_MASK},
    ),
    "cascade_mask_rcnn_R_50_FPN_3x": (323, 72.09, "Cascade Mask R-CNN, ResNet-50", {"kind": "cascade_mask_rcnn"}),
    "mask_rcnn_R_50_FPN_3x_dconv_c3-c5": (
        333,
        45.03,
        "Mask R-CNN with FPN, ResNet-50, deformable v1 in res3, res4, res5",
        {"kind": "mask_rcnn", "backbone": {"deformable_stages": [3, 4, 5]}},
    ),
    "pointrend_rcnn_X_101_32x8d_FPN_3x_coco": (
        566,
        123.65,
        "PointRend, ResNeXt-101 32x8d",
        {"kind": "pointrend", "backbone": X101},
    ),
    "pointrend_rcnn_R_50_FPN_3x_coco": (311, 60.27, "PointRend, ResNet-50", {"kind": "pointrend"}),
}


def build(section: dict, conventions: str, n_classes: int) -> nn.Module:
    recipe = Recipe.model_validate({"name": "zoo", "conventions": conventions, "model": section})
    with torch.device("meta"):
        return build_network(recipe, n_classes)


@pytest.mark.parametrize("name", ZOO)
def test_every_tensor_is_matched(fixtures_root: Path, name: str) -> None:
    n_tensors, millions, description, section = ZOO[name]
    lines = (fixtures_root / "zoo_keys" / f"{name}.txt").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    theirs = {
        key: torch.empty([int(side) for side in shape.split("x") if side], device="meta") for key, shape, _ in rows
    }
    assert len(theirs) == n_tensors
    assert round(sum(tensor.numel() for tensor in theirs.values()) / 1e6, 2) == millions
    assert framework_of(theirs) == "detectron2"

    frozen = {"norm": "frozen_batch_norm", "frozen_stages": 2}
    network = build({**section, "backbone": {**section.get("backbone", {}), **frozen}}, "detectron2", 80)
    report = load_foreign(network, theirs, "detectron2", fresh=(), where=name)
    assert {record.status for record in report.records} <= {"loaded", "renamed"}
    own = network.state_dict()
    assert {ours: shape for _, ours, shape in report.taken} == {key: tuple(tensor.shape) for key, tensor in own.items()}
    assert {their_name for their_name, _, _ in report.taken} == set(theirs)

    # Trained, frozen (FREEZE_AT 2) and constant tensors are the same as in Detectron2.
    parameters = dict(network.named_parameters())
    sort = {
        their_name: ("param" if parameters[ours].requires_grad else "frozen-param") if ours in parameters else "buffer"
        for their_name, ours, _ in report.taken
    }
    assert sort == {key: kind for key, _, kind in rows}

    shapes = shapes_of(theirs, matched_names(theirs, "detectron2", name))
    assert summary(shapes) == f"{description}, 80 classes"
    assert architecture(shapes) == architecture({key: tuple(tensor.shape) for key, tensor in own.items()})


V2 = {
    "kind": "mask_rcnn",
    "fpn": {"norm": "batch_norm"},
    "rpn": {"convs": 2},
    "box_head": {"convs": 4, "fcs": 1, "norm": "batch_norm"},
    "mask_head": {"norm": "batch_norm"},
}


@pytest.mark.parametrize(
    ("name", "section"), [("maskrcnn_resnet50_fpn", {"kind": "mask_rcnn"}), ("maskrcnn_resnet50_fpn_v2", V2)]
)
def test_both_versions_of_torchvision(name: str, section: dict) -> None:
    with torch.device("meta"):
        theirs = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=6).state_dict()
    assert framework_of(theirs) == "torchvision"
    network = build(section, "torchvision", 5)
    report = load_foreign(network, theirs, "torchvision", fresh=(), where=name)
    assert {record.status for record in report.records} <= {"loaded", "renamed"}
    assert {ours for _, ours, _ in report.taken} == set(network.state_dict())
    assert len(report.taken) == len(theirs)
    shapes = shapes_of(theirs, matched_names(theirs, "torchvision", name))
    assert summary(shapes) == "Mask R-CNN with FPN, ResNet-50, 5 classes"
    keys = architecture(shapes)
    assert keys["box_head.norm" if section is V2 else "fpn.norm"] == ("batch_norm" if section is V2 else "none")

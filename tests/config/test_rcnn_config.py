"""The R-CNN ``model`` section: what the conventions fill in, and which fields must agree."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from cellwright.config.conventions import CONVENTIONS, DETECTRON2, TORCHVISION, Conventions
from cellwright.config.model_rcnn import BackboneConfig, MaskRCNNConfig


def test_conventions_differ_in_every_entry_but_the_counts() -> None:
    assert {name: table.name for name, table in CONVENTIONS.items()} == {name: name for name in CONVENTIONS}
    differing = {f.name for f in fields(Conventions) if getattr(TORCHVISION, f.name) != getattr(DETECTRON2, f.name)}
    # Entries in which the frameworks agree are not needed, except counts that are defaults in both.
    assert {f.name for f in fields(Conventions)} - differing == {"pre_nms_train", "pre_nms_test", "post_nms_test"}


@pytest.mark.parametrize("conventions", [TORCHVISION, DETECTRON2], ids=lambda c: c.name)
def test_resolved_fills_null_fields_only(conventions: Conventions) -> None:
    given = MaskRCNNConfig.model_validate({"roi": {"sampling_ratio": 1}, "rpn": {"post_nms_test": 4000}})
    done = given.resolved(conventions)
    assert done.roi.sampling_ratio == 1
    assert done.rpn.post_nms_test == 4000
    assert done.roi.aligned == conventions.roi_aligned
    assert done.rpn.post_nms_train == conventions.post_nms_train
    assert done.resolved(DETECTRON2 if conventions is TORCHVISION else TORCHVISION) == done
    open_fields = [
        f"{section}.{name}"
        for section, value in done
        if isinstance(value, BaseModel)
        for name, inner in value
        if inner is None
    ]
    assert open_fields == ["box_head.class_weights"]  # None means 1 for every class


def described(model: type[BaseModel]) -> list[str]:
    """Names of fields without a description, nested sections included."""
    missing = []
    for name, field in model.model_fields.items():
        if not field.description:
            missing.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            missing += [f"{name}.{inner}" for inner in described(field.annotation)]
    return missing


def test_every_field_is_described() -> None:
    assert described(MaskRCNNConfig) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"anchors": {"sizes_px": [[8], [16]]}}, ["anchors.sizes_px", "fpn.first_level"]),
        ({"anchors": {"sizes_px": [[8], [], [32], [64], [128]]}}, ["anchors.sizes_px"]),
        ({"fpn": {"first_level": 1}}, ["anchors.sizes_px", "fpn.first_level"]),
        ({"fpn": {"channels": 20, "norm": "group_norm"}}, ["fpn.norm", "fpn.channels"]),
        ({"backbone": {"width": 20, "norm": "group_norm"}}, ["backbone.norm", "backbone.width"]),
        ({"rpn": {"background_iou": 0.8}}, ["rpn.background_iou", "rpn.foreground_iou"]),
        ({"roi": {"canonical_level": 6}}, ["roi.canonical_level", "fpn.first_level"]),
        (
            {"box_head": {"detections_per_image": 500}, "rpn": {"post_nms_test": 300}},
            ["box_head.detections_per_image", "rpn.post_nms_test"],
        ),
    ],
)
def test_errors_name_all_fields_that_must_agree(changes: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        MaskRCNNConfig.model_validate(changes)
    for name in named:
        assert name in str(caught.value)


def test_unknown_keys_and_assignment_are_refused() -> None:
    with pytest.raises(ValidationError):
        MaskRCNNConfig.model_validate({"backbone": {"depths": 50}})
    with pytest.raises(ValidationError):
        MaskRCNNConfig().kind = "unet"


# --- backbone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"depth": 18, "groups": 32}, ["backbone.groups = 32", "backbone.depth = 18", "50, 101 or 152"]),
        ({"depth": 34, "group_width": 8}, ["backbone.group_width = 8", "backbone.depth = 34"]),
        ({"depth": 34, "deformable_stages": [5]}, ["backbone.deformable_stages = (5,)", "backbone.depth = 34"]),
        ({"groups": 32, "width": 48}, ["backbone.width = 48", "backbone.groups = 32", "backbone.group_width"]),
        ({"deformable_stages": [3, 3]}, ["backbone.deformable_stages", "[3, 3]"]),
        ({"deformable_modulated": True}, ["backbone.deformable_modulated", "without backbone.deformable_stages"]),
        ({"deformable_groups": 2}, ["backbone.deformable_groups", "without backbone.deformable_stages"]),
        (
            {"deformable_stages": [4, 3], "deformable_groups": 3},
            ["backbone.deformable_groups = 3", "128 channels", "res3"],
        ),
        ({"norm": "group_norm", "groups": 4, "group_width": 3}, ["backbone.norm", "backbone.group_width", "12"]),
        ({"norm": "group_norm", "width": 20}, ["backbone.norm", "backbone.width", "20"]),
        ({"norm": "group_norm", "stem_channels": 20}, ["backbone.norm", "backbone.stem_channels", "20"]),
        ({"deformable_stages": [1]}, ["deformable_stages.0"]),
        ({"depth": 200}, ["18, 34, 50, 101 or 152"]),
    ],
)
def test_backbone_errors_name_the_fields(settings: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        BackboneConfig.model_validate(settings)
    for name in named:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "inner_width"),
    [
        ({}, 64),
        ({"depth": 18, "width": 32}, 32),
        ({"depth": 18, "width": 32, "group_width": 32}, 32),  # as a resolved section has it
        ({"groups": 32}, 64),
        ({"groups": 32, "group_width": 8}, 256),
        ({"group_width": 128}, 128),
        ({"width": 20, "groups": 32, "group_width": 1, "deformable_stages": [3, 4, 5], "deformable_groups": 64}, 32),
        ({"norm": "group_norm", "width": 8, "groups": 32, "group_width": 1}, 32),
    ],
)
def test_valid_backbones(settings: dict[str, Any], inner_width: int) -> None:
    assert BackboneConfig.model_validate(settings).inner_width == inner_width

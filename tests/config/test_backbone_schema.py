"""The ``model.backbone`` section: which blocks, groups and deformable convolutions go together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cellwright.config.backbone_schema import BackboneConfig


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
def test_what_does_not_fit_is_refused_by_name(settings: dict[str, Any], named: list[str]) -> None:
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
def test_what_fits(settings: dict[str, Any], inner_width: int) -> None:
    assert BackboneConfig.model_validate(settings).inner_width == inner_width

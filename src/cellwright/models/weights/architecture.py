"""The architecture of a network, read from the names (ours) and shapes of its tensors, as keys of a recipe.

`model inspect` shows them, errors list the keys that differ from a recipe, and tests build networks from them. What
shapes do not show (strides, anchors, details of RoIAlign) is decided by ``conventions``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cellwright.config.model_rcnn import BLOCKS_PER_STAGE, BOTTLENECK_FROM_DEPTH
from cellwright.core.errors import ModelError
from cellwright.core.text import count

Shapes = Mapping[str, tuple[int, ...]]
KINDS = {
    "mask_rcnn": "Mask R-CNN with FPN",
    "mask_rcnn_c4": "Mask R-CNN C4",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
    "pointrend": "PointRend",
}


def architecture(shapes: Shapes, where: object = None) -> dict[str, object]:
    """Keys below ``model.`` and their values, such as ``backbone.depth``, of the parts that exist.

    A backbone alone has no ``kind``. Widths that follow from others are omitted.

    Raises:
        ModelError: tensors that every network of this family has are missing, or have too few dimensions.
    """
    kind: dict[str, object] = {}
    if "rpn.head.objectness.weight" in shapes or "box_head.0.class_logits.weight" in shapes:
        kind["kind"] = _kind(shapes)
    try:
        return {**kind, **_backbone(shapes), **_pyramid(shapes), **_box_head(shapes), **_mask_heads(shapes)}
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        got = f"no {error.args[0]}" if isinstance(error, KeyError) else "tensors with too few or empty dimensions"
        raise ModelError(
            "these tensors are not a complete network",
            where=where,
            got=got,
            expected="all tensors of each part",
            remedy="save the whole state dict of the network",
        ) from error


def class_count(shapes: Shapes) -> int | None:
    """Number of classes without background; None without a classifier among the tensors."""
    rows = shapes.get("box_head.0.class_logits.weight")
    return rows[0] - 1 if rows else None


def summary(shapes: Shapes) -> str:
    """A description such as "Mask R-CNN C4, ResNet-50, 80 classes"."""
    if (last := shapes.get("unet.maps.conv.weight")) and "unet.decoder.0.styles.0.weight" in shapes:
        channels = shapes["unet.encoder.0.convs.0.conv.weight"][1]
        return f"U-Net of Cellpose 3, {count(channels, 'channel')}, {count(last[0], 'map')}"
    if "unet.middle.0.weight" in shapes and (rays := shapes.get("unet.maps.1.weight")):
        first = shapes.get("unet.shrink.0.0.weight", shapes.get("unet.encoder.0.0.weight", (0, 0)))
        return f"U-Net of StarDist, {count(first[1], 'channel')}, {count(rays[0], 'ray')}"
    if maps := shapes.get("unet.maps.0.weight"):
        own = "unet.encoder.0.conv1.conv.weight" in shapes
        return f"U-Net{'' if own else ' with a timm encoder'}, {count(maps[0], 'map')}"
    keys, n_classes = architecture(shapes), class_count(shapes)
    parts = [KINDS[str(keys["kind"])]] if "kind" in keys else []
    if "backbone.depth" in keys:
        groups, width = keys.get("backbone.groups", 1), keys.get("backbone.group_width")
        name = "ResNet" if groups == 1 else "ResNeXt"
        parts.append(f"{name}-{keys['backbone.depth']}{'' if groups == 1 else f' {groups}x{width}d'}")
        if "kind" not in keys:
            parts[-1] += " backbone only"
    if stages := keys.get("backbone.deformable_stages"):
        version = 2 if keys.get("backbone.deformable_modulated") else 1
        parts.append(f"deformable v{version} in {', '.join(f'res{stage}' for stage in stages)}")  # type: ignore[attr-defined]
    if any(value == "group_norm" for value in keys.values()):
        parts.append("group norm")
    if "mask_scoring" in keys:
        parts.append("mask scoring")
    if n_classes is not None:
        parts.append(count(n_classes, "class"))
    return ", ".join(parts) or "not a network of this family"


def _kind(shapes: Shapes) -> str:
    if "point_head.logits.weight" in shapes:
        return "pointrend"
    if "box_head.1.class_logits.weight" in shapes:
        return "cascade_mask_rcnn"
    return "mask_rcnn" if "fpn.lateral.0.conv.weight" in shapes else "mask_rcnn_c4"


def _backbone(shapes: Shapes) -> dict[str, object]:
    if "backbone.res2.0.conv1.conv.weight" not in shapes or "backbone.stem.conv.weight" not in shapes:
        return {}
    bottleneck = "backbone.res2.0.conv3.conv.weight" in shapes
    blocks = tuple(_number_of(shapes, rf"backbone\.res{stage}\.(\d+)\.") for stage in range(2, 6))
    depths = [
        depth
        for depth, expected in BLOCKS_PER_STAGE.items()
        if expected == blocks and (depth >= BOTTLENECK_FROM_DEPTH) == bottleneck
    ]
    last = shapes[f"backbone.res2.0.conv{3 if bottleneck else 2}.conv.weight"][0]
    width = last // 4 if bottleneck else last
    stem_channels, in_channels = shapes["backbone.stem.conv.weight"][:2]
    keys: dict[str, object] = {
        "backbone.depth": depths[0] if depths else f"unknown: stages of {blocks} blocks",
        "backbone.width": width,
        "backbone.norm": _norm(shapes, "backbone.res5.0.conv1"),
        "backbone.stem_channels": stem_channels,
        "input.channels": in_channels,
    }
    if bottleneck:
        inner, group_width = shapes["backbone.res2.0.conv2.conv.weight"][:2]
        if inner != width or group_width != inner:
            keys |= {"backbone.groups": inner // group_width, "backbone.group_width": group_width}
    return {**keys, **_deformable(shapes)}


def _deformable(shapes: Shapes) -> dict[str, object]:
    offsets = {int(name[12]): shape for name, shape in shapes.items() if name.endswith("conv2.offset.weight")}
    if not offsets:
        return {}
    # 18 channels per group, 27 with weighted samples; 54 is read as two groups with weights.
    rows = next(iter(offsets.values()))[0]
    modulated = rows % 27 == 0
    return {
        "backbone.deformable_stages": tuple(sorted(offsets)),
        "backbone.deformable_modulated": modulated,
        "backbone.deformable_groups": rows // (27 if modulated else 18),
    }


def _pyramid(shapes: Shapes) -> dict[str, object]:
    keys: dict[str, object] = {}
    if "fpn.lateral.0.conv.weight" in shapes:
        keys = {
            "fpn.channels": shapes["fpn.lateral.0.conv.weight"][0],
            "fpn.first_level": 6 - _number_of(shapes, r"fpn\.lateral\.(\d)\."),
            "fpn.norm": _norm(shapes, "fpn.lateral.0"),
        }
    if "rpn.head.objectness.weight" in shapes:
        keys["rpn.convs"] = _number_of(shapes, r"rpn\.head\.convs\.(\d)\.")
        keys["anchors (sizes x ratios per cell)"] = shapes["rpn.head.objectness.weight"][0]
    return keys


def _box_head(shapes: Shapes) -> dict[str, object]:
    classes = class_count(shapes)
    if classes is None:
        return {}
    keys: dict[str, object] = {}
    stages = _number_of(shapes, r"box_head\.(\d)\.")
    if stages > 1:
        keys["box_head.stage_ious (stages)"] = stages
    elif classes > 1:
        keys["box_head.class_agnostic"] = shapes["box_head.0.deltas.weight"][0] == 4
    if "fpn.lateral.0.conv.weight" not in shapes:
        return keys
    convs = _number_of(shapes, r"box_head\.0\.convs\.(\d)\.")
    fcs = _number_of(shapes, r"box_head\.0\.fcs\.(\d)\.")
    channels = shapes["fpn.lateral.0.conv.weight"][0]
    keys |= {"box_head.convs": convs, "box_head.fcs": fcs}
    if convs:
        channels = shapes["box_head.0.convs.0.conv.weight"][0]
        keys |= {"box_head.conv_channels": channels, "box_head.norm": _norm(shapes, "box_head.0.convs.0")}
    first = shapes["box_head.0.fcs.0.weight" if fcs else "box_head.0.class_logits.weight"]
    if fcs:
        keys["box_head.fc_channels"] = first[0]
    return keys | {"box_head.resolution": round((first[1] / channels) ** 0.5)}


def _mask_heads(shapes: Shapes) -> dict[str, object]:
    keys: dict[str, object] = {}
    if "point_head.logits.weight" in shapes and "mask_head.shrink.conv.weight" in shapes:
        channels = shapes["mask_head.shrink.conv.weight"][0]
        keys = {
            "mask_head.resolution": 2 * round((shapes["mask_head.fcs.0.weight"][1] / channels) ** 0.5),
            "mask_head.channels": channels,
            "mask_head.fcs": _number_of(shapes, r"mask_head\.fcs\.(\d)\."),
            "mask_head.fc_channels": shapes["mask_head.fcs.0.weight"][0],
            "point_head.fcs": _number_of(shapes, r"point_head\.fcs\.(\d)\."),
            "point_head.channels": shapes["point_head.fcs.0.weight"][0],
        }
    elif "mask_head.logits.weight" in shapes and "mask_head.upsample.weight" in shapes:
        convs, classes = _number_of(shapes, r"mask_head\.convs\.(\d)\."), class_count(shapes)
        keys = {"mask_head.convs": convs, "mask_head.channels": shapes["mask_head.upsample.weight"][1]}
        if convs:
            keys["mask_head.norm"] = _norm(shapes, "mask_head.convs.0")
        if classes is not None and classes > 1:
            keys["mask_head.class_agnostic"] = shapes["mask_head.logits.weight"][0] == 1
    if "mask_scoring.quality.weight" in shapes:
        keys["mask_scoring"] = {
            "convs": _number_of(shapes, r"mask_scoring\.convs\.(\d)\."),
            "fcs": _number_of(shapes, r"mask_scoring\.fcs\.(\d)\."),
        }
    return keys


def _norm(shapes: Shapes, layer: str) -> str:
    if f"{layer}.norm.weight" not in shapes:
        return "none"
    if f"{layer}.norm.num_batches_tracked" in shapes:
        return "batch_norm"
    return "frozen_batch_norm" if f"{layer}.norm.running_mean" in shapes else "group_norm"


def _number_of(shapes: Shapes, pattern: str) -> int:
    """Number of different values of the pattern's group."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})

"""What network a set of tensors belongs to, read off their names (ours) and shapes: the recipe's keys that say it.

It serves three ends: `model inspect` shows it, a recipe that does not fit is told which keys differ, and tests build
from it. What no shape shows (strides, anchors, RoIAlign's details) stays with ``conventions``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cellwright.core.errors import ModelError
from cellwright.models.rcnn.resnet import BLOCKS_PER_STAGE, BOTTLENECK_FROM_DEPTH

Shapes = Mapping[str, tuple[int, ...]]
KINDS = {
    "mask_rcnn": "Mask R-CNN with FPN",
    "mask_rcnn_c4": "Mask R-CNN C4",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
    "pointrend": "PointRend",
}


def architecture(shapes: Shapes, where: object = None) -> dict[str, object]:
    """Keys below ``model.`` and their values, such as ``backbone.depth``; only of the parts that there are.

    ``kind`` is missing where the tensors are a backbone alone. Widths that follow from another one are left out.
    Raises `ModelError` where tensors lack, or have too few sides, that every network of this family has.
    """
    found: dict[str, object] = {}
    if "rpn.head.objectness.weight" in shapes or "box_head.0.class_logits.weight" in shapes:
        found["kind"] = _kind(shapes)
    try:
        return {**found, **_backbone(shapes), **_pyramid(shapes), **_box_head(shapes), **_mask_heads(shapes)}
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        got = f"no {error.args[0]}" if isinstance(error, KeyError) else "weights with too few or empty sides"
        raise ModelError(
            "these tensors make no whole network",
            where=where,
            got=got,
            expected="all tensors of the parts that there are",
            remedy="save the network's whole state dict",
        ) from error


def class_count(shapes: Shapes) -> int | None:
    """Classes without background; None where no classifier is among the tensors."""
    rows = shapes.get("box_head.0.class_logits.weight")
    return rows[0] - 1 if rows else None


def summary(shapes: Shapes) -> str:
    """One line for people, such as "Mask R-CNN C4, ResNet-50, 80 classes"."""
    if maps := shapes.get("unet.maps.0.weight"):
        own = "unet.encoder.0.conv1.conv.weight" in shapes
        return f"U-Net{'' if own else ' with an encoder of timm'}, {maps[0]} maps"
    found, n_classes = architecture(shapes), class_count(shapes)
    parts = [KINDS[str(found["kind"])]] if "kind" in found else []
    if "backbone.depth" in found:
        groups, width = found.get("backbone.groups", 1), found.get("backbone.group_width")
        name = "ResNet" if groups == 1 else "ResNeXt"
        parts.append(f"{name}-{found['backbone.depth']}{'' if groups == 1 else f' {groups}x{width}d'}")
        if "kind" not in found:
            parts[-1] += " backbone alone"
    if stages := found.get("backbone.deformable_stages"):
        version = 2 if found.get("backbone.deformable_modulated") else 1
        parts.append(f"deformable v{version} in {', '.join(f'res{stage}' for stage in stages)}")  # type: ignore[attr-defined]
    if any(value == "group_norm" for value in found.values()):
        parts.append("group norm")
    if "mask_scoring" in found:
        parts.append("mask scoring")
    if n_classes is not None:
        parts.append("1 class" if n_classes == 1 else f"{n_classes} classes")
    return ", ".join(parts) or "no network of this family"


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
    blocks = tuple(_count(shapes, rf"backbone\.res{stage}\.(\d+)\.") for stage in range(2, 6))
    depths = [
        depth
        for depth, wanted in BLOCKS_PER_STAGE.items()
        if wanted == blocks and (depth >= BOTTLENECK_FROM_DEPTH) == bottleneck
    ]
    last = shapes[f"backbone.res2.0.conv{3 if bottleneck else 2}.conv.weight"][0]
    width = last // 4 if bottleneck else last
    stem_channels, in_channels = shapes["backbone.stem.conv.weight"][:2]
    found: dict[str, object] = {
        "backbone.depth": depths[0] if depths else f"none that is known: stages of {blocks} blocks",
        "backbone.width": width,
        "backbone.norm": _norm(shapes, "backbone.res5.0.conv1"),
        "backbone.stem_channels": stem_channels,
        "input.channels": in_channels,
    }
    if bottleneck:
        inner, group_width = shapes["backbone.res2.0.conv2.conv.weight"][:2]
        if inner != width or group_width != inner:
            found |= {"backbone.groups": inner // group_width, "backbone.group_width": group_width}
    return {**found, **_deformable(shapes)}


def _deformable(shapes: Shapes) -> dict[str, object]:
    offsets = {int(name[12]): shape for name, shape in shapes.items() if name.endswith("conv2.offset.weight")}
    if not offsets:
        return {}
    # 18 numbers a group, 27 where the samples are weighted; 54 is read as two groups of the latter, as both are rare.
    rows = next(iter(offsets.values()))[0]
    modulated = rows % 27 == 0
    return {
        "backbone.deformable_stages": tuple(sorted(offsets)),
        "backbone.deformable_modulated": modulated,
        "backbone.deformable_groups": rows // (27 if modulated else 18),
    }


def _pyramid(shapes: Shapes) -> dict[str, object]:
    found: dict[str, object] = {}
    if "fpn.lateral.0.conv.weight" in shapes:
        found = {
            "fpn.channels": shapes["fpn.lateral.0.conv.weight"][0],
            "fpn.first_level": 6 - _count(shapes, r"fpn\.lateral\.(\d)\."),
            "fpn.norm": _norm(shapes, "fpn.lateral.0"),
        }
    if "rpn.head.objectness.weight" in shapes:
        found["rpn.convs"] = _count(shapes, r"rpn\.head\.convs\.(\d)\.")
        found["anchors (sizes x ratios a cell)"] = shapes["rpn.head.objectness.weight"][0]
    return found


def _box_head(shapes: Shapes) -> dict[str, object]:
    classes = class_count(shapes)
    if classes is None:
        return {}
    found: dict[str, object] = {}
    stages = _count(shapes, r"box_head\.(\d)\.")
    if stages > 1:
        found["box_head.stage_ious (stages)"] = stages
    elif classes > 1:
        found["box_head.class_agnostic"] = shapes["box_head.0.deltas.weight"][0] == 4
    if "fpn.lateral.0.conv.weight" not in shapes:
        return found
    convs = _count(shapes, r"box_head\.0\.convs\.(\d)\.")
    fcs = _count(shapes, r"box_head\.0\.fcs\.(\d)\.")
    channels = shapes["fpn.lateral.0.conv.weight"][0]
    found |= {"box_head.convs": convs, "box_head.fcs": fcs}
    if convs:
        channels = shapes["box_head.0.convs.0.conv.weight"][0]
        found |= {"box_head.conv_channels": channels, "box_head.norm": _norm(shapes, "box_head.0.convs.0")}
    first = shapes["box_head.0.fcs.0.weight" if fcs else "box_head.0.class_logits.weight"]
    if fcs:
        found["box_head.fc_channels"] = first[0]
    return found | {"box_head.resolution": round((first[1] / channels) ** 0.5)}


def _mask_heads(shapes: Shapes) -> dict[str, object]:
    found: dict[str, object] = {}
    if "point_head.logits.weight" in shapes and "mask_head.shrink.conv.weight" in shapes:
        channels = shapes["mask_head.shrink.conv.weight"][0]
        found = {
            "mask_head.resolution": 2 * round((shapes["mask_head.fcs.0.weight"][1] / channels) ** 0.5),
            "mask_head.channels": channels,
            "mask_head.fcs": _count(shapes, r"mask_head\.fcs\.(\d)\."),
            "mask_head.fc_channels": shapes["mask_head.fcs.0.weight"][0],
            "point_head.fcs": _count(shapes, r"point_head\.fcs\.(\d)\."),
            "point_head.channels": shapes["point_head.fcs.0.weight"][0],
        }
    elif "mask_head.logits.weight" in shapes and "mask_head.upsample.weight" in shapes:
        convs, classes = _count(shapes, r"mask_head\.convs\.(\d)\."), class_count(shapes)
        found = {"mask_head.convs": convs, "mask_head.channels": shapes["mask_head.upsample.weight"][1]}
        if convs:
            found["mask_head.norm"] = _norm(shapes, "mask_head.convs.0")
        if classes is not None and classes > 1:
            found["mask_head.class_agnostic"] = shapes["mask_head.logits.weight"][0] == 1
    if "mask_scoring.quality.weight" in shapes:
        found["mask_scoring"] = {
            "convs": _count(shapes, r"mask_scoring\.convs\.(\d)\."),
            "fcs": _count(shapes, r"mask_scoring\.fcs\.(\d)\."),
        }
    return found


def _norm(shapes: Shapes, layer: str) -> str:
    if f"{layer}.norm.weight" not in shapes:
        return "none"
    if f"{layer}.norm.num_batches_tracked" in shapes:
        return "batch_norm"
    return "frozen_batch_norm" if f"{layer}.norm.running_mean" in shapes else "group_norm"


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers stand at the pattern's group."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})

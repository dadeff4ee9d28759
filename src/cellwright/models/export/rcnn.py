"""The R-CNN family as graphs, and a description of the steps between them.

Proposals, pooling, NMS and pasting depend on the detections and are not part of a graph. ``export.json`` contains their
parameters and describes each step, so that an exported model can be run without cellwright.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cellwright.config.section import decided
from cellwright.models.export.onnx import Axis, Graph
from cellwright.models.rcnn.c4 import C4MaskRCNN
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.mask_scoring import MaskScoringRCNN
from cellwright.models.rcnn.pointrend import PointRend
from cellwright.models.rcnn.regions import pooling_of
from cellwright.ops.boxes import MAX_LOG_SCALE

REGIONS = Axis("regions")


class _Features(nn.Module):
    """FloatTensor[B,C,H,W] -> the maps that regions are pooled from, then the logits and deltas of every level."""

    def __init__(self, network: MaskRCNN) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.network.features(images)
        logits, deltas = self.network.rpn.head(maps)
        return *self.network.region_features(maps).maps, *logits, *deltas


def graphs_of(network: MaskRCNN) -> list[Graph]:
    """All convolutional and fully connected parts, in evaluation mode."""
    return [_features(network), *_box_heads(network), *_mask_heads(network)]


def _levels(network: MaskRCNN) -> list[int]:
    """Levels with proposals."""
    return [network.rpn.first_level + index for index in range(len(network.rpn.cells))]


def _pooled_levels(network: MaskRCNN) -> list[int]:
    """Levels that regions are pooled from: all but the last of a pyramid, or the only one."""
    return _levels(network)[: None if isinstance(network, C4MaskRCNN) else -1]


def _map_name(network: MaskRCNN, level: int) -> str:
    return f"res{level}" if isinstance(network, C4MaskRCNN) else f"p{level}"


def _features(network: MaskRCNN) -> Graph:
    head, levels = network.rpn.head, _levels(network)
    # C4 accepts images of any size, except of very few pixels.
    smallest = 0 if network.stride > 1 else 32
    sides = Axis("height", network.stride, smallest), Axis("width", network.stride, smallest)
    outputs: dict[str, tuple[int | str, ...]] = {}
    for prefix, channels, map_levels in (
        ("", head.objectness.in_channels, _pooled_levels(network)),
        ("logits_", head.objectness.out_channels, levels),
        ("deltas_", head.deltas.out_channels, levels),
    ):
        for level in map_levels:
            scale = f"/{2**level}" if network.stride % 2**level == 0 else f"/{2**level} rounded up"
            outputs[f"{prefix}{_map_name(network, level)}"] = ("batch", channels, f"height{scale}", f"width{scale}")
    images = (Axis("batch"), network.backbone.stem.conv.in_channels, *sides)
    return Graph(name="features", module=_Features(network), inputs={"images": images}, outputs=outputs)


def _after_pooling(network: MaskRCNN, head: nn.Module) -> nn.Module:
    """A head on pooled features; C4 runs res5 before either head."""
    return nn.Sequential(network.backbone.res5, head) if isinstance(network, C4MaskRCNN) else head


def _box_heads(network: MaskRCNN) -> list[Graph]:
    resolution = network.config.box_head.resolution
    pooled = (REGIONS, network.rpn.head.objectness.in_channels, resolution, resolution)
    state = network.box_head.state_dict()  # all stages have the same shapes
    n_logits, n_deltas = len(state["0.class_logits.bias"]), len(state["0.deltas.bias"])
    return [
        Graph(
            name=name,
            module=_after_pooling(network, head),
            inputs={"pooled": pooled},
            outputs={"class_logits": ("regions", n_logits), "deltas": ("regions", n_deltas)},
        )
        for name, head in zip(_box_head_names(network), network.box_head, strict=True)
    ]


def _box_head_names(network: MaskRCNN) -> list[str]:
    n_stages = len(network.box_head)
    return ["box_head"] if n_stages == 1 else [f"box_head_{stage}" for stage in range(n_stages)]


def _mask_heads(network: MaskRCNN) -> list[Graph]:
    head, channels = network.mask_head, network.rpn.head.objectness.in_channels
    resolution = network.config.mask_head.resolution
    pooled = (REGIONS, channels, resolution, resolution)
    if isinstance(network, PointRend):
        head = network.mask_head
        points = Axis("points")
        coarse = {"mask_logits": ("regions", head.n_masks, head.side, head.side)}
        at_points = {"fine": (REGIONS, channels, points), "coarse": (REGIONS, head.n_masks, points)}
        refined = {"point_logits": ("regions", head.n_masks, "points")}
        return [
            Graph(name="mask_head", module=head, inputs={"grid": pooled}, outputs=coarse),
            Graph(name="point_head", module=network.point_head, inputs=at_points, outputs=refined),
        ]
    side = 2 * ((resolution + 1) // 2) if isinstance(network, C4MaskRCNN) else 2 * resolution
    outputs = {"mask_logits": ("regions", head.logits.out_channels, side, side)}
    module = _after_pooling(network, head)
    graphs = [Graph(name="mask_head", module=module, inputs={"pooled": pooled}, outputs=outputs)]
    if isinstance(network, MaskScoringRCNN):
        inputs = {"pooled": pooled, "own_mask_logits": (REGIONS, side, side)}
        quality = {"quality": ("regions", network.n_classes)}
        graphs.append(Graph(name="mask_scoring", module=network.mask_scoring, inputs=inputs, outputs=quality))
    return graphs


def rules_of(network: MaskRCNN) -> dict[str, Any]:
    """Every number that inference needs besides the graphs, and the ``steps`` to run them, as plain values."""
    mask = network.config.mask_head
    rules: dict[str, Any] = {
        "proposals": _proposal_rules(network),
        "pooling": _pooling_rules(network),
        "boxes": _box_rules(network),
        "masks": {
            "graph": "mask_head",
            "resolution": mask.resolution,
            "threshold": mask.threshold,
            "paste": mask.paste,
            "drop_empty_boxes": network.conventions.drop_empty_boxes,
        },
    }
    if isinstance(network, PointRend):
        points = network.point_head.config
        rules["points"] = {
            "graph": "point_head",
            "stride_px": network.fine_stride,
            "subdivisions": points.subdivisions,
            "per_subdivision": points.test_points,
        }
    if isinstance(network, MaskScoringRCNN):
        rules["mask_scoring"] = {"graph": "mask_scoring"}
    return {**rules, "steps": _steps(network)}


def _proposal_rules(network: MaskRCNN) -> dict[str, Any]:
    rpn = network.rpn.config
    levels = [
        {
            "logits": f"logits_{_map_name(network, level)}",
            "deltas": f"deltas_{_map_name(network, level)}",
            "stride_px": 2**level,
            "cell_anchors_xyxy_px": cell.tolist(),
        }
        for level, cell in zip(_levels(network), network.rpn.cells, strict=True)
    ]
    return {
        "levels": levels,
        "stride_from_sizes": network.rpn.infer_strides,
        "delta_weights": [1.0, 1.0, 1.0, 1.0],
        "max_log_scale": MAX_LOG_SCALE,
        "pre_nms_per_level": rpn.pre_nms_test,
        "post_nms": rpn.post_nms_test,
        "nms_iou": rpn.nms_iou,
        "min_box_px": rpn.min_box_px,
    }


def _pooling_rules(network: MaskRCNN) -> dict[str, Any]:
    pooling, levels = pooling_of(network.config, network.conventions), _pooled_levels(network)
    inside_logarithm = pooling.level_rule == "detectron2"
    return {
        "maps": [_map_name(network, level) for level in levels],
        "levels": levels,
        "strides_px": [2**level for level in levels],
        "sampling_ratio": pooling.sampling_ratio,
        "aligned": pooling.aligned,
        "canonical_box_px": pooling.canonical_box_px,
        "canonical_level": pooling.canonical_level,
        "size_epsilon": 1e-8 if inside_logarithm else 0.0,
        "level_epsilon": 0.0 if inside_logarithm else 1e-6,
    }


def _box_rules(network: MaskRCNN) -> dict[str, Any]:
    box = network.config.box_head
    return {
        "graphs": _box_head_names(network),
        "delta_weights": [list(weights) for weights in box.stage_delta_weights],
        "max_log_scale": MAX_LOG_SCALE,
        "resolution": box.resolution,
        "pooled_maps": len(_pooled_levels(network)[: box.pooled_levels]),
        "score_threshold": box.score_threshold,
        "nms_iou": box.nms_iou,
        "per_image": box.detections_per_image,
        "min_box_px": box.min_box_px,
    }


def _steps(network: MaskRCNN) -> list[str]:
    """How to get the objects of an image from the graphs and the numbers, step by step."""
    stride = "stride_px"
    if network.rpn.infer_strides:
        stride = "the side of the padded image divided by that of the map, rounded down, per axis"
    steps = [
        "features: from the image compute maps, and for every level logits (batch, anchors, y, x) and deltas "
        "(batch, 4 * anchors, y, x): dx dy dw dh of the first anchor, of the second, and so on.",
        f"Anchors of cell (y, x): cell_anchors_xyxy_px, shifted by x and y times the stride ({stride}).",
        "To decode deltas relative to a box: divide them by the delta weights; centre += (dx, dy) * size; "
        "size *= exp(min((dw, dh), max_log_scale)). Boxes are x0 y0 x1 y1, sizes x1 - x0.",
        "Proposals: take the pre_nms_per_level highest logits of each level, decode, clip to the unpadded image; "
        "remove boxes with a side below min_box_px (if that is 0: not above 0); apply NMS within each level (IoU "
        "above nms_iou); keep the post_nms best.",
    ]
    where = "from the only map"
    if not isinstance(network, C4MaskRCNN):
        where = (
            "from the map of level floor(canonical_level + log2(sqrt(area) / canonical_box_px + size_epsilon) + "
            "level_epsilon), clamped to the pooled levels (for boxes the first boxes.pooled_maps of them)"
        )
    steps.append(
        f"Pooling: RoIAlign {where}; sampling_ratio 0 adapts to the size of the box, aligned is the half-pixel shift."
    )
    if len(network.box_head) > 1:
        steps.append(
            "Boxes: run each of boxes.graphs in turn on pooled features; its decoded boxes, clipped to the image, "
            "are the input of the next. Scores are the mean of all softmaxes without the last class (background); "
            "the deltas of the last graph are decoded relative to its input boxes."
        )
    else:
        steps.append(
            "Boxes: run boxes.graphs on pooled features; scores are the softmax without the last class (background)."
        )
    steps.append(
        "Detections: take every class of every proposal with a score above score_threshold; decode the deltas of "
        "that class (or the shared ones), clip to the image; remove sides below min_box_px; apply NMS within each "
        "class; keep the per_image best."
    )
    steps.append(_mask_step(network))
    if isinstance(network, MaskScoringRCNN):
        steps.append(
            "Quality: run mask_scoring on the same features and the mask logits of the detected class; multiply the "
            "score by the quality of that class, clamped to 0..1."
        )
    steps.append(
        "Pixels: scale boxes to the original image; with drop_empty_boxes, also clip them to it and remove empty ones."
    )
    steps.append(_PASTE[decided(network.config.mask_head.paste)])
    steps.append(
        "Result: keep objects with at least result.score_threshold and result.min_area_px. For a tuned model, keep "
        "those with at least the raw scores and areas in result.thresholds, and convert scores by linear "
        "interpolation in result.calibration."
    )
    return steps


_PASTE = {
    "torchvision": (
        "Paste: pad each mask with zeros by one cell; enlarge the box about its centre by (side + 2) / side and "
        "truncate it to whole pixels; resize the mask to it bilinearly; pixels above masks.threshold belong to the "
        "object."
    ),
    "detectron2": (
        "Paste: map the centre of each pixel into the box and interpolate the probabilities bilinearly, with zeros "
        "outside; pixels of at least masks.threshold belong to the object."
    ),
}


def _mask_step(network: MaskRCNN) -> str:
    if not isinstance(network, PointRend):
        return (
            "Masks: run mask_head on features pooled at the detected boxes (masks.resolution); apply a sigmoid to "
            "the mask of the detected class (or to the only mask)."
        )
    return (
        "Masks: run mask_head on the finest map (stride points.stride_px), sampled at the centres of "
        "masks.resolution x masks.resolution cells of each box, to get coarse logits. Take the largest grid with at "
        "most points.per_subdivision cells whose side is that of the coarse logits times 2 to a power of at most "
        "points.subdivisions; run point_head on the finest map and the coarse logits at the centres of its cells, to "
        "get the logits of the detected class. For each remaining subdivision, double the logits (bilinear) and "
        "replace the per_subdivision cells nearest to 0 by the output of point_head. Maps are sampled bilinearly, "
        "with zeros outside and the value of a cell at its centre. Apply a sigmoid to the result."
    )

"""The R-CNN family as graphs, and in words what happens between them.

Proposals, pooling, NMS and pasting depend on what was found and are no part of a graph. ``export.json`` holds their
numbers (`rules_of`) and their order (`steps_of`), so that no cellwright is needed to run an exported model.
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
    """Images to the maps that boxes are pooled from, and to what the proposal head says at every level."""

    def __init__(self, network: MaskRCNN) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.network.features(images)
        logits, deltas = self.network.rpn.head(maps)
        return *self.network.region_features(maps).maps, *logits, *deltas


def graphs_of(network: MaskRCNN) -> list[Graph]:
    """All convolutional and fully connected parts, each once."""
    return [_features(network), *_box_heads(network), *_mask_heads(network)]


def _levels(network: MaskRCNN) -> list[int]:
    """Levels with proposals."""
    return [network.rpn.first_level + place for place in range(len(network.rpn.cells))]


def _pooled_levels(network: MaskRCNN) -> list[int]:
    """Levels that boxes are pooled from: all but the last, or the only one."""
    return _levels(network)[: None if isinstance(network, C4MaskRCNN) else -1]


def _map_name(network: MaskRCNN, level: int) -> str:
    return f"res{level}" if isinstance(network, C4MaskRCNN) else f"p{level}"


def _features(network: MaskRCNN) -> Graph:
    head, levels = network.rpn.head, _levels(network)
    # Images of any size go into C4, but not of a few pixels.
    usual = 0 if network.stride > 1 else 32
    sides = Axis("height", network.stride, usual), Axis("width", network.stride, usual)
    outputs: dict[str, tuple[int | str, ...]] = {}
    for prefix, channels, wanted in (
        ("", head.objectness.in_channels, _pooled_levels(network)),
        ("logits_", head.objectness.out_channels, levels),
        ("deltas_", head.deltas.out_channels, levels),
    ):
        for level in wanted:
            rest = f"/{2**level}" if network.stride % 2**level == 0 else f"/{2**level} rounded up"
            outputs[f"{prefix}{_map_name(network, level)}"] = ("batch", channels, f"height{rest}", f"width{rest}")
    images = (Axis("batch"), network.backbone.stem.conv.in_channels, *sides)
    return Graph(name="features", module=_Features(network), inputs={"images": images}, outputs=outputs)


def _behind_pooling(network: MaskRCNN, head: nn.Module) -> nn.Module:
    """C4 runs res5 on what is pooled, before either head."""
    return head if not isinstance(network, C4MaskRCNN) else nn.Sequential(network.backbone.res5, head)


def _box_heads(network: MaskRCNN) -> list[Graph]:
    resolution = network.config.box_head.resolution
    pooled = (REGIONS, network.rpn.head.objectness.in_channels, resolution, resolution)
    state = network.box_head.state_dict()  # all stages are of one shape
    n_logits, n_deltas = len(state["0.class_logits.bias"]), len(state["0.deltas.bias"])
    return [
        Graph(
            name=name,
            module=_behind_pooling(network, head),
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
    side = 2 * resolution if not isinstance(network, C4MaskRCNN) else 2 * ((resolution + 1) // 2)
    outputs = {"mask_logits": ("regions", head.logits.out_channels, side, side)}
    module = _behind_pooling(network, head)
    graphs = [Graph(name="mask_head", module=module, inputs={"pooled": pooled}, outputs=outputs)]
    if isinstance(network, MaskScoringRCNN):
        both = {"pooled": pooled, "own_mask_logits": (REGIONS, side, side)}
        quality = {"quality": ("regions", network.n_classes)}
        graphs.append(Graph(name="mask_scoring", module=network.mask_scoring, inputs=both, outputs=quality))
    return graphs


def rules_of(network: MaskRCNN) -> dict[str, Any]:
    """Every number that inference needs besides the graphs, as plain values."""
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
    return rules


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
    inside = pooling.level_rule == "detectron2"
    return {
        "maps": [_map_name(network, level) for level in levels],
        "levels": levels,
        "strides_px": [2**level for level in levels],
        "sampling_ratio": pooling.sampling_ratio,
        "aligned": pooling.aligned,
        "canonical_box_px": pooling.canonical_box_px,
        "canonical_level": pooling.canonical_level,
        "size_epsilon": 1e-8 if inside else 0.0,
        "level_epsilon": 0.0 if inside else 1e-6,
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


def steps_of(network: MaskRCNN) -> list[str]:
    """How the graphs and the numbers of `rules_of` make objects of one image, step by step."""
    stride = "stride_px"
    if network.rpn.infer_strides:
        stride = "the padded image's side over the map's, rounded down, on each axis"
    steps = [
        "features: the image gives maps, and for every level logits (batch, anchors, y, x) and deltas "
        "(batch, 4 * anchors, y, x), dx dy dw dh of one anchor after the other.",
        f"Anchors of cell (y, x): cell_anchors_xyxy_px, moved by x and y times the stride ({stride}).",
        "Decoding deltas relative to a box: divide by the delta weights; centre += (dx, dy) * size; "
        "size *= exp(min((dw, dh), max_log_scale)). Boxes are x0 y0 x1 y1, sizes x1 - x0.",
        "Proposals: of each level the pre_nms_per_level highest logits, decoded, clipped to the unpadded image; sides "
        "below min_box_px (for 0: not above 0) go; NMS inside each level (IoU above nms_iou goes); the post_nms best.",
    ]
    where = "from the only map"
    if not isinstance(network, C4MaskRCNN):
        where = (
            "from the map of level floor(canonical_level + log2(sqrt(area) / canonical_box_px + size_epsilon) + "
            "level_epsilon), clamped to the pooled levels (for boxes the first boxes.pooled_maps of them)"
        )
    steps.append(f"Pooling: RoIAlign {where}; sampling_ratio 0 adapts to the box, aligned is the half-pixel shift.")
    if len(network.box_head) > 1:
        steps.append(
            "Boxes: each of boxes.graphs in turn on the pooled features; its decoded boxes, clipped to the image, are "
            "the next one's. Scores are the mean of all softmaxes without the last class (background); the last "
            "graph's deltas are decoded relative to the boxes that it was given."
        )
    else:
        steps.append(
            "Boxes: boxes.graphs on the pooled features; scores are the softmax without the last class (background)."
        )
    steps.append(
        "Detections: every class of every proposal that scores above score_threshold, with its own deltas (or the only "
        "ones), clipped to the image, sides at least min_box_px; NMS inside each class; the per_image best."
    )
    steps.append(_mask_step(network))
    if isinstance(network, MaskScoringRCNN):
        steps.append(
            "Quality: mask_scoring on the same features and the mask logits of the detection's own class; the score is "
            "multiplied by the quality of that class, clamped to 0..1."
        )
    steps.append("Pixels: boxes are scaled to the original image; with drop_empty_boxes clipped to it, too.")
    steps.append(_PASTE[decided(network.config.mask_head.paste)])
    steps.append(
        "Result: objects from result.score_threshold and result.min_area_px on; of a tuned model, from the raw scores "
        "and areas in result.thresholds on, and shown scores follow result.calibration by linear interpolation."
    )
    return steps


_PASTE = {
    "torchvision": (
        "Masks get a border of zeros one cell wide; the box grows about its centre by (side + 2) / side and is cut to "
        "whole pixels; the mask is stretched over it bilinearly; pixels above masks.threshold belong to the object."
    ),
    "detectron2": (
        "Pixel centres are mapped into the box and probabilities interpolated bilinearly, zeros outside; pixels from "
        "masks.threshold on belong to the object."
    ),
}


def _mask_step(network: MaskRCNN) -> str:
    if not isinstance(network, PointRend):
        return (
            "Masks: mask_head on features pooled at the detections' boxes (masks.resolution); the sigmoid of the "
            "detection's own class (or of the only mask)."
        )
    return (
        "Masks: mask_head on the finest map (stride points.stride_px) at the centres of masks.resolution x "
        "masks.resolution cells of each box gives coarse logits. Then point_head, from the finest map and the coarse "
        "logits at the centres of a grid's cells, gives the own class's logits for all cells of the finest grid that "
        "has at most points.per_subdivision cells and a side of the coarse one's times 2 to some power of at most "
        "points.subdivisions. Each doubling left of points.subdivisions enlarges the logits (bilinear) and replaces "
        "the per_subdivision cells nearest to 0 by point_head's. Maps are read bilinearly, zeros outside, a cell's "
        "value at its centre. The sigmoid of what results."
    )

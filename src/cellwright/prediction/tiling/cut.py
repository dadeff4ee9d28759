"""Objects cut to a window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cellwright.core.geometry import Window
from cellwright.core.instances import Instances
from cellwright.core.masks import SoftMasks


def cut_to(objects: Instances, canvas: Window, output: Window) -> Instances:
    """Scored objects of a window of an image, the canvas, cut to a window inside it; best first.

    Boxes are moved but not cut, since fusion compares them; objects without a pixel are omitted.
    """
    dy, dx = output.y0 - canvas.y0, output.x0 - canvas.x0
    inside = Window(dy, dx, dy + output.hw[0], dx + output.hw[1])
    masks = objects.masks.window(*inside)
    kept = np.flatnonzero(masks.areas > 0)
    assert objects.scores is not None
    cut = Instances.from_masks(
        masks[kept],
        class_ids=objects.class_ids[kept],
        scores=objects.scores[kept],
        boxes_xyxy=objects.boxes_xyxy[kept] - np.array([dx, dy, dx, dy], np.float32),
    )
    if objects.soft_masks is not None:
        cut = replace(cut, soft_masks=_cut_soft(objects.soft_masks[kept], inside))
    return cut.by_score()


def _cut_soft(soft: SoftMasks, inside: Window) -> SoftMasks:
    """Probabilities cut to a window."""
    y0, x0, y1, x1 = inside
    boxes, crops = [], []
    for i, (left, top, right, bottom) in enumerate(soft.boxes.tolist()):
        own = max(left, x0), max(top, y0), min(right, x1), min(bottom, y1)
        boxes.append((own[0] - x0, own[1] - y0, own[2] - x0, own[3] - y0))
        crops.append(soft.crop(i)[own[1] - top : own[3] - top, own[0] - left : own[2] - left].ravel())
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([crop.size for crop in crops], dtype=np.int64)])
    flat = np.concatenate(crops) if crops else np.zeros(0, np.uint8)
    return SoftMasks(inside.hw, np.array(boxes, np.int32).reshape(-1, 4), offsets, flat)

"""What a cascade does between its stages (Cai & Vasconcelos 2018): refined boxes are the next stage's regions.

Shape shorthand: R regions, K classes. A head that looks once is a cascade of one stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cellwright.models.rcnn.regions import Regions
from cellwright.ops.assign import FOREGROUND, assign, inside_ignored
from cellwright.ops.batch import Batch
from cellwright.ops.boxes import clip_boxes, decode_boxes, large_enough


@torch.no_grad()
def refine_boxes(deltas: Tensor, boxes: Tensor, image_hw: tuple[int, int], delta_weights: Sequence[float]) -> Tensor:
    """Class-agnostic deltas FloatTensor[R,4] of FloatTensor[R,4] px -> boxes FloatTensor[R,4] inside the image."""
    return clip_boxes(decode_boxes(deltas, boxes, delta_weights), image_hw)


@torch.no_grad()
def relabel_regions(
    boxes: Sequence[Tensor], batch: Batch, n_classes: int, *, foreground_iou: float, ignore_ioa: float
) -> list[Regions]:
    """Regions of a later stage: the refined boxes against the objects anew, none drawn and none added.

    Boxes without area or inside ignored regions are left out. ``boxes``: per image FloatTensor[R,4] px; an image
    without objects has background only.
    """
    regions = []
    for image, refined in enumerate(boxes):
        ignore = batch.ignore[image]
        usable = large_enough(refined, 0.0) & ~inside_ignored(refined, batch.boxes[image][ignore], ignore_ioa)
        kept = refined[usable]
        own = torch.nonzero(~ignore).squeeze(1)
        found = assign(
            kept,
            batch.boxes[image][own],
            foreground_iou=foreground_iou,
            background_iou=foreground_iou,
            keep_best=False,
        )
        foreground = found.labels == FOREGROUND
        objects = own[found.objects] * foreground if len(own) else torch.zeros_like(found.objects)
        class_ids = batch.class_ids[image][objects] if len(own) else objects
        regions.append(Regions(kept, torch.where(foreground, class_ids, n_classes), objects))
    return regions


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:  # type: ignore[override]
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` itself, whose gradient is multiplied by ``factor``: every stage pulls on the shared features."""
    return x if factor == 1.0 else _ScaledGradient.apply(x, factor)  # type: ignore[return-value]

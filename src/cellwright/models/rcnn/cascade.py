"""Cascade Mask R-CNN (Cai & Vasconcelos 2018, 2019): box heads in sequence, each refining the previous one's boxes.

Shape shorthand: R regions, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cellwright.models.rcnn.heads import labelled, region_losses
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.regions import BoxOutputs, RegionFeatures, Regions
from cellwright.ops.assign import FOREGROUND, assign, inside_ignored
from cellwright.ops.batch import Batch
from cellwright.ops.boxes import Extent, clip_boxes, decode_boxes, large_enough


class CascadeMaskRCNN(MaskRCNN):
    """`MaskRCNN` with several box heads; masks belong to the boxes of the last one."""

    def box_losses(
        self, source: RegionFeatures, regions: Sequence[Regions], batch: Batch
    ) -> tuple[dict[str, Tensor], BoxOutputs]:
        """``class_stage0``, ``box_stage0`` and so on, and what the first head computed for the sampled regions."""
        config, losses, outputs = self.config.box_head, {}, []
        for stage, head in enumerate(self.box_head):
            if stage > 0:
                boxes = self._refined(outputs[-1], stage - 1, batch.image_hws)
                iou, ignore_ioa = config.stage_ious[stage], self.config.roi.ignore_ioa
                regions = relabel_regions(boxes, batch, self.n_classes, foreground_iou=iou, ignore_ioa=ignore_ioa)
            pooled = source.pool([region.boxes for region in regions], config.resolution, config.pooled_levels)
            pooled = scale_gradient(pooled, 1 / len(self.box_head))
            class_logits, deltas = head(pooled)
            own = region_losses(class_logits, deltas, regions, batch, config, stage)
            losses |= {f"{name}_stage{stage}": loss for name, loss in own.items()}
            outputs.append(BoxOutputs(regions, pooled, deltas))
        return losses, outputs[0]

    def _refined(self, outputs: BoxOutputs, stage: int, image_hws: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Per image the boxes FloatTensor[R,4] that a stage predicts for its regions."""
        boxes = [region.boxes for region in outputs.regions]
        deltas, weights = outputs.deltas.split([len(own) for own in boxes]), self.config.box_head.stage_delta_weights
        return [refine_boxes(*own, weights[stage]) for own in zip(deltas, boxes, image_hws, strict=True)]

    def classify(self, source: RegionFeatures, regions: Tensor, image_hw: Extent) -> tuple[Tensor, Tensor, Tensor]:
        """The mean of all stages' scores; the last stage's deltas, and the regions that they refine."""
        scores, deltas, weights = [], regions, self.config.box_head.stage_delta_weights
        for stage in range(len(self.box_head)):
            if stage > 0:
                regions = refine_boxes(deltas, regions, image_hw, weights[stage - 1])
            class_logits, deltas = self.run_box_head(stage, source, regions)
            scores.append(class_logits.softmax(dim=1)[:, :-1])
        return torch.stack(scores).mean(dim=0), deltas, regions


@torch.no_grad()
def refine_boxes(deltas: Tensor, boxes: Tensor, image_hw: Extent, delta_weights: Sequence[float]) -> Tensor:
    """Boxes FloatTensor[R,4] px moved by class-agnostic deltas FloatTensor[R,4] and clipped to the image."""
    return clip_boxes(decode_boxes(deltas, boxes, delta_weights), image_hw)


@torch.no_grad()
def relabel_regions(
    boxes: Sequence[Tensor], batch: Batch, n_classes: int, *, foreground_iou: float, ignore_ioa: float
) -> list[Regions]:
    """The regions of a later stage: the refined boxes, assigned to the objects again; none is sampled or added.

    Boxes without area are omitted, and background inside regions that are not annotated. ``boxes``: per image
    FloatTensor[R,4] px; in an image without objects, all are background.
    """
    regions = []
    for image, refined in enumerate(boxes):
        kept = refined[large_enough(refined, 0.0)]
        assignment = assign(
            kept,
            batch.boxes[image][~batch.ignore[image]],
            foreground_iou=foreground_iou,
            background_iou=foreground_iou,
            keep_best=False,
        )
        foreground = assignment.labels == FOREGROUND
        used = foreground | ~inside_ignored(kept, batch.ignored_pixels(image), ignore_ioa)
        objects = assignment.objects[used]
        regions.append(labelled(kept[used], foreground[used], objects, batch, image, n_classes))
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
    """``x`` itself; its gradient is multiplied by ``factor``, since every stage adds to that of the shared features."""
    return _ScaledGradient.apply(x, factor)  # type: ignore[return-value]

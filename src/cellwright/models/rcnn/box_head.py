"""Box head (Girshick 2015; Lin et al. 2017): the class and the refined box of every region.

Shape shorthand: R regions, K classes (background is column K and never leaves this file), M side of pooled features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.models.layers import ConvNorm, NormName, init_kaiming, init_normal
from cellwright.models.rcnn.losses import box_loss, class_loss
from cellwright.models.rcnn.regions import Detections, Regions
from cellwright.ops.assign import FOREGROUND, UNUSED, assign, inside_ignored, sample
from cellwright.ops.batch import Batch
from cellwright.ops.boxes import clip_boxes, decode_boxes, encode_boxes, large_enough
from cellwright.ops.nms import grouped_nms

# What may become of a box that was looked at: dropped by one of these, or kept.
STEPS = ("threshold", "nms", "cap", "kept")


@dataclass(frozen=True, kw_only=True)
class RegionSampling:
    """Which regions a step learns from; see ``BoxHeadConfig`` and ``RegionConfig.ignore_ioa``."""

    foreground_iou: float
    background_iou: float
    per_image: int
    positive_fraction: float
    ignore_ioa: float


@dataclass(frozen=True, kw_only=True)
class DetectionRules:
    """Which refined boxes become detections; see ``BoxHeadConfig``. ``min_box_px`` 0 drops no box for its size."""

    score_threshold: float
    nms_iou: float
    per_image: int
    min_box_px: float


class BoxHead(nn.Module):
    """Pooled features of regions to class logits and box deltas: convolutions, fully connected layers, predictors."""

    def __init__(
        self,
        *,
        in_channels: int,
        resolution: int,
        conv_channels: Sequence[int],
        fc_channels: Sequence[int],
        norm: NormName,
        n_classes: int,
        n_boxes: int,
        averages: bool = False,
    ) -> None:
        """``conv_channels``, ``fc_channels``: one entry a layer.

        ``n_classes`` is K, without background; ``n_boxes`` a region: 1 (class-agnostic), K, or K + 1 with a last one
        for background that nothing uses. ``averages``: the first layer sees the mean over all cells (C4).
        """
        super().__init__()
        self.n_classes = n_classes
        self.averages = averages
        convs, fcs, channels = [], [], in_channels
        for out_channels in conv_channels:
            convs.append(ConvNorm(channels, out_channels, 3, norm=norm, relu=True))
            channels = out_channels
        channels *= 1 if averages else resolution**2
        for out_channels in fc_channels:
            fc = nn.Linear(channels, out_channels)
            nn.init.kaiming_uniform_(fc.weight, a=1)
            nn.init.zeros_(fc.bias)
            fcs.append(fc)
            channels = out_channels
        self.convs, self.fcs = nn.Sequential(*convs), nn.ModuleList(fcs)
        self.class_logits = nn.Linear(channels, n_classes + 1)
        self.deltas = nn.Linear(channels, 4 * n_boxes)
        init_kaiming(self.convs)
        init_normal(self.class_logits, std=0.01)
        init_normal(self.deltas, std=0.001)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """FloatTensor[R,C,M,M] -> class logits FloatTensor[R,K+1], deltas FloatTensor[R,n_boxes*4]; R may be 0."""
        hidden = self.convs(pooled)
        hidden = hidden.mean(dim=(2, 3)) if self.averages else hidden.flatten(1)
        for fc in self.fcs:
            hidden = F.relu(fc(hidden), inplace=True)
        return self.class_logits(hidden), self.deltas(hidden)


@torch.no_grad()
def sample_regions(
    proposals: Sequence[Tensor], batch: Batch, n_classes: int, sampling: RegionSampling, generator: torch.Generator
) -> list[Regions]:
    """Draw, per image, the regions to learn from: proposals and the objects' own boxes, some foreground, some not.

    Args:
        proposals: per image FloatTensor[N,4] px.
        batch: its objects; those to ignore are no targets, and regions inside them are not drawn.
        n_classes: K, the class of background.
        sampling: thresholds and counts.
        generator: on the CPU.
    """
    regions = []
    for image, boxes in enumerate(proposals):
        ignore = batch.ignore[image]
        own = torch.nonzero(~ignore).squeeze(1)
        objects = batch.boxes[image][own]
        candidates = torch.cat([boxes, objects])
        assignment = assign(
            candidates,
            objects,
            foreground_iou=sampling.foreground_iou,
            background_iou=sampling.background_iou,
            keep_best=False,
        )
        ignored = inside_ignored(candidates, batch.boxes[image][ignore], sampling.ignore_ioa)
        labels = assignment.labels.masked_fill(ignored, UNUSED)
        drawn = sample(labels, sampling.per_image, sampling.positive_fraction, generator)
        foreground = labels[drawn] == FOREGROUND
        if len(own):
            matched = own[assignment.objects[drawn]] * foreground
            class_ids = torch.where(foreground, batch.class_ids[image][matched], n_classes)
        else:
            matched = torch.zeros_like(drawn)
            class_ids = torch.full_like(drawn, n_classes)
        regions.append(Regions(candidates[drawn], class_ids, matched))
    return regions


def region_losses(
    class_logits: Tensor,
    deltas: Tensor,
    regions: Sequence[Regions],
    batch: Batch,
    *,
    delta_weights: Sequence[float],
    smooth_l1_beta: float,
    class_weights: Tensor | None,
) -> dict[str, Tensor]:
    """``class`` and ``box`` losses of all regions of the batch, whose predictions are stacked image by image.

    ``class_weights``: FloatTensor[K+1] or None, see ``losses.class_loss``.
    """
    n_classes = class_logits.shape[1] - 1
    targets = []
    for region, boxes in zip(regions, batch.boxes, strict=True):
        matched = boxes[region.objects] if len(boxes) else region.boxes
        targets.append(encode_boxes(matched, region.boxes, delta_weights))
    class_ids = torch.cat([region.class_ids for region in regions])
    return {
        "class": class_loss(class_logits, class_ids, class_weights),
        "box": box_loss(deltas, class_ids, torch.cat(targets), n_classes=n_classes, beta=smooth_l1_beta),
    }


@torch.no_grad()
def select_detections(
    scores: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    image_hw: tuple[int, int],
    *,
    delta_weights: Sequence[float],
    rules: DetectionRules,
) -> Detections:
    """Detections of one image: every class of every proposal that scores enough, after NMS per class.

    Args:
        scores: FloatTensor[R,K], without background.
        deltas: FloatTensor[R,n_boxes*4].
        proposals: FloatTensor[R,4] px.
        image_hw: boxes are clipped to it.
        delta_weights: as in training.
        rules: thresholds and counts.
    """
    usable = (scores > rules.score_threshold) & (scores.isfinite() & deltas.isfinite().all(dim=1, keepdim=True))
    row, class_ids = torch.nonzero(usable, as_tuple=True)
    per_box = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
    chosen = per_box[row, class_ids if per_box.shape[1] > 1 else torch.zeros_like(class_ids)]
    boxes = clip_boxes(decode_boxes(chosen, proposals[row], delta_weights), image_hw)
    scores = scores[row, class_ids]
    if rules.min_box_px > 0:
        large = large_enough(boxes, rules.min_box_px)
        boxes, scores, class_ids = boxes[large], scores[large], class_ids[large]
    best = grouped_nms(boxes, scores, class_ids, rules.nms_iou)[: rules.per_image]
    return Detections(boxes[best], scores[best], class_ids[best])


@torch.no_grad()
def explain_detections(
    scores: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    image_hw: tuple[int, int],
    *,
    delta_weights: Sequence[float],
    rules: DetectionRules,
) -> tuple[Detections, Tensor]:
    """Every box that `select_detections` (same arguments) looks at, and the step at which it was dropped.

    A proposal of which no class scores enough stands with its best class.

    Returns:
        the boxes, in the order of the proposals, and LongTensor[D], indices into ``STEPS``.
    """
    above = scores > rules.score_threshold
    best_class = F.one_hot(scores.argmax(dim=1), scores.shape[1]).bool()
    looked_at = (above | (best_class & ~above.any(dim=1, keepdim=True))) & scores.isfinite()
    row, class_ids = torch.nonzero(looked_at & deltas.isfinite().all(dim=1, keepdim=True), as_tuple=True)
    per_box = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
    chosen = per_box[row, class_ids if per_box.shape[1] > 1 else torch.zeros_like(class_ids)]
    boxes = clip_boxes(decode_boxes(chosen, proposals[row], delta_weights), image_hw)
    scores = scores[row, class_ids]
    if rules.min_box_px > 0:
        large = large_enough(boxes, rules.min_box_px)
        boxes, scores, class_ids = boxes[large], scores[large], class_ids[large]
    step = torch.full_like(class_ids, STEPS.index("threshold"))
    usable = torch.nonzero(scores > rules.score_threshold).squeeze(1)
    best = usable[grouped_nms(boxes[usable], scores[usable], class_ids[usable], rules.nms_iou)]
    step[usable] = STEPS.index("nms")
    step[best] = STEPS.index("cap")
    step[best[: rules.per_image]] = STEPS.index("kept")
    return Detections(boxes, scores, class_ids), step

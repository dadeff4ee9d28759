"""The heads of Mask R-CNN (Girshick 2015; Lin et al. 2017; He et al. 2017): class, refined box and mask of each region.

Shape shorthand: R regions, K classes (background is column K and is used in this file only), M side of pooled features;
masks have 2 M.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.config.model_rcnn import (
    AnyBoxHeadConfig,
    BoxHeadConfig,
    CascadeBoxHeadConfig,
    CoarseMaskConfig,
    HeadNorm,
    MaskHeadConfig,
)
from cellwright.config.section import decided
from cellwright.core.candidates import STEPS
from cellwright.models.layers import WinogradConvNorm, init_kaiming, init_normal
from cellwright.models.rcnn.losses import box_loss, class_loss
from cellwright.models.rcnn.regions import Detections, Regions
from cellwright.ops.assign import BACKGROUND, FOREGROUND, UNUSED, assign, inside_ignored, sample
from cellwright.ops.batch import Batch
from cellwright.ops.boxes import Extent, clip_boxes, decode_boxes, encode_boxes, large_enough
from cellwright.ops.nms import grouped_nms
from cellwright.ops.roi import sample_mask_targets

# --- boxes --------------------------------------------------------------------------------------------------------


class BoxHead(nn.Module):
    """Pooled features of regions to class logits and box deltas: convolutions, fully connected layers, predictors."""

    def __init__(
        self, config: BoxHeadConfig | CascadeBoxHeadConfig, *, in_channels: int, n_classes: int, n_rows: int
    ) -> None:
        """``n_classes`` is K. A class-agnostic head predicts 1 box per region, others ``n_rows``: K, or K + 1 where the
        conventions keep an unused one for background."""
        super().__init__()
        widths = [in_channels] + [config.conv_channels] * config.convs
        self.convs = _convs(config.norm, widths)
        widths = [widths[-1] * config.resolution**2] + [config.fc_channels] * config.fcs
        self.fcs = nn.ModuleList(_fully_connected(a, b) for a, b in pairwise(widths))
        self.class_logits = nn.Linear(widths[-1], n_classes + 1)
        self.deltas = nn.Linear(widths[-1], 4 * (1 if config.class_agnostic else n_rows))
        init_kaiming(self.convs)
        init_normal(self.class_logits, std=0.01)
        init_normal(self.deltas, std=0.001)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """FloatTensor[R,C,M,M] -> class logits FloatTensor[R,K+1], deltas FloatTensor[R,n_boxes*4]; R may be 0."""
        hidden = self.convs(pooled).flatten(1)
        for fc in self.fcs:
            hidden = F.relu(fc(hidden), inplace=True)
        return self.class_logits(hidden), self.deltas(hidden)


def _convs(norm: HeadNorm, widths: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*(WinogradConvNorm(a, b, 3, norm=norm, relu=True) for a, b in pairwise(widths)))


def _fully_connected(in_channels: int, out_channels: int) -> nn.Linear:
    layer = nn.Linear(in_channels, out_channels)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def sample_regions(
    proposals: Sequence[Tensor],
    batch: Batch,
    n_classes: int,
    config: AnyBoxHeadConfig,
    ignore_ioa: float,
    generators: Sequence[torch.Generator],
) -> list[Regions]:
    """Draw each image's regions for the losses, foreground and background, from the proposals and the objects' boxes.

    Args:
        proposals: per image FloatTensor[N,4] px.
        batch: its objects. Ignored ones are not targets.
        n_classes: K, the class of background.
        config: IoU thresholds and the size of the sample; those of the first stage in a cascade.
        ignore_ioa: background with at least this share of its area in pixels that are not annotated is not drawn.
        generators: on the CPU, one per image.
    """
    regions = []
    for image, (proposed, generator) in enumerate(zip(proposals, generators, strict=True)):
        objects = batch.boxes[image][~batch.ignore[image]]
        candidates = torch.cat([proposed, objects])
        assignment = assign(
            candidates,
            objects,
            foreground_iou=config.foreground_iou,
            background_iou=config.background_iou,
            keep_best=False,
        )
        unknown = inside_ignored(candidates, batch.ignored_pixels(image), ignore_ioa)
        labels = assignment.labels.masked_fill(unknown & (assignment.labels == BACKGROUND), UNUSED)
        drawn = sample(labels, config.samples_per_image, config.positive_fraction, generator)
        foreground = labels[drawn] == FOREGROUND
        regions.append(labelled(candidates[drawn], foreground, assignment.objects[drawn], batch, image, n_classes))
    return regions


def labelled(boxes: Tensor, foreground: Tensor, objects: Tensor, batch: Batch, image: int, n_classes: int) -> Regions:
    """Regions of one image from boxes FloatTensor[R,4] and what they were assigned to.

    ``foreground``: BoolTensor[R]; ``objects``: LongTensor[R], index into the objects of the image that are not ignored.
    """
    own = torch.nonzero(~batch.ignore[image]).squeeze(1)
    if not len(own):
        return Regions(boxes, torch.full_like(objects, n_classes), torch.zeros_like(objects))
    matched = own[objects] * foreground
    return Regions(boxes, torch.where(foreground, batch.class_ids[image][matched], n_classes), matched)


def region_losses(
    class_logits: Tensor,
    deltas: Tensor,
    regions: Sequence[Regions],
    batch: Batch,
    config: AnyBoxHeadConfig,
    stage: int = 0,
) -> dict[str, Tensor]:
    """The weighted losses ``class`` and ``box`` of one box head, whose predictions are stacked image by image.

    ``stage``: which of the ``config.stage_delta_weights`` applies; 0 except in a cascade.
    """
    n_classes = class_logits.shape[1] - 1
    class_weights = None
    if config.class_weights is not None:
        class_weights = torch.tensor(config.class_weights, device=class_logits.device)
    targets = []
    for region, boxes in zip(regions, batch.boxes, strict=True):
        matched = boxes[region.objects] if len(boxes) else region.boxes
        targets.append(encode_boxes(matched, region.boxes, config.stage_delta_weights[stage]))
    class_ids, beta = torch.cat([region.class_ids for region in regions]), decided(config.smooth_l1_beta)
    return {
        "class": config.class_weight * class_loss(class_logits, class_ids, class_weights, batch.ranks),
        "box": config.box_weight
        * box_loss(deltas, class_ids, torch.cat(targets), n_classes=n_classes, beta=beta, ranks=batch.ranks),
    }


def select_detections(
    scores: Tensor, deltas: Tensor, regions: Tensor, image_hw: Extent, config: AnyBoxHeadConfig
) -> Detections:
    """The detections of one image, best first: every class of every region that scores enough, after NMS per class.

    Args:
        scores: FloatTensor[R,K], without background.
        deltas: FloatTensor[R,n_boxes*4], n_boxes being 1, K or K + 1.
        regions: FloatTensor[R,4] px, which the deltas refine.
        image_hw: boxes are clipped to it.
        config: thresholds, the maximum number of detections, and the last of its ``stage_delta_weights``.
    """
    candidates, _, kept = rank_candidates(scores, deltas, regions, image_hw, config)
    return candidates[kept]


@torch.no_grad()
def rank_candidates(
    scores: Tensor,
    deltas: Tensor,
    regions: Tensor,
    image_hw: Extent,
    config: AnyBoxHeadConfig,
    *,
    low_scores: bool = False,
) -> tuple[Detections, Tensor, Tensor]:
    """All boxes that may become detections of one image, and at which step each is dropped.

    Arguments as in `select_detections`. ``low_scores``: include the best class of each region without a class
    that scores enough.

    Returns:
        The D candidates, in the order of the regions; LongTensor[D], indices into ``STEPS``; and LongTensor[N], the
        candidates that are kept, best first.
    """
    above = scores > config.score_threshold
    if low_scores:
        best_class = F.one_hot(scores.argmax(dim=1), scores.shape[1]).bool()
        above = above | (best_class & ~above.any(dim=1, keepdim=True))
    finite = scores.isfinite() & deltas.isfinite().all(dim=1, keepdim=True)
    row, class_ids = torch.nonzero(above & finite, as_tuple=True)
    per_box = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
    chosen = per_box[row, class_ids if per_box.shape[1] > 1 else torch.zeros_like(class_ids)]
    boxes = clip_boxes(decode_boxes(chosen, regions[row], config.stage_delta_weights[-1]), image_hw)
    candidates = Detections(boxes, scores[row, class_ids], class_ids)
    if decided(config.min_box_px) > 0:
        candidates = candidates[large_enough(boxes, decided(config.min_box_px))]
    step = torch.full_like(candidates.class_ids, STEPS.index("threshold"))
    passed = torch.nonzero(candidates.scores > config.score_threshold).squeeze(1)
    passing = candidates[passed]
    best = passed[grouped_nms(passing.boxes, passing.scores, passing.class_ids, config.nms_iou)]
    kept = best[: config.detections_per_image]
    for name, reached in (("nms", passed), ("cap", best), ("kept", kept)):
        step[reached] = STEPS.index(name)
    return candidates, step, kept


# --- masks --------------------------------------------------------------------------------------------------------


class MaskHead(nn.Module):
    """Pooled features of regions to mask logits: convolutions, an upsampling by 2, a predictor."""

    def __init__(self, config: MaskHeadConfig, *, in_channels: int, n_rows: int) -> None:
        """A class-agnostic head predicts 1 mask per region, others ``n_rows``: K, or K + 1 where the conventions keep
        an unused one for background."""
        super().__init__()
        widths = [in_channels] + [config.channels] * config.convs
        self.convs = _convs(config.norm, widths)
        self.upsample = nn.ConvTranspose2d(widths[-1], config.channels, 2, 2)
        self.logits = nn.Conv2d(config.channels, 1 if config.class_agnostic else n_rows, 1)
        init_kaiming(self)
        init_normal(self.logits, std=0.001)

    def forward(self, pooled: Tensor) -> Tensor:
        """FloatTensor[R,C,M,M] -> logits FloatTensor[R,n_masks,2M,2M]; R may be 0."""
        return self.logits(F.relu(self.upsample(self.convs(pooled)), inplace=True))


@torch.no_grad()
def mask_coverage(regions: Sequence[Regions], batch: Batch, side: int, *, aligned: bool) -> Tensor:
    """FloatTensor[R,side,side] in [0, 1]: how much of each cell of a foreground region its object covers.

    Args:
        regions: foreground only.
        batch: its label layers hold the objects.
        side: of the masks, cells.
        aligned: RoIAlign's half-pixel shift.
    """
    coverage = []
    for image, region in enumerate(regions):
        layers, values = batch.layers[image], (region.objects + 1).to(batch.layers[image].dtype)
        layer_of = batch.layer_of[image][region.objects]
        coverage.append(sample_mask_targets(layers, layer_of, values, region.boxes, side, aligned=aligned))
    return torch.cat(coverage)


@torch.no_grad()
def counted_cells(regions: Sequence[Regions], batch: Batch, side: int, *, aligned: bool) -> Tensor | None:
    """BoolTensor[R,side,side]: the cells of foreground regions that are mostly annotated; None if everything is.

    Arguments as in `mask_coverage`.
    """
    pixels = [batch.ignored_pixels(image) for image in range(len(regions))]
    if all(of_image is None for of_image in pixels):
        return None
    cells = []
    for region, ignored in zip(regions, pixels, strict=True):
        boxes = region.boxes
        if ignored is None:
            cells.append(torch.ones((len(boxes), side, side), dtype=torch.bool, device=boxes.device))
            continue
        layer_of, values = torch.zeros_like(region.objects), torch.ones_like(region.objects, dtype=torch.int32)
        layers = ignored.to(torch.int32)[None]
        cells.append(sample_mask_targets(layers, layer_of, values, boxes, side, aligned=aligned) < 0.5)
    return torch.cat(cells)


def mask_targets(coverage: Tensor, config: MaskHeadConfig | CoarseMaskConfig) -> Tensor:
    """The targets of `mask_loss`: the coverage (torchvision), or 1 where it is at least half, else 0 (Detectron2)."""
    return (coverage >= 0.5).to(coverage.dtype) if config.target == "binary" else coverage

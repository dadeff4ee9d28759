"""Mask Scoring R-CNN (Huang et al. 2019): a head that predicts how well each mask fits its object.

Shape shorthand: R regions, P positives among them, C channels, K classes, m side of the pooled features, M = 2 m side
of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.config.conventions import Conventions
from cellwright.config.model_rcnn import CascadeConfig, MaskRCNNConfig, MaskScoringConfig
from cellwright.config.section import decided
from cellwright.core.instances import Instances
from cellwright.models.layers import ConvNorm, init_kaiming, init_normal
from cellwright.models.rcnn.cascade import CascadeMaskRCNN
from cellwright.models.rcnn.fpn import FPN
from cellwright.models.rcnn.heads import BoxHead, MaskHead, counted_cells, mask_coverage, mask_targets
from cellwright.models.rcnn.losses import mask_loss, of_class
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.regions import BoxOutputs, Detections, RegionFeatures, Regions
from cellwright.models.rcnn.resnet import ResNet
from cellwright.models.rcnn.rpn import RPN
from cellwright.ops.batch import Batch
from cellwright.ops.placement import Placement


class MaskScoringRCNN(MaskRCNN):
    """`MaskRCNN` whose scores are class score times predicted mask quality."""

    def __init__(
        self, config: MaskRCNNConfig | CascadeConfig, conventions: Conventions, *, in_channels: int, n_classes: int
    ) -> None:
        """``config`` must be resolved and have a ``mask_scoring`` section."""
        nn.Module.__init__(self)  # the parts are not those of `MaskRCNN`
        self.config, self.conventions, self.n_classes = config, conventions, n_classes
        self.scoring = decided(config.mask_scoring)
        channels, n_rows = config.fpn.channels, n_classes + conventions.background_rows
        self.backbone = ResNet(config.backbone, in_channels)
        self.fpn = FPN(config.fpn, self.backbone.out_channels)
        # Created here but registered last: the order of creation determines the random weights of a new network, and
        # the order of registration that of its tensors.
        mask_scoring = MaskScoring(
            self.scoring, in_channels=channels, resolution=config.mask_head.resolution, n_classes=n_classes
        )
        self.rpn = RPN(config, conventions, channels)
        self.box_head = nn.ModuleList(
            BoxHead(config.box_head, in_channels=channels, n_classes=n_classes, n_rows=n_rows)
            for _ in config.box_head.stage_ious
        )
        self.mask_head = MaskHead(config.mask_head, in_channels=channels, n_rows=n_rows)
        self.mask_scoring = mask_scoring

    def mask_losses(
        self, source: RegionFeatures, boxes: BoxOutputs, batch: Batch, generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """The losses ``mask`` and ``mask_quality`` of the foreground regions."""
        config, regions = self.config.mask_head, boxes.regions
        pooled = self.mask_features(source, boxes)
        logits = self.mask_head(pooled)
        side, aligned = logits.shape[-1], decided(config.target_aligned)
        coverage = mask_coverage(regions, batch, side, aligned=aligned)
        counted = counted_cells(regions, batch, side, aligned=aligned)
        class_ids = torch.cat([region.class_ids for region in regions])
        own = of_class(logits, class_ids)
        quality = of_class(self.mask_scoring(pooled, own), class_ids)
        targets = mask_targets(coverage, config)
        return {
            "mask": config.weight * mask_loss(logits, class_ids, targets, counted, batch.ranks),
            "mask_quality": self.scoring.weight * quality_loss(quality, own, coverage, regions, batch, counted),
        }

    def masks(self, source: RegionFeatures, detections: Detections) -> tuple[Detections, Tensor]:
        """Masks FloatTensor[D,M,M] in [0, 1] of one image's detections, whose scores are multiplied by the quality."""
        pooled = source.pool([detections.boxes], self.config.mask_head.resolution)
        logits = of_class(self.mask_head(pooled), detections.class_ids)
        quality = of_class(self.mask_scoring(pooled, logits), detections.class_ids).clamp(0, 1)
        return replace(detections, scores=detections.scores * quality), logits.sigmoid()

    @torch.no_grad()
    def detect_placed(
        self, images: Tensor, image_hws: Sequence[tuple[int, int]], placements: Sequence[Placement]
    ) -> list[Instances]:
        """As in `MaskRCNN`, sorted again, since the quality changes the order."""
        detected = super().detect_placed(images, image_hws, placements)
        return [replace(instances.by_score(), ids=np.arange(1, len(instances) + 1)) for instances in detected]


class MaskScoringCascade(MaskScoringRCNN, CascadeMaskRCNN):
    """`CascadeMaskRCNN` with mask scoring."""


class MaskScoring(nn.Module):
    """Pooled features and the mask predicted from them to the IoU that the mask is expected to have with its object."""

    def __init__(self, config: MaskScoringConfig, *, in_channels: int, resolution: int, n_classes: int) -> None:
        """``resolution`` is m; the last convolution has stride 2."""
        super().__init__()
        widths = [in_channels + 1] + [config.channels] * config.convs
        strides = [1] * (config.convs - 1) + [2]
        convs = [
            ConvNorm(a, b, 3, stride=stride, norm="none", relu=True)
            for (a, b), stride in zip(pairwise(widths), strides, strict=True)
        ]
        widths = [config.channels * ((resolution + 1) // 2) ** 2] + [config.fc_channels] * config.fcs
        fcs = [nn.Linear(a, b) for a, b in pairwise(widths)]
        for fc in fcs:
            nn.init.kaiming_uniform_(fc.weight, a=1)
            nn.init.zeros_(fc.bias)
        self.convs, self.fcs = nn.Sequential(*convs), nn.ModuleList(fcs)
        self.quality = nn.Linear(widths[-1], n_classes)
        init_kaiming(self.convs)
        init_normal(self.quality, std=0.01)

    def forward(self, pooled: Tensor, logits: Tensor) -> Tensor:
        """FloatTensor[R,C,m,m] and the class's mask logits FloatTensor[R,M,M] -> FloatTensor[R,K]; R may be 0.

        The result is not clamped; the loss keeps it near [0, 1]. As in the paper's code, its gradient also reaches the
        mask head, through the probabilities.
        """
        mask = F.max_pool2d(logits.sigmoid()[:, None], kernel_size=2)
        hidden = self.convs(torch.cat([pooled, mask.to(pooled.dtype)], dim=1)).flatten(1)
        for fc in self.fcs:
            hidden = F.relu(fc(hidden), inplace=True)
        return self.quality(hidden)


def quality_loss(
    quality: Tensor,
    logits: Tensor,
    coverage: Tensor,
    regions: Sequence[Regions],
    batch: Batch,
    counted: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the predicted quality, the target being `mask_ious`; 0 for P = 0.

    Args:
        quality: FloatTensor[P], of the regions' own classes.
        logits: FloatTensor[P,M,M], their masks; they get no gradient through the target.
        coverage: FloatTensor[P,M,M] in [0, 1], how much of each cell the object covers.
        regions: foreground only.
        batch: its label layers hold the objects.
        counted: BoolTensor[P,M,M], the cells that are annotated; None: all.
    """
    ious = mask_ious(logits, coverage, regions, batch, counted)
    total = batch.ranks.total((quality.to(ious.dtype) - ious).square().sum())
    return total / max(batch.ranks.count(len(ious)), 1)


@torch.no_grad()
def mask_ious(
    logits: Tensor, coverage: Tensor, regions: Sequence[Regions], batch: Batch, counted: Tensor | None = None
) -> Tensor:
    """FloatTensor[P] in [0, 1]: IoU of each region's mask (probability > .5) with its full object.

    The mask ends at the region's box, but the object may not: its part outside the box counts as missed. The area of
    the object is its pixel count in the label layers, that of the mask the area of its cells in pixels. A mask without
    cells has IoU 0. Arguments as in `quality_loss`.
    """
    masks = (logits > 0).to(coverage.dtype)
    if counted is not None:
        masks = masks * counted
    boxes = torch.cat([region.boxes for region in regions])
    cell_px = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) / masks.shape[-1] ** 2
    predicted = masks.sum(dim=(1, 2)) * cell_px
    covered = (masks * coverage).sum(dim=(1, 2)) * cell_px
    areas = torch.cat([_areas(batch, image)[region.objects] for image, region in enumerate(regions)])
    union = predicted + areas - covered
    # Without cells nothing is covered: 0 over the object's area. That is 0 only if augmentation removed all its pixels.
    return (covered / union.clamp(min=torch.finfo(union.dtype).tiny)).clamp(max=1.0)


def _areas(batch: Batch, image: int) -> Tensor:
    """FloatTensor[max(N, 1)]: number of pixels of each object of one image, at the network's input."""
    values = batch.layers[image].flatten().long()
    n_objects = max(len(batch.boxes[image]), 1)
    return torch.bincount(values, minlength=n_objects + 1)[1 : n_objects + 1].to(batch.boxes[image].dtype)

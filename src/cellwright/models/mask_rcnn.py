"""Mask R-CNN with a feature pyramid (He et al. 2017): the whole flow, top to bottom.

    images -> backbone -> pyramid -> proposals -> classes and boxes -> masks -> pixels

Shape shorthand: B images, K classes, R regions, M side of a predicted mask. Boxes are ``x0 y0 x1 y1``, pixels of the
network's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cellwright.core.instances import Instances
from cellwright.models.box_head import (
    STEPS,
    BoxHead,
    DetectionRules,
    Detections,
    Regions,
    RegionSampling,
    explain_detections,
    region_losses,
    sample_regions,
    select_detections,
)
from cellwright.models.fpn import FPN
from cellwright.models.losses import mask_loss
from cellwright.models.mask_head import MaskHead, mask_targets
from cellwright.models.resnet import ResNet
from cellwright.models.rpn import RPN
from cellwright.ops.batch import Batch
from cellwright.ops.boxes import clip_boxes, large_enough, scale_boxes
from cellwright.ops.paste import paste_masks
from cellwright.ops.roi import Pooling, pool_boxes


@dataclass(frozen=True, kw_only=True)
class BoxRules:
    """How regions become boxes, in training and at inference; see ``BoxHeadConfig``."""

    resolution: int
    delta_weights: tuple[float, float, float, float]
    smooth_l1_beta: float
    class_weight: float
    box_weight: float
    sampling: RegionSampling
    detection: DetectionRules
    drop_empty_boxes: bool


@dataclass(frozen=True, kw_only=True)
class MaskRules:
    """How regions become masks, in training and at inference; see ``MaskHeadConfig``."""

    resolution: int
    binary_targets: bool
    aligned_targets: bool
    paste: Literal["torchvision", "detectron2"]
    threshold: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Everything that is no layer. ``regions_at_once`` go through a head together at inference; it bounds memory."""

    pooling: Pooling
    box: BoxRules
    mask: MaskRules
    regions_at_once: int


class MaskRCNN(nn.Module):
    """A ``Network`` (see ``models/contract.py``); ``models/build.py`` makes one from a recipe."""

    stride = 32

    def __init__(
        self,
        *,
        backbone: ResNet,
        fpn: FPN,
        rpn: RPN,
        box_head: BoxHead,
        mask_head: MaskHead,
        rules: Rules,
    ) -> None:
        super().__init__()
        self.backbone, self.fpn, self.rpn = backbone, fpn, rpn
        self.box_head, self.mask_head = box_head, mask_head
        self.rules = rules

    # --- training -------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``rpn_class``, ``rpn_box``, ``class``, ``box`` and ``mask``: weighted scalars."""
        generator = batch.generator()
        features = self.features(batch.images)
        scores = self.rpn(features)
        losses = self.rpn.losses(scores, batch, generator)
        proposals, _ = self.rpn.proposals(scores, batch.image_hws, self.rpn.train_selection)

        sampling = self.rules.box.sampling
        regions = sample_regions(proposals, batch, self.box_head.n_classes, sampling, generator)
        losses |= self.box_losses(features, regions, batch)
        losses |= self.mask_losses(features, [self._foreground(region) for region in regions], batch)
        return losses

    def box_losses(self, features: Sequence[Tensor], regions: Sequence[Regions], batch: Batch) -> dict[str, Tensor]:
        """``class`` and ``box`` of the regions drawn."""
        rules = self.rules.box
        pooled = pool_boxes(features[:-1], [region.boxes for region in regions], rules.resolution, self.rules.pooling)
        class_logits, deltas = self.box_head(pooled)
        losses = region_losses(
            class_logits,
            deltas,
            regions,
            batch,
            delta_weights=rules.delta_weights,
            smooth_l1_beta=rules.smooth_l1_beta,
        )
        return {"class": rules.class_weight * losses["class"], "box": rules.box_weight * losses["box"]}

    def mask_losses(self, features: Sequence[Tensor], regions: Sequence[Regions], batch: Batch) -> dict[str, Tensor]:
        """``mask`` of foreground regions."""
        rules = self.rules.mask
        pooled = pool_boxes(features[:-1], [region.boxes for region in regions], rules.resolution, self.rules.pooling)
        logits = self.mask_head(pooled)
        targets = mask_targets(
            regions, batch, logits.shape[-1], aligned=rules.aligned_targets, binary=rules.binary_targets
        )
        class_ids = torch.cat([region.class_ids for region in regions])
        return {"mask": rules.weight * mask_loss(logits, class_ids, targets)}

    def _foreground(self, region: Regions) -> Regions:
        chosen = torch.nonzero(region.class_ids < self.box_head.n_classes).squeeze(1)
        return Regions(region.boxes[chosen], region.class_ids[chosen], region.objects[chosen])

    # --- inference ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def detect(
        self, images: Tensor, image_hws: Sequence[tuple[int, int]], output_hws: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """The objects of each image at ``output_hws``, best first; see ``Network.detect``.

        Objects whose mask reaches the threshold at no pixel are left out.
        """
        features = self.features(images)
        proposals = self.proposals(features, image_hws)
        detections = self.boxes(features, proposals, image_hws)
        boxes, class_ids = [d.boxes for d in detections], [d.class_ids for d in detections]
        probs = self.masks_for(features, boxes, class_ids)
        return [self.place(*parts) for parts in zip(detections, probs, image_hws, output_hws, strict=True)]

    def features(self, images: Tensor) -> list[Tensor]:
        """FloatTensor[B,C,H,W] -> pyramid FloatTensor[B,C',H_l,W_l], finest first; the last is for proposals only."""
        maps = self.backbone(images)
        return self.fpn(maps[-len(self.fpn.lateral) :])

    @torch.no_grad()
    def proposals(self, features: Sequence[Tensor], image_hws: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Per image FloatTensor[R,4], best first."""
        return self.rpn.proposals(self.rpn(features), image_hws, self.rpn.test_selection)[0]

    @torch.no_grad()
    def boxes(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], image_hws: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Classes, scores and refined boxes, per image."""
        rules, results = self.rules.box, []
        for image, (regions, image_hw) in enumerate(zip(proposals, image_hws, strict=True)):
            class_logits, deltas = self.classify([feature[image : image + 1] for feature in features], regions)
            results.append(
                select_detections(
                    class_logits,
                    deltas,
                    regions,
                    image_hw,
                    delta_weights=rules.delta_weights,
                    rules=rules.detection,
                )
            )
        return results

    def classify(self, features: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and box deltas of one image's regions FloatTensor[R,4]; ``features`` of that image alone."""
        resolution, pooling = self.rules.box.resolution, self.rules.pooling
        chunks = [
            self.box_head(pool_boxes(features[:-1], [chunk], resolution, pooling))
            for chunk in regions.split(self.rules.regions_at_once)
        ]
        class_logits, deltas = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        return class_logits, deltas

    @torch.no_grad()
    def masks_for(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor], class_ids: Sequence[Tensor]
    ) -> list[Tensor]:
        """Mask probabilities of given boxes, whoever found them: per image FloatTensor[N,M,M] in [0, 1].

        ``boxes``: per image FloatTensor[N,4]; ``class_ids``: per image LongTensor[N], which class's mask is wanted.
        """
        results = []
        for image, (own_boxes, own_classes) in enumerate(zip(boxes, class_ids, strict=True)):
            own = [feature[image : image + 1] for feature in features[:-1]]
            chunks = []
            for chunk, classes in zip(
                own_boxes.split(self.rules.regions_at_once), own_classes.split(self.rules.regions_at_once), strict=True
            ):
                logits = self.mask_head(pool_boxes(own, [chunk], self.rules.mask.resolution, self.rules.pooling))
                column = classes if logits.shape[1] > 1 else torch.zeros_like(classes)
                chunks.append(logits[torch.arange(len(chunk), device=logits.device), column].sigmoid())
            results.append(torch.cat(chunks))
        return results

    @torch.no_grad()
    def candidates(
        self, images: Tensor, image_hw: tuple[int, int], output_hw: tuple[int, int], near: Tensor
    ) -> Instances:
        """What became of every proposal of one image that overlaps a box of ``near``: shows where recall is lost.

        ``images``: FloatTensor[1,C,H,W]; ``near``: FloatTensor[N,4], pixels of the output. A text column ``dropped_by``
        says "threshold", "nms", "cap" or "kept" (this network's own), scores are those of the class; not sorted.
        """
        features = self.features(images)
        (regions,) = self.proposals(features, [image_hw])
        rules = self.rules.box
        found, step = explain_detections(
            *self.classify(features, regions),
            regions,
            image_hw,
            delta_weights=rules.delta_weights,
            rules=rules.detection,
        )
        boxes = scale_boxes(found.boxes, image_hw, output_hw)
        corners = torch.minimum(boxes[:, None, 2:], near[:, 2:]) - torch.maximum(boxes[:, None, :2], near[:, :2])
        chosen = torch.nonzero((corners > 0).all(dim=2).any(dim=1)).squeeze(1)
        found = Detections(found.boxes[chosen], found.scores[chosen], found.class_ids[chosen])
        (probs,) = self.masks_for(features, [found.boxes], [found.class_ids])
        names = np.array(STEPS)[step[chosen].cpu().numpy()]
        return self.place(found, probs, image_hw, output_hw, {"dropped_by": names})

    def place(
        self,
        detections: Detections,
        probs: Tensor,
        image_hw: tuple[int, int],
        output_hw: tuple[int, int],
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> Instances:
        """One image's detections, masks FloatTensor[N,M,M] and named columns (N,) at the output's resolution."""
        boxes = scale_boxes(detections.boxes, image_hw, output_hw)
        scores, class_ids = detections.scores, detections.class_ids
        index = torch.arange(len(boxes), device=boxes.device)
        if self.rules.box.drop_empty_boxes:
            boxes = clip_boxes(boxes, output_hw)
            index = torch.nonzero(large_enough(boxes, 0.0)).squeeze(1)
            boxes, scores, class_ids, probs = boxes[index], scores[index], class_ids[index], probs[index]
        masks = paste_masks(probs, boxes, output_hw, rule=self.rules.mask.paste, threshold=self.rules.mask.threshold)
        visible = masks.areas > 0
        placed = Instances.from_masks(
            masks[visible],
            class_ids=class_ids.cpu().numpy()[visible],
            scores=scores.float().cpu().numpy()[visible],
            boxes_xyxy=boxes.float().cpu().numpy()[visible],
        )
        if not columns:
            return placed
        rows = index.cpu().numpy()[visible]
        return replace(placed, columns={name: values[rows] for name, values in columns.items()})

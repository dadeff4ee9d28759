"""Mask R-CNN and its family: the whole flow, top to bottom (He et al. 2017; Lin et al. 2017).

    images -> backbone -> pyramid -> proposals -> classes and boxes -> masks -> pixels

The family's members differ in parts, not in the flow: without a pyramid res5 stands behind the pooling (C4); several
box heads make a cascade; a point head refines coarse masks (PointRend); a scoring head multiplies scores by quality.

Shape shorthand: B images, K classes, R regions, M side of a predicted mask. Boxes are ``x0 y0 x1 y1``, pixels of the
network's input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cellwright.core.instances import Instances, concat
from cellwright.data.views import View
from cellwright.models.contract import RenderView
from cellwright.models.rcnn.box_head import (
    STEPS,
    BoxHead,
    DetectionRules,
    RegionSampling,
    explain_detections,
    region_losses,
    sample_regions,
    select_detections,
)
from cellwright.models.rcnn.cascade import refine_boxes, relabel_regions, scale_gradient
from cellwright.models.rcnn.fpn import FPN
from cellwright.models.rcnn.losses import mask_loss, of_class
from cellwright.models.rcnn.mask_head import MaskHead, mask_targets
from cellwright.models.rcnn.mask_scoring import MaskScoring, quality_loss
from cellwright.models.rcnn.pointrend import (
    CoarseMaskHead,
    PointHead,
    PointRules,
    point_loss,
    render_masks,
    sample_grid,
)
from cellwright.models.rcnn.regions import Detections, RegionFeatures, Regions
from cellwright.models.rcnn.resnet import ResNet
from cellwright.models.rcnn.rpn import RPN
from cellwright.models.rcnn.views import detect_views
from cellwright.ops.batch import Batch
from cellwright.ops.boxes import clip_boxes, decode_boxes, large_enough, scale_boxes
from cellwright.ops.paste import paste_masks
from cellwright.ops.roi import Pooling

DeltaWeights = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class BoxRules:
    """How regions become boxes, in training and at inference; see ``BoxHeadConfig`` and ``CascadeBoxHeadConfig``.

    ``stage_ious`` and ``stage_delta_weights`` have one entry a box head; ``class_weights`` K + 1 entries, or None.
    """

    resolution: int
    pooled_levels: int | None
    stage_ious: tuple[float, ...]
    stage_delta_weights: tuple[DeltaWeights, ...]
    smooth_l1_beta: float
    class_weight: float
    box_weight: float
    class_weights: tuple[float, ...] | None
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
    """Everything that is no layer. ``regions_at_once`` go through a head together at inference; it bounds memory.

    ``points`` and ``scoring_weight`` belong to the point head and the scoring head, where there are such.
    """

    pooling: Pooling
    box: BoxRules
    mask: MaskRules
    points: PointRules | None
    scoring_weight: float
    regions_at_once: int


class MaskRCNN(nn.Module):
    """A ``Network`` (see ``models/contract.py``); ``models/build.py`` makes one from a recipe.

    Attributes:
        stride: images are padded to a multiple of it, px.
        fpn: None for C4, whose proposals and regions come from res4 alone.
        box_head: one head, or a cascade's.
        point_head, mask_scoring: None where the kind has none.
    """

    def __init__(
        self,
        *,
        backbone: ResNet,
        fpn: FPN | None,
        rpn: RPN,
        box_heads: Sequence[BoxHead],
        mask_head: MaskHead | CoarseMaskHead,
        point_head: PointHead | None,
        mask_scoring: MaskScoring | None,
        rules: Rules,
    ) -> None:
        super().__init__()
        self.backbone, self.fpn, self.rpn = backbone, fpn, rpn
        self.box_head, self.mask_head = nn.ModuleList(box_heads), mask_head
        self.point_head, self.mask_scoring = point_head, mask_scoring
        self.rules = rules
        self.stride = 1 if fpn is None else 32
        self.n_classes = box_heads[0].n_classes

    # --- training -------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted scalars: ``rpn_class rpn_box class box mask``, with ``point`` or ``mask_quality`` where there is
        such a head; in a cascade ``class_stage0 box_stage0`` and so on."""
        generator = batch.generator()
        features = self.features(batch.images)
        scores = self.rpn(features)
        losses = self.rpn.losses(scores, batch, generator)
        proposals, _ = self.rpn.proposals(scores, batch.image_hws, self.rpn.train_selection)

        regions = sample_regions(proposals, batch, self.n_classes, self.rules.box.sampling, generator)
        source = self.region_features(features)
        stage_losses, pooled, deltas = self.box_losses(source, regions, batch)
        foreground = [torch.nonzero(region.class_ids < self.n_classes).squeeze(1) for region in regions]
        chosen = [region[index] for region, index in zip(regions, foreground, strict=True)]
        if self.point_head is not None:
            chosen = self._at_predicted_boxes(chosen, deltas[_stacked(foreground, regions)])
            return losses | stage_losses | self.point_losses(source, chosen, batch, generator)
        # C4 runs res5 once for both heads, where they pool alike.
        shared = source.stage is not None and self.rules.box.resolution == self.rules.mask.resolution
        pooled = pooled[_stacked(foreground, regions)] if shared else None
        return losses | stage_losses | self.mask_losses(source, chosen, batch, pooled)

    def box_losses(
        self, source: RegionFeatures, regions: Sequence[Regions], batch: Batch
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """``class`` and ``box`` of the regions drawn, stage by stage; the first stage's pooled features and deltas."""
        rules, losses, first = self.rules.box, {}, []
        weights = None
        if rules.class_weights is not None:
            weights = torch.tensor(rules.class_weights, device=batch.images.device)
        for stage, (head, delta_weights) in enumerate(zip(self.box_head, rules.stage_delta_weights, strict=True)):
            boxes = [region.boxes for region in regions]
            pooled = source.pool(boxes, rules.resolution, rules.pooled_levels)
            pooled = scale_gradient(pooled, 1 / len(self.box_head))
            class_logits, deltas = head(pooled)
            first = first or [pooled, deltas]
            found = region_losses(
                class_logits,
                deltas,
                regions,
                batch,
                delta_weights=delta_weights,
                smooth_l1_beta=rules.smooth_l1_beta,
                class_weights=weights,
            )
            suffix = f"_stage{stage}" if len(self.box_head) > 1 else ""
            losses[f"class{suffix}"] = rules.class_weight * found["class"]
            losses[f"box{suffix}"] = rules.box_weight * found["box"]
            if stage + 1 < len(self.box_head):
                parts = zip(deltas.split([len(one) for one in boxes]), boxes, batch.image_hws, strict=True)
                refined = [refine_boxes(*part, delta_weights) for part in parts]
                iou, ignore_ioa = rules.stage_ious[stage + 1], rules.sampling.ignore_ioa
                regions = relabel_regions(refined, batch, self.n_classes, foreground_iou=iou, ignore_ioa=ignore_ioa)
        return losses, first[0], first[1]

    def mask_losses(
        self, source: RegionFeatures, regions: Sequence[Regions], batch: Batch, pooled: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``mask`` of foreground regions, and ``mask_quality``; ``pooled``: their features where they are there."""
        rules = self.rules.mask
        if pooled is None:
            pooled = source.pool([region.boxes for region in regions], rules.resolution)
        logits = self.mask_head(pooled)
        class_ids = torch.cat([region.class_ids for region in regions])
        soft = mask_targets(regions, batch, logits.shape[-1], aligned=rules.aligned_targets, binary=False)
        targets = (soft >= 0.5).to(soft.dtype) if rules.binary_targets else soft
        losses = {"mask": rules.weight * mask_loss(logits, class_ids, targets)}
        if self.mask_scoring is not None:
            own = of_class(logits, class_ids)
            quality = of_class(self.mask_scoring(pooled, own), class_ids)
            losses["mask_quality"] = self.rules.scoring_weight * quality_loss(quality, own, soft, regions, batch)
        return losses

    def point_losses(
        self, source: RegionFeatures, regions: Sequence[Regions], batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """``mask`` (coarse) and ``point`` of foreground regions (PointRend)."""
        rules, points = self.rules.mask, self.rules.points
        assert self.point_head is not None
        assert points is not None
        fine = source.maps[0]
        coarse = self.mask_head(sample_grid(fine, [region.boxes for region in regions], rules.resolution, points))
        targets = mask_targets(
            regions, batch, coarse.shape[-1], aligned=rules.aligned_targets, binary=rules.binary_targets
        )
        class_ids = torch.cat([region.class_ids for region in regions])
        point = point_loss(coarse, self.point_head, fine, regions, batch, points, generator)
        return {"mask": rules.weight * mask_loss(coarse, class_ids, targets), "point": points.weight * point}

    @torch.no_grad()
    def _at_predicted_boxes(self, regions: Sequence[Regions], deltas: Tensor) -> list[Regions]:
        """Foreground regions moved to the boxes that the head predicts for their classes, which may leave the image."""
        per_box = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
        own = of_class(per_box, torch.cat([region.class_ids for region in regions]))
        weights = self.rules.box.stage_delta_weights[0]
        parts = zip(regions, own.split([len(region.boxes) for region in regions]), strict=True)
        return [replace(region, boxes=decode_boxes(delta, region.boxes, weights)) for region, delta in parts]

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
        source, found = self.region_features(features), []
        for image, detections in enumerate(self.boxes(features, proposals, image_hws)):
            placed = []
            for own, probs in self.masks_in_parts(source.of_image(image), detections):
                placed.append(self.place(own, probs, image_hws[image], output_hws[image]))
            together = concat(placed)
            found.append(together if self.mask_scoring is None else _best_first(together))
        return found

    @torch.no_grad()
    def detect_views(self, views: Sequence[View], render: RenderView, output_hw: tuple[int, int]) -> Instances:
        """The objects of one image with test-time augmentation; see ``DetectsViews.detect_views``."""
        box, mask = self.rules.box.detection, self.rules.mask
        return detect_views(
            self, views, render, output_hw, detection=box, paste=mask.paste, mask_threshold=mask.threshold
        )

    def features(self, images: Tensor) -> list[Tensor]:
        """FloatTensor[B,C,H,W] -> FloatTensor[B,C',H_l,W_l], finest first, the last for proposals only; C4: res4."""
        if self.fpn is None:
            return [self.backbone(images, last_stage=4)[-1]]
        maps = self.backbone(images)
        return self.fpn(maps[-len(self.fpn.lateral) :])

    def region_features(self, features: Sequence[Tensor]) -> RegionFeatures:
        """What boxes are pooled from, of the maps that ``features`` gives."""
        if self.fpn is None:
            return RegionFeatures(features, self.rules.pooling, self.backbone.res5)
        return RegionFeatures(features[:-1], self.rules.pooling)

    @torch.no_grad()
    def proposals(self, features: Sequence[Tensor], image_hws: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Per image FloatTensor[R,4], best first."""
        return self.rpn.proposals(self.rpn(features), image_hws, self.rpn.test_selection)[0]

    @torch.no_grad()
    def boxes(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], image_hws: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Classes, scores and refined boxes, per image."""
        rules, source, results = self.rules.box, self.region_features(features), []
        for image, (proposed, image_hw) in enumerate(zip(proposals, image_hws, strict=True)):
            scores, deltas, regions = self.classify(source.of_image(image), proposed, image_hw)
            weights = rules.stage_delta_weights[-1]
            results.append(
                select_detections(scores, deltas, regions, image_hw, delta_weights=weights, rules=rules.detection)
            )
        return results

    def classify(
        self, source: RegionFeatures, regions: Tensor, image_hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One image's regions FloatTensor[R,4] through all stages, ``source`` of that image alone.

        Returns:
            scores FloatTensor[R,K], the mean over the stages; the last stage's deltas, and the regions FloatTensor[R,4]
            that they refine.
        """
        rules, scores, deltas = self.rules.box, [], regions
        for stage, head in enumerate(self.box_head):
            if stage > 0:
                regions = refine_boxes(deltas, regions, image_hw, rules.stage_delta_weights[stage - 1])
            chunks = [
                head(source.pool([chunk], rules.resolution, rules.pooled_levels))
                for chunk in regions.split(self.rules.regions_at_once)
            ]
            class_logits, deltas = (torch.cat(parts) for parts in zip(*chunks, strict=True))
            scores.append(class_logits.softmax(dim=1)[:, :-1])
        return torch.stack(scores).mean(dim=0), deltas, regions

    @torch.no_grad()
    def masks_for(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor], class_ids: Sequence[Tensor]
    ) -> list[Tensor]:
        """Mask probabilities of given boxes, whoever found them: per image FloatTensor[N,M,M] in [0, 1].

        ``boxes``: per image FloatTensor[N,4]; ``class_ids``: per image LongTensor[N], which class's mask is wanted.
        """
        source, results = self.region_features(features), []
        for image, own in enumerate(zip(boxes, class_ids, strict=True)):
            detections = Detections(own[0], own[0].new_ones(len(own[0])), own[1])
            results.append(torch.cat([probs for _, probs in self.masks_in_parts(source.of_image(image), detections)]))
        return results

    def masks_in_parts(self, source: RegionFeatures, detections: Detections) -> Iterator[tuple[Detections, Tensor]]:
        """One image's detections in order, ``regions_at_once`` of them with their masks FloatTensor[n,M,M] in [0, 1].

        Their scores are multiplied by the expected quality where there is a scoring head. No detections come as one
        empty part. A thousand PointRend masks are 200 MB, so nobody should hold all of them.
        """
        index = torch.arange(len(detections.boxes), device=detections.boxes.device)
        for part in index.split(self.rules.regions_at_once):
            own = detections[part]
            probs, quality = self._masks(source, own.boxes, own.class_ids)
            yield replace(own, scores=own.scores * quality), probs

    def _masks(self, source: RegionFeatures, boxes: Tensor, class_ids: Tensor) -> tuple[Tensor, Tensor]:
        """One image's: probabilities FloatTensor[N,M,M], expected quality FloatTensor[N] (1 without a scoring head)."""
        rules = self.rules.mask
        one = boxes.new_ones(len(boxes))
        if self.point_head is not None:
            assert self.rules.points is not None
            coarse = self.mask_head(sample_grid(source.maps[0], [boxes], rules.resolution, self.rules.points))
            return render_masks(coarse, self.point_head, source.maps[0], boxes, class_ids, self.rules.points), one
        pooled = source.pool([boxes], rules.resolution)
        logits = of_class(self.mask_head(pooled), class_ids)
        if self.mask_scoring is not None:
            one = of_class(self.mask_scoring(pooled, logits), class_ids).clamp(0, 1)
        return logits.sigmoid(), one

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
            *self.classify(self.region_features(features), regions, image_hw),
            image_hw,
            delta_weights=rules.stage_delta_weights[-1],
            rules=rules.detection,
        )
        boxes = scale_boxes(found.boxes, image_hw, output_hw)
        corners = torch.minimum(boxes[:, None, 2:], near[:, 2:]) - torch.maximum(boxes[:, None, :2], near[:, :2])
        chosen = torch.nonzero((corners > 0).all(dim=2).any(dim=1)).squeeze(1)
        found = found[chosen]
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


def _stacked(foreground: Sequence[Tensor], regions: Sequence[Regions]) -> Tensor:
    """LongTensor: indices into each image's regions as indices into all of the batch."""
    starts = np.cumsum([0] + [len(region.boxes) for region in regions])
    return torch.cat([index + int(start) for index, start in zip(foreground, starts[:-1], strict=True)])


def _best_first(found: Instances) -> Instances:
    """By falling score, ids 1..N anew."""
    return replace(found.by_score(), ids=np.arange(1, len(found) + 1))

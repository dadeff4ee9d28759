"""Mask R-CNN with a feature pyramid (He et al. 2017; Lin et al. 2017), from top to bottom.

    images -> backbone -> FPN -> feature maps
                -> RPN       -> proposals
                -> box head  -> detections (class, score, box)
                -> mask head -> masks, pasted into the image

`MaskRCNN.losses` is this pipeline in training, `MaskRCNN.detect` at inference. Variants are subclasses in their own
files, each of which replaces one step: C4 the feature maps (`c4.py`), the cascade the box head (`cascade.py`),
PointRend (`pointrend.py`) and mask scoring (`mask_scoring.py`) the masks. `openvino_rcnn.py` has the same steps, with
layers that OpenVINO computes.

Shape shorthand: B images, K classes, R regions, M side of a predicted mask. Boxes are ``x0 y0 x1 y1``, pixels of the
network's input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from cellwright.config.conventions import Conventions
from cellwright.config.model_rcnn import CascadeConfig, MaskRCNNConfig, RCNNConfig
from cellwright.config.section import decided
from cellwright.core.candidates import DROPPED_BY, STEPS
from cellwright.core.geometry import Window
from cellwright.core.instances import Instances, concat
from cellwright.core.masks import MaskSet
from cellwright.data.views import View
from cellwright.models.contract import RenderView, Wanted
from cellwright.models.rcnn.fpn import FPN
from cellwright.models.rcnn.heads import (
    BoxHead,
    MaskHead,
    counted_cells,
    mask_coverage,
    mask_targets,
    rank_candidates,
    region_losses,
    sample_regions,
    select_detections,
)
from cellwright.models.rcnn.losses import mask_loss, of_class
from cellwright.models.rcnn.regions import BoxOutputs, Detections, RegionFeatures, Regions, pooling_of
from cellwright.models.rcnn.resnet import ResNet, reach_of
from cellwright.models.rcnn.rpn import RPN
from cellwright.models.rcnn.views import Place, detect_views
from cellwright.ops.batch import Batch
from cellwright.ops.boxes import Extent, clip_boxes, large_enough
from cellwright.ops.paste import paste_masks
from cellwright.ops.placement import Placement

MASKS_AT_ONCE = 64  # on the CPU


class MaskRCNN(nn.Module):
    """A ``Network`` (see ``models/contract.py``); `build_network` makes one from a recipe.

    Attributes:
        config: the resolved ``model`` section.
        stride: images are padded to a multiple of it, px.
        box_head: one head, or one per stage of a cascade.
    """

    config: RCNNConfig
    backend = "torch"  # what computes the layers
    stride = 32
    near: Window | None = None  # see `for_window`
    wanted: Wanted | None = None  # see `with_masks_of`

    def __init__(
        self, config: MaskRCNNConfig | CascadeConfig, conventions: Conventions, *, in_channels: int, n_classes: int
    ) -> None:
        """``config`` must be resolved."""
        super().__init__()
        self.config, self.conventions, self.n_classes = config, conventions, n_classes
        channels, n_rows = config.fpn.channels, n_classes + conventions.background_rows
        self.backbone = ResNet(config.backbone, in_channels)
        self.fpn = FPN(config.fpn, self.backbone.out_channels)
        self.rpn = RPN(config, conventions, channels)
        self.box_head = nn.ModuleList(
            BoxHead(config.box_head, in_channels=channels, n_classes=n_classes, n_rows=n_rows)
            for _ in config.box_head.stage_ious
        )
        self.mask_head = MaskHead(config.mask_head, in_channels=channels, n_rows=n_rows)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted scalar losses of a training step: ``rpn_class``, ``rpn_box``, ``class``, ``box`` and ``mask``.

        A cascade has ``class_stage0``, ``box_stage0`` and so on; mask scoring adds ``mask_quality``, PointRend
        ``point``.
        """
        config, generators = self.config, batch.generators()
        features = self.features(batch.images)

        anchor_scores = self.rpn(features)
        rpn_losses = self.rpn.losses(anchor_scores, batch, generators)
        proposals, _ = self.rpn.proposals(anchor_scores, batch.image_hws, training=True)

        regions = sample_regions(proposals, batch, self.n_classes, config.box_head, config.roi.ignore_ioa, generators)
        source = self.region_features(features)
        box_losses, boxes = self.box_losses(source, regions, batch)
        mask_losses = self.mask_losses(source, boxes.foreground(self.n_classes), batch, generators)
        return rpn_losses | box_losses | mask_losses

    @torch.no_grad()
    def detect(
        self, images: Tensor, image_hws: Sequence[tuple[int, int]], output_hws: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """The objects of each image at ``output_hws``, best first; see ``Network.detect``.

        Objects whose mask reaches the threshold at no pixel are omitted.
        """
        placements = [Placement.whole(*hws) for hws in zip(image_hws, output_hws, strict=True)]
        return self.detect_placed(images, image_hws, placements)

    @torch.no_grad()
    def detect_placed(
        self, images: Tensor, image_hws: Sequence[tuple[int, int]], placements: Sequence[Placement]
    ) -> list[Instances]:
        """As `detect`, for images that may be windows of larger ones."""
        features = self.features(images)
        proposals = self.proposals(features, image_hws)
        detections = self.boxes(features, proposals, image_hws)
        source = self.region_features(features)
        return [
            self.instances(source.of_image(image), detected, placements[image])
            for image, detected in enumerate(detections)
        ]

    # --- features -------------------------------------------------------------------------------------------------

    def features(self, images: Tensor) -> list[Tensor]:
        """FloatTensor[B,C,H,W] -> maps FloatTensor[B,C',H_l,W_l] for the proposal network, finest first."""
        return self.fpn(self.backbone(images))

    def region_features(self, features: Sequence[Tensor]) -> RegionFeatures:
        """The maps that regions are pooled from: all of ``features`` but the last."""
        return RegionFeatures(features[:-1], pooling_of(self.config, self.conventions))

    # --- training -------------------------------------------------------------------------------------------------

    def box_losses(
        self, source: RegionFeatures, regions: Sequence[Regions], batch: Batch
    ) -> tuple[dict[str, Tensor], BoxOutputs]:
        """The losses ``class`` and ``box`` of the sampled regions, and what the box head computed for them."""
        config = self.config.box_head
        pooled = source.pool([region.boxes for region in regions], config.resolution, config.pooled_levels)
        class_logits, deltas = self.box_head[0](pooled)
        return region_losses(class_logits, deltas, regions, batch, config), BoxOutputs(regions, pooled, deltas)

    def mask_losses(
        self, source: RegionFeatures, boxes: BoxOutputs, batch: Batch, generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """The loss ``mask`` of the foreground regions; ``boxes`` holds no others. ``generators``: one per image."""
        config, regions = self.config.mask_head, boxes.regions
        logits = self.mask_head(self.mask_features(source, boxes))
        side, aligned = logits.shape[-1], decided(config.target_aligned)
        targets = mask_targets(mask_coverage(regions, batch, side, aligned=aligned), config)
        counted = counted_cells(regions, batch, side, aligned=aligned)
        class_ids = torch.cat([region.class_ids for region in regions])
        return {"mask": config.weight * mask_loss(logits, class_ids, targets, counted, batch.ranks)}

    def mask_features(self, source: RegionFeatures, boxes: BoxOutputs) -> Tensor:
        """The mask head's input for the foreground regions of a training step: FloatTensor[R,C,M,M]."""
        return source.pool([region.boxes for region in boxes.regions], self.config.mask_head.resolution)

    # --- inference ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def proposals(self, features: Sequence[Tensor], image_hws: Sequence[Extent]) -> list[Tensor]:
        """Per image FloatTensor[R,4], best first."""
        proposals, _ = self.rpn.proposals(self.rpn(features), image_hws, training=False)
        if self.near is None:
            return proposals
        y0, x0, y1, x1 = self.near
        corners = proposals[0].new_tensor([x1, y1]), proposals[0].new_tensor([x0, y0])
        return [own[((own[:, :2] < corners[0]) & (own[:, 2:] > corners[1])).all(dim=1)] for own in proposals]

    @torch.no_grad()
    def boxes(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], image_hws: Sequence[Extent]
    ) -> list[Detections]:
        """Per image the classes, scores and refined boxes, best first."""
        source, detections = self.region_features(features), []
        for image, (proposed, image_hw) in enumerate(zip(proposals, image_hws, strict=True)):
            refined = self.classify(source.of_image(image), proposed, image_hw)
            detections.append(select_detections(*refined, image_hw, self.config.box_head))
        return detections

    def classify(self, source: RegionFeatures, regions: Tensor, image_hw: Extent) -> tuple[Tensor, Tensor, Tensor]:
        """One image's regions FloatTensor[R,4] through the box head, ``source`` of that image alone.

        Returns scores FloatTensor[R,K], deltas FloatTensor[R,n_boxes*4], and the regions FloatTensor[R,4] that the
        deltas refine.
        """
        class_logits, deltas = self.run_box_head(0, source, regions)
        return class_logits.softmax(dim=1)[:, :-1], deltas, regions

    def run_box_head(self, stage: int, source: RegionFeatures, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and deltas of one image's regions FloatTensor[R,4], ``roi.chunk`` regions at once."""
        config, head = self.config, self.box_head[stage]
        parts = [
            head(source.pool([part], config.box_head.resolution, config.box_head.pooled_levels))
            for part in regions.split(config.roi.chunk)
        ]
        class_logits, deltas = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return class_logits, deltas

    def instances(self, source: RegionFeatures, detections: Detections, placement: Placement) -> Instances:
        """One image's detections with their masks, pasted where they belong."""
        is_wanted = self.is_wanted(detections)
        parts = self.masks_in_parts(source, detections[is_wanted])
        placed = [self.place(part, probs, placement) for part, probs in parts]
        if not is_wanted.all():
            placed.append(without_pixels(detections[~is_wanted], placement))
        return concat(placed)

    def is_wanted(self, detections: Detections) -> Tensor:
        """BoolTensor[D]: the detections whose masks are computed, see `with_masks_of`."""
        if self.wanted is None:
            return torch.ones_like(detections.class_ids, dtype=torch.bool)
        wanted = self.wanted(detections.scores.float().cpu().numpy(), detections.class_ids.cpu().numpy())
        return torch.from_numpy(wanted).to(detections.class_ids.device)

    def masks_in_parts(self, source: RegionFeatures, detections: Detections) -> Iterator[tuple[Detections, Tensor]]:
        """One image's detections in order, ``roi.chunk`` at once, with their masks FloatTensor[D,M,M] in [0, 1].

        On the CPU fewer at once are as fast. Without detections, there is one empty part. A thousand PointRend masks
        take 200 MB, so a caller should not keep them all.
        """
        chunk, device = self.config.roi.chunk, detections.boxes.device
        chunk = min(chunk, MASKS_AT_ONCE) if device.type == "cpu" else chunk
        for part in torch.arange(len(detections.boxes), device=device).split(chunk):
            yield self.masks(source, detections[part])

    def masks(self, source: RegionFeatures, detections: Detections) -> tuple[Detections, Tensor]:
        """Masks FloatTensor[D,M,M] in [0, 1] of one image's detections, and these, whose scores may be updated."""
        pooled = source.pool([detections.boxes], self.config.mask_head.resolution)
        return detections, of_class(self.mask_head(pooled), detections.class_ids).sigmoid()

    def place(
        self,
        detections: Detections,
        probs: Tensor,
        placement: Placement,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> Instances:
        """One image's detections with masks FloatTensor[D,M,M] and columns (D,), at the output's resolution.

        Objects without a pixel are omitted; the order is kept.
        """
        boxes, kept, output_hw = placement.boxes(detections.boxes), detections, placement.output_hw
        index = torch.arange(len(boxes), device=boxes.device)
        if self.conventions.drop_empty_boxes:
            boxes = clip_boxes(boxes, output_hw)
            index = torch.nonzero(large_enough(boxes, 0.0)).squeeze(1)
            boxes, kept, probs = boxes[index], kept[index], probs[index]
        config = self.config.mask_head
        masks = paste_masks(probs, boxes, output_hw, rule=decided(config.paste), threshold=config.threshold)
        visible = masks.areas > 0
        instances = Instances.from_masks(
            masks[visible],
            class_ids=kept.class_ids.cpu().numpy()[visible],
            scores=kept.scores.float().cpu().numpy()[visible],
            boxes_xyxy=boxes.float().cpu().numpy()[visible],
        )
        rows = index.cpu().numpy()[visible]
        return replace(instances, columns={name: values[rows] for name, values in (columns or {}).items()})

    def with_masks_of(self, wanted: Wanted) -> MaskRCNN:
        """See ``SparesMasks.with_masks_of``."""
        network = copy(self)
        network.wanted = wanted
        return network

    # --- windows of large images ----------------------------------------------------------------------------------

    @property
    def window_stride(self) -> int:
        """Windows that begin at multiples of it give the features and anchors of the whole image, px."""
        return 64

    @property
    def reach_px(self) -> int:
        """How far from a pixel the image can influence its features and proposals, about, px of the input.

        The anchors of the coarsest level, for the largest objects, look 32 px further. Offsets of deformable
        convolutions are not counted.
        """
        # Through res5; one of its cells, which the pyramid passes on to all its pixels; the proposal network.
        return reach_of(self.config.backbone, last_stage=5) + 32 + 32 * self.config.rpn.convs

    def for_window(self, factor: float, near: Window | None = None) -> MaskRCNN:
        """This network, with the same weights, for inputs that are so many times as large as an image.

        ``factor`` times as many proposals, of which all that score enough and are no copies become detections;
        near: only proposals that overlap this window, px of the input.
        """
        network, rpn = copy(self), copy(self.rpn)
        names = ("pre_nms_test", "post_nms_test")
        caps = {name: math.ceil(factor * decided(getattr(rpn.config, name))) for name in names}
        rpn.config = rpn.config.model_copy(update=caps)
        n_most = max(caps["post_nms_test"] * self.n_classes, self.config.box_head.detections_per_image)
        box_head = self.config.box_head.model_copy(update={"detections_per_image": n_most})
        network.config, network.near = self.config.model_copy(update={"box_head": box_head}), near
        network._modules = self._modules | {"rpn": rpn}
        return network

    # --- views and candidates -------------------------------------------------------------------------------------

    @torch.no_grad()
    def detect_views(self, views: Sequence[View], render: RenderView, output_hw: tuple[int, int]) -> Instances:
        """The objects of one image with test-time augmentation; see ``DetectsViews.detect_views``."""
        return detect_views(self, views, render, lambda _, image_hw: Placement.whole(image_hw, output_hw))

    @torch.no_grad()
    def detect_views_placed(self, views: Sequence[View], render: RenderView, place: Place) -> Instances:
        """As `detect_views`, for inputs that may be windows of larger images."""
        return detect_views(self, views, render, place)

    @torch.no_grad()
    def masks_for(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor], class_ids: Sequence[Tensor]
    ) -> list[Tensor]:
        """Mask probabilities of given boxes: per image FloatTensor[N,M,M] in [0, 1].

        ``boxes``: per image FloatTensor[N,4]; ``class_ids``: per image LongTensor[N], the class of each mask.
        """
        source, masks = self.region_features(features), []
        for image, (own_boxes, own_classes) in enumerate(zip(boxes, class_ids, strict=True)):
            detections = Detections(own_boxes, own_boxes.new_ones(len(own_boxes)), own_classes)
            masks.append(torch.cat([probs for _, probs in self.masks_in_parts(source.of_image(image), detections)]))
        return masks

    @torch.no_grad()
    def candidates(
        self, images: Tensor, image_hw: tuple[int, int], output_hw: tuple[int, int], boxes: Tensor
    ) -> Instances:
        """What happened to every candidate of one image that overlaps one of ``boxes``; see ``Explains.candidates``.

        Scores are those of the class; not sorted. Kept are the detections of this network, before any threshold of the
        recipe's ``predict`` section.
        """
        features = self.features(images)
        (regions,) = self.proposals(features, [image_hw])
        refined = self.classify(self.region_features(features), regions, image_hw)
        candidates, step, _ = rank_candidates(*refined, image_hw, self.config.box_head, low_scores=True)
        placement = Placement.whole(image_hw, output_hw)
        scaled = placement.boxes(candidates.boxes)
        sides = torch.minimum(scaled[:, None, 2:], boxes[:, 2:]) - torch.maximum(scaled[:, None, :2], boxes[:, :2])
        chosen = torch.nonzero((sides > 0).all(dim=2).any(dim=1)).squeeze(1)
        candidates = candidates[chosen]
        (probs,) = self.masks_for(features, [candidates.boxes], [candidates.class_ids])
        steps = np.array(STEPS)[step[chosen].cpu().numpy()]
        return self.place(candidates, probs, placement, {DROPPED_BY: steps})


def without_pixels(detections: Detections, placement: Placement) -> Instances:
    """Detections whose masks are not computed."""
    hw, n = placement.output_hw, len(detections.boxes)
    masks = MaskSet.from_flat(hw, np.zeros((n, 4), np.int32), np.zeros(n + 1, np.int64), np.zeros(0, np.uint8))
    scores, class_ids = detections.scores.float().cpu().numpy(), detections.class_ids.cpu().numpy()
    boxes_xyxy = placement.boxes(detections.boxes).float().cpu().numpy()
    return Instances.from_masks(masks, class_ids=class_ids, scores=scores, boxes_xyxy=boxes_xyxy)

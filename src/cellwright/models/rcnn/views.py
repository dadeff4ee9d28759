"""Test-time augmentation of R-CNNs: boxes merged over the views, then masks averaged over the views.

The boxes of each view are brought back to the image and merged class by class (Weighted Boxes Fusion). Each view is
then run a second time, for the masks of the merged boxes from its own features, and these masks are averaged over the
pixels of each object. Only one view is in memory at a time, beside the pixels of the objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cellwright.config.model_rcnn import AnyBoxHeadConfig, RCNNConfig
from cellwright.config.section import decided
from cellwright.core.geometry import Window
from cellwright.core.instances import Instances
from cellwright.data.views import View
from cellwright.models.contract import RenderView
from cellwright.models.rcnn.regions import Detections, RegionFeatures
from cellwright.ops.boxes import Extent
from cellwright.ops.nms import grouped_nms
from cellwright.ops.paste import PasteMean
from cellwright.ops.placement import Placement
from cellwright.ops.weighted_boxes import weighted_boxes

Place: TypeAlias = Callable[[View, tuple[int, int]], Placement]
"""Where the input of a view, of this unpadded (h, w), lies in the image."""


class TwoStageNetwork(Protocol):
    """The methods of `MaskRCNN` that `detect_views` calls; see there."""

    @property
    def config(self) -> RCNNConfig: ...

    def features(self, images: Tensor) -> list[Tensor]: ...

    def proposals(self, features: Sequence[Tensor], image_hws: Sequence[Extent]) -> list[Tensor]: ...

    def boxes(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], image_hws: Sequence[Extent]
    ) -> list[Detections]: ...

    def region_features(self, features: Sequence[Tensor]) -> RegionFeatures: ...

    def masks_in_parts(self, source: RegionFeatures, detections: Detections) -> Iterator[tuple[Detections, Tensor]]: ...


def detect_views(network: TwoStageNetwork, views: Sequence[View], render: RenderView, place: Place) -> Instances:
    """The objects of one image, best first; see ``DetectsViews.detect_views``."""
    of_views, output_hw = _boxes_of_views(network, views, render, place)
    merged = merge_detections(of_views, network.config.box_head)
    if not len(merged.boxes):
        return Instances.empty(output_hw, scored=True)
    mean, qualities = _masks_of_views(network, views, render, merged, place)
    masks, soft = mean.finish(len(views), threshold=network.config.mask_head.threshold)
    scores = (merged.scores * qualities / len(views)).numpy()
    visible = np.flatnonzero(masks.areas > 0)
    best = visible[np.argsort(-scores[visible], kind="stable")]
    instances = Instances.from_masks(
        masks[best],
        class_ids=merged.class_ids.numpy()[best],
        scores=scores[best],
        boxes_xyxy=merged.boxes.numpy()[best],
    )
    return replace(instances, soft_masks=soft[best])


def merge_detections(of_views: Sequence[Detections], config: AnyBoxHeadConfig) -> Detections:
    """The detections of several views as those of one, on the CPU, best first: Weighted Boxes Fusion in each class.

    Boxes that the network's own non-maximum suppression treats as one object (IoU above ``config.nms_iou``) become
    their mean, weighted by score. The score is the mean over the views; a view without the object counts as 0.
    Detections are then dropped as in a single view: by score, by suppression and by the network's cap.
    """
    boxes, scores, class_ids = (
        torch.cat(parts).numpy()
        for parts in zip(*((of_view.boxes, of_view.scores, of_view.class_ids) for of_view in of_views), strict=True)
    )
    solid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    order = np.flatnonzero(solid)[np.argsort(-scores[solid], kind="stable")]
    if not len(order):
        return Detections(torch.zeros((0, 4)), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    boxes, scores, class_ids = boxes[order], scores[order].astype(np.float64), class_ids[order]
    cluster, fused, means = weighted_boxes(boxes, scores, class_ids, np.ones(len(of_views)), config.nms_iou)
    first = np.unique(cluster, return_index=True)[1]
    merged = Detections(
        torch.from_numpy(fused.astype(np.float32)),
        torch.from_numpy(means.astype(np.float32)),
        torch.from_numpy(class_ids[first]),
    )
    merged = merged[merged.scores > config.score_threshold]
    best = grouped_nms(merged.boxes, merged.scores, merged.class_ids, config.nms_iou)
    return merged[best[: config.detections_per_image]]


def _boxes_of_views(
    network: TwoStageNetwork, views: Sequence[View], render: RenderView, place: Place
) -> tuple[list[Detections], tuple[int, int]]:
    """The detections of each view, in pixels of the output and turned back to the image's orientation; its size."""
    of_views, output_hw = [], (0, 0)
    for view in views:
        images, image_hw = render(view)
        features, placement, padded_hw = network.features(images), place(view, image_hw), _padded_hw(images, view)
        (x0, y0, x1, y1), *_ = view.turn_boxes(np.array([[0, 0, image_hw[1], image_hw[0]]]), padded_hw).tolist()
        inside = Window(y0, x0, y1, x1)
        (own,) = network.boxes(features, network.proposals(features, [inside]), [inside])
        boxes = torch.from_numpy(view.turn_boxes_back(own.boxes.float().cpu().numpy(), padded_hw))
        of_views.append(Detections(placement.boxes(boxes), own.scores.float().cpu(), own.class_ids.cpu()))
        output_hw = placement.output_hw
    return of_views, output_hw


def _masks_of_views(
    network: TwoStageNetwork, views: Sequence[View], render: RenderView, merged: Detections, place: Place
) -> tuple[PasteMean, Tensor]:
    """The sum of the views' masks of N merged boxes, and of their expected qualities FloatTensor[N]."""
    mean, qualities = None, torch.zeros(len(merged.boxes))
    for view in views:
        images, image_hw = render(view)
        source, placement = network.region_features(network.features(images)), place(view, image_hw)
        upright = placement.boxes_back(merged.boxes).numpy()
        boxes = torch.from_numpy(view.turn_boxes(upright, _padded_hw(images, view))).to(images.device)
        asked = Detections(boxes, torch.ones(len(boxes), device=boxes.device), merged.class_ids.to(boxes.device))
        first = 0
        for part, probs in network.masks_in_parts(source, asked):
            if mean is None:
                all_boxes, paste = merged.boxes.to(boxes.device), network.config.mask_head.paste
                mean = PasteMean(all_boxes, probs.shape[-1], placement.output_hw, rule=decided(paste))
            mean.add(first, _turned_back(probs, view))
            qualities[first : first + len(probs)] += part.scores.float().cpu()
            first += len(probs)
    assert mean is not None  # there is at least one view and one object
    return mean, qualities


def _padded_hw(images: Tensor, view: View) -> tuple[int, int]:
    """(h, w) of a view's input FloatTensor[1,C,H,W] before it was turned."""
    return view.turned_hw((images.shape[2], images.shape[3]))


def _turned_back(probs: Tensor, view: View) -> Tensor:
    """Masks FloatTensor[N,M,M] of a turned image, in the orientation of the image."""
    turned = torch.rot90(probs, -view.quarter_turns, (-2, -1))
    return turned.flip(-1) if view.horizontal_flip else turned

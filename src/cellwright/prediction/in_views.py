"""One image looked at in several views, and the objects that all of them together show.

    dense family   the maps of every view, turned back (flows as vectors) and averaged; decoded once
    R-CNN family   boxes of every view, merged class by class; then every view once more, for the masks of the merged
                   boxes from its own features, averaged on the pixels of each object

One view is in memory at a time, beside the mean maps or the pixels of the objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cellwright.core.errors import UsageError
from cellwright.core.instances import Instances
from cellwright.models.contract import Network
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.rcnn.box_head import DetectionRules
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.regions import Detections
from cellwright.ops.boxes import scale_boxes
from cellwright.ops.nms import grouped_nms
from cellwright.ops.paste import PasteMean
from cellwright.ops.weighted_boxes import weighted_boxes
from cellwright.prediction.views import View

Look = Callable[[View], tuple[Tensor, tuple[int, int]]]


def find_in_views(network: Network, views: Sequence[View], look: Look, output_hw: tuple[int, int]) -> Instances:
    """The objects of one image at ``output_hw``, best first; no objects are a legal result.

    look: FloatTensor[1,C,H,W], what the network sees in a view, normalised, turned and padded, and the unpadded (h, w).
    Raises `UsageError` for a network of neither family.
    """
    if isinstance(network, DenseNetwork):
        return network.decode(mean_maps(network, views, look, output_hw))
    if isinstance(network, MaskRCNN):
        merged = merge_detections(_boxes(network, views, look, output_hw), network.rules.box.detection)
        return _with_masks(network, views, look, merged, output_hw)
    raise UsageError(
        "this network cannot be asked in views", where="views", got=type(network).__name__, remedy="leave the views out"
    )


def mean_maps(network: DenseNetwork, views: Sequence[View], look: Look, output_hw: tuple[int, int]) -> np.ndarray:
    """Maps (D, H, W) float32, class probabilities after them, as the image lies: the mean over the views."""
    total = None
    for view in views:
        images, image_hw = look(view)
        (turned,) = network.output_maps(images, [image_hw], [view.turned_hw(output_hw)])
        maps = view.turn_maps_back(turned, network.target.channels)
        total = maps if total is None else np.add(total, maps, out=total)
    assert total is not None  # there is one view at least
    return np.divide(total, np.float32(len(views)), out=total)


def _boxes(network: MaskRCNN, views: Sequence[View], look: Look, output_hw: tuple[int, int]) -> list[Detections]:
    """What each view shows, in pixels of the output as the image lies."""
    found = []
    for view in views:
        images, image_hw = look(view)
        features = network.features(images)
        (own,) = network.boxes(features, network.proposals(features, [image_hw]), [image_hw])
        turned = scale_boxes(own.boxes, image_hw, view.turned_hw(output_hw))
        boxes = view.turn_boxes_back(turned.float().cpu().numpy(), output_hw)
        found.append(Detections(torch.from_numpy(boxes), own.scores.float().cpu(), own.class_ids.cpu()))
    return found


def merge_detections(found: Sequence[Detections], rules: DetectionRules) -> Detections:
    """The detections of several views as those of one, on the CPU, best first: Weighted Boxes Fusion in each class.

    Boxes that the network's own suppression takes for one object (IoU above ``rules.nms_iou``) become their mean,
    weighted by score; the score is the mean over the views, one that does not show the object counting as 0. What
    scores too little then, is suppressed by a better one, or exceeds the network's cap is dropped, as in one view.
    """
    boxes, scores, class_ids = (
        torch.cat(parts).numpy()
        for parts in zip(*((one.boxes, one.scores, one.class_ids) for one in found), strict=True)
    )
    solid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    order = np.flatnonzero(solid)[np.argsort(-scores[solid], kind="stable")]
    if not len(order):
        return Detections(torch.zeros((0, 4)), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    boxes, scores, class_ids = boxes[order], scores[order].astype(np.float64), class_ids[order]
    cluster, fused, means = weighted_boxes(boxes, scores, class_ids, np.ones(len(found)), rules.nms_iou)
    first = np.unique(cluster, return_index=True)[1]
    merged = Detections(
        torch.from_numpy(fused.astype(np.float32)),
        torch.from_numpy(means.astype(np.float32)),
        torch.from_numpy(class_ids[first]),
    )
    merged = merged[merged.scores > rules.score_threshold]
    return merged[grouped_nms(merged.boxes, merged.scores, merged.class_ids, rules.nms_iou)[: rules.per_image]]


def _with_masks(
    network: MaskRCNN, views: Sequence[View], look: Look, merged: Detections, output_hw: tuple[int, int]
) -> Instances:
    """The merged objects with the mean of the views' masks; expected qualities, where there are any, averaged too."""
    if not len(merged.boxes):
        return Instances.empty(output_hw, scored=True)
    rules = network.rules.mask
    device = next(network.parameters()).device
    mean, qualities = None, torch.zeros(len(merged.boxes))
    for view in views:
        images, image_hw = look(view)
        turned = torch.from_numpy(view.turn_boxes(merged.boxes.numpy(), output_hw))
        boxes = scale_boxes(turned, view.turned_hw(output_hw), image_hw).to(device)
        asked = Detections(boxes, torch.ones(len(boxes), device=device), merged.class_ids.to(device))
        source, first = network.region_features(network.features(images)), 0
        for part, probs in network.masks_in_parts(source, asked):
            if mean is None:
                mean = PasteMean(merged.boxes.to(device), probs.shape[-1], output_hw, rule=rules.paste)
            mean.add(first, _turned_back(probs, view))
            qualities[first : first + len(probs)] += part.scores.float().cpu()
            first += len(probs)
    assert mean is not None  # there is one view and one object at least
    masks, soft = mean.finish(len(views), threshold=rules.threshold)
    scores = (merged.scores * qualities / len(views)).numpy()
    visible = np.flatnonzero(masks.areas > 0)
    best = visible[np.argsort(-scores[visible], kind="stable")]
    found = Instances.from_masks(
        masks[best],
        class_ids=merged.class_ids.numpy()[best],
        scores=scores[best],
        boxes_xyxy=merged.boxes.numpy()[best],
    )
    return replace(found, soft_masks=soft[best])


def _turned_back(probs: Tensor, view: View) -> Tensor:
    """Masks FloatTensor[N,M,M] of a turned image as the image lies."""
    turned = torch.rot90(probs, -view.quarter_turns, (-2, -1))
    return turned.flip(-1) if view.horizontal_flip else turned

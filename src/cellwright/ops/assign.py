"""Which anchor or proposal belongs to which object, and which of them a training step looks at.

A dense IoU matrix of 250,000 anchors and 1,862 objects weighs 1.9 GB. Here boxes pass in chunks, twice: the first pass
finds each box's best object and each object's best IoU, the second finds every box that ties with an object's best.
A chunk of neighbouring anchors meets only the objects that reach into its hull; all others have IoU 0 with it.

Naming: "boxes" are anchors or proposals (N), "objects" are ground truth (G).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cellwright.ops.boxes import box_areas, box_iou, intersection_areas

FOREGROUND, BACKGROUND, UNUSED = 1, 0, -1

# Boxes a chunk: with 1,862 objects its IoU matrix has 2 million entries, and a handful of temporaries stay below 50 MB.
_CHUNK = 1024


@dataclass(frozen=True)
class Assignment:
    """What each of N boxes is.

    Attributes:
        labels: Int8Tensor[N]: 1 foreground, 0 background, -1 neither.
        objects: LongTensor[N]: index of the object with the highest IoU (the first among equals), whatever the label;
            0 where a box meets no object.
    """

    labels: Tensor
    objects: Tensor


def assign(
    boxes: Tensor,
    objects: Tensor,
    *,
    foreground_iou: float,
    background_iou: float,
    keep_best: bool,
) -> Assignment:
    """Match boxes to objects by IoU (Ren et al. 2015, section 3.1.2).

    Args:
        boxes: FloatTensor[N,4].
        objects: FloatTensor[G,4]; with G = 0 every box is background.
        foreground_iou: boxes with at least this IoU are foreground.
        background_iou: boxes with less than this IoU are background; those between are neither.
        keep_best: boxes that reach an object's highest IoU, ties included, are foreground at any IoU above 0. (Dense
            matchers also take IoU 0 for a tie, which turns every anchor positive when one object meets none: not here.)

    Returns:
        The assignment: apart from that case, labels and indices equal a dense matcher's. Memory is bounded by the
        chunk, not by N x G.
    """
    best, index = boxes.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    labels = torch.full((len(boxes),), UNUSED, dtype=torch.int8, device=boxes.device)
    peaks = boxes.new_zeros(len(objects))
    for part, near in _chunks(boxes, objects):
        iou = box_iou(objects[near], boxes[part])
        values, rows = iou.max(dim=0)
        best[part] = values
        index[part] = torch.where(values > 0, near[rows], 0)
        peaks[near] = torch.maximum(peaks[near], iou.amax(dim=1))
    labels[best < background_iou] = BACKGROUND
    labels[best >= foreground_iou] = FOREGROUND
    if keep_best:
        for part, near in _chunks(boxes, objects):
            # An IoU of 0 can never equal infinity, so objects that meet no box take none.
            goal = peaks[near].masked_fill(peaks[near] == 0, torch.inf)
            tied = (box_iou(objects[near], boxes[part]) == goal[:, None]).any(dim=0)
            labels[part] = labels[part].masked_fill(tied, FOREGROUND)
    return Assignment(labels, index)


def inside_ignored(boxes: Tensor, ignored: Tensor, min_ioa: float) -> Tensor:
    """BoolTensor[N]: boxes of which at least ``min_ioa`` lies inside one of the ignored regions' boxes [G,4]."""
    result = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for part, near in _chunks(boxes, ignored):
        shared = intersection_areas(ignored[near], boxes[part]).amax(dim=0)
        result[part] = (shared > 0) & (shared >= min_ioa * box_areas(boxes[part]))
    return result


def sample(labels: Tensor, count: int, positive_fraction: float, generator: torch.Generator) -> Tensor:
    """Draw foreground and background boxes for a loss, without replacement.

    Args:
        labels: Int8Tensor[N] as in ``Assignment``.
        count: boxes wanted. Missing foreground is made up with background; fewer come where both run out.
        positive_fraction: at most ``int(count * positive_fraction)`` are foreground.
        generator: on the CPU; the same state draws the same boxes on every device.

    Returns:
        LongTensor[S], S <= count, ascending.
    """
    positives = torch.nonzero(labels == FOREGROUND).squeeze(1)
    negatives = torch.nonzero(labels == BACKGROUND).squeeze(1)
    n_positive = min(int(count * positive_fraction), len(positives))
    n_negative = min(count - n_positive, len(negatives))
    drawn = [_draw(positives, n_positive, generator), _draw(negatives, n_negative, generator)]
    return torch.cat(drawn).sort().values


def _draw(candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(candidates), generator=generator)[:count]
    return candidates[order.to(candidates.device)]


def _chunks(boxes: Tensor, objects: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the boxes, each with the ascending indices of the objects that reach into the slice's hull."""
    for start in range(0, len(boxes) if len(objects) else 0, _CHUNK):
        part = slice(start, start + _CHUNK)
        low, high = boxes[part, :2].amin(dim=0), boxes[part, 2:].amax(dim=0)
        near = torch.nonzero(((objects[:, :2] < high) & (objects[:, 2:] > low)).all(dim=1)).squeeze(1)
        if len(near):
            yield part, near

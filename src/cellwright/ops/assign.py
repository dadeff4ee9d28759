"""Assignment of anchors or proposals to objects, and the sample of them that a training step uses.

A dense IoU matrix of 250,000 anchors and 1,862 objects takes 1.9 GB. Here the boxes are processed in chunks, in two
passes: the first finds the best object of each box and the best IoU of each object, the second all boxes that reach an
object's best IoU. A chunk of neighbouring anchors is compared only with the objects that overlap its hull; the IoU
with all others is 0.

Naming: "boxes" are anchors or proposals (N), "objects" are the ground truth (G).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cellwright.ops.boxes import box_iou

FOREGROUND, BACKGROUND, UNUSED = 1, 0, -1

# Boxes per chunk: with 1,862 objects the IoU matrix has 2 million entries, and the temporaries stay below 50 MB.
_CHUNK = 1024


@dataclass(frozen=True)
class Assignment:
    """The result of `assign` for N boxes.

    Attributes:
        labels: Int8Tensor[N]: 1 foreground, 0 background, -1 neither.
        objects: LongTensor[N]: index of the object with the highest IoU (the first of several), for every label; 0 for
            a box that overlaps no object.
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
            matchers also count an IoU of 0 as a tie, so an object that overlaps no anchor makes every anchor positive.)

    Returns:
        The assignment; except in that case, it equals that of a dense matcher. Memory is limited by the chunk size, not
        by N x G.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [50, 50, 60, 60]])
    >>> assignment = assign(boxes, boxes[:1], foreground_iou=0.7, background_iou=0.3, keep_best=True)
    >>> assignment.labels.tolist(), assignment.objects.tolist()
    ([1, -1, 0], [0, 0, 0])
    """
    best, index = boxes.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    labels = torch.full((len(boxes),), UNUSED, dtype=torch.int8, device=boxes.device)
    peaks = boxes.new_zeros(len(objects))
    for part, members in _chunks(boxes, objects):
        iou = box_iou(objects[members], boxes[part])
        values, rows = iou.max(dim=0)
        best[part] = values
        index[part] = torch.where(values > 0, members[rows], 0)
        peaks[members] = torch.maximum(peaks[members], iou.amax(dim=1))
    labels[best < background_iou] = BACKGROUND
    labels[best >= foreground_iou] = FOREGROUND
    if keep_best:
        for part, members in _chunks(boxes, objects):
            # No IoU equals infinity, so an object that overlaps no box gets none.
            goal = peaks[members].masked_fill(peaks[members] == 0, torch.inf)
            tied = (box_iou(objects[members], boxes[part]) == goal[:, None]).any(dim=0)
            labels[part] = labels[part].masked_fill(tied, FOREGROUND)
    return Assignment(labels, index)


def inside_ignored(boxes: Tensor, ignored: Tensor | None, min_share: float) -> Tensor:
    """Which boxes lie with at least ``min_share`` of their area in pixels that are not annotated.

    Args:
        boxes: FloatTensor[N,4] px. What lies outside the image does not count as area.
        ignored: BoolTensor[h,w], see `Batch.ignored_pixels`; None: no pixel.

    Returns:
        BoolTensor[N].

    >>> region = torch.zeros(10, 10, dtype=torch.bool)
    >>> region[:, 6:] = True
    >>> inside_ignored(torch.tensor([[2.0, 2, 10, 10], [2, 2, 9, 9], [8, 2, 14, 4]]), region, 0.5).tolist()
    [True, False, True]
    """
    if ignored is None or not len(boxes):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    # Sums over all pixels above and to the left are linear between the corners of a pixel: this is exact.
    exact = torch.device("cpu") if boxes.device.type == "mps" else boxes.device  # which has no float64
    height, width = ignored.shape
    sums = torch.zeros((height + 1, width + 1), dtype=torch.float64, device=exact)
    sums[1:, 1:] = ignored.to(exact, torch.float64).cumsum(0).cumsum(1)
    limits = torch.tensor([width, height, width, height], dtype=torch.float64, device=exact)
    x0, y0, x1, y1 = torch.minimum(boxes.to(exact, torch.float64).clamp(min=0), limits).unbind(1)
    inside = _sum_at(sums, y1, x1) - _sum_at(sums, y0, x1) - _sum_at(sums, y1, x0) + _sum_at(sums, y0, x0)
    areas = (x1 - x0) * (y1 - y0)
    return ((areas > 0) & (inside >= min_share * areas)).to(boxes.device)


def _sum_at(sums: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The bilinear value of ``sums`` [h+1,w+1] at positions [N] within it."""
    low_y, low_x = (at.floor().long().clamp(max=side - 2) for at, side in zip((y, x), sums.shape, strict=True))
    down, right = y - low_y, x - low_x
    above = sums[low_y, low_x] * (1 - right) + sums[low_y, low_x + 1] * right
    below = sums[low_y + 1, low_x] * (1 - right) + sums[low_y + 1, low_x + 1] * right
    return above * (1 - down) + below * down


def sample(labels: Tensor, count: int, positive_fraction: float, generator: torch.Generator) -> Tensor:
    """Draw foreground and background boxes for a loss, without replacement.

    Args:
        labels: Int8Tensor[N] as in ``Assignment``.
        count: size of the sample. Missing foreground is replaced by background; the sample is smaller if both run out.
        positive_fraction: at most ``int(count * positive_fraction)`` are foreground.
        generator: on the CPU, so that the same state draws the same boxes on every device.

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
    """Slices of the boxes, each with the ascending indices of the objects that overlap the slice's hull."""
    for start in range(0, len(boxes) if len(objects) else 0, _CHUNK):
        part = slice(start, start + _CHUNK)
        low, high = boxes[part, :2].amin(dim=0), boxes[part, 2:].amax(dim=0)
        members = torch.nonzero(((objects[:, :2] < high) & (objects[:, 2:] > low)).all(dim=1)).squeeze(1)
        if len(members):
            yield part, members

"""Non-maximum suppression (NMS), hard and soft, of boxes and of masks.

Only pairs of objects that overlap are computed, so the cost grows with their number, not with the square of the number
of objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from cellwright.core.geometry import box_areas, overlapping_pairs
from cellwright.core.masks import MaskSet


@dataclass(frozen=True, eq=False)
class Pairs:
    """Which of N objects overlap, and how much.

    starts: (N + 1,) int64.
    others: (P,) int64; ``others[starts[k]:starts[k + 1]]`` overlap object k. Each pair is listed in both orders.
    overlap: (P,) float64 in (0, 1].
    """

    starts: np.ndarray
    others: np.ndarray
    overlap: np.ndarray

    def of(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The objects that overlap object k, and how much."""
        part = slice(self.starts[k], self.starts[k + 1])
        return self.others[part], self.overlap[part]


def box_pairs(boxes: np.ndarray, groups: np.ndarray) -> Pairs:
    """IoU of boxes (N, 4) that are in the same group; groups: (N,) int64."""
    i, j = overlapping_pairs(boxes, boxes)
    i, j = _in_same_group(i, j, groups)
    exact = boxes.astype(np.float64)
    sides = np.minimum(exact[i, 2:], exact[j, 2:]) - np.maximum(exact[i, :2], exact[j, :2])
    shared, areas = sides.prod(1), box_areas(boxes)
    return _pairs(len(boxes), i, j, shared / (areas[i] + areas[j] - shared))


def mask_pairs(masks: MaskSet, groups: np.ndarray, *, over_smaller: bool = False) -> Pairs:
    """IoU of masks in the same group, or their intersection over the smaller mask; empty masks are in no pair."""
    i, j, shared = masks.intersections(masks)
    kept = (i != j) & (groups[i] == groups[j])
    i, j, shared = i[kept], j[kept], shared[kept]
    areas = masks.areas
    whole = np.minimum(areas[i], areas[j]) if over_smaller else areas[i] + areas[j] - shared
    return _pairs(len(masks), i, j, shared / whole)


def hard_nms(scores: np.ndarray, pairs: Pairs, limit: float) -> np.ndarray:
    """Hard NMS: an object is removed if a better one that is kept overlaps it by more than ``limit``.

    scores: (N,), any scale; of equal scores the first counts as better. Returns the indices (M,) int64 of the objects
    that are kept, best first.
    """
    from cellwright.prediction._fusion_kernels import suppress

    order = np.argsort(-scores, kind="stable")
    return order[suppress(order, pairs.starts, pairs.others, pairs.overlap, float(limit))]


def soft_nms(scores: np.ndarray, pairs: Pairs, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Soft-NMS (Bodla et al. 2017): each object, from the best on, lowers the scores of those that overlap it.

    scores: (N,), not negative. factors: (P,) in [0, 1], by which a score is multiplied for each of ``pairs``: see
    `linear_decay` and `gaussian_decay`. Returns all objects (N,) int64, best first, and their new scores (N,) float64
    in the order of ``scores``. Objects below a threshold can be omitted afterwards, since they lower only objects with
    lower scores.
    """
    lowered = scores.astype(np.float64)
    heap = [(-score, k) for k, score in enumerate(lowered.tolist())]
    heapify(heap)
    taken = np.zeros(len(lowered), bool)
    order = []
    while heap:
        score, k = heappop(heap)
        if taken[k] or -score != lowered[k]:  # it is in the heap again, with a lower score
            continue
        taken[k] = True
        order.append(k)
        part = slice(pairs.starts[k], pairs.starts[k + 1])
        affected = ~taken[pairs.others[part]] & (factors[part] < 1)
        others = pairs.others[part][affected]
        lowered[others] *= factors[part][affected]
        for m in others.tolist():
            heappush(heap, (-lowered[m], m))
    return np.array(order, np.int64), lowered


def linear_decay(overlap: np.ndarray, limit: float) -> np.ndarray:
    """1 - overlap above ``limit``, else 1."""
    return np.where(overlap > limit, 1 - overlap, 1.0)


def gaussian_decay(overlap: np.ndarray, sigma: float) -> np.ndarray:
    """exp(-overlap^2 / sigma)."""
    return np.exp(-(overlap**2) / sigma)


def _in_same_group(i: np.ndarray, j: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = (i != j) & (groups[i] == groups[j])
    return i[kept], j[kept]


def _pairs(n: int, i: np.ndarray, j: np.ndarray, overlap: np.ndarray) -> Pairs:
    return Pairs(np.searchsorted(i, np.arange(n + 1)), j, overlap)

"""Non-maximum suppression, hard and soft, of boxes and of masks.

Everything goes by the pairs of objects that overlap, so cost follows what lies on what, never the square of a crowd.
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

    starts: (N + 1,) int64. near: (P,) int64, the objects that overlap object k stand in ``starts[k]:starts[k + 1]``;
    every pair stands there in both orders, no object beside itself. overlap: (P,) float64 in (0, 1].
    """

    starts: np.ndarray
    near: np.ndarray
    overlap: np.ndarray

    def of(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The objects that overlap object k, and how much."""
        part = slice(self.starts[k], self.starts[k + 1])
        return self.near[part], self.overlap[part]


def box_pairs(boxes: np.ndarray, groups: np.ndarray) -> Pairs:
    """IoU of boxes (N, 4) of one group; objects of different groups (N,) int64 never meet."""
    i, j = overlapping_pairs(boxes, boxes)
    i, j = _of_one_group(i, j, groups)
    exact = boxes.astype(np.float64)
    sides = np.minimum(exact[i, 2:], exact[j, 2:]) - np.maximum(exact[i, :2], exact[j, :2])
    shared, areas = sides.prod(1), box_areas(boxes)
    return _pairs(len(boxes), i, j, shared / (areas[i] + areas[j] - shared))


def mask_pairs(masks: MaskSet, groups: np.ndarray, *, over_smaller: bool = False) -> Pairs:
    """IoU of masks of one group, or their intersection over the smaller; masks without a pixel meet none."""
    i, j, shared = masks.intersections(masks)
    kept = (i != j) & (groups[i] == groups[j])
    i, j, shared = i[kept], j[kept], shared[kept]
    areas = masks.areas
    whole = np.minimum(areas[i], areas[j]) if over_smaller else areas[i] + areas[j] - shared
    return _pairs(len(masks), i, j, shared / whole)


def hard_nms(scores: np.ndarray, pairs: Pairs, limit: float) -> np.ndarray:
    """The objects that stay, best first: one goes where a better one that stays overlaps it by more than ``limit``.

    scores: (N,), any scale; of equal scores the first counts as better. Returns indices (M,) int64.
    """
    from cellwright.prediction._fusion_kernels import suppress

    order = np.argsort(-scores, kind="stable")
    return order[suppress(order, pairs.starts, pairs.near, pairs.overlap, float(limit))]


def soft_nms(scores: np.ndarray, pairs: Pairs, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Soft-NMS (Bodla et al. 2017): the best object left lowers the scores of those that overlap it, and so on.

    scores: (N,), not negative. factors: (P,) in [0, 1], what a score is multiplied with for each of ``pairs``: see
    `linear_decay` and `gaussian_decay`. Returns all objects (N,) int64, best first, and their new scores (N,) float64
    in the order of ``scores``. What falls below a threshold may be left out afterwards: it lowers lesser ones only.
    """
    left = scores.astype(np.float64)
    heap = [(-score, k) for k, score in enumerate(left.tolist())]
    heapify(heap)
    taken = np.zeros(len(left), bool)
    order = []
    while heap:
        score, k = heappop(heap)
        if taken[k] or -score != left[k]:  # it stands in the heap again, with a lower score
            continue
        taken[k] = True
        order.append(k)
        part = slice(pairs.starts[k], pairs.starts[k + 1])
        lowered = ~taken[pairs.near[part]] & (factors[part] < 1)
        near = pairs.near[part][lowered]
        left[near] *= factors[part][lowered]
        for m in near.tolist():
            heappush(heap, (-left[m], m))
    return np.array(order, np.int64), left


def linear_decay(overlap: np.ndarray, limit: float) -> np.ndarray:
    """1 - overlap above ``limit``, else 1."""
    return np.where(overlap > limit, 1 - overlap, 1.0)


def gaussian_decay(overlap: np.ndarray, sigma: float) -> np.ndarray:
    """exp(-overlap^2 / sigma), however small the overlap."""
    return np.exp(-(overlap**2) / sigma)


def _of_one_group(i: np.ndarray, j: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = (i != j) & (groups[i] == groups[j])
    return i[kept], j[kept]


def _pairs(n: int, i: np.ndarray, j: np.ndarray, overlap: np.ndarray) -> Pairs:
    return Pairs(np.searchsorted(i, np.arange(n + 1)), j, overlap)

"""Loops of `seams`, compiled by numba on first use and cached."""

from __future__ import annotations

import numpy as np

from cellwright.core.jit import njit


@njit(cache=True)
def anchors(boxes, offsets, crops):
    """(N, 2) int64 (y, x): the pixel of each mask nearest to its mean position, the first in C order among equals.

    Distances are compared as integers (times the squared area), so that ties are exact. No mask may be empty.
    """
    found = np.zeros((boxes.shape[0], 2), np.int64)
    for i in range(boxes.shape[0]):
        width, height = boxes[i, 2] - boxes[i, 0], boxes[i, 3] - boxes[i, 1]
        area, sum_y, sum_x = np.int64(0), np.int64(0), np.int64(0)
        at = offsets[i]
        for y in range(height):
            for x in range(width):
                if crops[at]:
                    area += 1
                    sum_y += y
                    sum_x += x
                at += 1
        # Above this, the squares would overflow; ties of such an object may be broken by rounding.
        exact = area * max(width, height) < np.int64(1) << 30
        nearest_exact, nearest = np.int64(-1), np.inf
        at = offsets[i]
        for y in range(height):
            for x in range(width):
                if crops[at]:
                    dy, dx = area * y - sum_y, area * x - sum_x
                    if exact:
                        distance = dy * dy + dx * dx
                        if nearest_exact < 0 or distance < nearest_exact:
                            nearest_exact = distance
                            found[i, 0], found[i, 1] = y + boxes[i, 1], x + boxes[i, 0]
                    else:
                        rough = float(dy) ** 2 + float(dx) ** 2
                        if rough < nearest:
                            nearest = rough
                            found[i, 0], found[i, 1] = y + boxes[i, 1], x + boxes[i, 0]
                at += 1
    return found


@njit(cache=True)
def keep_greedily(order, starts, others, blocks_owned, owned):
    """Which nodes (N,) bool to keep: in ``order``, each that no kept neighbour blocks.

    The neighbours of node k are ``others[starts[k]:starts[k + 1]]``. Two owned nodes block each other only where
    ``blocks_owned``.
    """
    keep = np.zeros(order.size, np.bool_)
    for k in order:
        free = True
        for e in range(starts[k], starts[k + 1]):
            if keep[others[e]] and (blocks_owned[e] or not (owned[k] and owned[others[e]])):
                free = False
        keep[k] = free
    return keep


@njit(cache=True)
def clear_shared(offsets, crops, boxes, i, j, other_offsets, other_crops, other_boxes):
    """Set the pixels of masks i (P,) that masks j (P,) of another set have too to 0, in place."""
    for p in range(i.size):
        a, b = boxes[i[p]], other_boxes[j[p]]
        x0, x1 = max(a[0], b[0]), min(a[2], b[2])
        for y in range(max(a[1], b[1]), min(a[3], b[3])):
            at = offsets[i[p]] + np.int64(y - a[1]) * (a[2] - a[0]) - a[0]
            other = other_offsets[j[p]] + np.int64(y - b[1]) * (b[2] - b[0]) - b[0]
            for x in range(x0, x1):
                if other_crops[other + x]:
                    crops[at + x] = 0

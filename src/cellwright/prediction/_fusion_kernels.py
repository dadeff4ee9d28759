"""The loops of `fusion` and `suppression`, compiled by numba on first use and cached."""

from __future__ import annotations

import numpy as np

from cellwright.core.jit import njit


@njit(cache=True)
def suppress(order, starts, others, overlap, limit):
    """Which of the objects ``order`` (N,) are kept, (N,) bool: those that no earlier kept object overlaps by too
    much."""
    removed = np.zeros(order.size, np.bool_)
    kept = np.zeros(order.size, np.bool_)
    for place in range(order.size):
        k = order[place]
        if removed[k]:
            continue
        kept[place] = True
        for p in range(starts[k], starts[k + 1]):
            if overlap[p] > limit:
                removed[others[p]] = True
    return kept


@njit(cache=True)
def blend(order, starts, shares, boxes, offsets, probs):
    """Boxes (C, 4) int32, offsets and crops of fused masks: where the mean of the members' values is at least half.

    order: (M,) int64; the members of cluster c are ``order[starts[c]:starts[c + 1]]``. shares: (N,) float64, their
    weights. boxes (N, 4), offsets, probs: uint8 values of 0 to 255 over each box; 0 outside of it.
    """
    n_clusters = starts.size - 1
    out_boxes, out_starts = np.zeros((n_clusters, 4), np.int32), np.zeros(n_clusters + 1, np.int64)
    for c in range(n_clusters):
        out = out_boxes[c]
        for m in range(starts[c], starts[c + 1]):
            box = boxes[order[m]]
            if box[2] <= box[0] or box[3] <= box[1]:
                continue
            if out[2] == out[0]:
                out[:] = box
            else:
                out[0], out[1] = min(out[0], box[0]), min(out[1], box[1])
                out[2], out[3] = max(out[2], box[2]), max(out[3], box[3])
        out_starts[c + 1] = out_starts[c] + np.int64(out[2] - out[0]) * (out[3] - out[1])
    crops = np.empty(out_starts[n_clusters], np.uint8)
    for c in range(n_clusters):
        out = out_boxes[c]
        width = out[2] - out[0]
        sums = np.zeros(out_starts[c + 1] - out_starts[c])
        total = 0.0
        for m in range(starts[c], starts[c + 1]):
            i = order[m]
            box, share = boxes[i], shares[i]
            total += share
            at = offsets[i]
            for y in range(box[1] - out[1], box[3] - out[1]):
                row = y * width - out[0]
                for x in range(box[0], box[2]):
                    sums[row + x] += share * probs[at]
                    at += 1
        # A sum that differs from half of the total only by rounding counts as half.
        half = 127.5 * total * (1 - 1e-9)
        for k in range(sums.size):
            crops[out_starts[c] + k] = sums[k] >= half and sums[k] > 0
    return out_boxes, out_starts, crops

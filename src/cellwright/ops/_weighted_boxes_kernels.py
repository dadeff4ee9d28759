"""The inner loop of `weighted_boxes`, compiled by numba on first use and cached."""

from __future__ import annotations

import numpy as np

from cellwright.core.jit import njit


@njit(cache=True)
def weighted_clusters(boxes, shares, groups, limit):
    """Cluster (N,) int64 of every box and the fused boxes (C, 4): Weighted Boxes Fusion in the given order.

    boxes: (N, 4) float64, N >= 1. shares: (N,) float64, the weight of each box. groups: (N,) int64. A box joins the
    cluster of its group whose fused box it overlaps most, with an IoU above ``limit``; the older cluster wins a tie.
    Clusters are looked up in a grid of at most about 4 N cells of the mean box size.
    """
    n = boxes.shape[0]
    left, top = boxes[:, 0].min(), boxes[:, 1].min()
    width, height = max(boxes[:, 2].max() - left, 0.0), max(boxes[:, 3].max() - top, 0.0)
    mean_area = (np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)).mean()
    cell = max(np.sqrt(mean_area), np.sqrt(width * height / (4.0 * n)), max(width, height) / (4.0 * n))
    if cell == 0.0:
        cell = 1.0
    columns, rows = int(width / cell) + 1, int(height / cell) + 1
    head = np.full(rows * columns, -1, np.int64)
    owner, following = np.empty(4 * n, np.int64), np.empty(4 * n, np.int64)
    n_entries = n_clusters = 0
    cluster, group_of = np.empty(n, np.int64), np.empty(n, np.int64)
    fused, sums, totals = np.empty((n, 4)), np.zeros((n, 4)), np.zeros(n)
    listed = np.zeros((n, 4), np.int64)  # grid cells x0, y0, x1, y1 (exclusive) where a cluster was last listed
    for k in range(n):
        box = boxes[k]
        area = (box[2] - box[0]) * (box[3] - box[1])
        best, best_iou = -1, limit
        for cy in range(int((box[1] - top) / cell), int((box[3] - top) / cell) + 1):
            for cx in range(int((box[0] - left) / cell), int((box[2] - left) / cell) + 1):
                at = head[cy * columns + cx]
                while at != -1:
                    c = owner[at]
                    at = following[at]
                    if group_of[c] != groups[k]:
                        continue
                    other = fused[c]
                    w = min(box[2], other[2]) - max(box[0], other[0])
                    h = min(box[3], other[3]) - max(box[1], other[1])
                    if w <= 0 or h <= 0:
                        continue
                    iou = w * h / (area + (other[2] - other[0]) * (other[3] - other[1]) - w * h)
                    if iou > best_iou or (iou == best_iou and -1 < c < best):
                        best, best_iou = c, iou
        if best == -1:
            best = n_clusters
            n_clusters += 1
            group_of[best] = groups[k]
            fused[best] = box
        cluster[k] = best
        sums[best] += shares[k] * box
        totals[best] += shares[k]
        if totals[best] > shares[k]:
            fused[best] = sums[best] / totals[best]
        now = fused[best]
        x0, y0 = int((now[0] - left) / cell), int((now[1] - top) / cell)
        x1, y1 = int((now[2] - left) / cell) + 1, int((now[3] - top) / cell) + 1
        for cy in range(y0, min(y1, rows)):
            for cx in range(x0, min(x1, columns)):
                if listed[best, 0] <= cx < listed[best, 2] and listed[best, 1] <= cy < listed[best, 3]:
                    continue
                if n_entries == owner.size:
                    owner = np.concatenate((owner, np.empty(n_entries, np.int64)))
                    following = np.concatenate((following, np.empty(n_entries, np.int64)))
                owner[n_entries], following[n_entries] = best, head[cy * columns + cx]
                head[cy * columns + cx] = n_entries
                n_entries += 1
        listed[best, 0], listed[best, 1], listed[best, 2], listed[best, 3] = x0, y0, x1, y1
    return cluster, fused[:n_clusters]

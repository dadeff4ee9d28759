"""RoIAlign of maps with channels last, compiled by numba on first use and cached."""

from __future__ import annotations

import numpy as np

from cellwright.core.jit import njit


@njit(cache=True, fused=True)
def pool(feature, boxes, scale, ratio, shift, pooled):
    """Fill ``pooled`` (R, M, M, C) from ``feature`` (H, W, C); see `ops.roi.pool_boxes`.

    boxes: (R, 4) float32 px. scale: cells per pixel. ratio: samples per cell and axis, 0 adapts to the box. shift: of
    the boxes, cells: .5 if they are aligned, else 0, and then sides are at least one cell.
    """
    height, width, channels = feature.shape
    side = pooled.shape[1]
    for r in range(pooled.shape[0]):
        x0, y0 = boxes[r, 0] * scale - shift, boxes[r, 1] * scale - shift
        w, h = boxes[r, 2] * scale - shift - x0, boxes[r, 3] * scale - shift - y0
        if shift == 0:
            w, h = max(w, np.float32(1)), max(h, np.float32(1))
        cell_w, cell_h = w / np.float32(side), h / np.float32(side)
        n_x = ratio if ratio > 0 else max(int(np.ceil(cell_w)), 0)
        n_y = ratio if ratio > 0 else max(int(np.ceil(cell_h)), 0)
        share = np.float32(1) / np.float32(max(n_x * n_y, 1))
        for i in range(side):
            for j in range(side):
                cell = pooled[r, i, j]
                for z in range(channels):
                    cell[z] = 0
                for k in range(n_x * n_y):
                    y, x = _sample(y0, i, cell_h, k // n_x, n_y), _sample(x0, j, cell_w, k % n_x, n_x)
                    if not (-1 <= y <= height and -1 <= x <= width):  # nor NaN
                        continue
                    y, x = max(y, np.float32(0)), max(x, np.float32(0))
                    top, left = int(y), int(x)
                    if top >= height - 1:
                        top, y = height - 1, np.float32(height - 1)
                    if left >= width - 1:
                        left, x = width - 1, np.float32(width - 1)
                    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    low, after = y - np.float32(top), x - np.float32(left)
                    high, before = np.float32(1) - low, np.float32(1) - after
                    first, second = feature[top], feature[below]
                    a, b, c, d = high * before * share, high * after * share, low * before * share, low * after * share
                    for z in range(channels):
                        cell[z] += a * first[left, z] + b * first[right, z] + c * second[left, z] + d * second[right, z]


@njit(cache=True)
def _sample(start, cell, side, k, n):
    """The position of sample k of n in a cell, rounded as torchvision does: where a map is steep, rounding shows."""
    return start + np.float32(cell) * side + (np.float32(k) + np.float32(0.5)) * side / np.float32(n)

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
        x0, y0, cell_w, cell_h, n_x, n_y = _grid(boxes[r], scale, ratio, shift, side)
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
                    top, left, below, right, low, after = _neighbours(y, x, height, width)
                    high, before = np.float32(1) - low, np.float32(1) - after
                    first, second = feature[top], feature[below]
                    a, b, c, d = high * before * share, high * after * share, low * before * share, low * after * share
                    for z in range(channels):
                        cell[z] += a * first[left, z] + b * first[right, z] + c * second[left, z] + d * second[right, z]


@njit(cache=True)
def unpool(pooled, images, boxes, scale, ratio, shift, features):
    """Add to ``features`` (B, H, W, C) the gradient of the maps from which `pool` made R regions.

    pooled: (R, M, M, C), the gradient of what it made. images: (R,), the map of each. The others as in `pool`. The
    order of the sums is that of torchvision: on x86 processors, the bits are the same where 2 x 2 samples are taken.
    """
    height, width = features.shape[1:3]
    side = pooled.shape[1]
    for r in range(pooled.shape[0]):
        feature = features[images[r]]
        x0, y0, cell_w, cell_h, n_x, n_y = _grid(boxes[r], scale, ratio, shift, side)
        share = np.float32(1) / np.float32(max(n_x * n_y, 1))
        for i in range(side):
            for j in range(side):
                for k in range(n_x * n_y):
                    y, x = _sample(y0, i, cell_h, k // n_x, n_y), _sample(x0, j, cell_w, k % n_x, n_x)
                    if not (-1 <= y <= height and -1 <= x <= width):  # nor NaN
                        continue
                    top, left, below, right, low, after = _neighbours(y, x, height, width)
                    high, before = np.float32(1) - low, np.float32(1) - after
                    _add(feature[top, left], pooled[r, i, j], high * before * share)
                    _add(feature[top, right], pooled[r, i, j], high * after * share)
                    _add(feature[below, left], pooled[r, i, j], low * before * share)
                    _add(feature[below, right], pooled[r, i, j], low * after * share)


@njit(cache=True)
def _add(cell, values, factor):
    for z in range(cell.shape[0]):
        cell[z] += factor * values[z]


@njit(cache=True)
def _grid(box, scale, ratio, shift, side):
    """The first corner of a box, the sides of its cells, and the samples per cell along x and y."""
    x0, y0 = box[0] * scale - shift, box[1] * scale - shift
    w, h = box[2] * scale - shift - x0, box[3] * scale - shift - y0
    if shift == 0:
        w, h = max(w, np.float32(1)), max(h, np.float32(1))
    cell_w, cell_h = w / np.float32(side), h / np.float32(side)
    n_x = ratio if ratio > 0 else max(int(np.ceil(cell_w)), 0)
    n_y = ratio if ratio > 0 else max(int(np.ceil(cell_h)), 0)
    return x0, y0, cell_w, cell_h, n_x, n_y


@njit(cache=True)
def _neighbours(y, x, height, width):
    """The cells around a position, and how far it is from the first of them: top, left, below, right, down, right."""
    y, x = max(y, np.float32(0)), max(x, np.float32(0))
    top, left = int(y), int(x)
    if top >= height - 1:
        top, y = height - 1, np.float32(height - 1)
    if left >= width - 1:
        left, x = width - 1, np.float32(width - 1)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    return top, left, below, right, y - np.float32(top), x - np.float32(left)


@njit(cache=True)
def _sample(start, cell, side, k, n):
    """The position of sample k of n in a cell, rounded as torchvision does: where a map is steep, rounding shows."""
    return start + np.float32(cell) * side + (np.float32(k) + np.float32(0.5)) * side / np.float32(n)

"""Loops of `cellpose`, compiled by numba on first use and cached.

Sums are taken in a fixed order and in the precision in which Cellpose takes them on a CPU, so that ties and thresholds
fall in the same way.
"""

from __future__ import annotations

import numpy as np

from cellwright.core.jit import njit

_NEIGHBOURS_Y = np.array([0, -1, 1, 0, 0, -1, -1, 1, 1])
_NEIGHBOURS_X = np.array([0, 0, 0, -1, 1, -1, 1, -1, 1])
SEED_COUNT, GROW_COUNT, GROW_PX = 10, 2, 5


@njit(cache=True)
def ends(flow_y, flow_x, pixels, steps, y0, x0):
    """The pixels (P, 2) int64 (y, x) in which pixels (P,) end after ``steps`` steps through the bilinear field.

    Positions are float32 in the whole image, in which the field begins at (y0, x0): a window rounds like the whole.
    """
    height, width = flow_y.shape
    last = np.array([y0 + height - 1, x0 + width - 1], np.float32)
    first = np.array([y0, x0], np.float32)
    out = np.empty((pixels.size, 2), np.int64)
    for i in range(pixels.size):
        y, x = np.float32(y0 + pixels[i] // width), np.float32(x0 + pixels[i] % width)
        for _ in range(steps):
            row, column = int(y), int(x)
            fy, fx = np.float64(y) - row, np.float64(x) - column
            a, b = row - y0, column - x0
            c, d = min(a + 1, height - 1), min(b + 1, width - 1)
            step_y = np.float32(
                flow_y[a, b] * (1 - fy) * (1 - fx)
                + flow_y[a, d] * (1 - fy) * fx
                + flow_y[c, b] * fy * (1 - fx)
                + flow_y[c, d] * fy * fx
            )
            step_x = np.float32(
                flow_x[a, b] * (1 - fy) * (1 - fx)
                + flow_x[a, d] * (1 - fy) * fx
                + flow_x[c, b] * fy * (1 - fx)
                + flow_x[c, d] * fy * fx
            )
            next_y = min(last[0], max(first[0], y + step_y))
            next_x = min(last[1], max(first[1], x + step_x))
            if next_y == y and next_x == x:  # every further step is the same
                break
            y, x = next_y, next_x
        out[i, 0], out[i, 1] = int(y) - y0, int(x) - x0
    return out


@njit(cache=True)
def grow(counts, seeds):
    """Labels (H, W) int32 of the places where pixels end: each seed (N, 2) grows by up to 5 px through those in which
    more than 2 pixels end; later seeds win. All seeds are at least 5 px from the border."""
    labels = np.zeros(counts.shape, np.int32)
    side = 2 * GROW_PX + 1
    mask, grown = np.zeros((side, side), np.bool_), np.zeros((side, side), np.bool_)
    for k in range(len(seeds)):
        top, left = seeds[k, 0] - GROW_PX, seeds[k, 1] - GROW_PX
        mask[:] = False
        mask[GROW_PX, GROW_PX] = True
        for _ in range(GROW_PX):
            grown[:] = False
            for y in range(side):
                for x in range(side):
                    if mask[y, x]:
                        for j in range(max(y - 1, 0), min(y + 2, side)):
                            for i in range(max(x - 1, 0), min(x + 2, side)):
                                if counts[top + j, left + i] > GROW_COUNT:
                                    grown[j, i] = True
            mask[:] = grown
        for y in range(side):
            for x in range(side):
                if mask[y, x]:
                    labels[top + y, left + x] = k + 1
    return labels


@njit(cache=True)
def flow_errors(labels, boxes, flow_y, flow_x):
    """Mean squared difference (n + 1,) between the flow and that of each object's outline; row 0 is unused.

    boxes: (n + 1, 4) x0 y0 x1 y1.
    """
    size = 0
    for k in range(1, len(boxes)):
        size = max(size, (boxes[k, 3] - boxes[k, 1] + 2) * (boxes[k, 2] - boxes[k, 0] + 2))
    heat, after, errors = np.empty(size), np.empty(size), np.zeros(len(boxes))
    pixels = np.empty(size, np.int64)
    for k in range(1, len(boxes)):
        x0, y0, x1, y1 = boxes[k]
        n, height, width = 0, y1 - y0 + 2, x1 - x0 + 2
        for y in range(y0, y1):
            for x in range(x0, x1):
                if labels[y, x] == k:
                    pixels[n] = (y - y0 + 1) * width + x - x0 + 1
                    n += 1
        heat[: height * width] = 0
        _spread(heat, after, pixels[:n], _centre(pixels[:n], width), width, 2 * (height + width))
        total_y = total_x = 0.0
        for i in range(n):
            at = pixels[i]
            y, x = y0 + at // width - 1, x0 + at % width - 1
            dy, dx = heat[at + width] - heat[at - width], heat[at + 1] - heat[at - 1]
            norm = 1e-60 + np.sqrt(dy * dy + dx * dx)
            total_y += (dy / norm - flow_y[y, x]) ** 2
            total_x += (dx / norm - flow_x[y, x]) ** 2
        errors[k] = total_y / n + total_x / n
    return errors


@njit(cache=True)
def _centre(pixels, width):
    """The pixel nearest to the mean of all; of equals the first."""
    mean_y = mean_x = 0.0
    for at in pixels:
        mean_y += at // width
        mean_x += at % width
    mean_y, mean_x = mean_y / pixels.size, mean_x / pixels.size
    best, nearest = np.inf, pixels[0]
    for at in pixels:
        dy, dx = at // width - mean_y, at % width - mean_x
        distance = dx * dx + dy * dy
        if distance < best:
            best, nearest = distance, at
    return nearest


@njit(cache=True)
def _spread(heat, after, pixels, source, width, steps):
    """Add 1 at the source and replace each pixel by the mean over its 3 x 3 window; repeat. In place."""
    offsets = _NEIGHBOURS_Y * width + _NEIGHBOURS_X
    for _ in range(steps):
        heat[source] += 1
        for i in range(pixels.size):
            total = 0.0
            for k in range(9):
                total += heat[pixels[i] + offsets[k]]
            after[i] = 1 / 9.0 * total
        for i in range(pixels.size):
            heat[pixels[i]] = after[i]

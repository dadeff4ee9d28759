"""Loops of the measurements, compiled by numba on first use and cached.

Shapes, as in `core`: boxes (N, 4) int32 ``x0, y0, x1, y1``; offsets (N + 1,) int64; crops flat uint8 of 0 and 1, where
object i is ``crops[offsets[i]:offsets[i + 1]]`` in C order over its box.
"""

from __future__ import annotations

import numpy as np

from cellwright.core.jit import njit


@njit(cache=True)
def raw_moments(boxes, offsets, crops):
    """Sums of 1, x, y, x^2, y^2 and x y over the pixels of each object, (N, 6) int64; x, y relative to the box."""
    n = boxes.shape[0]
    out = np.zeros((n, 6), np.int64)
    for i in range(n):
        width, at = boxes[i, 2] - boxes[i, 0], offsets[i]
        for y in range(boxes[i, 3] - boxes[i, 1]):
            count, sum_x, sum_xx = np.int64(0), np.int64(0), np.int64(0)
            for x in range(width):
                if crops[at] != 0:
                    count += 1
                    sum_x += x
                    sum_xx += np.int64(x) * x
                at += 1
            out[i, 0] += count
            out[i, 1] += sum_x
            out[i, 2] += y * count
            out[i, 3] += sum_xx
            out[i, 4] += np.int64(y) * y * count
            out[i, 5] += y * sum_x
    return out


@njit(cache=True)
def entries(boxes, offsets, crops):
    """How often lines of the pixel grid enter each object, (N, 2) int64: along rows and columns, and along diagonals.

    A line enters at a pixel of the object if the pixel before it (left, above; upper left, upper right) is not.
    """
    n = boxes.shape[0]
    out = np.zeros((n, 2), np.int64)
    for i in range(n):
        width, at = boxes[i, 2] - boxes[i, 0], offsets[i]
        for y in range(boxes[i, 3] - boxes[i, 1]):
            for x in range(width):
                if crops[at] != 0:
                    above = at - width
                    out[i, 0] += x == 0 or crops[at - 1] == 0
                    out[i, 0] += y == 0 or crops[above] == 0
                    out[i, 1] += y == 0 or x == 0 or crops[above - 1] == 0
                    out[i, 1] += y == 0 or x == width - 1 or crops[above + 1] == 0
                at += 1
    return out


@njit(cache=True)
def convex_areas(boxes, offsets, crops):
    """Number of pixels (N,) int64 whose centre is in or on the convex hull of the centres of the object's pixels.

    The hull is built from the outermost pixels of each row; Pick's theorem gives the number of grid points in it.
    """
    n = boxes.shape[0]
    out = np.zeros(n, np.int64)
    tallest = 0
    for i in range(n):
        tallest = max(tallest, boxes[i, 3] - boxes[i, 1])
    left, right = np.empty((tallest, 2), np.int64), np.empty((tallest, 2), np.int64)
    for i in range(n):
        width, height = boxes[i, 2] - boxes[i, 0], boxes[i, 3] - boxes[i, 1]
        n_left = n_right = 0
        for y in range(height):
            row, x0, x1 = offsets[i] + y * width, 0, width - 1
            while x0 < width and crops[row + x0] == 0:
                x0 += 1
            if x0 == width:
                continue
            while crops[row + x1] == 0:
                x1 -= 1
            n_left = _extend(left, n_left, x0, y, 1)
            n_right = _extend(right, n_right, x1, y, -1)
        if n_left == 0:
            continue
        twice_area = np.int64(0)
        on_edge = (right[0, 0] - left[0, 0]) + (right[n_right - 1, 0] - left[n_left - 1, 0])
        for side, count, sign in ((left, n_left, -1), (right, n_right, 1)):
            for k in range(1, count):
                dy, dx = side[k, 1] - side[k - 1, 1], side[k, 0] - side[k - 1, 0]
                twice_area += sign * dy * (side[k, 0] + side[k - 1, 0])
                on_edge += _gcd(abs(dx), dy)
        out[i] = (twice_area + on_edge) // 2 + 1
    return out


@njit(cache=True)
def _extend(side, count, x, y, sign):
    """Add a point below all others to one side of a hull (sign 1: left, -1: right), and keep that side convex."""
    while count > 1:
        ax, ay = side[count - 2, 0], side[count - 2, 1]
        bx, by = side[count - 1, 0], side[count - 1, 1]
        if sign * ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) < 0:
            break
        count -= 1
    side[count, 0], side[count, 1] = x, y
    return count + 1


@njit(cache=True)
def _gcd(a, b):
    while b:
        a, b = b, a % b
    return a


@njit(cache=True)
def intensities(boxes, offsets, crops, data):
    """Mean, minimum, maximum and standard deviation of each channel of data (H, W, C) over the pixels of each object.

    Returns (N, C, 4) float64; NaN for an empty object or if a pixel is NaN. Two passes keep the precision of values far
    from 0.
    """
    n, n_channels = boxes.shape[0], data.shape[2]
    out = np.full((n, n_channels, 4), np.nan)
    total, squares = np.empty(n_channels), np.empty(n_channels)
    low, high = np.empty(n_channels), np.empty(n_channels)
    for i in range(n):
        total[:], squares[:], low[:], high[:] = 0.0, 0.0, np.inf, -np.inf
        count, at = 0, offsets[i]
        for y in range(boxes[i, 1], boxes[i, 3]):
            for x in range(boxes[i, 0], boxes[i, 2]):
                if crops[at] != 0:
                    count += 1
                    for c in range(n_channels):
                        value = np.float64(data[y, x, c])
                        total[c] += value
                        low[c] = min(low[c], value)
                        high[c] = max(high[c], value)
                at += 1
        if count == 0:
            continue
        at = offsets[i]
        for y in range(boxes[i, 1], boxes[i, 3]):
            for x in range(boxes[i, 0], boxes[i, 2]):
                if crops[at] != 0:
                    for c in range(n_channels):
                        squares[c] += (np.float64(data[y, x, c]) - total[c] / count) ** 2
                at += 1
        for c in range(n_channels):
            if not np.isnan(total[c]):
                out[i, c, 0], out[i, c, 1], out[i, c, 2] = total[c] / count, low[c], high[c]
                out[i, c, 3] = np.sqrt(squares[c] / count)
    return out

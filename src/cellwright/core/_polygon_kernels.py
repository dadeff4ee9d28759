"""Polygon loops, compiled by numba: trace the outlines of crops along pixel edges, fill rings at pixel centres."""

from __future__ import annotations

import numpy as np

from cellwright.core.jit import njit

# ImageJ (ij.process.PolygonFiller) moves edges to the right by this much, so that rounding does not decide about pixel
# centres that lie on an edge.
IMAGEJ_SHIFT_PX = 1e-8


@njit(cache=True)
def _components(crop, height, width):
    """4-connected components of a flat crop, numbered from 1; 0 is background."""
    parts = np.zeros(crop.size, np.int32)
    stack = np.empty(64, np.int64)
    count = 0
    for seed in range(crop.size):
        if crop[seed] == 0 or parts[seed] != 0:
            continue
        count += 1
        parts[seed] = count
        stack[0], top = seed, 1
        while top > 0:
            top -= 1
            p = stack[top]
            y, x = p // width, p % width
            if top + 4 > stack.size:
                stack = np.concatenate((stack, np.empty_like(stack)))
            for q, inside in ((p - width, y > 0), (p + width, y < height - 1), (p - 1, x > 0), (p + 1, x < width - 1)):
                if inside and crop[q] != 0 and parts[q] == 0:
                    parts[q] = count
                    stack[top] = q
                    top += 1
    return parts, count


@njit(cache=True)
def trace(crop, height, width):
    """Rings of one crop along pixel edges, with the foreground on the right of the direction of travel (y down).

    Returns vertices (V, 2) int32 ``x, y`` at corners only, ring starts (R + 1,), the 4-connected component of each ring
    (from 1), and the number of components. At a corner where two pixels touch diagonally the walk stays at its own
    pixel, and it is split where it returns to a corner, so no ring touches itself. Exterior rings have a positive
    shoelace area, holes a negative one.
    """
    parts, n_parts = _components(crop, height, width)
    grid = width + 1
    # Bit d of used[v]: the edge that leaves corner v in direction d (0 right, 1 down, 2 left, 3 up) has been walked.
    used, visited_at = np.zeros((height + 1) * grid, np.uint8), np.full((height + 1) * grid, -1, np.int32)
    vertices = np.empty((64, 2), np.int32)
    starts, owner, n_rings = np.zeros(16, np.int64), np.zeros(16, np.int32), 0
    walk = np.empty((64, 2), np.int32)
    for y in range(height):
        for x in range(width):
            p = y * width + x
            top_edge = crop[p] != 0 and (y == 0 or crop[p - width] == 0)
            if not top_edge or used[y * grid + x] & 1:
                continue
            part = parts[p]
            cx, cy, direction, n = x, y, 0, 0
            while not used[cy * grid + cx] & (1 << direction):
                used[cy * grid + cx] |= 1 << direction
                nx = cx + (1 if direction == 0 else -1 if direction == 2 else 0)
                ny = cy + (1 if direction == 1 else -1 if direction == 3 else 0)
                turn = _turn(crop, height, width, nx, ny, direction)
                cx, cy = nx, ny
                if turn != direction:
                    v = cy * grid + cx
                    if visited_at[v] >= 0:  # back at a corner: the vertices in between are a separate ring
                        first = visited_at[v]
                        vertices, starts, owner, n_rings = _emit(walk[first:n], part, vertices, starts, owner, n_rings)
                        for k in range(first + 1, n):
                            visited_at[walk[k, 1] * grid + walk[k, 0]] = -1
                        n = first + 1
                    else:
                        if n == walk.shape[0]:
                            walk = np.concatenate((walk, np.empty_like(walk)))
                        visited_at[v] = n
                        walk[n, 0], walk[n, 1] = cx, cy
                        n += 1
                direction = turn
            for k in range(n):
                visited_at[walk[k, 1] * grid + walk[k, 0]] = -1
            if n > 1:
                vertices, starts, owner, n_rings = _emit(walk[:n], part, vertices, starts, owner, n_rings)
    return vertices[: starts[n_rings]], starts[: n_rings + 1], owner[:n_rings], n_parts


@njit(cache=True)
def _emit(ring, part, vertices, starts, owner, n_rings):
    """Append one ring to the output; returns the arrays, enlarged if necessary, and the new number of rings."""
    at = starts[n_rings]
    while at + ring.shape[0] > vertices.shape[0]:
        vertices = np.concatenate((vertices, np.empty_like(vertices)))
    if n_rings + 2 > starts.size:
        starts = np.concatenate((starts, np.zeros_like(starts)))
        owner = np.concatenate((owner, np.zeros_like(owner)))
    for k in range(ring.shape[0]):  # assigning a slice takes 2 s to compile
        vertices[at + k, 0], vertices[at + k, 1] = ring[k, 0], ring[k, 1]
    owner[n_rings] = part
    starts[n_rings + 1] = at + ring.shape[0]
    return vertices, starts, owner, n_rings + 1


@njit(cache=True)
def _turn(crop, height, width, x, y, direction):
    """The direction in which to leave corner (x, y), reached in ``direction`` with the foreground on the right."""
    nw = x > 0 and y > 0 and crop[(y - 1) * width + x - 1] != 0
    ne = x < width and y > 0 and crop[(y - 1) * width + x] != 0
    sw = x > 0 and y < height and crop[y * width + x - 1] != 0
    se = x < width and y < height and crop[y * width + x] != 0
    if direction == 0:  # moved right: own pixel is sw, the other side is nw
        ahead_right, ahead_left = se, ne
    elif direction == 1:  # moved down: own pixel is nw
        ahead_right, ahead_left = sw, se
    elif direction == 2:  # moved left: own pixel is ne
        ahead_right, ahead_left = nw, sw
    else:  # moved up: own pixel is se
        ahead_right, ahead_left = ne, nw
    if not ahead_right:
        return (direction + 1) % 4
    return (direction + 3) % 4 if ahead_left else direction


@njit(cache=True)
def fill(x0, y0, x1, y1, points, ring_starts, polygon_starts, like_imagej):
    """Flat crop over the box x0, y0, x1, y1 of the union of polygons, filled at pixel centres by the even-odd rule.

    points (V, 2) float64; ring r is ``points[ring_starts[r]:ring_starts[r + 1]]``, closed implicitly; polygon q has the
    rings ``polygon_starts[q]:polygon_starts[q + 1]``. A centre on a left or top edge is inside, one on a right or
    bottom edge outside; with ``like_imagej`` the other way round.
    """
    height, width = y1 - y0, x1 - x0
    crop = np.zeros(height * width, np.uint8)
    for q in range(polygon_starts.size - 1):
        first, last = ring_starts[polygon_starts[q]], ring_starts[polygon_starts[q + 1]]
        if first == last:
            continue
        # The part of the box that the polygon reaches, in rows and columns of the crop.
        low, high = points[first].copy(), points[first].copy()
        for k in range(first, last):
            for axis in range(2):
                low[axis], high[axis] = min(low[axis], points[k, axis]), max(high[axis], points[k, axis])
        left, right = _clipped(low[0] - x0 - 1, width), _clipped(high[0] - x0 + 2, width)
        top, bottom = _clipped(low[1] - y0 - 1, height), _clipped(high[1] - y0 + 2, height)
        # 1 where the number of crossings to the left of a pixel centre becomes odd or even.
        toggles = np.zeros((bottom - top, right - left), np.uint8)
        for r in range(polygon_starts[q], polygon_starts[q + 1]):
            _toggle(toggles, left, top, x0, y0, width, points[ring_starts[r] : ring_starts[r + 1]], like_imagej)
        for row in range(bottom - top):
            at = (row + top) * width + left
            inside = np.uint8(0)
            for x in range(right - left):
                inside ^= toggles[row, x]
                crop[at + x] |= inside
    return crop


@njit(cache=True)
def _clipped(value, end):
    """``value`` as an int in 0..end."""
    return int(min(max(np.floor(value), 0.0), float(end)))


@njit(cache=True)
def _toggle(toggles, left, top, x0, y0, width, ring, like_imagej):
    """Invert the first pixel to the right of each crossing of a ring with the centre of a row.

    toggles: rows from ``top`` and columns from ``left`` of a crop whose corner is x0, y0.
    """
    shift = IMAGEJ_SHIFT_PX if like_imagej else 0.0
    rows, columns = toggles.shape
    for k in range(ring.shape[0]):
        a, b = ring[k], ring[k + 1 if k + 1 < ring.shape[0] else 0]
        # One row more on either side, because the subtraction may round.
        start = _clipped(min(a[1], b[1]) - y0 - top - 1.5, rows)
        end = _clipped(max(a[1], b[1]) - y0 - top + 1.5, rows)
        for row in range(start, end):
            centre = y0 + top + row + 0.5
            crosses = (a[1] < centre) != (b[1] < centre) if like_imagej else (a[1] <= centre) != (b[1] <= centre)
            if crosses:
                x = a[0] + (centre - a[1]) / (b[1] - a[1]) * (b[0] - a[0]) + shift
                column = int(np.ceil(min(max(x - x0 - 0.5, 0.0), float(width)))) - left
                if column < columns:
                    toggles[row, max(column, 0)] ^= 1


@njit(cache=True)
def inside(ring, points):
    """Which points (N, 2) are inside a ring (n, 2), by the even-odd rule: (N,) bool."""
    result = np.zeros(points.shape[0], np.bool_)
    left, right = ring[:, 0].min(), ring[:, 0].max()
    for p in range(points.shape[0]):
        x, y = points[p]
        result[p] = left <= x <= right and _is_inside(ring, x, y)
    return result


@njit(cache=True)
def _is_inside(ring, x, y):
    odd = False
    for k in range(ring.shape[0]):
        ax, ay = ring[k, 0], ring[k, 1]
        bx, by = ring[k + 1 if k + 1 < ring.shape[0] else 0]
        if (ay > y) != (by > y) and x < ax + (y - ay) / (by - ay) * (bx - ax):
            odd = not odd
    return odd


@njit(cache=True)
def first_around(rings, starts, groups, points, point_groups):
    """The first ring of the same group around each point (N, 2): (N,) int64, -1 where there is none.

    Ring r is ``rings[starts[r]:starts[r + 1]]``.
    """
    n = starts.size - 1
    low, high = np.full((n, 2), np.inf), np.full((n, 2), -np.inf)
    for r in range(n):
        for k in range(starts[r], starts[r + 1]):
            for axis in range(2):
                low[r, axis], high[r, axis] = min(low[r, axis], rings[k, axis]), max(high[r, axis], rings[k, axis])
    found = np.full(points.shape[0], -1, np.int64)
    for p in range(points.shape[0]):
        x, y = points[p]
        for r in range(n):
            near = low[r, 0] <= x <= high[r, 0] and low[r, 1] <= y <= high[r, 1] and groups[r] == point_groups[p]
            if near and _is_inside(rings[starts[r] : starts[r + 1]], x, y):
                found[p] = r
                break
    return found

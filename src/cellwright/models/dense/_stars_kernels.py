"""Loops of `stars`, compiled by numba on first use and cached: measuring rays, suppression, drawing polygons.

Every loop is serial and releases the interpreter lock: results do not depend on threads.

A polygon is a list of spans, three integers each: row, first and last column, relative to its centre pixel. Areas and
overlaps are sums over spans, so a candidate costs as much as its outline is long, not as its area.
"""

from __future__ import annotations

import numpy as np

from cellwright.core.jit import njit

_TIE = 1e-9
_LONGEST_PX = 4096.0
_CELL_PX = 16  # polygons are looked up by the cells of this side that their boxes touch
# Columns of the table of polygons: the centre, the first and last row and column, the area, and where its spans are.
_Y, _X, _Y0, _X0, _Y1, _X1, _AREA, _START, _END = range(9)

# --- targets --------------------------------------------------------------------------------------------------------


@njit(cache=True)
def measure_rays(components, directions, rays):
    """Write the length of every ray into ``rays`` (N, H, W), px: from the pixel's centre to the edge of its component.

    The ray passes from pixel to pixel, through sides and corners, until the label changes. ``components`` is
    (H + 2, W + 2), with a rim of 0; ``directions`` (N, 2) float64 are unit vectors y, x.
    """
    height, width = components.shape
    flat = components.reshape(-1)
    steps, lengths = np.empty(height + width, np.int64), np.empty(height + width, np.float32)
    for k in range(directions.shape[0]):
        _passed(directions[k], width, steps, lengths)
        for row in range(1, height - 1):
            for column in range(1, width - 1):
                at = row * width + column
                label = flat[at]
                if label != 0:
                    i = 0
                    while flat[at + steps[i]] == label:
                        i += 1
                    rays[k, row - 1, column - 1] = lengths[i]


@njit(cache=True)
def _passed(direction, width, steps, lengths):
    """The pixels that a ray enters one after the other, as flat offsets from its own, and at which length."""
    dy, dx = direction
    step_y, step_x = width if dy > 0 else -width, 1 if dx > 0 else -1
    per_row = 1 / abs(dy) if abs(dy) > _TIE else np.inf
    per_column = 1 / abs(dx) if abs(dx) > _TIE else np.inf
    to_row, to_column, offset = per_row / 2, per_column / 2, 0
    for i in range(steps.size):
        length = min(to_row, to_column)
        if to_row <= length + _TIE:
            offset += step_y
            to_row += per_row
        if to_column <= length + _TIE:
            offset += step_x
            to_column += per_column
        steps[i], lengths[i] = offset, length


# --- suppression ----------------------------------------------------------------------------------------------------


@njit(cache=True)
def suppress(maps, order, image_hw, directions, max_overlap):
    """The candidates that remain: indices into ``order`` (K,) int64, their spans (S, 3) int32 and starts (K + 1,).

    Of the candidates ``order`` (P,), flat indices of pixels from the best one on, each remains whose polygon shares at
    most ``max_overlap`` of the smaller area with every polygon that remained before. ``maps`` is (1 + N, H * W).
    """
    height, width = image_hw
    kept, starts = np.empty(order.size, np.int64), np.zeros(order.size + 1, np.int64)
    polygons, spans = np.empty((order.size, 9), np.int64), np.empty((1024, 3), np.int32)
    # Each cell has a linked list of the polygons whose box touches it: polygon, previous entry.
    newest = np.full((height // _CELL_PX + 1, width // _CELL_PX + 1), -1, np.int64)
    entries, n_entries = np.empty((256, 2), np.int64), 0
    compared = np.full(order.size, -1, np.int64)  # the last candidate that a polygon was compared with
    outline, crossings = np.empty((2, directions.shape[0])), np.empty((64, directions.shape[0]))
    n = 0
    for index in range(order.size):
        candidate = polygons[n]  # after those that remain, and so are its spans
        candidate[_Y], candidate[_X] = order[index] // width, order[index] % width
        first, last = _outline(maps, order[index], directions, outline)
        while last - first >= crossings.shape[0]:
            crossings = _longer(crossings)
        while starts[n] + (last - first + 1) * directions.shape[0] > spans.shape[0]:
            spans = _longer(spans)
        _draw_spans(outline, first, last, crossings, spans, candidate, starts[n])
        if candidate[_AREA] == 0 or _overlaps(polygons, n, spans, newest, entries, compared, index, max_overlap):
            continue
        y0, x0, y1, x1 = _cells(candidate, newest.shape)
        for cy in range(y0, y1 + 1):
            for cx in range(x0, x1 + 1):
                if n_entries == entries.shape[0]:
                    entries = _longer(entries)
                entries[n_entries, 0], entries[n_entries, 1] = n, newest[cy, cx]
                newest[cy, cx] = n_entries
                n_entries += 1
        kept[n], starts[n + 1] = index, candidate[_END]
        n += 1
    return kept[:n].copy(), spans[: starts[n]].copy(), starts[: n + 1].copy()


@njit(cache=True)
def _outline(maps, at, directions, outline):
    """Write the vertices y and x of the polygon of pixel ``at``, relative to it, into ``outline``; returns its rows.

    Rays follow the probability in ``maps`` (1 + N, H * W); a negative one counts as 0, and none is longer than
    any object, so that a failed training does not fill the memory.
    """
    ys, xs = outline[0], outline[1]
    for k in range(ys.size):
        length = min(max(float(maps[1 + k, at]), 0.0), _LONGEST_PX)
        ys[k], xs[k] = length * directions[k, 0], length * directions[k, 1]
    return int(np.ceil(ys.min())), int(np.floor(ys.max()))


@njit(cache=True)
def _draw_spans(outline, first, last, crossings, spans, polygon, start):
    """Write the spans of an outline into ``spans`` from ``start`` on, and its facts into the row ``polygon``.

    A pixel belongs to the polygon if its centre is inside or on a slanted edge. Spans of one row do not overlap.
    ``crossings`` is scratch space, of at least as many rows.
    """
    ys, xs = outline[0], outline[1]
    n_rays, n, area, left, right = ys.size, start, 0, 0, -1
    counts = np.zeros(max(last - first + 1, 0), np.int64)
    for k in range(n_rays):
        following = k + 1 if k + 1 < n_rays else 0
        y0, x0, y1, x1 = ys[k], xs[k], ys[following], xs[following]
        for row in range(int(np.ceil(min(y0, y1))), int(np.ceil(max(y0, y1)))):
            x, at, in_row = x0 + (row - y0) / (y1 - y0) * (x1 - x0), counts[row - first], crossings[row - first]
            while at > 0 and in_row[at - 1] > x:
                in_row[at] = in_row[at - 1]
                at -= 1
            in_row[at] = x
            counts[row - first] += 1
    for row in range(first, last + 1):
        for i in range(0, counts[row - first] - 1, 2):
            begin, end = int(np.ceil(crossings[row - first, i])), int(np.floor(crossings[row - first, i + 1]))
            if n > start and spans[n - 1, 0] == row:
                begin = max(begin, spans[n - 1, 2] + 1)
            if begin <= end:
                spans[n, 0], spans[n, 1], spans[n, 2] = row, begin, end
                left, right = (begin, end) if area == 0 else (min(left, begin), max(right, end))
                area += end - begin + 1
                n += 1
    y, x = polygon[_Y], polygon[_X]
    polygon[_Y0], polygon[_Y1], polygon[_X0], polygon[_X1] = y + first, y + last, x + left, x + right
    polygon[_AREA], polygon[_START], polygon[_END] = area, start, n


@njit(cache=True)
def _overlaps(polygons, n, spans, newest, entries, compared, index, max_overlap):
    """Whether polygon ``n``, which is candidate ``index``, shares more than is allowed with one of those before it."""
    own = polygons[n]
    y0, x0, y1, x1 = _cells(own, newest.shape)
    for cy in range(y0, y1 + 1):
        for cx in range(x0, x1 + 1):
            entry = newest[cy, cx]
            while entry >= 0:
                k, entry = entries[entry, 0], entries[entry, 1]
                if compared[k] == index:
                    continue
                compared[k] = index
                other = polygons[k]
                apart = own[_Y1] < other[_Y0] or other[_Y1] < own[_Y0] or own[_X1] < other[_X0] or other[_X1] < own[_X0]
                if not apart and _shared_pixels(own, other, spans) > max_overlap * min(own[_AREA], other[_AREA]):
                    return True
    return False


@njit(cache=True)
def _shared_pixels(a, b, spans):
    """Pixels that two polygons share; their spans are in order of rows and columns."""
    i, j, shared = a[_START], b[_START], 0
    while i < a[_END] and j < b[_END]:
        row, other_row = a[_Y] + spans[i, 0], b[_Y] + spans[j, 0]
        if row < other_row:
            i += 1
        elif other_row < row:
            j += 1
        else:
            end, other_end = a[_X] + spans[i, 2], b[_X] + spans[j, 2]
            begin = max(a[_X] + spans[i, 1], b[_X] + spans[j, 1])
            shared += max(min(end, other_end) - begin + 1, 0)
            if end < other_end:
                i += 1
            else:
                j += 1
    return shared


@njit(cache=True)
def _cells(polygon, shape):
    """First and last row and column of the cells that a box touches; cells at the rim also count what is beyond it."""
    rows, columns = shape
    return (
        min(max(polygon[_Y0] // _CELL_PX, 0), rows - 1),
        min(max(polygon[_X0] // _CELL_PX, 0), columns - 1),
        min(max(polygon[_Y1] // _CELL_PX, 0), rows - 1),
        min(max(polygon[_X1] // _CELL_PX, 0), columns - 1),
    )


@njit(cache=True)
def _longer(array):
    """A copy with twice as many rows, of which the second half is to be filled."""
    longer = np.empty((2 * array.shape[0], array.shape[1]), array.dtype)
    longer[: array.shape[0]] = array
    return longer


# --- label images ---------------------------------------------------------------------------------------------------


@njit(cache=True)
def draw(centres, spans, starts, labels):
    """Draw polygons 1..K into ``labels`` (H, W) int32 where no earlier one is; ``centres`` (K,) are flat indices."""
    height, width = labels.shape
    for k in range(centres.size):
        y, x = centres[k] // width, centres[k] % width
        for i in range(starts[k], starts[k + 1]):
            row = y + spans[i, 0]
            if 0 <= row < height:
                for column in range(max(x + spans[i, 1], 0), min(x + spans[i, 2] + 1, width)):
                    if labels[row, column] == 0:
                        labels[row, column] = k + 1

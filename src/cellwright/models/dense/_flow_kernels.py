"""The loops of `flow`, compiled by numba on first use and cached: heat, following, sinks, errors.

Every loop is serial and releases the interpreter lock: results never depend on threads, and callers may give images to
threads of their own. Positions are flat indices ``y * W + x`` of a C-order image unless a name says otherwise.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from cellwright.models.dense._label_kernels import root_of

_FLOCK = 256  # pixels that are followed side by side

# --- targets --------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def heat_flows(parts, boxes, flows):
    """Write the unit heat-gradient field of every part k (box ``boxes[k]``, k from 1) into flows (2, H, W)."""
    longest = 0
    for k in range(1, boxes.shape[0]):
        longest = max(longest, (boxes[k, 3] - boxes[k, 1] + 2) * (boxes[k, 2] - boxes[k, 0] + 2))
    heat, sums, share = np.empty(longest), np.empty(longest), np.empty(longest)
    for k in range(1, boxes.shape[0]):
        x0, y0, x1, y1 = boxes[k]
        width, height = x1 - x0 + 2, y1 - y0 + 2
        size = width * height
        source, area = _cut(parts, k, x0, y0, height, width, share[:size])
        heat[:size] = 0
        sums[:size] = 0
        _diffuse(heat[:size], sums[:size], share[:size], source, width, 2 * (height + width))
        spent = 0
        while spent < area and _unreached(heat[:size], share[:size]):  # an arm longer than the box is around
            _diffuse(heat[:size], sums[:size], share[:size], source, width, height + width)
            spent += height + width
        for y in range(1, height - 1):
            for x in range(1, width - 1):
                at = y * width + x
                if share[at] == 0:
                    continue
                dy, dx = heat[at + width] - heat[at - width], heat[at + 1] - heat[at - 1]
                scale = max(abs(dy), abs(dx))
                if scale > 0:
                    dy, dx = dy / scale, dx / scale  # heat far from the source is so small that its square is 0
                    norm = np.sqrt(dy * dy + dx * dx)
                    flows[0, y0 + y - 1, x0 + x - 1] = dy / norm
                    flows[1, y0 + y - 1, x0 + x - 1] = dx / norm


@njit(cache=True, nogil=True)
def _cut(parts, k, x0, y0, height, width, share):
    """Fill share with 1/9 in part k, 0 around it; returns its pixel nearest to its mean (first in C order), its area.

    Distances are compared as integers, times area squared, so that ties are ties.
    """
    area = sum_y = sum_x = 0
    share[:] = 0
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            if parts[y0 + y - 1, x0 + x - 1] == k:
                share[y * width + x] = 1.0 / 9.0
                area += 1
                sum_y += y
                sum_x += x
    nearest, source = -1, 0
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            if share[y * width + x] > 0:
                distance = (area * y - sum_y) ** 2 + (area * x - sum_x) ** 2
                if nearest < 0 or distance < nearest:
                    nearest, source = distance, y * width + x
    return source, area


@njit(cache=True, nogil=True)
def _diffuse(heat, sums, share, source, width, steps):
    """Add 1 at the source and replace each pixel by its share of its 3 x 3 window's sum, ``steps`` times, in place.

    The sum is taken along rows, then along columns; shifted views let the compiler use wide registers.
    """
    size = heat.size
    left, middle, right, row_sums = heat[: size - 2], heat[1 : size - 1], heat[2:], sums[1 : size - 1]
    above, here, below = sums[: size - 2 * width], sums[width : size - width], sums[2 * width :]
    out, part = heat[width : size - width], share[width : size - width]
    for _ in range(steps):
        heat[source] += 1
        for i in range(row_sums.size):
            row_sums[i] = left[i] + middle[i] + right[i]
        for i in range(out.size):
            out[i] = part[i] * (above[i] + here[i] + below[i])


@njit(cache=True, nogil=True)
def _unreached(heat, share):
    for i in range(heat.size):
        if share[i] > 0 and heat[i] == 0:
            return True
    return False


# --- decoding -------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def masked_field(flow_y, flow_x, body, threshold):
    """Field (H, W, 2) float32, zero outside the body, and the body's pixels (P,) int64."""
    height, width = body.shape
    field = np.zeros((height, width, 2), np.float32)
    pixels = np.empty(height * width, np.int64)
    found = 0
    for y in range(height):
        for x in range(width):
            if body[y, x] >= threshold:
                field[y, x, 0], field[y, x, 1] = flow_y[y, x], flow_x[y, x]
                pixels[found] = y * width + x
                found += 1
    return field, pixels[:found].copy()


@njit(cache=True, nogil=True)
def follow(field, pixels, steps, tolerance):
    """Positions (P, 2) float32 (y, x) after ``steps`` Euler steps of length 1 in the bilinear field, and steps taken.

    Pixels go in flocks, so that the processor has independent work while it waits for one pixel's field. After every
    eighth step those are done whose last two steps brought them back to within ``tolerance``: they stand, or swing
    between two places, of which this is the one that the last step ends on, since an even number of steps is left.
    """
    ends = np.empty((pixels.size, 2), np.float32)
    ys, xs, old_ys, old_xs = np.empty((4, _FLOCK), np.float32)
    who = np.empty(_FLOCK, np.int64)
    width = field.shape[1]
    taken = 0
    for start in range(0, pixels.size, _FLOCK):
        left = min(_FLOCK, pixels.size - start)
        for i in range(left):
            who[i] = start + i
            ys[i], xs[i] = pixels[start + i] // width, pixels[start + i] % width
        t = 0
        while t < steps and left > 0:
            block = 8 if (steps - t) % 8 == 0 else (steps - t) % 8
            for s in range(block):
                if s == max(block - 2, 0):
                    old_ys[:left], old_xs[:left] = ys[:left], xs[:left]
                _step(field, ys[:left], xs[:left])
            t += block
            taken += block * left
            kept = 0
            for i in range(left):
                moved = max(abs(ys[i] - old_ys[i]), abs(xs[i] - old_xs[i]))
                if t >= steps or (block > 1 and moved <= tolerance):
                    ends[who[i], 0], ends[who[i], 1] = ys[i], xs[i]
                else:
                    who[kept], ys[kept], xs[kept] = who[i], ys[i], xs[i]
                    kept += 1
            left = kept
    return ends, taken


@njit(cache=True, nogil=True)
def _step(field, ys, xs):
    """One Euler step of positions (N,), in place, kept inside the image."""
    height, width = field.shape[:2]
    flat = field.reshape(-1)
    top, side, zero = np.float32(height - 1), np.float32(width - 1), np.float32(0)
    last_row, last_column = max(height - 2, 0), max(width - 2, 0)
    right, down = 2 if width > 1 else 0, 2 * width if height > 1 else 0
    for i in range(ys.size):
        y, x = ys[i], xs[i]
        y0, x0 = min(int(y), last_row), min(int(x), last_column)
        fy, fx = y - np.float32(y0), x - np.float32(x0)
        a = 2 * (y0 * width + x0)
        b = a + down
        v0 = flat[a] + fx * (flat[a + right] - flat[a])
        v1 = flat[b] + fx * (flat[b + right] - flat[b])
        w0 = flat[a + 1] + fx * (flat[a + right + 1] - flat[a + 1])
        w1 = flat[b + 1] + fx * (flat[b + right + 1] - flat[b + 1])
        ys[i] = min(max(y + (v0 + fy * (v1 - v0)), zero), top)
        xs[i] = min(max(x + (w0 + fy * (w1 - w0)), zero), side)


@njit(cache=True, nogil=True)
def sinks(ends, pixels, height, width, reach):
    """Labels (H, W) int32, one for each sink: pixels whose ends climb to the same peak of the histogram of ends.

    From its cell an end goes to the fullest cell (first in C order among equals) at most ``reach`` rows and columns
    away, and on from there until it stands on the fullest. How full a cell is counts its neighbours up to ``reach - 1``
    away. A label is the peak's flat index + 1.
    """
    cells = np.empty(pixels.size, np.int32)
    counts = np.zeros((height, width), np.int32)
    for p in range(pixels.size):
        y, x = int(ends[p, 0] + np.float32(0.5)), int(ends[p, 1] + np.float32(0.5))
        cells[p] = y * width + x
        counts[y, x] += 1
    sums, filled = _window_sums(counts, reach - 1)
    peak = np.full(height * width, -1, np.int32)
    for at in filled:
        cy, cx = at // width, at % width
        best = at
        for y in range(max(cy - reach, 0), min(cy + reach + 1, height)):
            for x in range(max(cx - reach, 0), min(cx + reach + 1, width)):
                other = y * width + x
                more = sums[y, x] - sums[best // width, best % width]
                if counts[y, x] > 0 and (more > 0 or (more == 0 and other < best)):
                    best = other
        peak[at] = best
    labels = np.zeros((height, width), np.int32)
    flat = labels.reshape(-1)
    for p in range(pixels.size):
        flat[pixels[p]] = root_of(peak, cells[p]) + 1
    return labels


@njit(cache=True, nogil=True)
def _window_sums(counts, reach):
    """Sums (H, W) int32 over windows of side ``2 * reach + 1`` at a histogram's filled cells; the cells (M,) int64."""
    height, width = counts.shape
    sums = np.zeros((height, width), np.int32)
    filled = np.empty(counts.size, np.int64)
    found = 0
    for cy in range(height):
        for cx in range(width):
            if counts[cy, cx] == 0:
                continue
            filled[found] = cy * width + cx
            found += 1
            for y in range(max(cy - reach, 0), min(cy + reach + 1, height)):
                for x in range(max(cx - reach, 0), min(cx + reach + 1, width)):
                    sums[y, x] += counts[cy, cx]
    return sums, filled[:found].copy()


@njit(cache=True, nogil=True)
def agreement(labels, largest, flows, flow_y, flow_x, body):
    """Sums (largest + 1,) float64 over each label: squared difference of two fields, and body; and pixel counts."""
    errors, bodies, counts = np.zeros(largest + 1), np.zeros(largest + 1), np.zeros(largest + 1, np.int64)
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            k = labels[y, x]
            if k > 0:
                dy, dx = flows[0, y, x] - flow_y[y, x], flows[1, y, x] - flow_x[y, x]
                errors[k] += dy * dy + dx * dx
                bodies[k] += body[y, x]
                counts[k] += 1
    return errors, bodies, counts

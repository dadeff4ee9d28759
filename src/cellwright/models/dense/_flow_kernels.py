"""Loops of `flow`, compiled by numba on first use and cached: heat diffusion, following the flow, sinks, agreement.

Every loop is serial and releases the interpreter lock: results do not depend on threads, and callers may process images
in threads of their own. Positions are flat indices ``y * W + x`` of a C-order image unless stated otherwise.
"""

from __future__ import annotations

import numpy as np

from cellwright.core._component_kernels import root_of
from cellwright.core.jit import njit

_BATCH = 256  # pixels that are followed together

# --- targets --------------------------------------------------------------------------------------------------------


@njit(cache=True)
def heat_flows(labels, boxes, flows):
    """Write the unit heat gradient of every object k >= 1 (box ``boxes[k]``) into ``flows`` (2, H, W)."""
    longest = 0
    for k in range(1, boxes.shape[0]):
        longest = max(longest, (boxes[k, 3] - boxes[k, 1] + 2) * (boxes[k, 2] - boxes[k, 0] + 2))
    heat, sums, share = np.empty(longest), np.empty(longest), np.empty(longest)
    for k in range(1, boxes.shape[0]):
        x0, y0, x1, y1 = boxes[k]
        width, height = x1 - x0 + 2, y1 - y0 + 2
        size = width * height
        source, area = _cut(labels, k, x0, y0, height, width, share[:size])
        heat[:size] = 0
        sums[:size] = 0
        _diffuse(heat[:size], sums[:size], share[:size], source, width, 2 * (height + width))
        extra = 0
        while extra < area and _unreached(heat[:size], share[:size]):  # an arm longer than the perimeter of the box
            _diffuse(heat[:size], sums[:size], share[:size], source, width, height + width)
            extra += height + width
        for y in range(1, height - 1):
            for x in range(1, width - 1):
                at = y * width + x
                if share[at] == 0:
                    continue
                dy, dx = heat[at + width] - heat[at - width], heat[at + 1] - heat[at - 1]
                scale = max(abs(dy), abs(dx))
                if scale > 0:
                    dy, dx = dy / scale, dx / scale  # far from the source the square of the heat would underflow
                    norm = np.sqrt(dy * dy + dx * dx)
                    flows[0, y0 + y - 1, x0 + x - 1] = dy / norm
                    flows[1, y0 + y - 1, x0 + x - 1] = dx / norm


@njit(cache=True)
def _cut(labels, k, x0, y0, height, width, share):
    """Fill ``share`` with 1/9 in object k and 0 around it; return the pixel nearest to its mean, and its area.

    Distances are compared as integers (times the squared area), so that ties are exact; the first in C order wins.
    """
    area = sum_y = sum_x = 0
    share[:] = 0
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            if labels[y0 + y - 1, x0 + x - 1] == k:
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


@njit(cache=True)
def _diffuse(heat, sums, share, source, width, steps):
    """Add 1 at the source and replace each pixel by its share of the sum over its 3 x 3 window; repeat ``steps`` times.

    In place. Sums are taken along rows, then along columns; shifted views let the compiler vectorise the loops.
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


@njit(cache=True)
def _unreached(heat, share):
    for i in range(heat.size):
        if share[i] > 0 and heat[i] == 0:
            return True
    return False


# --- decoding -------------------------------------------------------------------------------------------------------


@njit(cache=True)
def masked_field(flow_y, flow_x, body, threshold):
    """The flow (H, W, 2) float32, zero outside the body, and the body pixels (P,) int64."""
    height, width = body.shape
    field = np.zeros((height, width, 2), np.float32)
    pixels = np.empty(height * width, np.int64)
    n = 0
    for y in range(height):
        for x in range(width):
            if body[y, x] >= threshold:
                field[y, x, 0], field[y, x, 1] = flow_y[y, x], flow_x[y, x]
                pixels[n] = y * width + x
                n += 1
    return field, pixels[:n].copy()


@njit(cache=True)
def follow(field, pixels, steps, tolerance):
    """Displacements (P, 2) float32 (y, x) after ``steps`` unit Euler steps in the bilinear field; the steps computed.

    Positions are counted from a point ``far`` px before each pixel's own, so that rounding does not depend on where in
    the image a pixel is: a window of the field gives the same displacements to the bit.

    Pixels are followed in batches, so that the processor has independent work while it waits for memory. After every
    eighth step, pixels that the last two steps brought back to within ``tolerance`` are finished: they have stopped, or
    alternate between two positions. The current one is where the last step would end, because an even number of steps
    remains.
    """
    far = 64
    while far < 2 * steps:
        far *= 2
    moves = np.empty((pixels.size, 2), np.float32)
    rows, columns = np.empty((2, _BATCH), np.int64)
    ys, xs, old_ys, old_xs = np.empty((4, _BATCH), np.float32)
    index = np.empty(_BATCH, np.int64)
    width = field.shape[1]
    taken = 0
    for start in range(0, pixels.size, _BATCH):
        left = min(_BATCH, pixels.size - start)
        for i in range(left):
            index[i] = start + i
            rows[i], columns[i] = pixels[start + i] // width - far, pixels[start + i] % width - far
            ys[i], xs[i] = far, far
        t = 0
        while t < steps and left > 0:
            block = 8 if (steps - t) % 8 == 0 else (steps - t) % 8
            for s in range(block):
                if s == max(block - 2, 0):
                    old_ys[:left], old_xs[:left] = ys[:left], xs[:left]
                _step(field, rows[:left], columns[:left], ys[:left], xs[:left])
            t += block
            taken += block * left
            kept = 0
            for i in range(left):
                moved = max(abs(ys[i] - old_ys[i]), abs(xs[i] - old_xs[i]))
                if t >= steps or (block > 1 and moved <= tolerance):
                    moves[index[i], 0], moves[index[i], 1] = ys[i] - np.float32(far), xs[i] - np.float32(far)
                else:
                    index[kept], rows[kept], columns[kept] = index[i], rows[i], columns[i]
                    ys[kept], xs[kept] = ys[i], xs[i]
                    kept += 1
            left = kept
    return moves, taken


@njit(cache=True)
def _step(field, rows, columns, ys, xs):
    """One Euler step of positions (N,), counted from rows and columns (N,); in place, clamped to the image."""
    height, width = field.shape[:2]
    flat = field.reshape(-1)
    last_row, last_column = max(height - 2, 0), max(width - 2, 0)
    right, down = 2 if width > 1 else 0, 2 * width if height > 1 else 0
    zero = np.float32(0)
    for i in range(ys.size):
        y, x, row, column = ys[i], xs[i], rows[i], columns[i]
        y0, x0 = min(row + int(y), last_row), min(column + int(x), last_column)
        fy, fx = y - np.float32(y0 - row), x - np.float32(x0 - column)
        a = 2 * (y0 * width + x0)
        b = a + down
        v0 = flat[a] + fx * (flat[a + right] - flat[a])
        v1 = flat[b] + fx * (flat[b + right] - flat[b])
        w0 = flat[a + 1] + fx * (flat[a + right + 1] - flat[a + 1])
        w1 = flat[b + 1] + fx * (flat[b + right + 1] - flat[b + 1])
        low, high = max(np.float32(-row), zero), np.float32(height - 1 - row)
        ys[i] = min(max(y + (v0 + fy * (v1 - v0)), low), high)
        low, high = max(np.float32(-column), zero), np.float32(width - 1 - column)
        xs[i] = min(max(x + (w0 + fy * (w1 - w0)), low), high)


@njit(cache=True)
def sinks(moves, pixels, height, width, reach):
    """Labels (H, W) int32, one per sink: pixels whose displacements lead to the same peak of the histogram of ends.

    From the cell of an end, the path goes to the cell with the highest count (the first in C order among equals) at
    most ``reach`` rows and columns away, and so on until no neighbour is higher. Counts are sums over the window of
    half side ``reach - 1``. The label is the flat index of the peak + 1.
    """
    cells = np.empty(pixels.size, np.int32)
    counts = np.zeros((height, width), np.int32)
    for p in range(pixels.size):
        y = pixels[p] // width + int(np.floor(moves[p, 0] + np.float32(0.5)))
        x = pixels[p] % width + int(np.floor(moves[p, 1] + np.float32(0.5)))
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


@njit(cache=True)
def _window_sums(counts, reach):
    """Sums (H, W) int32 over windows of side ``2 * reach + 1`` of a histogram, and its non-empty cells (M,) int64."""
    height, width = counts.shape
    sums = np.zeros((height, width), np.int32)
    filled = np.empty(counts.size, np.int64)
    n = 0
    for cy in range(height):
        for cx in range(width):
            if counts[cy, cx] == 0:
                continue
            filled[n] = cy * width + cx
            n += 1
            for y in range(max(cy - reach, 0), min(cy + reach + 1, height)):
                for x in range(max(cx - reach, 0), min(cx + reach + 1, width)):
                    sums[y, x] += counts[cy, cx]
    return sums, filled[:n].copy()


@njit(cache=True)
def agreement(labels, largest, flows, flow_y, flow_x, body):
    """Per label (largest + 1,): sum of squared differences between two fields, sum of body, and number of pixels."""
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

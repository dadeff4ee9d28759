"""Loops of `watershed`, compiled by numba on first use and cached: distance transform and flooding.

Every loop is serial and releases the interpreter lock: results do not depend on threads.
"""

from __future__ import annotations

import numpy as np

from cellwright.core.jit import njit

_BUCKETS = 1 << 16
_FREE, _SEED, _OUTSIDE = 253, 254, 255  # states of a pixel; a value below 8 is the direction it was reached from

# --- targets --------------------------------------------------------------------------------------------------------


@njit(cache=True)
def depths(components, n):
    """Distance (H, W) float32, px, from every pixel of a component to the nearest pixel outside it, and its maximum.

    The maxima are (n + 1,) float32, 1 for background. Exact, and all components in one pass: distances along columns,
    then along each row the lower envelope of parabolas (Felzenszwalb and Huttenlocher 2012), cut where the label
    changes. The area beyond the edge of the image does not count as outside; in a component that fills the image every
    distance is H + W, more than any other can be.
    """
    height, width = components.shape
    endless = height + width
    steps = np.zeros((height, width), np.int32)  # along the column
    for y in range(height):
        for x in range(width):
            if components[y, x]:
                same = y > 0 and components[y - 1, x] == components[y, x]
                steps[y, x] = steps[y - 1, x] + 1 if same else (endless if y == 0 else 1)
    for y in range(height - 2, -1, -1):
        for x in range(width):
            if components[y, x]:
                below = steps[y + 1, x] + 1 if components[y + 1, x] == components[y, x] else 1
                steps[y, x] = min(steps[y, x], below, endless)
    depth, deepest = np.zeros((height, width), np.float32), np.zeros(n + 1, np.float32)
    deepest[0] = 1
    squares = np.zeros(width + 2)
    centres, starts = np.empty(width + 2, np.int64), np.empty(width + 3)
    for y in range(height):
        x = 0
        while x < width:
            k, first = components[y, x], x
            while x < width and components[y, x] == k:
                squares[x + 1] = min(steps[y, x], endless) ** 2.0
                x += 1
            if k == 0:
                continue
            squares[first] = squares[x + 1] = 0
            _envelope(squares, max(first, 1), min(x + 1, width), centres, starts)
            at = 0
            for column in range(first, x):
                while starts[at + 1] < column + 1:
                    at += 1
                q = centres[at]
                depth[y, column] = np.sqrt(squares[q] + (column + 1 - q) ** 2)
                deepest[k] = max(deepest[k], depth[y, column])
    return depth, deepest


@njit(cache=True)
def _envelope(squares, first, last, centres, starts):
    """The parabolas ``squares[q] + (x - q)^2``, q from first to last, on the lower envelope, and where they start."""
    at = 0
    centres[0], starts[0], starts[1] = first, -np.inf, np.inf
    for q in range(first + 1, last + 1):
        cut = _crossing(squares, centres[at], q)
        while cut <= starts[at]:
            at -= 1
            cut = _crossing(squares, centres[at], q)
        at += 1
        centres[at], starts[at], starts[at + 1] = q, cut, np.inf


@njit(cache=True)
def _crossing(squares, p, q):
    return (squares[q] + q * q - squares[p] - p * p) / (2.0 * (q - p))


# --- decoding -------------------------------------------------------------------------------------------------------


@njit(cache=True)
def flood(cost, seeds, mask):
    """Labels (H, W) int32 of the mask: seeds grown in the order of (cost, time of entry); 8-connected.

    A pixel takes the label of the neighbour that reaches it first, and enters the queue with its own cost. Pixels that
    no seed reaches are 0. Four optimisations change no label:

    - A pixel without free neighbours does not enter the queue.
    - A pixel with a lower cost than the current one would be next in the queue and would pass on the same label, so it
      goes on a stack, in no order.
    - Costs therefore only rise, and the queue is split into buckets of similar cost, of which only the current one is
      kept sorted.
    - The flood accesses the image at random, so it writes one byte per pixel, the direction it was reached from; labels
      are assigned afterwards.
    """
    stride = seeds.shape[1] + 2
    steps = np.array([-stride, -1, 1, stride, -stride - 1, -stride + 1, stride - 1, stride + 1])
    state, costs, lowest, scale = _padded(cost, seeds, mask)
    starts = _bucket_starts(state, costs, lowest, scale)
    pixels, ends = np.empty(starts[-1], np.int32), starts[:-1].copy()  # within a bucket, in the order of entry
    heap_costs, heap_ages = np.empty(pixels.size, np.float32), np.empty(pixels.size, np.int32)
    stack = np.empty(pixels.size, np.int32)
    for at in range(stride, state.size - stride):
        if state[at] == _SEED and _open(state, at, steps):
            bucket = int((costs[at] - lowest) * scale)
            pixels[ends[bucket]] = at
            ends[bucket] += 1
    for current in range(_BUCKETS):
        size = 0
        for age in range(starts[current], ends[current]):
            if _open(state, pixels[age], steps):
                size = _enter(heap_costs, heap_ages, size, costs[pixels[age]], age)
        while size:
            stack[0] = pixels[heap_ages[0]]
            level, top = heap_costs[0], 1
            size = _drop_first(heap_costs, heap_ages, size)
            while top:
                top -= 1
                centre = stack[top]
                for direction in range(8):
                    at = centre + steps[direction]
                    if state[at] != _FREE:
                        continue
                    state[at] = direction
                    if not _open(state, at, steps):
                        continue
                    if costs[at] < level:
                        stack[top] = at
                        top += 1
                        continue
                    bucket = int((costs[at] - lowest) * scale)
                    pixels[ends[bucket]] = at
                    if bucket == current:
                        size = _enter(heap_costs, heap_ages, size, costs[at], ends[bucket])
                    ends[bucket] += 1
    return _labels_of(state, seeds, steps, stack)


@njit(cache=True)
def _padded(cost, seeds, mask):
    """Flat states and costs with a border of 1 px (so that no bounds need checking), the lowest cost, and a scale.

    A pixel belongs to bucket ``int((cost - lowest) * scale)``.
    """
    height, width = seeds.shape
    state = np.full((height + 2) * (width + 2), _OUTSIDE, np.uint8)
    costs = np.empty(state.size, np.float32)
    lowest, highest = np.inf, -np.inf
    for y in range(height):
        at = (y + 1) * (width + 2) + 1
        for x in range(width):
            if mask[y, x]:
                state[at + x] = _SEED if seeds[y, x] > 0 else _FREE
                costs[at + x] = cost[y, x]
                lowest, highest = min(lowest, cost[y, x]), max(highest, cost[y, x])
    return state, costs, lowest, (_BUCKETS - 1) / (highest - lowest) if highest > lowest else 0.0


@njit(cache=True)
def _bucket_starts(state, costs, lowest, scale):
    """Start of each bucket, (_BUCKETS + 1,) int64, with room for all pixels of the mask."""
    starts = np.zeros(_BUCKETS + 1, np.int64)
    for at in range(state.size):
        if state[at] != _OUTSIDE:
            starts[int((costs[at] - lowest) * scale) + 1] += 1
    for bucket in range(_BUCKETS):
        starts[bucket + 1] += starts[bucket]
    return starts


@njit(cache=True)
def _labels_of(state, seeds, steps, stack):
    """Labels (H, W) int32: every pixel is traced back to a seed or to a pixel that has a label."""
    height, width = seeds.shape
    labels = np.zeros(state.size, np.int32)
    for y in range(height):
        at = (y + 1) * (width + 2) + 1
        for x in range(width):
            if state[at + x] == _SEED:
                labels[at + x] = seeds[y, x]
    for first in range(state.size):
        at, n = first, 0
        while labels[at] == 0 and state[at] < 8:
            stack[n] = at
            at -= steps[state[at]]
            n += 1
        for i in range(n):
            labels[stack[i]] = labels[at]
    return labels.reshape(height + 2, width + 2)[1:-1, 1:-1].copy()


@njit(cache=True)
def _open(state, at, steps):
    for step in steps:
        if state[at + step] == _FREE:
            return True
    return False


@njit(cache=True)
def _enter(costs, ages, size, cost, age):
    """Push an entry onto the heap, lowest (cost, age) first; returns the new size."""
    slot = size
    while slot > 0:
        parent = (slot - 1) >> 1
        if costs[parent] < cost or (costs[parent] == cost and ages[parent] < age):
            break
        costs[slot], ages[slot] = costs[parent], ages[parent]
        slot = parent
    costs[slot], ages[slot] = cost, age
    return size + 1


@njit(cache=True)
def _drop_first(costs, ages, size):
    """Pop the first entry of the heap; returns the new size."""
    size -= 1
    cost, age = costs[size], ages[size]
    slot, child = 0, 1
    while child < size:
        right = child + 1
        if right < size and (
            costs[right] < costs[child] or (costs[right] == costs[child] and ages[right] < ages[child])
        ):
            child = right
        if cost < costs[child] or (cost == costs[child] and age < ages[child]):
            break
        costs[slot], ages[slot] = costs[child], ages[child]
        slot, child = child, 2 * child + 1
    costs[slot], ages[slot] = cost, age
    return size

"""COCO run-length encoding, compiled by numba: run lengths, and the strings of 6-bit characters of the COCO API.

Runs are counted along the columns of the whole image, background first. The cost depends on the crops, not the image.
"""

from __future__ import annotations

import numpy as np

from cellwright.core.jit import njit


@njit(cache=True)
def _runs_of(i, height, total, boxes, offsets, crops, out, at):
    """Write the counts of object i to ``out[at:]`` and return their end; with an empty ``out`` only compute the end."""
    write = out.size > 0
    x0, y0 = boxes[i, 0], boxes[i, 1]
    width, rows = boxes[i, 2] - x0, boxes[i, 3] - y0
    end = np.int64(0)  # one past the last foreground pixel so far
    started = False
    for x in range(width):
        y = 0
        while y < rows:
            if crops[offsets[i] + y * width + x] == 0:
                y += 1
                continue
            start = y
            while y < rows and crops[offsets[i] + y * width + x] != 0:
                y += 1
            first = np.int64(x0 + x) * height + y0 + start
            if started and first == end:  # a run that continues from the last row into the next column
                if write:
                    out[at - 1] += y - start
            else:
                if write:
                    out[at], out[at + 1] = first - end, y - start
                at += 2
                started = True
            end = first + y - start
    if end < total or not started:
        if write:
            out[at] = total - end
        at += 1
    return at


@njit(cache=True)
def encode_runs(height, width, boxes, offsets, crops):
    """The counts of all objects in one flat int64 array, and their starts (N + 1,)."""
    n = boxes.shape[0]
    total = np.int64(height) * width
    starts, nothing = np.zeros(n + 1, np.int64), np.empty(0, np.int64)
    for i in range(n):
        starts[i + 1] = _runs_of(i, height, total, boxes, offsets, crops, nothing, starts[i])
    counts = np.empty(starts[n], np.int64)
    for i in range(n):
        _runs_of(i, height, total, boxes, offsets, crops, counts, starts[i])
    return counts, starts


@njit(cache=True)
def boxes_of_runs(height, width, counts, starts):
    """The first object whose counts are invalid, or -1; then tight boxes and offsets."""
    n = starts.size - 1
    total = np.int64(height) * width
    boxes, offsets = np.zeros((n, 4), np.int32), np.zeros(n + 1, np.int64)
    for i in range(n):
        position, x0, y0, x1, y1 = np.int64(0), width, height, 0, 0
        for k in range(starts[i], starts[i + 1]):
            run = counts[k]
            if run < 0 or run > total - position:  # the sum may exceed 64 bits
                return i, boxes, offsets
            if (k - starts[i]) % 2 == 1 and run > 0:
                first, last = position // height, (position + run - 1) // height
                x0, x1 = min(x0, first), max(x1, last + 1)
                if first == last:
                    y0 = min(y0, position - first * height)
                    y1 = max(y1, position + run - first * height)
                else:
                    y0, y1 = 0, height
            position += run
        if position != total:
            return i, boxes, offsets
        if x1 > x0:
            boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = x0, y0, x1, y1
        offsets[i + 1] = offsets[i] + np.int64(boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1])
    return -1, boxes, offsets


@njit(cache=True)
def fill_runs(height, counts, starts, boxes, offsets):
    """Flat crops of the objects; counts and boxes are those of `boxes_of_runs`."""
    crops = np.zeros(offsets[-1], np.uint8)
    for i in range(offsets.size - 1):
        position = np.int64(0)
        box_width = boxes[i, 2] - boxes[i, 0]
        for k in range(starts[i], starts[i + 1]):
            if (k - starts[i]) % 2 == 1:
                for p in range(position, position + counts[k]):
                    x, y = p // height, p % height
                    crops[offsets[i] + (y - boxes[i, 1]) * box_width + x - boxes[i, 0]] = 1
            position += counts[k]
    return crops


@njit(cache=True)
def encode_strings(counts, starts):
    """The strings of all objects in one flat uint8 array, as the COCO API encodes them, and their starts (N + 1,)."""
    n = starts.size - 1
    text, ends = np.empty(counts.size * 13, np.uint8), np.zeros(n + 1, np.int64)
    at = 0
    for i in range(n):
        for k in range(starts[i], starts[i + 1]):
            value = counts[k]
            if k - starts[i] > 2:  # from the fourth count on, the difference from the count two before is stored
                value -= counts[k - 2]
            more = True
            while more:
                bits = value & 0x1F
                value >>= 5
                more = value != -1 if bits & 0x10 else value != 0
                text[at] = (bits | 0x20 if more else bits) + 48
                at += 1
        ends[i + 1] = at
    return text[:at], ends


@njit(cache=True)
def decode_strings(text, ends):
    """The first object whose string is invalid, or -1; then the flat counts and their starts."""
    n = ends.size - 1
    counts, starts = np.empty(text.size, np.int64), np.zeros(n + 1, np.int64)
    at = 0
    for i in range(n):
        p = ends[i]
        while p < ends[i + 1]:
            value, shift, more = np.int64(0), 0, True
            while more:
                if p >= ends[i + 1] or shift > 55:
                    return i, counts, starts
                bits = np.int64(text[p]) - 48
                if bits < 0 or bits > 63:
                    return i, counts, starts
                value |= (bits & 0x1F) << shift
                more = bits & 0x20 != 0
                p += 1
                shift += 5
                if not more and bits & 0x10:
                    value |= np.int64(-1) << shift
            if at - starts[i] > 2:
                value += counts[at - 2]
            counts[at] = value
            at += 1
        starts[i + 1] = at
    return -1, counts[:at], starts

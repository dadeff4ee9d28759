"""Loops on label maps that the dense decoders share, compiled by numba on first use and cached.

Every loop is serial and releases the interpreter lock: results never depend on threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def root_of(parent, at):
    """The root of ``at``; the path is halved on the way."""
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@njit(cache=True, nogil=True)
def _join(parent, a, b):
    """Unite two trees under the lower root: a root is its part's first pixel in C order."""
    a, b = root_of(parent, a), root_of(parent, b)
    if a < b:
        parent[b] = a
    elif b < a:
        parent[a] = b


@njit(cache=True, nogil=True)
def parts_of(labels):
    """Parts (H, W) int32 counted 1..K in C order of their first pixels, and K: equal labels that touch, corners too."""
    height, width = labels.shape
    parent = np.empty(height * width, np.int32)
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label == 0:
                continue
            at = y * width + x
            parent[at] = at
            if x > 0 and labels[y, x - 1] == label:
                _join(parent, at, at - 1)
            if y > 0:
                for dx in range(-1 if x > 0 else 0, 2 if x + 1 < width else 1):
                    if labels[y - 1, x + dx] == label:
                        _join(parent, at, at - width + dx)
    parts = np.zeros((height, width), np.int32)
    flat = parts.reshape(-1)
    found = 0
    for y in range(height):
        for x in range(width):
            if labels[y, x] == 0:
                continue
            at = y * width + x
            root = root_of(parent, at)
            if root == at:
                found += 1
                flat[at] = found
            else:
                flat[at] = flat[root]
    return parts, found


@njit(cache=True, nogil=True)
def fill_holes(labels, boxes, areas, body, threshold, share):
    """Give object k (box ``boxes[k]``) its holes that hold no other object and are small or all body; in place.

    Small is up to ``share`` of the object's area. A hole is what cannot be left by sides without crossing the object.
    """
    longest = 0
    for k in range(1, boxes.shape[0]):
        longest = max(longest, (boxes[k, 3] - boxes[k, 1] + 2) * (boxes[k, 2] - boxes[k, 0] + 2))
    seen, stack = np.empty(longest, np.uint8), np.empty(longest, np.int64)
    for k in range(1, boxes.shape[0]):
        x0, y0, x1, y1 = boxes[k, 0] - 1, boxes[k, 1] - 1, boxes[k, 2] + 1, boxes[k, 3] + 1
        width, height = x1 - x0, y1 - y0
        for y in range(height):
            for x in range(width):
                rim = y == 0 or x == 0 or y == height - 1 or x == width - 1
                seen[y * width + x] = 0 if rim else labels[y0 + y, x0 + x] == k
        _flood(seen, stack, 0, height, width)
        for start in range(width, width * (height - 1)):
            if seen[start]:
                continue
            found = _flood(seen, stack, start, height, width)
            free, solid = True, True
            for i in range(found):
                y, x = y0 + stack[i] // width, x0 + stack[i] % width
                free &= labels[y, x] == 0
                solid &= body[y, x] >= threshold
            if free and (solid or found <= share * areas[k]):
                for i in range(found):
                    labels[y0 + stack[i] // width, x0 + stack[i] % width] = k


@njit(cache=True, nogil=True)
def _flood(seen, stack, start, height, width):
    """Mark what hangs together with ``start`` by sides; its cells are ``stack[:n]``, n is returned."""
    stack[0] = start
    seen[start] = 1
    done, found = 0, 1
    while done < found:
        at = stack[done]
        done += 1
        y, x = at // width, at % width
        if y > 0 and not seen[at - width]:
            seen[at - width] = 1
            stack[found] = at - width
            found += 1
        if y + 1 < height and not seen[at + width]:
            seen[at + width] = 1
            stack[found] = at + width
            found += 1
        if x > 0 and not seen[at - 1]:
            seen[at - 1] = 1
            stack[found] = at - 1
            found += 1
        if x + 1 < width and not seen[at + 1]:
            seen[at + 1] = 1
            stack[found] = at + 1
            found += 1
    return found


@njit(cache=True, nogil=True)
def relabel(labels, keep):
    """Labels (H, W) counted 1..N over those whose ``keep`` is set, in their order; others become 0; in place."""
    new = np.zeros(keep.size, np.int32)
    found = 0
    for k in range(1, keep.size):
        if keep[k]:
            found += 1
            new[k] = found
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            if labels[y, x] > 0:
                labels[y, x] = new[labels[y, x]]
    return found


@njit(cache=True, nogil=True)
def means_inside(labels, largest, values):
    """Mean (largest,) float64 of ``values`` over the pixels of every label 1..largest, none of which is empty."""
    sums, counts = np.zeros(largest + 1), np.zeros(largest + 1, np.int64)
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            k = labels[y, x]
            if k > 0:
                sums[k] += values[y, x]
                counts[k] += 1
    return sums[1:] / counts[1:]

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
def cut_outlines(labels, largest, body, share):
    """Labels (H, W) int32 without the pixels whose body is below ``share`` of the highest body of their label."""
    height, width = labels.shape
    highest = np.zeros(largest + 1, np.float32)
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label > 0 and body[y, x] > highest[label]:
                highest[label] = body[y, x]
    cut = np.zeros((height, width), np.int32)
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label > 0 and body[y, x] >= np.float32(share) * highest[label]:
                cut[y, x] = label
    return cut


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


@njit(cache=True, nogil=True)
def two_nearest(labels, reach):
    """Distances (2, H, W) float32, px, from every pixel to the nearest and the second nearest object; labels (H, W)
    int32, 0 being background. What is further away than ``reach`` px is infinity.

    Exact, for all objects in one go. Of a column only the two objects that are nearest along it matter, as they come
    before any third wherever one looks from. So a pixel looks at two objects a column, outwards until a column is
    further away than what has been found.
    """
    height, width = labels.shape
    names, steps = _two_in_columns(labels)
    nearest = np.full((2, height, width), np.inf, np.float32)
    found, squares = np.empty(2, np.int32), np.empty(2, np.int64)
    for y in range(height):
        for x in range(width):
            found[:], squares[:] = 0, reach * reach + 1
            for away in range(min(reach + 1, width)):
                if away * away >= squares[1]:
                    break
                for column in (x - away, x + away):
                    if 0 <= column < width:
                        for i in range(2):
                            if names[y, column, i]:
                                far = away**2 + steps[y, column, i] ** 2
                                _keep_two(found, squares, names[y, column, i], far)
            for i in range(2):
                if found[i]:
                    nearest[i, y, x] = np.sqrt(squares[i])
    return nearest


@njit(cache=True, nogil=True)
def _two_in_columns(labels):
    """The two objects (H, W, 2) int32 nearest to each pixel within its column, 0 for none, and how far (H, W, 2), px:
    those met last on the way down, and those met last on the way up."""
    height, width = labels.shape
    names, steps = np.zeros((height, width, 2), np.int32), np.full((height, width, 2), height, np.int64)
    for downwards in (True, False):
        met, places = np.zeros((width, 2), np.int32), np.zeros((width, 2), np.int64)
        for row in range(height):
            y = row if downwards else height - 1 - row
            for x in range(width):
                k = labels[y, x]
                if k > 0:
                    if k != met[x, 0]:
                        met[x, 1], places[x, 1] = met[x, 0], places[x, 0]
                    met[x, 0], places[x, 0] = k, y
                for i in range(2):
                    if met[x, i]:
                        _keep_two(names[y, x], steps[y, x], met[x, i], abs(y - places[x, i]))
    return names, steps


@njit(cache=True, nogil=True)
def _keep_two(names, distances, name, distance):
    """Enter an object among the nearest two (nearest first), of which each has a name of its own; in place."""
    if name == names[0]:
        distances[0] = min(distances[0], distance)
    elif distance < distances[0]:
        names[1], distances[1] = names[0], distances[0]
        names[0], distances[0] = name, distance
    elif distance < distances[1]:
        names[1], distances[1] = name, distance

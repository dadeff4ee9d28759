"""Loops over label maps that the dense decoders share, compiled by numba on first use and cached.

Every loop is serial and releases the interpreter lock: results do not depend on threads.
"""

from __future__ import annotations

import numpy as np

from cellwright.core.jit import njit


@njit(cache=True)
def fill_holes(labels, boxes, areas, body, threshold, share):
    """Fill the holes of every object k (box ``boxes[k]``) that contain no other object; in place.

    A hole is filled if its area is at most ``share`` of the object's, or if the body is at least ``threshold`` in all
    of it. Holes are 4-connected.
    """
    longest = 0
    for k in range(1, boxes.shape[0]):
        longest = max(longest, (boxes[k, 3] - boxes[k, 1] + 2) * (boxes[k, 2] - boxes[k, 0] + 2))
    visited, stack = np.empty(longest, np.uint8), np.empty(longest, np.int64)
    for k in range(1, boxes.shape[0]):
        x0, y0, x1, y1 = boxes[k, 0] - 1, boxes[k, 1] - 1, boxes[k, 2] + 1, boxes[k, 3] + 1
        width, height = x1 - x0, y1 - y0
        for y in range(height):
            for x in range(width):
                rim = y == 0 or x == 0 or y == height - 1 or x == width - 1
                visited[y * width + x] = 0 if rim else labels[y0 + y, x0 + x] == k
        _flood(visited, stack, 0, height, width)
        for start in range(width, width * (height - 1)):
            if visited[start]:
                continue
            n = _flood(visited, stack, start, height, width)
            free, solid = True, True
            for i in range(n):
                y, x = y0 + stack[i] // width, x0 + stack[i] % width
                free &= labels[y, x] == 0
                solid &= body[y, x] >= threshold
            if free and (solid or n <= share * areas[k]):
                for i in range(n):
                    labels[y0 + stack[i] // width, x0 + stack[i] % width] = k


@njit(cache=True)
def cut_outlines(labels, largest, body, share):
    """Labels (H, W) int32 without the pixels whose body is below ``share`` of the maximum over their object."""
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


@njit(cache=True)
def _flood(visited, stack, start, height, width):
    """Visit the 4-connected region of ``start``; returns its size n, and leaves its pixels in ``stack[:n]``."""
    stack[0] = start
    visited[start] = 1
    done, n = 0, 1
    while done < n:
        at = stack[done]
        done += 1
        y, x = at // width, at % width
        if y > 0 and not visited[at - width]:
            visited[at - width] = 1
            stack[n] = at - width
            n += 1
        if y + 1 < height and not visited[at + width]:
            visited[at + width] = 1
            stack[n] = at + width
            n += 1
        if x > 0 and not visited[at - 1]:
            visited[at - 1] = 1
            stack[n] = at - 1
            n += 1
        if x + 1 < width and not visited[at + 1]:
            visited[at + 1] = 1
            stack[n] = at + 1
            n += 1
    return n


@njit(cache=True)
def relabel(labels, keep):
    """Renumber the labels (H, W) that ``keep`` selects as 1..N, set the others to 0, in place; returns N."""
    new = np.zeros(keep.size, np.int32)
    n = 0
    for k in range(1, keep.size):
        if keep[k]:
            n += 1
            new[k] = n
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            if labels[y, x] > 0:
                labels[y, x] = new[labels[y, x]]
    return n


@njit(cache=True)
def means_inside(labels, largest, values):
    """Mean (largest,) float64 of ``values`` over the pixels of each label 1..largest; no label may be empty."""
    sums, counts = np.zeros(largest + 1), np.zeros(largest + 1, np.int64)
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            k = labels[y, x]
            if k > 0:
                sums[k] += values[y, x]
                counts[k] += 1
    return sums[1:] / counts[1:]


@njit(cache=True)
def two_nearest(labels, reach):
    """Distances (2, H, W) float32, px, from every pixel to the nearest and the second nearest object.

    Exact; infinity beyond ``reach`` px. Labels are (H, W) int32, 0 for background. All objects are handled in one pass:
    within a column only the two objects nearest along it can be among the two nearest, so each pixel checks two
    candidates per column, moving outwards until the column itself is further away than the second nearest object.
    """
    height, width = labels.shape
    names, steps = _two_in_columns(labels)
    nearest = np.full((2, height, width), np.inf, np.float32)
    objects, squares = np.empty(2, np.int32), np.empty(2, np.int64)
    for y in range(height):
        for x in range(width):
            objects[:], squares[:] = 0, reach * reach + 1
            for away in range(min(reach + 1, width)):
                if away * away >= squares[1]:
                    break
                for column in (x - away, x + away):
                    if 0 <= column < width:
                        for i in range(2):
                            if names[y, column, i]:
                                far = away**2 + steps[y, column, i] ** 2
                                _keep_two(objects, squares, names[y, column, i], far)
            for i in range(2):
                if objects[i]:
                    nearest[i, y, x] = np.sqrt(squares[i])
    return nearest


@njit(cache=True)
def _two_in_columns(labels):
    """The two nearest objects of each pixel within its column, (H, W, 2) int32 (0 for none), and their distances, px.

    They are the last objects passed on the way down and on the way up.
    """
    height, width = labels.shape
    names, steps = np.zeros((height, width, 2), np.int32), np.full((height, width, 2), height, np.int64)
    for downwards in (True, False):
        passed, rows = np.zeros((width, 2), np.int32), np.zeros((width, 2), np.int64)
        for row in range(height):
            y = row if downwards else height - 1 - row
            for x in range(width):
                k = labels[y, x]
                if k > 0:
                    if k != passed[x, 0]:
                        passed[x, 1], rows[x, 1] = passed[x, 0], rows[x, 0]
                    passed[x, 0], rows[x, 0] = k, y
                for i in range(2):
                    if passed[x, i]:
                        _keep_two(names[y, x], steps[y, x], passed[x, i], abs(y - rows[x, i]))
    return names, steps


@njit(cache=True)
def _keep_two(names, distances, name, distance):
    """Insert an object into the two nearest (nearest first, no object twice); in place."""
    if name == names[0]:
        distances[0] = min(distances[0], distance)
    elif distance < distances[0]:
        names[1], distances[1] = names[0], distances[0]
        names[0], distances[0] = name, distance
    elif distance < distances[1]:
        names[1], distances[1] = name, distance

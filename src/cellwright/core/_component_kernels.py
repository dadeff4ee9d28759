"""Connected components of label maps, compiled by numba on first use and cached."""

from __future__ import annotations

import numpy as np

from cellwright.core.jit import njit


@njit(cache=True)
def root_of(parent, at):
    """Root of ``at`` in a union-find forest; halves the path."""
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@njit(cache=True)
def _join(parent, a, b):
    """Join two trees under the lower root, so that a root is the first pixel of its component in C order."""
    a, b = root_of(parent, a), root_of(parent, b)
    if a < b:
        parent[b] = a
    elif b < a:
        parent[a] = b


@njit(cache=True)
def connected_components(labels):
    """8-connected components of equal labels, (H, W) int32 1..K in C order of their first pixels, and K."""
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
    components = np.zeros((height, width), np.int32)
    flat = components.reshape(-1)
    n = 0
    for y in range(height):
        for x in range(width):
            if labels[y, x] == 0:
                continue
            at = y * width + x
            root = root_of(parent, at)
            if root == at:
                n += 1
                flat[at] = n
            else:
                flat[at] = flat[root]
    return components, n

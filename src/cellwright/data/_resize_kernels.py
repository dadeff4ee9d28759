"""Loops of `resize`, compiled by numba on first use and cached."""

from __future__ import annotations

import numpy as np

from cellwright.core.jit import njit


@njit(cache=True)
def weigh_rows(pixels, first, weights):
    """(H, M) float32 to (n, M): row i is the sum of ``weights[i]`` (n, K) times the rows from ``first[i]`` on."""
    n, taps = weights.shape
    out = np.empty((n, pixels.shape[1]), np.float32)
    total = np.empty(pixels.shape[1], np.float64)
    for i in range(n):
        total[:] = 0
        for k in range(taps):
            weight = weights[i, k]
            if weight != 0:
                row = pixels[first[i] + k]
                for x in range(total.size):
                    total[x] += weight * row[x]
        for x in range(total.size):
            out[i, x] = total[x]
    return out

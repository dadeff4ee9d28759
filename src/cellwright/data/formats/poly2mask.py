"""MATLAB's `poly2mask`, reproduced to the pixel. The masks of MoNuSeg were made from its outlines with that function.

Each pixel is divided into 5 x 5 parts. Vertices are rounded to that grid, and the sides are drawn on it as digital
lines. A pixel belongs to the mask if a ray along the middle of its column, from the top of the image to the centre of
the pixel, crosses an odd number of sides (MathWorks, documentation of poly2mask, "Algorithms").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_GRID = 5
_MIDDLE = _GRID // 2


def poly2mask(rings: Sequence[np.ndarray], image_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Box (4,) int32 and crop (h, w) bool of one outline and its holes.

    rings: arrays (n, 2) of x, y with the corner of the image at (0, 0); the first is the outline. Parts outside the
    image are cut off, and rings of fewer than three vertices enclose nothing. The crop may be empty.

    >>> box, crop = poly2mask([np.array([[1, 1], [4, 1], [4, 3], [1, 3]])], (5, 5))
    >>> box.tolist(), crop.astype(int).tolist()
    ([1, 1, 4, 3], [[1, 1, 1], [1, 1, 1]])
    """
    height, width = image_hw
    crossings = [_crossings(ring) for ring in rings if len(ring) >= 3]
    columns = np.concatenate([column for column, _ in crossings] or [np.zeros(0, np.int64)])
    rows = np.concatenate([row for _, row in crossings] or [np.zeros(0, np.int64)])
    rows = rows.clip(0, height)
    inside = (columns >= 0) & (columns < width) & (rows < height)
    columns, rows = columns[inside], rows[inside]
    if not columns.size:
        return np.zeros(4, np.int32), np.zeros((0, 0), bool)
    x0, x1, y0 = int(columns.min()), int(columns.max()) + 1, int(rows.min())
    # If a side crosses the column below the image, the mask extends to the lowest row.
    y1 = height if _odd_columns(columns - x0).any() else int(rows.max())
    toggles = np.zeros((max(y1 - y0, 1), x1 - x0), np.uint8)
    in_crop = rows - y0 < len(toggles)
    np.bitwise_xor.at(toggles, (rows[in_crop] - y0, columns[in_crop] - x0), 1)
    crop = np.bitwise_xor.accumulate(toggles, axis=0).astype(bool)
    return np.array([x0, y0, x1, y0 + len(crop)], np.int32), crop


def _odd_columns(columns: np.ndarray) -> np.ndarray:
    return np.bincount(columns) % 2 == 1


def _crossings(ring: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column and next row below, 0-based, of each point where the drawn outline crosses the middle of a column."""
    grid = np.floor(np.asarray(ring, np.float64) * _GRID + 0.5).astype(np.int64)
    x, y = _digital_path(grid)
    step = np.diff(x)
    moving = np.flatnonzero(step)
    edge_x = x[moving] - (step[moving] < 0)
    edge_y = np.minimum(y[moving], y[moving + 1])
    at_middle = (edge_x - _MIDDLE) % _GRID == 0
    columns = (edge_x[at_middle] - _MIDDLE) // _GRID
    rows = -((_MIDDLE - edge_y[at_middle]) // _GRID)
    return columns, rows


def _digital_path(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grid points x, y (int64) of the closed path through ``corners`` (n, 2), in unit steps along its longer axis."""
    start, end = corners, np.roll(corners, -1, axis=0)
    delta = end - start
    n_steps = np.abs(delta).max(axis=1)
    side = np.repeat(np.arange(len(corners)), n_steps)
    k = np.arange(int(n_steps.sum())) - np.repeat(np.cumsum(n_steps) - n_steps, n_steps)
    # MATLAB draws each side from its lower end along the longer axis, which determines how halves are rounded.
    along_x = np.abs(delta[:, 0]) >= np.abs(delta[:, 1])
    major = np.where(along_x, delta[:, 0], delta[:, 1])
    backward = major < 0
    low = np.where(backward[:, None], end, start)
    slope = np.divide(np.where(along_x, delta[:, 1], delta[:, 0]), major, out=np.zeros(len(major)), where=major != 0)
    t = np.where(backward[side], n_steps[side] - k, k)
    minor_start = np.where(along_x, low[:, 1], low[:, 0])[side]
    minor = np.floor(np.abs(minor_start + slope[side] * t) + 0.5) * np.sign(minor_start + slope[side] * t)
    major_at = np.where(along_x, low[:, 0], low[:, 1])[side] + t
    x = np.where(along_x[side], major_at, minor).astype(np.int64)
    y = np.where(along_x[side], minor, major_at).astype(np.int64)
    return np.append(x, corners[0, 0]), np.append(y, corners[0, 1])

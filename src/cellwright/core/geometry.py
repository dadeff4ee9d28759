"""Coordinate conventions of the project, and operations on boxes in numpy.

Arrays are indexed (y, x), and sizes (height, width) end in ``_hw``. A box is ``x0, y0, x1, y1`` in absolute pixels,
half open: the pixel in column x covers [x, x + 1), so the area of a box is (x1 - x0) * (y1 - y0), without ``+ 1``.
Label 0 is background. Class ids are 0..K-1; only the box head has an additional background class. Scores are in [0, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """A rectangle of pixels, half open.

    >>> Window(2, 3, 10, 20).hw
    (8, 17)
    """

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def hw(self) -> tuple[int, int]:
        """(height, width)."""
        return self.y1 - self.y0, self.x1 - self.x0

    def of(self, array: np.ndarray) -> np.ndarray:
        """This part of an array (..., H, W), as a view."""
        return array[..., self.y0 : self.y1, self.x0 : self.x1]


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Areas (N,) float64 of boxes (N, 4); an inverted box has area 0."""
    sides = np.maximum(boxes[:, 2:].astype(np.float64) - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def clip_boxes(boxes: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) clipped to the image; the dtype is kept."""
    height, width = image_hw
    return np.stack(
        [
            boxes[:, 0].clip(0, width),
            boxes[:, 1].clip(0, height),
            boxes[:, 2].clip(0, width),
            boxes[:, 3].clip(0, height),
        ],
        axis=1,
    )


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (N, M) float64 of boxes (N, 4) and (M, 4); 0 where both are empty."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2]).astype(np.float64)
    sides = np.maximum(np.minimum(a[:, None, 2:], b[None, :, 2:]) - top_left, 0)
    inter = sides[..., 0] * sides[..., 1]
    union = box_areas(a)[:, None] + box_areas(b)[None, :] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def overlapping_pairs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index pairs (i, j), each (P,) int64, of the boxes a (N, 4) and b (M, 4) that overlap, sorted by (i, j).

    A sweep along y, so the cost depends on the number of boxes that share rows, not on N x M.
    """
    from cellwright.core import _kernels

    i, j = _kernels.box_pairs(np.ascontiguousarray(a, np.float64), np.ascontiguousarray(b, np.float64))
    order = np.lexsort((j, i))
    return i[order], j[order]

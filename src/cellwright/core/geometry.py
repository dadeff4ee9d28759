"""Coordinate conventions of the project, and operations on boxes in numpy.

Arrays are indexed (y, x), and sizes (height, width) end in ``_hw``. A box is ``x0, y0, x1, y1`` in absolute pixels,
half open: the pixel in column x covers [x, x + 1), so the area of a box is (x1 - x0) * (y1 - y0), without ``+ 1``.
Label 0 is background. Class ids are 0..K-1; only the box head has an additional background class. Scores are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cellwright.core.errors import FormatError
from cellwright.core.memory import check_memory

MAX_SIDE = 1 << 24
"""Largest height and width of an image, in pixels: float32 boxes hold whole pixels up to here."""
# If the boxes of its objects cover an image more often than this, the file is damaged or hostile: their masks would
# take gigabytes. Real cells overlap a few times at most. Below this number of pixels it does not matter.
_MAX_COVER, _SMALL_PX = 64, 1 << 27
# Copies of the masks that reading and sorting them makes.
_COPIES = 3


def check_cover(covered_px: float, image_hw: tuple[int, int], where: object = None) -> None:
    """Raise `FormatError` if the boxes of all objects of an image cover so many pixels that the file cannot be right.

    Raises `InputError` if their masks need more memory than there is.
    """
    height, width = image_hw
    if covered_px > max(_MAX_COVER * height * width, _SMALL_PX):
        raise FormatError(
            "the boxes of the objects cover the image too many times",
            where=where,
            got=f"{covered_px:.3g} px of boxes on {height} x {width} (height x width)",
            expected=f"at most {_MAX_COVER} times the image",
            remedy="check that the outlines belong to this image",
        )
    check_memory(_COPIES * covered_px, "the masks of this image", where=where)


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

    Sweeps along y in strips of columns, so the cost grows with the number of boxes and of pairs, not with N x M.
    """
    from cellwright.core import _kernels

    i, j, _ = _kernels.box_pairs(np.ascontiguousarray(a, np.float64), np.ascontiguousarray(b, np.float64))
    order = np.lexsort((j, i))
    return i[order], j[order]


def padded_hw(hws: Sequence[tuple[int, int]], stride: int) -> tuple[int, int]:
    """The smallest (H, W) that holds images of all sizes (h, w), and whose sides are multiples of ``stride``.

    >>> padded_hw([(60, 90), (64, 40)], 32)
    (64, 96)
    """
    height, width = (-(-max(hw[axis] for hw in hws) // stride) * stride for axis in (0, 1))
    return height, width

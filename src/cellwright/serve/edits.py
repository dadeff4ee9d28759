"""Edits as integer operations on a box of label pixels: arrays in, arrays out, nothing is changed in place.

labels: (h, w) uint32, 0 for background. ``free``: (h, w) bool, pixels that a new object may take: background, and
objects that are not shown. Positions are (y, x) in pixels of the box; pixel (0, 0) covers [0, 1) and has its centre at
(0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from cellwright.core.masks import MaskSet
from cellwright.core.morphology import fill_mask, smooth_mask
from cellwright.serve.layer import Box

Points = Sequence[tuple[float, float]]
# Parts below this share of an object, or this many pixels, are not split off: a drawn line cuts off specks.
_SPECK_SHARE, _SPECK_PX = 0.01, 9


def box_around(points: Points, margin: float) -> Box:
    """The pixels whose centres can be within ``margin`` of a line through points, or inside their outline."""
    ys, xs = [p[0] for p in points], [p[1] for p in points]
    low = math.floor(min(ys) - margin - 0.5), math.floor(min(xs) - margin - 0.5)
    return Box(*low, math.ceil(max(ys) + margin + 0.5), math.ceil(max(xs) + margin + 0.5))


def stroke(path: Points, radius: float, box: Box) -> np.ndarray:
    """Pixels (h, w) bool of a box of the image whose centres are at most ``radius`` from a line through points."""
    covered = np.zeros(box.hw, bool)
    ends = list(pairwise(path)) or [(path[0], path[0])]
    for (ay, ax), (by, bx) in ends:
        part = box_around([(ay, ax), (by, bx)], radius).clipped((box.y1, box.x1))
        part = Box(max(part.y0, box.y0), max(part.x0, box.x0), part.y1, part.x1)
        if not part:
            continue
        y = np.arange(part.y0, part.y1)[:, None] + 0.5 - ay
        x = np.arange(part.x0, part.x1)[None, :] + 0.5 - ax
        dy, dx = by - ay, bx - ax
        length = dy * dy + dx * dx
        along = np.clip((y * dy + x * dx) / length, 0, 1) if length > 0 else 0.0
        near = (y - along * dy) ** 2 + (x - along * dx) ** 2 <= radius * radius
        covered[part.within(box)] |= near
    return covered


def inside(outline: Points, box: Box) -> np.ndarray:
    """Pixels (h, w) bool of a box of the image whose centres are inside a closed outline, by the even-odd rule."""
    ring = np.array([(x - box.x0, y - box.y0) for y, x in outline])
    return MaskSet.from_polygons([[[ring]]], box.hw).foreground()


def painted(labels: np.ndarray, where: np.ndarray, number: int, free: np.ndarray) -> np.ndarray:
    """The pixels in ``where`` that are free, or ``number`` already, become ``number``."""
    return np.where(where & free, np.uint32(number), labels)


def erased(labels: np.ndarray, where: np.ndarray, number: int | None, kept: np.ndarray) -> np.ndarray:
    """The pixels in ``where`` of an object, or of all objects for None, become background; not those in ``kept``."""
    of_object = where & ~kept if number is None else where & (labels == number)
    return np.where(of_object, np.uint32(0), labels)


def relabelled(labels: np.ndarray, numbers: Sequence[int], to: int) -> np.ndarray:
    """All pixels of these objects become ``to``, 0 to delete them."""
    return np.where(np.isin(labels, np.array(numbers, np.uint32)), np.uint32(to), labels)


def split(labels: np.ndarray, number: int, line: Points, new: Sequence[int] | int) -> tuple[np.ndarray, int]:
    """Cut an object along a line; the largest part keeps its number, others get ``new``, ``new`` + 1, ...

    No pixel is lost: those under the line join the nearest part. Specks that a line cuts off at the edge stay with
    their neighbour. Returns the labels and the number of parts; 1 if the line does not cut through the object.
    """
    from scipy import ndimage

    first = new if isinstance(new, int) else new[0]
    mask = labels == number
    cut = mask & stroke(line, 0.5, Box(0, 0, *labels.shape))
    parts, n = _parts(mask & ~cut)
    around: Any = ndimage.binary_dilation(cut, np.ones((3, 3), bool))
    touched = np.unique(parts[around])
    sizes = np.bincount(parts.ravel(), minlength=n + 1)
    least = max(_SPECK_PX, _SPECK_SHARE * int(mask.sum()))
    large = [int(k) for k in touched if k and sizes[k] >= least]
    if len(large) < 2:
        return labels, 1
    seeds = np.where(np.isin(parts, large), parts, 0)
    # Parts that the line did not reach stay with the number of the object; cut pixels and specks join a part.
    loose = mask & (seeds == 0) & np.isin(parts, [0, *(int(k) for k in touched)])
    nearest: Any = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    joined = np.where(loose, seeds[nearest[0], nearest[1]], seeds)
    result = labels.copy()
    by_size = sorted(large, key=lambda k: (-sizes[k], k))
    for k, part in enumerate(by_size[1:]):
        result[joined == part] = first + k
    return result, len(large)


def filled(labels: np.ndarray, number: int, free: np.ndarray) -> np.ndarray:
    """The free pixels that an object encloses become part of it."""
    return painted(labels, fill_mask(labels == number, free), number, free)


def smoothed(labels: np.ndarray, number: int, free: np.ndarray) -> np.ndarray:
    """The object gets a smooth outline, see `smooth_mask`; pixels of other objects stay theirs."""
    mask = labels == number
    smooth = smooth_mask(mask, free)
    result = np.where(mask & ~smooth, np.uint32(0), labels)
    return np.where(smooth & free, np.uint32(number), result)


def n_parts(mask: np.ndarray) -> int:
    """The number of separate parts of a mask, whose pixels touch by sides or corners."""
    return _parts(mask, np.ones((3, 3), bool))[1]


def _parts(mask: np.ndarray, structure: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """The numbered parts of a mask, whose pixels touch by sides or as ``structure`` says, and their number."""
    from scipy import ndimage

    labelled: Any = ndimage.label(mask, structure)
    return labelled[0], int(labelled[1])


def warm_up() -> None:
    """Load what the first edit would wait for: compiled code and packages."""
    labels = np.zeros((8, 8), np.uint32)
    outline = [(1.0, 1.0), (1.0, 6.0), (6.0, 6.0)]
    labels[inside(outline, Box(0, 0, 8, 8))] = 1
    MaskSet.from_label_map(labels)
    split(smoothed(filled(labels, 1, labels == 0), 1, labels == 0), 1, outline, 2)
    n_parts(labels == 1)


def changed_box(old: np.ndarray, new: np.ndarray) -> Box:
    """The box around the pixels that differ; empty if none does."""
    differs = old != new
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    if not rows.size:
        return Box(0, 0, 0, 0)
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)

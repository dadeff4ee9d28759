"""Change the masks of one image: expand them into the background, smooth their outlines, fill their holes.

Each mask is worked on in its own box, grown by what it may gain, so that time and memory follow the foreground.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cellwright.core.geometry import overlapping_pairs
from cellwright.core.masks import MaskSet, concat

# Standard deviation of the weights by whose majority an outline is smoothed, pixels, and how far they reach.
_SMOOTH_SIGMA = 1.5
SMOOTH_REACH = 3
# Images are expanded in parts of about this side.
_PART_PX = 2048


def expand(masks: MaskSet, distance: float, spacing: tuple[float, float] = (1.0, 1.0)) -> MaskSet:
    """The masks with the background around them: each pixel in no mask goes to the nearest mask within ``distance``.

    Distances are those between pixel centres, in units in which pixels have the size ``spacing`` (y, x). Of equally
    near masks, the first in order gets the pixel. So masks keep all their pixels and never merge; where they overlap,
    they still do; empty ones stay empty.
    """
    reach = [math.floor(distance / size * (1 + 1e-9)) for size in spacing]
    if max(reach) < 1 or not len(masks):
        return masks
    grown = _grown(masks, *reach)
    number = grown[:, 1] // _PART_PX * (masks.image_hw[1] // _PART_PX + 1) + grown[:, 0] // _PART_PX
    parts, order = [], []
    for part in np.unique(number):
        own = np.flatnonzero(number == part)
        parts.append(_expanded_part(masks, own, grown, distance * (1 + 1e-9), spacing))
        order.append(own)
    return concat(parts)[np.argsort(np.concatenate(order), kind="stable")]


def _expanded_part(
    masks: MaskSet, own: np.ndarray, grown: np.ndarray, distance: float, spacing: tuple[float, float]
) -> MaskSet:
    """Some of the masks, expanded. grown: the boxes (N, 4) of all of them, grown by the distance."""
    from scipy import ndimage

    filled = own[grown[own, 2] > grown[own, 0]]
    (left, top), (right, bottom) = (
        (grown[filled, :2].min(axis=0).tolist(), grown[filled, 2:].max(axis=0).tolist())
        if len(filled)
        else ((0, 0), (1, 1))
    )
    near = (grown[:, 0] < right) & (grown[:, 2] > left) & (grown[:, 1] < bottom) & (grown[:, 3] > top)
    near &= grown[:, 2] > grown[:, 0]
    rivals = np.flatnonzero(near)
    free = ~masks[rivals].window(top, left, bottom, right).foreground()
    # Pages of these arrays that no object reaches are never touched.
    owner, nearest = np.zeros(free.shape, np.int32), np.empty(free.shape, np.float64)
    for k in rivals.tolist():
        x0, y0, x1, y1 = grown[k].tolist()
        outside = np.ones((y1 - y0, x1 - x0), bool)
        outside[_within(masks.boxes[k], y0, x0)] = masks.crop(k) == 0
        away: Any = ndimage.distance_transform_edt(outside, sampling=spacing)
        y, x = slice(max(y0, top), min(y1, bottom)), slice(max(x0, left), min(x1, right))
        away = away[y.start - y0 : y.stop - y0, x.start - x0 : x.stop - x0]
        part = slice(y.start - top, y.stop - top), slice(x.start - left, x.stop - left)
        gained = free[part] & (away <= distance) & ((owner[part] == 0) | (away < nearest[part]))
        owner[part][gained], nearest[part][gained] = k + 1, away[gained]
    crops = []
    for k in own.tolist():
        x0, y0, x1, y1 = grown[k].tolist()
        crop = owner[y0 - top : y1 - top, x0 - left : x1 - left] == k + 1 if x1 > x0 else np.zeros((0, 0), bool)
        if x1 > x0:
            crop[_within(masks.boxes[k], y0, x0)] |= masks.crop(k) > 0
        crops.append(crop)
    return MaskSet.from_crops(grown[own], crops, masks.image_hw)


def smooth(masks: MaskSet) -> MaskSet:
    """The masks with smooth outlines, see `smooth_mask`; pixels of other masks stay theirs."""
    return _each(masks, smooth_mask, SMOOTH_REACH)


def fill_holes(masks: MaskSet) -> MaskSet:
    """The masks with the background that they enclose; pixels of other masks stay theirs."""
    return _each(masks, fill_mask, 0)


def fill_mask(mask: np.ndarray, free: np.ndarray) -> np.ndarray:
    """A mask (h, w) bool with the free pixels that it encloses."""
    from scipy import ndimage

    return mask | (np.asarray(ndimage.binary_fill_holes(mask)) & free)


def smooth_mask(mask: np.ndarray, free: np.ndarray) -> np.ndarray:
    """A mask (h, w) bool with a smooth outline: its pixels are those around which it has most of the weight.

    The weights are Gaussian (sigma 1.5 px). "Most" is half, less what a disc of the area of the mask lacks at its edge,
    so that round objects keep their size. Only free pixels are gained. Parts that are connected stay so: a thin neck is
    kept. A mask that would vanish stays as it is. Beyond the border, pixels are as at it.
    """
    votes, most = votes_around(mask)
    least = most * (0.5 - _SMOOTH_SIGMA / (2 * math.sqrt(2) * math.sqrt(max(np.count_nonzero(mask), 1))))
    smoothed = (votes > least) & (mask | free)
    if not smoothed.any():
        return mask
    return _connected_as_before(mask, smoothed)


def _connected_as_before(mask: np.ndarray, smoothed: np.ndarray) -> np.ndarray:
    """A smoothed mask in no more parts than it was in."""
    from scipy import ndimage

    n_before, (pieces, n_after) = _n_parts(mask), _parts(smoothed)
    if n_after <= n_before:
        return smoothed
    # What was removed between two pieces connects them again.
    removed, n_removed = _parts(mask & ~smoothed)
    around: Any = ndimage.find_objects(removed)
    for k in range(n_removed):
        y, x = around[k]
        window = slice(max(y.start - 1, 0), y.stop + 1), slice(max(x.start - 1, 0), x.stop + 1)
        bridge = removed[window] == k + 1
        touched: Any = ndimage.binary_dilation(bridge)
        if np.unique(pieces[window][touched & smoothed[window]]).size > 1:
            smoothed[window] |= bridge
    pieces, _ = _parts(smoothed)
    smoothed &= np.isin(pieces, pieces[mask])  # specks that were gained beside the mask
    return smoothed if _n_parts(smoothed) <= n_before else mask


def votes_around(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """For each pixel the weights of the pixels around it that are in the mask, and the sum of all weights."""
    import cv2

    y, x = np.ogrid[-SMOOTH_REACH : SMOOTH_REACH + 1, -SMOOTH_REACH : SMOOTH_REACH + 1]
    # Whole numbers, whose sums are exact in any order.
    weights = np.rint(1000 * np.exp(-(y * y + x * x) / (2 * _SMOOTH_SIGMA**2))).astype(np.float32)
    votes = cv2.filter2D(mask.astype(np.float32), -1, weights, borderType=cv2.BORDER_REPLICATE)
    return votes, int(weights.sum())


def _parts(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The numbered parts of a mask, whose pixels touch by sides, and their number."""
    from scipy import ndimage

    labelled: Any = ndimage.label(mask)
    return labelled[0], int(labelled[1])


def _n_parts(mask: np.ndarray) -> int:
    return _parts(mask)[1]


def _each(masks: MaskSet, change: Callable[[np.ndarray, np.ndarray], np.ndarray], reach: int) -> MaskSet:
    """Change each mask by ``change(mask, free)`` in its box, grown by ``reach``; masks that are empty stay so."""
    if not len(masks):
        return masks
    grown = _grown(masks, reach, reach)
    crops = []
    for k, others in enumerate(_neighbours(masks, grown)):
        x0, y0, x1, y1 = grown[k].tolist()
        mask, free = np.zeros((2, y1 - y0, x1 - x0), bool)
        mask[_within(masks.boxes[k], y0, x0)] = masks.crop(k) > 0
        free[:] = True
        for j in others.tolist():
            left, top, right, bottom = masks.boxes[j].tolist()
            y, x = slice(max(top, y0), min(bottom, y1)), slice(max(left, x0), min(right, x1))
            there = masks.crop(j)[y.start - top : y.stop - top, x.start - left : x.stop - left]
            free[y.start - y0 : y.stop - y0, x.start - x0 : x.stop - x0] &= there == 0
        crops.append(change(mask, free) if mask.any() else mask)
    return MaskSet.from_crops(grown, crops, masks.image_hw)


def _neighbours(masks: MaskSet, grown: np.ndarray) -> Iterator[np.ndarray]:
    """The other masks whose boxes meet each grown box."""
    i, j = overlapping_pairs(grown, masks.boxes)
    starts = np.searchsorted(i, np.arange(len(masks) + 1))
    for k in range(len(masks)):
        others = j[starts[k] : starts[k + 1]]
        yield others[others != k]


def _grown(masks: MaskSet, dy: int, dx: int) -> np.ndarray:
    """The boxes (N, 4) of the masks, grown inside the image; those of empty masks stay empty."""
    height, width = masks.image_hw
    filled = masks.boxes[:, 2:3] > masks.boxes[:, :1]
    grown = np.clip(masks.boxes.astype(np.int64) + np.array([-dx, -dy, dx, dy]), 0, [width, height, width, height])
    return np.where(filled, grown, 0)


def _within(box: np.ndarray, y0: int, x0: int) -> tuple[slice, slice]:
    """A box as slices of an array that begins at (y0, x0)."""
    left, top, right, bottom = box.tolist()
    return slice(top - y0, bottom - y0), slice(left - x0, right - x0)

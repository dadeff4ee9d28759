"""What the formats made of outlines share: checked rings, and a bound on what they may fill."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet

_log = logging.getLogger(__name__)

# A file whose objects' boxes cover the image more often than this is broken or hostile: filling them would take
# gigabytes. Real cells overlap a few times over.
_MAX_COVER = 64
_SMALL_PX = 1 << 27


def checked_ring(points: object, image_hw: tuple[int, int], where: str) -> np.ndarray:
    """Vertices (n, 2) float64 x, y of an open or closed ring, n of at least 3 (n of 0 where it encloses nothing).

    `FormatError` for what is not a list of number pairs, and for a vertex farther from the image than the image is wide
    or high: such an outline belongs to another image or another magnification.
    """
    ring: Any
    try:
        ring = np.asarray(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        ring = np.zeros(0)
    if ring.ndim != 2 or ring.shape[1] not in (2, 3) or not np.isfinite(ring).all():
        raise FormatError("an outline is malformed", where=where, got=str(points)[:60], expected="pairs of finite x, y")
    ring = ring[:, :2]
    reach = max(image_hw)
    far = (ring < -reach).any(1) | (ring > 2 * reach).any(1)
    if far.any():
        x, y = ring[np.flatnonzero(far)[0]]
        raise FormatError(
            "an outline lies far outside its image",
            where=where,
            got=f"a vertex at x {x:g}, y {y:g}",
            expected=f"near 0 to {image_hw[1]} in x and 0 to {image_hw[0]} in y",
            remedy="check that the outlines were drawn on this image at full resolution",
        )
    if len(ring) and np.array_equal(ring[0], ring[-1]):
        ring = ring[:-1]
    return ring if len(ring) >= 3 else np.zeros((0, 2))


def check_cover(objects: Sequence[Sequence[np.ndarray]], image_hw: tuple[int, int], where: object) -> None:
    """`FormatError` where the boxes of the objects, each given as its rings, together cover the image too often."""
    total = 0.0
    for rings in objects:
        points = np.concatenate([ring for ring in rings if len(ring)] or [np.zeros((1, 2))])
        low = points.min(0).clip(0, image_hw[::-1])
        high = points.max(0).clip(0, image_hw[::-1])
        total += float(np.prod(high - low))
    if total > max(_MAX_COVER * image_hw[0] * image_hw[1], _SMALL_PX):
        raise FormatError(
            "the objects' boxes cover the image too often",
            where=where,
            got=f"{total:.3g} px of boxes on {image_hw[0]} x {image_hw[1]} (height x width)",
            remedy="check that the outlines belong to this image",
        )


def without_empty(instances: Instances, where: object) -> Instances:
    """The objects that have a pixel, with a notice that names the others."""
    filled = instances.masks.areas > 0
    if filled.all():
        return instances
    left_out = ", ".join(map(str, instances.ids[~filled][:5].tolist()))
    _log.warning("%s: %d object(s) without a pixel are left out: %s", where, int((~filled).sum()), left_out)
    return instances[filled]


def concat_in_order(first: MaskSet, second: MaskSet, of_first: Sequence[bool]) -> MaskSet:
    """The masks of two sets of one image, interleaved: ``of_first[i]`` says which set object i comes from."""
    from cellwright.core.masks import concat

    flags = np.asarray(of_first, bool)
    index = np.empty(len(flags), np.int64)
    index[flags] = np.arange(len(first))
    index[~flags] = len(first) + np.arange(len(second))
    return concat([first, second])[index]

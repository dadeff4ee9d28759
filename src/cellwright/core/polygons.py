"""Conversion between masks and polygons: trace the outline of a crop along pixel edges, fill polygons into crops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from cellwright.core.errors import FormatError
from cellwright.core.geometry import box_areas, check_cover
from cellwright.core.text import count

Ring = np.ndarray | Sequence[Sequence[float]]
Polygon = Sequence[Ring]
MultiPolygon = Sequence[Polygon]

# Pixels along one outline, and along all outlines of an image. The outline of a cell has hundreds.
_MAX_LENGTH, _MAX_TOTAL_LENGTH = 1 << 23, 1 << 26


def trace_crop(crop: np.ndarray, box: np.ndarray) -> list[list[np.ndarray]]:
    """Polygons ``[exterior, *holes]`` of one crop (h, w), one per 4-connected part; rings (n, 2) int32 ``x, y``.

    Rings run along pixel edges; no ring touches itself or shares an edge with another. The vertices are in image
    coordinates: ``box`` (4,) is the position of the crop in the image.
    """
    from cellwright.core import _polygon_kernels

    height, width = crop.shape
    if crop.size == 0:
        return []
    flat = np.ascontiguousarray(crop, np.uint8).ravel()
    vertices, starts, owner, n_parts = _polygon_kernels.trace(flat, height, width)
    vertices += box[:2].astype(np.int32)
    exteriors: list[list[np.ndarray]] = [[] for _ in range(n_parts)]
    holes: list[list[np.ndarray]] = [[] for _ in range(n_parts)]
    for r, part in enumerate(owner):
        ring = vertices[starts[r] : starts[r + 1]]
        (exteriors if signed_area(ring) > 0 else holes)[part - 1].append(ring)
    return [outer + inner for outer, inner in zip(exteriors, holes, strict=True)]


def signed_area(ring: np.ndarray) -> float:
    """Shoelace area of an open ring (n, 2); positive for the exteriors that `trace_crop` returns (y down)."""
    x, y = ring[:, 0].astype(np.float64), ring[:, 1].astype(np.float64)
    closing = x[-1] * y[0] - x[0] * y[-1]
    return float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]) + closing) / 2


def fill_objects(
    objects: Sequence[MultiPolygon], image_hw: tuple[int, int], *, like_imagej: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, offsets and flat crops of N objects given as polygons; see `MaskSet.from_polygons`.

    A pixel is foreground if its centre is inside one of the polygons, by the even-odd rule within each polygon. Raises
    `FormatError` that names an object with a ring that is not an (n, 2) array of finite numbers with n at least 3.
    """
    from cellwright.core import _polygon_kernels

    parts = [[_checked_ring(ring, k) for polygon in polygons for ring in polygon] for k, polygons in enumerate(objects)]
    check_lengths(ring for rings in parts for ring in rings)
    boxes = np.zeros((len(objects), 4), np.int32)
    for k, rings in enumerate(parts):
        if rings:
            boxes[k] = _box_around(rings, image_hw)
    sides = boxes[:, 2:].astype(np.int64) - boxes[:, :2]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sides.prod(1))])
    check_cover(_covered(objects, parts, boxes, image_hw), image_hw)
    crops = np.empty(int(offsets[-1]), np.uint8)
    for k, (polygons, rings) in enumerate(zip(objects, parts, strict=True)):
        if rings:
            x0, y0, x1, y1 = boxes[k].tolist()
            ring_starts = np.cumsum([0] + [len(ring) for ring in rings])
            polygon_starts = np.cumsum([0] + [len(polygon) for polygon in polygons])
            points = np.concatenate(rings)
            filled = _polygon_kernels.fill(x0, y0, x1, y1, points, ring_starts, polygon_starts, like_imagej)
            crops[offsets[k] : offsets[k + 1]] = filled
    return boxes, offsets, crops


def check_lengths(rings: Iterable[np.ndarray], where: object = None, *, most: float = _MAX_TOTAL_LENGTH) -> None:
    """Raise `FormatError` if the outlines (n, 2) of an image are so long that tracing them would take minutes.

    most: pixels along all outlines.
    """
    total = 0.0
    for ring in rings:
        with np.errstate(over="ignore", invalid="ignore"):  # infinity is too long
            length = float(np.abs(np.diff(ring, axis=0)).max(axis=1, initial=0.0).sum())
        total += length
        if length > _MAX_LENGTH or total > most:
            raise FormatError(
                "an outline is too long" if length > _MAX_LENGTH else "the outlines of this image are too long",
                where=where,
                got=f"{max(length, total):.3g} px around {count(len(ring), 'vertex')}",
                expected=f"at most {_MAX_LENGTH:.3g} px per outline, {most:.3g} px per image",
                remedy="simplify the outlines, or check that they are those of cells",
            )


def _covered(
    objects: Sequence[MultiPolygon], parts: Sequence[Sequence[np.ndarray]], boxes: np.ndarray, image_hw: tuple[int, int]
) -> float:
    """Pixels in the boxes of all polygons, each of which is filled for itself."""
    total = float(box_areas(boxes).sum())
    for polygons, rings in zip(objects, parts, strict=True):
        starts = np.cumsum([0] + [len(polygon) for polygon in polygons])
        if len(polygons) > 1:
            around = [_box_around(rings[a:b], image_hw) for a, b in pairwise(starts) if b > a]
            total += float(box_areas(np.array(around).reshape(-1, 4)).sum())
    return total


def _box_around(rings: Sequence[np.ndarray], image_hw: tuple[int, int]) -> np.ndarray:
    """Whole pixels x0, y0, x1, y1 (4,) around the rings of an object, inside the image."""
    limits = image_hw[::-1]
    low = np.min([ring.min(0) for ring in rings], axis=0)
    high = np.max([ring.max(0) for ring in rings], axis=0)
    low, high = np.floor(low).clip(0, limits), np.ceil(high).clip(0, limits)
    return np.concatenate([low, np.maximum(low, high)]).astype(np.int32)


def _checked_ring(ring: Ring, k: int) -> np.ndarray:
    points: np.ndarray
    try:
        points = np.asarray(ring, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.zeros((0, 2))
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise FormatError(
            "invalid polygon",
            where=f"object {k}",
            got=str(ring)[:60],
            expected="at least 3 vertices x, y, finite numbers",
        )
    return points

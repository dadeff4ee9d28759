"""Conversion between masks and polygons: trace the outline of a crop along pixel edges, fill polygons into crops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cellwright.core.errors import FormatError

Ring = np.ndarray | Sequence[Sequence[float]]
Polygon = Sequence[Ring]
MultiPolygon = Sequence[Polygon]


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
    return float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2


def fill_objects(
    objects: Sequence[MultiPolygon], image_hw: tuple[int, int], *, like_imagej: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, offsets and flat crops of N objects given as polygons; see `MaskSet.from_polygons`.

    A pixel is foreground if its centre is inside one of the polygons, by the even-odd rule within each polygon. Raises
    `FormatError` that names an object with a ring that is not an (n, 2) array of finite numbers with n at least 3.
    """
    from cellwright.core import _polygon_kernels

    height, width = image_hw
    boxes, crops = np.zeros((len(objects), 4), np.int32), []
    for k, polygons in enumerate(objects):
        rings = [_checked_ring(ring, k) for polygon in polygons for ring in polygon]
        if not rings:
            continue
        points = np.concatenate(rings)
        low = np.floor(points.min(0)).clip(0, (width, height)).astype(np.int64)
        high = np.ceil(points.max(0)).clip(0, (width, height)).astype(np.int64)
        ring_starts = np.cumsum([0] + [len(ring) for ring in rings])
        polygon_starts = np.cumsum([0] + [len(polygon) for polygon in polygons])
        boxes[k] = *low, *np.maximum(low, high)
        x0, y0, x1, y1 = boxes[k].tolist()
        crops.append(_polygon_kernels.fill(x0, y0, x1, y1, points, ring_starts, polygon_starts, like_imagej))
    sides = boxes[:, 2:].astype(np.int64) - boxes[:, :2]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sides.prod(1))])
    return boxes, offsets, np.concatenate(crops) if crops else np.zeros(0, np.uint8)


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

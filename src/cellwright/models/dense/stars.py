"""Objects as star-convex polygons: the distance from a pixel to the outline of its object along rays.

Source: Schmidt, Weigert, Broaddus and Myers, "Cell Detection with Star-Convex Polygons", MICCAI 2018 (StarDist). Each
pixel predicts a polygon and the probability that it is a good one. Objects of which no point sees the whole outline are
cut: a star-convex polygon cannot follow them.

`decode`: maps -> candidates, best first -> drop those that overlap a better one -> label image -> drop small objects.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from cellwright.config.model_dense import StarsTarget
from cellwright.core.errors import InputError
from cellwright.models.dense.labels import Place, checked_labels, checked_maps, connected_components

_DEFAULT = StarsTarget()


def channels(n_rays: int) -> tuple[str, ...]:
    """Names of the maps: ``probability``, then ``ray_0`` to ``ray_N`` in the order of `directions`."""
    return ("probability", *(f"ray_{k}" for k in range(n_rays)))


def directions(n_rays: int) -> np.ndarray:
    """Unit vectors y, x of the rays (N, 2) float64: from right, clockwise on the screen, as in StarDist."""
    angles = 2 * np.pi / n_rays * np.arange(n_rays)
    return np.stack([np.sin(angles), np.cos(angles)], axis=1)


def encode(labels: np.ndarray, *, n_rays: int = _DEFAULT.n_rays) -> np.ndarray:
    """Training targets of a label map.

    - probability: Euclidean distance to the nearest pixel outside the object, divided by its maximum over the object,
      so that it is 0 outside and 1 at the deepest pixel. Pixels beyond the edge of the image do not count as outside.
    - rays: from the centre of the pixel to where the ray leaves the object or the image, px; 0 outside objects. They
      are measured along the edges of the pixels; StarDist measures in steps of 1 px.

    Components of one label that do not touch, not even at a corner, are separate objects.

    Args:
        labels: (H, W) integers, 0 for background.
        n_rays: N, the number of rays.

    Returns:
        Maps (1 + N, H, W) float32, in the order of `channels`.

    Raises:
        InputError: ``labels`` is not a 2-D array of integers.
    """
    from cellwright.models.dense import _stars_kernels, _watershed_kernels

    components, n = connected_components(checked_labels(labels))
    depth, deepest = _watershed_kernels.depths(components, n)
    maps = np.zeros((1 + n_rays, *components.shape), np.float32)
    maps[0] = depth / deepest[components]
    _stars_kernels.measure_rays(np.pad(components, 1), directions(n_rays), maps[1:])
    return maps


def decode(
    maps: np.ndarray,
    *,
    probability_threshold: float = _DEFAULT.probability_threshold,
    max_overlap: float = _DEFAULT.max_overlap,
    min_area_px: int = _DEFAULT.min_area_px,
    overlap: Literal["pixels", "polygons"] = _DEFAULT.overlap,
    grid: int = _DEFAULT.grid,
    border_px: int = _DEFAULT.border_px,
    place: Place | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of predicted maps.

    Candidates are the polygons of all pixels above the threshold. From the best one on, a candidate is kept unless its
    polygon shares too many pixels with one that was kept before. A pixel in several polygons belongs to the best one.

    Args:
        maps: (1 + N, H, W) float32: probability, and N rays in px, at least 4.
        probability_threshold: candidates have a higher probability (StarDist's ``prob_thresh``).
        max_overlap: largest share of the smaller of two polygons that both may have in common (StarDist's
            ``nms_thresh``).
        overlap: the share is one of pixels, or one of areas of polygons whose vertices are rounded down, as in
            StarDist, which takes longer.
        min_area_px: objects of fewer pixels are dropped.
        grid, border_px: candidates lie at multiples of ``grid`` in y and x, and at least this far from the edge of the
            image (StarDist: 2 points of its grid), counted from the padding at the right and at the bottom.
        place: where the maps lie; None: they are the whole image.

    Returns:
        Labels (H, W) int32, objects 1..N, best first, and scores (N,) float32 in [0, 1]: the probability of the pixel
        whose polygon it is. N is 0 where there is no candidate.

    Raises:
        InputError: ``maps`` has another shape, or contains NaN or infinity.

    Example:
        >>> import numpy as np
        >>> from cellwright.models.dense import stars
        >>> touching = np.repeat([[1, 1, 1, 2, 2, 2]], 3, axis=0)
        >>> labels, scores = stars.decode(stars.encode(touching))
        >>> labels[0], scores
        (array([1, 1, 1, 2, 2, 2], dtype=int32), array([1., 1.], dtype=float32))
    """
    from cellwright.core import _kernels as core_kernels
    from cellwright.models.dense import _label_kernels, _stars_kernels

    n_rays = maps.shape[0] - 1 if maps.ndim == 3 else 0
    if n_rays < 4:
        expected = "(1 + N, H, W): probability and at least 4 rays"
        raise InputError("these maps do not fit the decoder", got=f"shape {maps.shape}", expected=expected)
    maps = checked_maps(maps, channels(n_rays))
    probability, flat = maps[0].ravel(), maps.reshape(1 + n_rays, -1)
    candidates = np.flatnonzero(probability > probability_threshold)
    if grid > 1 or border_px:
        place = Place.whole(maps.shape[1:]) if place is None else place
        candidates = candidates[_on_grid(candidates, maps.shape[2], grid, border_px, place)]
    # Ties in C order, which is the same in a window of the image.
    order = candidates[np.argsort(-probability[candidates], kind="stable")]
    if overlap == "polygons":
        order, max_overlap = order[_kept_polygons(flat[1:, order], order, maps.shape[2], max_overlap)], 1.0
    kept, spans, starts = _stars_kernels.suppress(flat, order, maps.shape[1:], directions(n_rays), max_overlap)
    labels = np.zeros(maps.shape[1:], np.int32)
    _stars_kernels.draw(order[kept], spans, starts, labels)
    _, areas = core_kernels.label_extents(labels, len(kept))
    keep = areas >= max(min_area_px, 1)
    _label_kernels.relabel(labels, keep)
    return labels, probability[order[kept]][keep[1:]].clip(0, 1)


def _on_grid(pixels: np.ndarray, width: int, grid: int, border_px: int, place: Place) -> np.ndarray:
    """Which pixels (P,) of maps of this width may be candidates, (P,) bool."""
    may_be = np.ones(len(pixels), bool)
    sides = place.image_hw if place.padded_hw is None else place.padded_hw
    for at, origin, side in zip((pixels // width, pixels % width), place.origin_yx, sides, strict=True):
        position = at + origin
        may_be &= (position % grid == 0) & (position >= border_px) & (position < side - border_px)
    return may_be


def _kept_polygons(rays: np.ndarray, pixels: np.ndarray, width: int, max_overlap: float) -> np.ndarray:
    """Which of the polygons (N, P), best first, StarDist keeps, (P,) bool: vertices and areas as it computes them.

    Its vertices are whole numbers, those of intersections too.
    """
    import shapely

    centres = np.stack([pixels // width, pixels % width], axis=1).astype(np.float32)
    along = (np.maximum(rays, np.float32(1e-3)).T[:, :, None] * directions(len(rays))).astype(np.float32)
    vertices = np.trunc((along + centres[:, None]).astype(np.float64))
    turned = np.roll(vertices, -1, axis=1)
    areas = 0.5 * np.abs((vertices[..., 0] * turned[..., 1] - vertices[..., 1] * turned[..., 0]).sum(axis=1)) + 1e-10
    polygons: np.ndarray = np.asarray(shapely.polygons(vertices))
    invalid = ~shapely.is_valid(polygons)
    polygons[invalid] = shapely.make_valid(polygons[invalid])
    tree, kept = shapely.STRtree(polygons), np.ones(len(polygons), bool)
    for k in range(len(polygons)):
        if not kept[k]:
            continue
        others = tree.query(polygons[k])
        others = others[(others > k) & kept[others]]
        common = shapely.transform(shapely.intersection(polygons[k], polygons[others]), _rounded)
        kept[others[shapely.area(common) > max_overlap * np.minimum(areas[k], areas[others])]] = False
    return kept


def _rounded(values: np.ndarray) -> np.ndarray:
    """To the nearest whole numbers, halves away from 0."""
    return np.trunc(values + np.copysign(0.5, values))

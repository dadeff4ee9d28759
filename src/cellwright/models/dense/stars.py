"""Objects as star-convex polygons: the distance from a pixel to the outline of its object along rays.

Source: Schmidt, Weigert, Broaddus and Myers, "Cell Detection with Star-Convex Polygons", MICCAI 2018 (StarDist). Each
pixel predicts a polygon and the probability that it is a good one. Objects of which no point sees the whole outline are
cut: a star-convex polygon cannot follow them.

`decode`: maps -> candidates, best first -> drop those that overlap a better one -> label image -> drop small objects.
"""

from __future__ import annotations

import numpy as np

from cellwright.config.model_dense import StarsTarget
from cellwright.core.errors import InputError
from cellwright.models.dense.labels import checked_labels, checked_maps, connected_components

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
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of predicted maps.

    Candidates are the polygons of all pixels above the threshold. From the best one on, a candidate is kept unless its
    polygon shares too many pixels with one that was kept before. A pixel in several polygons belongs to the best one.

    Args:
        maps: (1 + N, H, W) float32: probability, and N rays in px, at least 4.
        probability_threshold: candidates have a higher probability (StarDist's ``prob_thresh``).
        max_overlap: largest share of the smaller of two polygons, in pixels, that both may have in common (StarDist's
            ``nms_thresh``, for which StarDist computes areas from vertices that are rounded down).
        min_area_px: objects of fewer pixels are dropped.

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
    # Ties in C order, which is the same in a window of the image.
    order = candidates[np.argsort(-probability[candidates], kind="stable")]
    kept, spans, starts = _stars_kernels.suppress(flat, order, maps.shape[1:], directions(n_rays), max_overlap)
    labels = np.zeros(maps.shape[1:], np.int32)
    _stars_kernels.draw(order[kept], spans, starts, labels)
    _, areas = core_kernels.label_extents(labels, len(kept))
    keep = areas >= max(min_area_px, 1)
    _label_kernels.relabel(labels, keep)
    return labels, probability[order[kept]][keep[1:]].clip(0, 1)

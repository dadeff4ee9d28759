"""Objects as watershed basins: body, border and distance maps, flooded from seeds.

Body and border are the maps of the winning solution of the 2018 Data Science Bowl (Buslaev, Durnov and Seferbekov;
Caicedo et al., Nature Methods 2019): the border is where nuclei touch or almost touch, and body minus border leaves one
seed per nucleus. The distance map follows the deep watershed of Bai and Urtasun (2017), but is relative to the depth of
each object. It separates objects whose border the network missed, and gives very small objects a seed.

`decode`: maps -> foreground and seeds -> flood -> drop small objects, fill holes -> scores.
It inverts `encode`: from the maps of a perfect network, it recovers the labels.
"""

from __future__ import annotations

import numpy as np

from cellwright.config.model_dense import WatershedTarget
from cellwright.models.dense.labels import (
    checked_labels,
    checked_maps,
    clean_objects,
    connected_components,
    mean_scores,
)

CHANNELS: tuple[str, ...] = ("body", "border", "distance")
_DEFAULT = WatershedTarget()

_DEPTH_PER_REACH = 6  # the border is 1 px wider on each side for every 6 px of an object's depth
_MAX_REACH = 3


def encode(labels: np.ndarray) -> np.ndarray:
    """Training targets of a label map.

    - body: 1 on objects.
    - border: 1 where the square of 2 r + 1 px around a pixel (of an object or of the background) contains two objects.
      r grows from 1 to 3 with the depth of the smaller object, by 1 for every 6 px.
    - distance: Euclidean distance to the nearest pixel outside the object, divided by its maximum over the object, so
      that it is 0 outside and 1 at the deepest pixel. Pixels beyond the edge of the image do not count as outside.

    Components of one label that do not touch, not even at a corner, are separate objects.

    Args:
        labels: (H, W) integers, 0 for background.

    Returns:
        Maps (3, H, W) float32, in the order of `CHANNELS`.

    Raises:
        InputError: ``labels`` is not a 2-D array of integers.
    """
    from cellwright.models.dense import _watershed_kernels

    components, n = connected_components(checked_labels(labels))
    depth, deepest = _watershed_kernels.depths(components, n)
    reach = np.clip(deepest // _DEPTH_PER_REACH, 1, _MAX_REACH).astype(np.uint8)
    maps = components > 0, _borders(components, reach), depth / deepest[components]
    return np.stack(maps).astype(np.float32)


def decode(
    maps: np.ndarray,
    *,
    body_threshold: float = _DEFAULT.body_threshold,
    core_threshold: float = _DEFAULT.core_threshold,
    core_distance: float = _DEFAULT.core_distance,
    peak_distance: float = _DEFAULT.peak_distance,
    min_area_px: int = _DEFAULT.min_area_px,
    max_hole_share: float = _DEFAULT.max_hole_share,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of predicted maps.

    Seeds grow over the foreground, first where body minus border is high. A component of the foreground without a seed
    becomes one object, so every component contains at least one object, and every object is connected.

    Args:
        maps: (3, H, W) float32: body probability, border probability and relative distance, each in [0, 1].
        body_threshold: minimum body probability of a foreground pixel, in [0, 1]. A ``cellprob_threshold`` of Cellpose
            is a logit: its 0 is 0.5 here.
        core_threshold: minimum of body minus border in a seed, in [0, 1].
        core_distance: minimum distance in a seed, in [0, 1]; 0 ignores the distance map. The default was chosen on
            ground-truth maps of the VRDL training images, blurred and with three levels of noise.
        peak_distance: a foreground pixel with at least this distance belongs to a seed regardless of its border; a
            value above 1 disables this.
        min_area_px: objects of fewer pixels are dropped.
        max_hole_share: holes up to this share of the object's area are filled, unless they contain another object.

    Returns:
        Labels (H, W) int32, objects 1..N, and scores (N,) float32 in [0, 1]: the mean body probability of each object,
        filled holes included. N is 0 where there is no foreground.

    Raises:
        InputError: ``maps`` has another shape, or contains NaN or infinity.

    Example:
        >>> import numpy as np
        >>> from cellwright.models.dense import watershed
        >>> touching = np.array([[1, 1, 1, 2, 2, 2]] * 3)
        >>> labels, scores = watershed.decode(watershed.encode(touching))
        >>> labels[0], scores
        (array([1, 1, 1, 2, 2, 2], dtype=int32), array([1., 1.], dtype=float32))
    """
    body, border, distance = checked_maps(maps, CHANNELS)
    cost = border - body
    foreground = body >= body_threshold
    core = (cost <= -core_threshold) & (distance >= core_distance)
    seeds, n = connected_components(foreground & (core | (distance >= peak_distance)))
    labels = flood(cost, seeds, foreground)
    unseeded = foreground & (labels == 0)
    if unseeded.any():
        components, n_unseeded = connected_components(unseeded)
        labels = np.where(unseeded, components + np.int32(n), labels)
        n += n_unseeded
    n, _ = clean_objects(labels, n, body, min_area_px=min_area_px, max_hole_share=max_hole_share)
    return labels, mean_scores(labels, n, body)


def flood(cost: np.ndarray, seeds: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Seeded watershed by priority flood (Meyer 1994), without watershed lines.

    Of the pixels on the rim of the labelled area, the one with the lowest cost passes on its label next; among equal
    costs, the one that was labelled first. Without ties this equals ``skimage.segmentation.watershed(cost, seeds,
    mask=mask, connectivity=2)``. OpenCV's ``watershed`` follows another rule (colour differences, lines of -1).

    Args:
        cost: (H, W) float32, finite.
        seeds: (H, W) int32, 0 for none.
        mask: (H, W) bool; labels stay inside.

    Returns:
        Labels (H, W) int32; 0 outside the mask and where no seed reaches.
    """
    from cellwright.models.dense import _watershed_kernels

    return _watershed_kernels.flood(np.ascontiguousarray(cost, np.float32), seeds, mask)


def _borders(components: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Pixels (H, W) bool whose square contains two components; component k counts in squares of r <= ``reach[k]``."""
    import cv2

    border = np.zeros(components.shape, bool)
    if components.size == 0:
        return border
    for r in range(1, int(reach.max()) + 1):
        counted = np.where(reach[components] >= r, components, 0).astype(np.float32)
        square = np.ones((2 * r + 1, 2 * r + 1), np.uint8)
        highest = cv2.dilate(counted, square)
        lowest = cv2.erode(np.where(counted == 0, np.float32(np.inf), counted), square)
        border |= lowest < highest
    return border

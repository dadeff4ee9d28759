"""Objects as basins: body, border and distance maps, and a flood from seeds.

Body and border are the maps with which the 2018 Data Science Bowl was won (Buslaev, Durnov and Seferbekov; Caicedo et
al., Nature Methods 2019): the border is where nuclei touch or nearly touch, and body minus border leaves one seed for
each. The distance map, as in Bai and Urtasun's deep watershed (2017) but relative to each object's own depth, splits
objects whose border was overlooked, and gives the smallest ones a seed. `encode` and `decode` are inverse to each
other: a perfect network's maps give the labels back.

The flow of `decode`: foreground -> seeds -> flood -> small objects, holes -> score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellwright.core.instances import Instances
from cellwright.models.dense.semantic import (
    SemanticRules,
    checked_labels,
    checked_maps,
    finished,
    parts_of,
    to_instances,
)

CHANNELS: tuple[str, ...] = ("body", "border", "distance")

_DEPTH_A_REACH = 6  # a border reaches 1 px into an object for each so many px of its depth
_LARGEST_REACH = 3


@dataclass(frozen=True)
class WatershedRules(SemanticRules):
    """How maps become objects; the first three are those of `SemanticRules`.

    core_threshold: body minus border from which a pixel may be in a seed, in [0, 1].
    core_distance: distance from which it then is, in [0, 1]; 0 goes by body and border alone. Chosen on true maps of
        VRDL training images, blurred and with noise of three strengths added.
    peak_distance: distance from which a pixel of the foreground is in a seed whatever its border; above 1 for never.
    """

    core_threshold: float = 0.5
    core_distance: float = 0.3
    peak_distance: float = 0.9


def encode(labels: np.ndarray) -> np.ndarray:
    """Maps (3, H, W) float32 (`CHANNELS`) of labels (H, W) int, 0 being background.

    body: 1 on objects. border: 1 where the square of 2 r + 1 px around a pixel, itself of an object or not, holds two
    objects, r being 1 for the smallest and up to 3 for large ones (one px for each 6 px of depth, the smaller object's
    counting, so that both sides of a contact give the same). distance: from 0 outside to 1 at the deepest pixel of each
    object, the Euclidean distance to the nearest pixel that is not the object's over the largest one; the image's edge
    is no outside. Parts of one label that do not touch, not even at corners, are objects of their own.
    Raises `InputError` for labels that are not a 2-D array of integers.
    """
    from cellwright.models.dense import _watershed_kernels

    parts, n = parts_of(checked_labels(labels))
    depth, deepest = _watershed_kernels.depths(parts, n)
    reach = np.clip(deepest // _DEPTH_A_REACH, 1, _LARGEST_REACH).astype(np.uint8)
    return np.stack([parts > 0, _borders(parts, reach), depth / deepest[parts]]).astype(np.float32)


def decode(maps: np.ndarray, rules: WatershedRules | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels (H, W) int32 counted 1..N and scores (N,) float32 in [0, 1] of maps (3, H, W) float32 (`CHANNELS`).

    Seeds grow over the foreground, first where body minus border is high; a part of the foreground without a seed is an
    object as it is. So a part holds at least one object and every object is in one part, pixels that meet at a corner
    being neighbours. Its score is its mean body probability, filled holes included. No foreground gives no objects.
    Raises `InputError` for maps of another shape, or with a value that is not finite.
    """
    rules = WatershedRules() if rules is None else rules
    body, border, distance = checked_maps(maps, CHANNELS)
    cost = border - body
    core = (cost <= -rules.core_threshold) & (distance >= rules.core_distance)
    foreground = body >= rules.body_threshold
    seeds, n = parts_of(foreground & (core | (distance >= rules.peak_distance)))
    labels = flood(cost, seeds, foreground)
    unseeded = foreground & (labels == 0)
    if unseeded.any():
        parts, more = parts_of(unseeded)
        labels = np.where(unseeded, parts + np.int32(n), labels)
        n += more
    return finished(labels, n, body, rules)


def flood(cost: np.ndarray, seeds: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Labels (H, W) int32 of a seeded watershed by priority flood (Meyer 1994); no pixel is spent on lines.

    cost: (H, W) float32, finite; the lowest pixel on the rim of what is labelled hands on its label next, and of equals
    the one labelled first. seeds: (H, W) int32, 0 for none. mask: (H, W) bool; labels never leave it, and what no seed
    reaches is 0. Corners are neighbours. Without ties among costs this is ``skimage.segmentation.watershed(cost, seeds,
    mask=mask, connectivity=2)``; OpenCV's ``watershed`` follows another rule (colour differences, lines of -1).
    """
    from cellwright.models.dense import _watershed_kernels

    return _watershed_kernels.flood(np.ascontiguousarray(cost, np.float32), seeds, mask)


def encode_instances(instances: Instances) -> np.ndarray:
    """Maps (3, H, W) float32 of the objects of an image; where objects overlap the first in order wins."""
    return encode(instances.masks.to_label_map())


def decode_instances(
    maps: np.ndarray, rules: WatershedRules | None = None, class_probs: np.ndarray | None = None
) -> Instances:
    """The objects of maps (3, H, W), highest score first, ids 1..N; ``class_probs`` as in `semantic.to_instances`."""
    return to_instances(*decode(maps, rules), class_probs)


def _borders(parts: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Pixels (H, W) bool whose square holds two parts; ``reach[k]`` is the largest half side at which part k counts."""
    import cv2

    border = np.zeros(parts.shape, bool)
    if parts.size == 0:
        return border
    for r in range(1, int(reach.max()) + 1):
        shown = np.where(reach[parts] >= r, parts, 0).astype(np.float32)
        square = np.ones((2 * r + 1, 2 * r + 1), np.uint8)
        highest = cv2.dilate(shown, square)
        lowest = cv2.erode(np.where(shown == 0, np.float32(np.inf), shown), square)
        border |= lowest < highest
    return border

"""What the decoders of `semantic`, `watershed` and `flow` share: input checks, connected components, cleaning, scores.

Label maps are (H, W) integer arrays in which 0 is background. Pixels that share a side or a corner are neighbours
(8-connectivity).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cellwright.core.errors import InputError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet


@dataclass(frozen=True)
class Place:
    """Where maps lie, for decoders that depend on it.

    origin_yx: of the maps in the image. image_hw: of the whole image. zoom: pixels of the image per pixel of the
    network's input. padded_hw: of the whole image as the network sees it, at the scale of the image; None: not padded.
    """

    origin_yx: tuple[int, int]
    image_hw: tuple[int, int]
    zoom: float = 1.0
    padded_hw: tuple[int, int] | None = None

    @staticmethod
    def whole(image_hw: tuple[int, ...], zoom: float = 1.0, padded_hw: tuple[int, int] | None = None) -> Place:
        """That of maps of the whole image."""
        return Place((0, 0), (image_hw[0], image_hw[1]), zoom, padded_hw)

    @property
    def area(self) -> int:
        """Pixels of the whole image."""
        return self.image_hw[0] * self.image_hw[1]


def checked_labels(labels: np.ndarray) -> np.ndarray:
    """``labels`` (H, W) as a contiguous array. Raises `InputError` for another shape or a dtype that is not integer."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise InputError(
            "a label map must be a 2-D array of integers",
            got=f"shape {labels.shape}, {labels.dtype}",
            remedy="pass an (H, W) array of integers in which 0 is background",
        )
    return np.ascontiguousarray(labels)


def checked_maps(maps: np.ndarray, channels: tuple[str, ...]) -> np.ndarray:
    """``maps`` (C, H, W) as a contiguous float32 array. Raises `InputError` for another shape, NaN or infinity."""
    if maps.ndim != 3 or len(maps) != len(channels):
        expected = f"({len(channels)}, H, W): {', '.join(channels)}"
        raise InputError("these maps do not fit the decoder", got=f"shape {maps.shape}", expected=expected)
    for name, channel in zip(channels, maps, strict=True):
        # NaN propagates to both the minimum and the maximum.
        if channel.size and not (np.isfinite(channel.min()) and np.isfinite(channel.max())):
            remedy = "train again with a lower learning rate, or predict without mixed precision"
            raise InputError("the network's output is not finite", where=f"map {name!r}", remedy=remedy)
    return np.ascontiguousarray(maps, np.float32)


def connected_components(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected components of equal labels.

    Args:
        labels: (H, W) integers, or bool for a mask.

    Returns:
        Components (H, W) int32, numbered 1..K in C order of their first pixels, and K.
    """
    if labels.dtype == bool:
        from scipy import ndimage

        components = np.empty(labels.shape, np.int32)
        n = ndimage.label(labels, np.ones((3, 3)), output=components)
        return components, int(n)  # type: ignore[arg-type]
    from cellwright.core import _component_kernels

    return _component_kernels.connected_components(labels)


def clean_objects(
    labels: np.ndarray,
    n: int,
    body: np.ndarray,
    *,
    min_area_px: int,
    max_hole_share: float,
    solid_threshold: float = np.inf,
) -> tuple[int, np.ndarray]:
    """Drop small objects and fill holes, in place.

    Args:
        labels: (H, W) int32, objects 1..n; renumbered without gaps.
        n: number of objects.
        body: (H, W) float32 body probability.
        min_area_px: objects of fewer pixels are dropped.
        max_hole_share: holes up to this share of the object's area are filled, unless they contain another object.
        solid_threshold: holes in which the body probability is nowhere lower are filled regardless of size.

    Returns:
        The number of objects that remain, and their boxes (n + 1, 4) int32, x0 y0 x1 y1; row 0 is unused.
    """
    from cellwright.core import _kernels as core_kernels
    from cellwright.models.dense import _label_kernels

    _, areas = core_kernels.label_extents(labels, n)
    n = _label_kernels.relabel(labels, areas >= max(min_area_px, 1))
    boxes, areas = core_kernels.label_extents(labels, n)
    _label_kernels.fill_holes(labels, boxes, areas, body, solid_threshold, max_hole_share)
    return n, boxes


def mean_scores(labels: np.ndarray, n: int, body: np.ndarray) -> np.ndarray:
    """Mean body probability of each object 1..n, (n,) float32 in [0, 1]."""
    from cellwright.models.dense import _label_kernels

    return _label_kernels.means_inside(labels, n, body).clip(0, 1).astype(np.float32)


def to_instances(labels: np.ndarray, scores: np.ndarray, class_probs: np.ndarray | None = None) -> Instances:
    """Decoded labels as `Instances`, highest score first, with ids 1..N.

    Args:
        labels: (H, W) int32, objects 1..N.
        scores: (N,) float32.
        class_probs: (K, H, W) probability of each class, or None for a single class. The class of an object is the one
            with the highest mean probability over its pixels.
    """
    masks, _ = MaskSet.from_label_map(labels)
    class_ids = np.zeros(len(scores), np.int64)
    if class_probs is not None and len(scores):
        sums = [np.bincount(labels.ravel(), probs.ravel(), minlength=len(scores) + 1)[1:] for probs in class_probs]
        class_ids = np.argmax(sums, axis=0).astype(np.int64)
    instances = Instances.from_masks(masks, class_ids=class_ids, scores=scores).by_score()
    return replace(instances, ids=np.arange(1, len(instances) + 1))

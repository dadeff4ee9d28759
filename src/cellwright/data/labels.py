"""Label layers: the objects of a training sample as integer images, for augmentation and batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cellwright.core.ignored import ignored_region, resolve_ignored
from cellwright.core.instances import Instances
from cellwright.core.masks import concat


@dataclass(frozen=True)
class Labels:
    """The objects of one image, 0..N-1, as label layers.

    Attributes:
        layers: (L, H, W) int32 with L >= 1; 0 is background, and object k has the value k + 1 in exactly one layer. L
            is 1 unless objects overlap.
        layer_of: (N,) int64, the layer of each object.
        boxes: (N, 4) float32 tight x0, y0, x1, y1 in pixels, half open.
        class_ids: (N,) int64, 0..K-1; 0 for what is ignored.
        ignore: (N,) bool, what is not annotated: neither object nor background.
        areas: (N,) int64, number of pixels of each object in ``layers``, at least 1.
    """

    layers: np.ndarray
    layer_of: np.ndarray
    boxes: np.ndarray
    class_ids: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.layer_of)

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, in bytes."""
        arrays = (self.layers, self.layer_of, self.boxes, self.class_ids, self.ignore, self.areas)
        return sum(array.nbytes for array in arrays)

    @staticmethod
    def from_instances(instances: Instances, *, min_area_px: int = 1, max_area_px: int | None = None) -> Labels:
        """The label layers of ``instances``, without the objects outside the area limits (in pixels).

        What is not annotated (see `resolve_ignored`) is one object, the last, whatever its area; it covers no other
        object, and what is annotated in it has no influence. Without objects there is one layer of zeros, and N = 0.
        """
        resolved = resolve_ignored(instances)
        fits = filter_areas(resolved.masks.areas, min_area_px, max_area_px)
        chosen, region = resolved[fits & ~resolved.ignore], ignored_region(resolved)
        region = region[region.areas > 0]
        masks = concat([chosen.masks, region])
        layers, layer_of = masks.to_layers()
        return Labels(
            layers=np.ascontiguousarray(layers, dtype=np.int32),
            layer_of=layer_of.astype(np.int64),
            boxes=masks.boxes.astype(np.float32),
            class_ids=np.append(chosen.class_ids, np.zeros(len(region), np.int64)),
            ignore=np.arange(len(masks)) >= len(chosen),
            areas=masks.areas,
        )

    def counted_pixels(self) -> np.ndarray | None:
        """The pixels (H, W) bool that are annotated; None if all are."""
        if not self.ignore.any():
            return None
        ignored = np.concatenate([[False], self.ignore])
        return ~np.any([ignored[layer] for layer in self.layers], axis=0)


def filter_areas(areas: np.ndarray, min_area_px: int, max_area_px: int | None) -> np.ndarray:
    """Which areas (N,) are within the limits, in pixels: (N,) bool. None: no upper limit."""
    return (areas >= min_area_px) & (areas <= (np.inf if max_area_px is None else max_area_px))


def count_pixels(layers: np.ndarray, n_objects: int) -> np.ndarray:
    """Number of pixels (N,) int64 of each object in ``layers`` (L, H, W) int32, in one pass for all objects."""
    return np.bincount(layers.reshape(-1), minlength=n_objects + 1)[1:].astype(np.int64)


def tight_boxes(layers: np.ndarray, n_objects: int) -> np.ndarray:
    """Tight half-open boxes (N, 4) float32 of the objects in ``layers`` (L, H, W) int32; 0, 0, 0, 0 without a pixel.

    Each object must be in one layer only.
    """
    boxes = np.zeros((n_objects, 4), dtype=np.float32)
    for layer in layers:
        for index, slices in enumerate(ndimage.find_objects(layer, max_label=n_objects) if n_objects else []):
            if slices is not None:
                rows, columns = slices
                boxes[index] = columns.start, rows.start, columns.stop, rows.stop
    return boxes


def relabel(labels: Labels, layers: np.ndarray, keep: np.ndarray) -> Labels:
    """The objects of ``labels`` selected by ``keep``, as they are in ``layers``, renumbered from 1.

    Args:
        labels: the objects before the change.
        layers: (L, h, w) int32, a crop or warp of ``labels.layers``, of any size.
        keep: (N,) bool; objects without a pixel in ``layers`` are dropped too.

    Layers without objects are removed, but at least one layer remains.
    """
    n = len(labels)
    areas = count_pixels(layers, n)
    kept = np.flatnonzero(keep & (areas > 0))
    numbers = np.zeros(n + 1, dtype=np.int32)
    numbers[kept + 1] = np.arange(1, len(kept) + 1)
    used = np.unique(labels.layer_of[kept]) if len(kept) else np.zeros(1, dtype=np.int64)
    renumbered = np.take(numbers, layers[used])
    return Labels(
        layers=renumbered,
        layer_of=np.searchsorted(used, labels.layer_of[kept]).astype(np.int64),
        boxes=tight_boxes(renumbered, len(kept)),
        class_ids=labels.class_ids[kept],
        ignore=labels.ignore[kept],
        areas=areas[kept],
    )

"""Objects of one training sample as label layers: what the augmenter warps and the loader batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cellwright.core.instances import Instances


@dataclass(frozen=True)
class Labels:
    """Objects 0..N-1 of one image in raster form.

    Attributes:
        layers: (L, H, W) int32, L >= 1; 0 is background, object k has the value k + 1 in exactly one layer. L is 1
            unless objects overlap.
        layer_of: (N,) int64, the layer of each object.
        boxes: (N, 4) float32 tight x0, y0, x1, y1 in pixels, half open.
        class_ids: (N,) int64, 0..K-1.
        ignore: (N,) bool, crowd regions, which are no targets.
        areas: (N,) int64, pixels of each object in ``layers``, at least 1.
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
        """Memory of all arrays, bytes."""
        arrays = (self.layers, self.layer_of, self.boxes, self.class_ids, self.ignore, self.areas)
        return sum(array.nbytes for array in arrays)

    @staticmethod
    def from_instances(instances: Instances, *, min_area_px: int = 1, max_area_px: int | None = None) -> Labels:
        """The raster form of ``instances``; objects outside the area limits (pixels) are left out.

        Ignored regions stay whatever their area. An image without objects gives one layer of zeros and N = 0.
        """
        areas = instances.masks.areas
        fits = filter_areas(areas, min_area_px, max_area_px)
        chosen = instances[fits | (instances.ignore & (areas > 0))]
        layers, layer_of = chosen.masks.to_layers()
        return Labels(
            layers=np.ascontiguousarray(layers, dtype=np.int32),
            layer_of=layer_of.astype(np.int64),
            boxes=chosen.masks.boxes.astype(np.float32),
            class_ids=chosen.class_ids,
            ignore=chosen.ignore,
            areas=chosen.masks.areas,
        )


def filter_areas(areas: np.ndarray, min_area_px: int, max_area_px: int | None) -> np.ndarray:
    """(N,) bool: which (N,) areas lie within the limits, pixels; None: no upper limit."""
    return (areas >= min_area_px) & (areas <= (np.inf if max_area_px is None else max_area_px))


def count_pixels(layers: np.ndarray, n_objects: int) -> np.ndarray:
    """(N,) int64: pixels of each object in (L, H, W) int32 ``layers``, in one pass whatever N is."""
    return np.bincount(layers.reshape(-1), minlength=n_objects + 1)[1:].astype(np.int64)


def tight_boxes(layers: np.ndarray, n_objects: int) -> np.ndarray:
    """(N, 4) float32 half-open boxes of the objects in (L, H, W) int32 ``layers``; 0, 0, 0, 0 where one has no pixel.

    One pass over each layer: an object lies in one layer only.
    """
    boxes = np.zeros((n_objects, 4), dtype=np.float32)
    for layer in layers:
        for index, found in enumerate(ndimage.find_objects(layer, max_label=n_objects) if n_objects else []):
            if found is not None:
                rows, columns = found
                boxes[index] = columns.start, rows.start, columns.stop, rows.stop
    return boxes


def relabel(labels: Labels, layers: np.ndarray, keep: np.ndarray) -> Labels:
    """The objects of ``labels`` chosen by ``keep`` as they stand in ``layers``, numbered anew.

    Args:
        labels: the objects whose values ``layers`` holds.
        layers: (L, h, w) int32, a crop or warp of ``labels.layers``, of any size.
        keep: (N,) bool; a kept object without a pixel in ``layers`` is dropped too.

    Layers that hold no object any more are left out (one always stays).
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

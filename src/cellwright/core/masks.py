"""`MaskSet`: the binary masks of one image, stored as small crops: memory and time scale with the foreground."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cellwright.core import polygons, rle
from cellwright.core.errors import InputError
from cellwright.core.geometry import MAX_SIDE, overlapping_pairs
from cellwright.core.memory import check_memory
from cellwright.core.public import public
from cellwright.core.text import count

Index = np.ndarray | slice | Sequence[int]


@public
@dataclass(frozen=True, eq=False, repr=False)
class MaskSet:
    """N binary masks of one image, each stored as a crop of its tight box. N may be 0, and a mask may be empty.

    image_hw: (H, W) of the image.
    boxes: (N, 4) int32 ``x0, y0, x1, y1``, half open and tight; an empty mask has the box 0, 0, 0, 0.
    offsets: (N + 1,) int64; mask i is ``crops[offsets[i]:offsets[i + 1]]`` in C order over its box.
    crops: flat uint8 array of 0 and 1.

    Masks may overlap, have holes, and consist of several parts. Two sets are equal if their image sizes and pixels
    are equal. Use a constructor below, which makes the boxes tight; the class itself only checks that boxes, offsets
    and crops fit together, on which the compiled loops rely. Indexing with an index array, a bool array or a slice
    gives the chosen masks.

    >>> masks, ids = MaskSet.from_label_map(np.array([[0, 7, 7], [0, 0, 2]]))
    >>> masks, ids
    (MaskSet(2 masks, 2 x 3 px), array([2, 7]))
    >>> masks.areas, masks.boxes.tolist()
    (array([1, 2]), [[2, 1, 3, 2], [1, 0, 3, 1]])
    """

    image_hw: tuple[int, int]
    boxes: np.ndarray
    offsets: np.ndarray
    crops: np.ndarray

    def __post_init__(self) -> None:
        _check_layout(self.image_hw, self.boxes, self.offsets, self.crops)

    # --- constructors -------------------------------------------------------------------------------------------

    @staticmethod
    def empty(image_hw: tuple[int, int]) -> MaskSet:
        """A set without masks."""
        return MaskSet(_checked_hw(image_hw), np.zeros((0, 4), np.int32), np.zeros(1, np.int64), np.zeros(0, np.uint8))

    @staticmethod
    def from_flat(image_hw: tuple[int, int], boxes: np.ndarray, offsets: np.ndarray, crops: np.ndarray) -> MaskSet:
        """From boxes (N, 4) inside the image, offsets (N + 1,) and flat crops in which any nonzero is foreground.

        The boxes need not be tight. Raises `InputError` if a box extends beyond the image, or if the number of bytes
        does not match the boxes.
        """
        image_hw, boxes, offsets = _checked_hw(image_hw), _int_boxes(boxes), np.ascontiguousarray(offsets, np.int64)
        _check_layout(image_hw, boxes, offsets, crops)
        return MaskSet(image_hw, *_kernels().tighten(boxes, offsets, _bytes(crops)))

    @staticmethod
    def from_label_map(labels: np.ndarray) -> tuple[MaskSet, np.ndarray]:
        """From a label array (H, W) of integers, 0 for background: the masks, and their labels (N,) int64, ascending.

        Raises `InputError` for negative labels and for arrays of another shape or dtype.
        """
        dense, values = _compact(labels)
        boxes, counts = _kernels().label_extents(dense, values.size)
        present = np.flatnonzero(counts)
        boxes = boxes[present]
        offsets = _offsets(boxes)
        crops = _kernels().cut_labels(dense, present, boxes, offsets)
        return MaskSet(_checked_hw(labels.shape), boxes, offsets, crops), values[present - 1]

    @staticmethod
    def from_layers(layers: np.ndarray) -> tuple[MaskSet, np.ndarray]:
        """From label layers (L, H, W), each label in one layer only: the masks, and their labels, ascending."""
        if layers.ndim != 3:
            raise InputError("label layers need three axes", got=f"shape {layers.shape}", expected="(L, H, W)")
        parts = [MaskSet.from_label_map(layer) for layer in layers]
        ids = np.concatenate([ids for _, ids in parts]) if parts else np.zeros(0, np.int64)
        if np.unique(ids).size != ids.size:
            raise InputError("a label occurs in two layers", expected="each object in one layer")
        masks = concat([masks for masks, _ in parts]) if parts else MaskSet.empty(layers.shape[1:])
        order = np.argsort(ids, kind="stable")
        return masks[order], ids[order]

    @staticmethod
    def from_dense(masks: np.ndarray) -> MaskSet:
        """From dense masks (N, H, W), such as those of torchvision; any nonzero is foreground."""
        if masks.ndim != 3:
            raise InputError("dense masks need three axes", got=f"shape {masks.shape}", expected="(N, H, W)")
        height, width = masks.shape[1:]
        box = np.array([0, 0, width, height], np.int32)
        return (
            concat(
                [
                    MaskSet.from_flat((height, width), box[None], np.array([0, mask.size]), (mask != 0).ravel())
                    for mask in masks
                ]
            )
            if len(masks)
            else MaskSet.empty((height, width))
        )

    @staticmethod
    def from_crops(boxes: np.ndarray, crops: Sequence[np.ndarray], image_hw: tuple[int, int]) -> MaskSet:
        """From boxes (N, 4), not necessarily tight, and N 2-D crops of their sizes, in which any nonzero is foreground.

        Raises `InputError` if the numbers of boxes and crops or the sizes of a box and its crop differ.
        """
        boxes = _int_boxes(boxes)
        if len(boxes) != len(crops):
            raise InputError(
                "the numbers of boxes and crops differ", got=count(len(crops), "crop"), expected=len(boxes)
            )
        for k, (box, crop) in enumerate(zip(boxes, crops, strict=True)):
            if crop.shape != (box[3] - box[1], box[2] - box[0]):
                raise InputError(
                    "a crop and its box differ in size",
                    where=f"object {k}",
                    got=crop.shape,
                    expected=f"box {box.tolist()}",
                )
        flat = np.concatenate([(crop != 0).ravel() for crop in crops]) if len(crops) else np.zeros(0, bool)
        return MaskSet.from_flat(image_hw, boxes, _offsets(boxes), flat)

    @staticmethod
    def from_rle(objects: Sequence[dict[str, Any]], image_hw: tuple[int, int]) -> MaskSet:
        """From COCO RLE dictionaries ``{"size": [h, w], "counts": compressed str | bytes | uncompressed list}``.

        Raises a `FormatError` that names the object whose size or counts are invalid.
        """
        return MaskSet(image_hw := _checked_hw(image_hw), *rle.decode(objects, image_hw))

    @staticmethod
    def from_counts(objects: Sequence[np.ndarray], image_hw: tuple[int, int]) -> MaskSet:
        """From run lengths (R,) int64 of each object along the columns, background first: uncompressed COCO counts."""
        return MaskSet(image_hw := _checked_hw(image_hw), *rle.decode_counts(objects, image_hw))

    @staticmethod
    def from_polygons(
        objects: Sequence[polygons.MultiPolygon], image_hw: tuple[int, int], *, like_imagej: bool = False
    ) -> MaskSet:
        """From polygons with holes: an object is a list of polygons, a polygon is ``[exterior, *holes]``, rings (n, 2).

        Vertices are x, y in pixels, and (0, 0) is the top left corner of the image. Pixel (x, y) is foreground if its
        centre (x + .5, y + .5) is inside by the even-odd rule, the exact inverse of `to_polygons`. A centre on a left
        or top edge is inside, one on a right or bottom edge outside; with ``like_imagej`` the other way round. Parts
        outside the image are cut off. Raises a `FormatError` that names the object with an invalid ring.
        """
        image_hw = _checked_hw(image_hw)
        return MaskSet.from_flat(image_hw, *polygons.fill_objects(objects, image_hw, like_imagej=like_imagej))

    @staticmethod
    def from_coco_polygons(objects: Sequence[Sequence[Sequence[float]]], image_hw: tuple[int, int]) -> MaskSet:
        """From COCO polygons: an object is a list of parts ``[x, y, x, y, ...]``, rasterised as pycocotools does."""
        image_hw = _checked_hw(image_hw)
        return MaskSet.from_rle(rle.coco_polygon_runs(objects, image_hw), image_hw)

    # --- conversions --------------------------------------------------------------------------------------------

    def to_label_map(self, ids: np.ndarray | None = None) -> np.ndarray:
        """Label array (H, W) uint32 with the values ``ids`` (N,), by default 1..N; 0 is background.

        Where masks overlap, the first in order is on top. Raises `InputError` for ids that are not positive or do not
        fit uint32.
        """
        values = np.arange(1, len(self) + 1) if ids is None else self._checked_ids(ids)
        _check_largest(values, np.uint32)
        canvas = _canvas(self.image_hw, np.uint32)
        _kernels().paint(canvas, values.astype(np.uint32), self.boxes, self.offsets, self.crops)
        return canvas

    def to_layers(self, ids: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Label layers (L, H, W) int32, and the layer (N,) of each object; L = 1 unless masks overlap."""
        values = np.arange(1, len(self) + 1) if ids is None else self._checked_ids(ids)
        i, j, _ = self.intersections(self)
        layer_of = _kernels().first_fit_layers(len(self), i, j)
        _check_largest(values, np.int32)
        canvas = _canvas((int(layer_of.max(initial=0)) + 1, *self.image_hw), np.int32)
        _kernels().paint_layers(canvas, layer_of, values.astype(np.int32), self.boxes, self.offsets, self.crops)
        return canvas, layer_of

    def to_rle(self) -> list[dict[str, Any]]:
        """Compressed COCO RLE, with ``counts`` as str for JSON."""
        return rle.encode(self.image_hw, self.boxes, self.offsets, self.crops)

    def to_rle_counts(self) -> list[list[int]]:
        """Uncompressed COCO counts of each object: run lengths along the columns, background first."""
        return rle.encode_counts(self.image_hw, self.boxes, self.offsets, self.crops)

    def to_polygons(self) -> list[polygons.MultiPolygon]:
        """Outlines along pixel edges: an object is a list of polygons ``[exterior, *holes]``, rings (n, 2) int32 x, y.

        There is one polygon per 4-connected part. Rings are open (the first vertex is not repeated), valid in shapely,
        and enclose exactly the pixels of the mask. An empty mask gives an empty list.
        """
        return [polygons.trace_crop(self.crop(i), self.boxes[i]) for i in range(len(self))]

    def to_dense(self) -> np.ndarray:
        """Dense masks (N, H, W) bool. They take N times the memory of the image; cellwright itself never needs them."""
        dense = _canvas((len(self), *self.image_hw), np.bool_)
        for i, (x0, y0, x1, y1) in enumerate(self.boxes):
            dense[i, y0:y1, x0:x1] = self.crop(i)
        return dense

    def foreground(self) -> np.ndarray:
        """The union of all masks, (H, W) bool."""
        canvas = _canvas(self.image_hw, np.uint8)
        _kernels().paint(canvas, np.ones(len(self), np.uint8), self.boxes, self.offsets, self.crops)
        return canvas.view(bool)

    def pack(self) -> np.ndarray:
        """The crops as packed bits (uint8), for storage; `unpack` is the inverse."""
        return np.packbits(self.crops)

    @staticmethod
    def unpack(image_hw: tuple[int, int], boxes: np.ndarray, packed: np.ndarray) -> MaskSet:
        """From tight boxes (N, 4) and the packed bits of their crops."""
        offsets = _offsets(boxes := _int_boxes(boxes))
        return MaskSet.from_flat(image_hw, boxes, offsets, np.unpackbits(packed, count=int(offsets[-1])))

    # --- access -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Index) -> MaskSet:
        chosen = np.arange(len(self))[index if isinstance(index, slice) else np.asarray(index, _index_dtype(index))]
        return MaskSet(self.image_hw, *_kernels().take(np.atleast_1d(chosen), self.boxes, self.offsets, self.crops))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MaskSet):
            return NotImplemented
        same_place = self.image_hw == other.image_hw and np.array_equal(self.boxes, other.boxes)
        return same_place and np.array_equal(self.crops, other.crops)

    __hash__ = None  # type: ignore[assignment]

    def crop(self, i: int) -> np.ndarray:
        """Mask i within its box, (h, w) uint8 of 0 and 1; a view."""
        x0, y0, x1, y1 = self.boxes[i]
        return self.crops[self.offsets[i] : self.offsets[i + 1]].reshape(y1 - y0, x1 - x0)

    def __repr__(self) -> str:
        return f"MaskSet({count(len(self), 'mask')}, {self.image_hw[0]} x {self.image_hw[1]} px)"

    # --- set operations -----------------------------------------------------------------------------------------

    @property
    def areas(self) -> np.ndarray:
        """Number of pixels (N,) int64 of each mask."""
        return _kernels().crop_sums(self.offsets, self.crops)

    @property
    def touches_border(self) -> np.ndarray:
        """Which masks (N,) bool have a pixel at the border of the image; empty masks do not."""
        height, width = self.image_hw
        x0, y0, x1, y1 = self.boxes.T
        return (x1 > x0) & ((x0 == 0) | (y0 == 0) | (x1 == width) | (y1 == height))

    def intersections(self, other: MaskSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs (i, j) of masks that share pixels, and the number of shared pixels: three arrays (P,) int64.

        Sorted by (i, j). Only masks whose boxes overlap are compared. ``masks.intersections(masks)`` includes each mask
        with itself and each pair in both orders.
        """
        if self.image_hw != other.image_hw:
            raise InputError("the masks are for images of different sizes", got=other.image_hw, expected=self.image_hw)
        i, j = overlapping_pairs(self.boxes, other.boxes)
        areas = _kernels().pair_areas(
            i, j, self.boxes, self.offsets, self.crops, other.boxes, other.offsets, other.crops
        )
        shared = areas > 0
        return i[shared], j[shared], areas[shared]

    def iou(self, other: MaskSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs (i, j) int64 of masks that share pixels, and their intersection over union (P,) float64."""
        i, j, inter = self.intersections(other)
        return i, j, inter / (self.areas[i] + other.areas[j] - inter)

    def iom(self, other: MaskSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs (i, j) int64 of masks that share pixels, and their intersection over the smaller area (P,) float64."""
        i, j, inter = self.intersections(other)
        return i, j, inter / np.minimum(self.areas[i], other.areas[j])

    def union(self, groups: np.ndarray) -> MaskSet:
        """The union of the masks of each group: one mask per distinct value of ``groups`` (N,), ascending."""
        values, group = np.unique(groups, return_inverse=True)
        if group.shape != (len(self),):
            raise InputError("each mask needs one group", got=count(group.size, "group"), expected=len(self))
        boxes = _united_boxes(group, values.size, self.boxes)
        offsets = _offsets(boxes)
        check_memory(float(offsets[-1]), "the union of these masks")
        crops = _kernels().unite(group.astype(np.int64), boxes, offsets, self.boxes, self.offsets, self.crops)
        return MaskSet(self.image_hw, boxes, offsets, crops)

    # --- geometry -----------------------------------------------------------------------------------------------

    def window(self, y0: int, x0: int, y1: int, x1: int) -> MaskSet:
        """The masks cropped to a window, as masks of an image of that size. N stays: a mask outside becomes empty."""
        window_hw = _checked_hw((y1 - y0, x1 - x0))
        cut = _kernels().cut_window(x0, y0, x1, y1, self.boxes, self.offsets, self.crops)
        return MaskSet(window_hw, *_kernels().tighten(*cut))

    def shift(self, dy: int, dx: int, image_hw: tuple[int, int]) -> MaskSet:
        """The masks moved down by dy and right by dx in an image of size ``image_hw``; parts outside are cut off."""
        return self.window(-dy, -dx, image_hw[0] - dy, image_hw[1] - dx)

    def flip(self, axis: Literal["horizontal", "vertical"]) -> MaskSet:
        """The masks mirrored: "horizontal" swaps left and right, "vertical" swaps top and bottom."""
        return self._dihedral(False, axis == "vertical", axis == "horizontal")

    def rot90(self, k: int) -> MaskSet:
        """The masks rotated by k times 90 degrees counter-clockwise, as ``np.rot90`` rotates the image."""
        return self._dihedral(
            *((False, False, False), (True, True, False), (False, True, True), (True, False, True))[k % 4]
        )

    def resize(self, image_hw: tuple[int, int]) -> MaskSet:
        """The masks resized by nearest-neighbour sampling at pixel centres. Small masks may become empty."""
        (old_h, old_w), (new_h, new_w) = self.image_hw, _checked_hw(image_hw)
        check_memory(self.crops.size * (new_h / old_h) * (new_w / old_w), "the resized masks")
        parts = _kernels().resize_nearest(old_h, old_w, new_h, new_w, self.boxes, self.offsets, self.crops)
        return MaskSet((new_h, new_w), *_kernels().tighten(*parts))

    def _dihedral(self, transpose: bool, flip_y: bool, flip_x: bool) -> MaskSet:
        flat = _kernels().dihedral(transpose, flip_y, flip_x, self.boxes, self.offsets, self.crops)
        boxes, (height, width) = self.boxes, self.image_hw
        if transpose:
            boxes, (height, width) = boxes[:, [1, 0, 3, 2]], (width, height)
        filled = boxes[:, 2:3] > boxes[:, :1]
        if flip_y:
            boxes = np.where(
                filled, np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], 1), 0
            )
        if flip_x:
            boxes = np.where(
                filled, np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1), 0
            )
        return MaskSet((height, width), np.ascontiguousarray(boxes, np.int32), self.offsets, flat)

    def _checked_ids(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        if ids.shape != (len(self),) or (len(ids) and ids.min() <= 0):
            raise InputError(
                "each mask needs one positive id",
                got=f"{count(ids.size, 'id')}, lowest {ids.min(initial=1)}",
                expected=f"{count(len(self), 'id')} above 0",
            )
        return ids


@public
@dataclass(frozen=True, eq=False, repr=False)
class SoftMasks:
    """N probability masks of one image, stored like a `MaskSet`; the boxes need not be tight.

    probs: flat uint8 array of probabilities, 0 to 255 for 0 to 1. Test-time augmentation and fusion average them before
    the threshold is applied.

    >>> soft = SoftMasks((2, 3), np.array([[0, 0, 3, 1]]), np.array([0, 3]), np.array([100, 130, 255], np.uint8))
    >>> soft, soft.threshold(0.5).areas
    (SoftMasks(1 mask, 2 x 3 px), array([2]))
    """

    image_hw: tuple[int, int]
    boxes: np.ndarray
    offsets: np.ndarray
    probs: np.ndarray

    def __post_init__(self) -> None:
        _check_layout(self.image_hw, self.boxes, self.offsets, self.probs)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Index) -> SoftMasks:
        chosen = np.arange(len(self))[index if isinstance(index, slice) else np.asarray(index, _index_dtype(index))]
        return SoftMasks(self.image_hw, *_kernels().take(np.atleast_1d(chosen), self.boxes, self.offsets, self.probs))

    def crop(self, i: int) -> np.ndarray:
        """Mask i within its box, (h, w) uint8; a view."""
        x0, y0, x1, y1 = self.boxes[i]
        return self.probs[self.offsets[i] : self.offsets[i + 1]].reshape(y1 - y0, x1 - x0)

    def threshold(self, probability: float = 0.5) -> MaskSet:
        """The pixels of at least this probability, as a `MaskSet`."""
        return MaskSet.from_flat(self.image_hw, self.boxes, self.offsets, self.probs >= probability * 255)

    def __repr__(self) -> str:
        return f"SoftMasks({count(len(self), 'mask')}, {self.image_hw[0]} x {self.image_hw[1]} px)"


def label_extents(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The labels (N,) int64 of a label array, ascending, their boxes (N, 4) int32 and numbers of pixels (N,) int64.

    What `MaskSet.from_label_map` gives, without the masks. Raises `InputError` as it does.

    >>> label_extents(np.array([[0, 7, 7], [0, 0, 2]]))
    (array([2, 7]), array([[2, 1, 3, 2],
           [1, 0, 3, 1]], dtype=int32), array([1, 2]))
    """
    dense, values = _compact(labels)
    boxes, counts = _kernels().label_extents(dense, values.size)
    present = np.flatnonzero(counts)
    return values[present - 1], boxes[present], counts[present]


def join_extents(
    parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `label_extents`, of all parts of an image, whose boxes are those in the whole image."""
    if not parts:
        return np.zeros(0, np.int64), np.zeros((0, 4), np.int32), np.zeros(0, np.int64)
    labels, boxes, counts = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    values, group = np.unique(labels, return_inverse=True)
    sums = np.zeros(values.size, np.int64)
    np.add.at(sums, group, counts)
    return values, _united_boxes(group, values.size, boxes), sums


def concat(parts: Sequence[MaskSet]) -> MaskSet:
    """All masks of several sets of the same image, in order. Raises `InputError` if the image sizes differ."""
    sizes = {part.image_hw for part in parts}
    if len(sizes) != 1:
        raise InputError(
            "masks of images of different sizes cannot be concatenated", got=sorted(sizes), expected="one size"
        )
    starts = np.cumsum([0] + [part.crops.size for part in parts[:-1]])
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=True)]
    offsets.append(np.array([sum(part.crops.size for part in parts)], np.int64))
    boxes, crops = np.concatenate([part.boxes for part in parts]), np.concatenate([part.crops for part in parts])
    return MaskSet(parts[0].image_hw, boxes, np.concatenate(offsets), crops)


def _kernels() -> Any:
    from cellwright.core import _kernels

    return _kernels


def _checked_hw(image_hw: Sequence[int]) -> tuple[int, int]:
    height, width = int(image_hw[0]), int(image_hw[1])
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        expected = f"height and width of 1 to {MAX_SIDE}"
        raise InputError("invalid image size", got=f"{height} x {width}", expected=expected)
    return height, width


def _int_boxes(boxes: np.ndarray) -> np.ndarray:
    boxes = np.asarray(boxes).reshape(-1, 4)
    far = ~((boxes >= -MAX_SIDE) & (boxes <= MAX_SIDE)).all(1)
    if far.any():
        k = int(np.flatnonzero(far)[0])
        expected = f"whole pixels, at most {MAX_SIDE}"
        raise InputError("a box is out of range", where=f"object {k}", got=boxes[k].tolist(), expected=expected)
    return np.ascontiguousarray(boxes, np.int32)


def _check_layout(image_hw: tuple[int, int], boxes: np.ndarray, offsets: np.ndarray, flat: np.ndarray) -> None:
    """`InputError` unless the boxes lie in the image, and offsets and flat data have the sizes of the boxes.

    The compiled loops read and write where these say, without looking at the ends of the arrays.
    """
    height, width = image_hw
    sides = boxes[:, 2:].astype(np.int64) - boxes[:, :2]
    outside = (boxes[:, :2] < 0).any(1) | (boxes[:, 2] > width) | (boxes[:, 3] > height) | (sides < 0).any(1)
    if outside.any():
        k = int(np.flatnonzero(outside)[0])
        raise InputError(
            "a mask extends beyond its image",
            where=f"object {k}",
            got=f"box {boxes[k].tolist()}",
            expected=f"inside {width} x {height} (width x height)",
        )
    fits = offsets.shape == (len(boxes) + 1,) and offsets[0] == 0 and flat.shape == (offsets[-1],)
    if not fits or not np.array_equal(np.diff(offsets), sides[:, 0] * sides[:, 1]):
        raise InputError(
            "the size of the mask data does not match the boxes",
            got=count(flat.size, "byte"),
            expected=count(int(sides.prod(1).sum()), "byte"),
        )


def _check_largest(ids: np.ndarray, dtype: type[np.integer]) -> None:
    largest = np.iinfo(dtype).max
    if len(ids) and ids.max() > largest:
        raise InputError(
            "an object id is too large for a label array",
            got=int(ids.max()),
            expected=f"at most {largest} ({dtype.__name__})",
            remedy="number the objects from 1",
        )


def _canvas(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """An array of zeros; `InputError` if it needs more memory than there is."""
    check_memory(math.prod(shape) * np.dtype(dtype).itemsize, "an array of the size of this image")
    return np.zeros(shape, dtype)


def _united_boxes(group: np.ndarray, n_groups: int, boxes: np.ndarray) -> np.ndarray:
    """The box (G, 4) int32 around the boxes of each group."""
    filled = boxes[:, 2] > boxes[:, 0]
    low, high = np.full((n_groups, 2), MAX_SIDE, np.int32), np.zeros((n_groups, 2), np.int32)
    np.minimum.at(low, group[filled], boxes[filled, :2])
    np.maximum.at(high, group[filled], boxes[filled, 2:])
    return np.concatenate([np.minimum(low, high), high], axis=1)


def _offsets(boxes: np.ndarray) -> np.ndarray:
    sides = boxes[:, 2:].astype(np.int64) - boxes[:, :2]
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sides.prod(1))])


def _bytes(flat: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(flat if flat.dtype == np.uint8 else (flat != 0).astype(np.uint8))


def _index_dtype(index: Any) -> Any:
    return bool if np.asarray(index).dtype == bool else np.int64


def _compact(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels renumbered to 1..K as contiguous (H, W) int32, and the original labels (K,) int64."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise InputError(
            "this is not a label array",
            got=f"shape {labels.shape}, {labels.dtype}",
            expected="an (H, W) array of integers, 0 for background",
        )
    largest, smallest = (int(labels.max()), int(labels.min())) if labels.size else (0, 0)
    if smallest < 0:
        raise InputError("labels must not be negative", got=smallest, expected="0 for background, positive object ids")
    # A table with one entry of 24 bytes per possible label is cheap.
    if largest <= min(labels.size // 8 + 65_536, 2**31 - 1):
        return np.ascontiguousarray(labels, np.int32), np.arange(1, largest + 1)
    # Labels have long runs, so only the first pixel of each is looked up.
    flat = labels.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    values, index = np.unique(flat[starts], return_inverse=True)
    dense = np.repeat((index + (values[0] != 0)).astype(np.int32), np.diff(starts, append=flat.size))
    return dense.reshape(labels.shape), values[values > 0].astype(np.int64)

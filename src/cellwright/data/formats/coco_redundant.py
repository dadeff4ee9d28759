"""Fields of COCO annotations that repeat what the outline says (``bbox``, ``area``), and their ids.

Outlines are what is read, so a ``bbox`` of another convention or scale would go unnoticed, and so would ids that cannot
be kept. `Redundant` compares them while a file is indexed, in batches, and `Redundant.notes` says what differs.
Tolerances cover the usual conventions: corners or centres of pixels, ``x2 - x1`` with and without 1, areas of polygons
and of their pixels, and boxes drawn by hand.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core import rle
from cellwright.core.coco import MAX_INTEGER, whole
from cellwright.core.errors import FormatError
from cellwright.core.notes import Note
from cellwright.core.text import count

# An edge of a box may differ by this many pixels plus this share of the side of the outline.
_EDGE_PX, _EDGE_SHARE = 2.0, 0.25
# An area may differ by this share plus the sum of the sides of the outline in pixels.
_AREA_SHARE = 0.2
# How many of the boxes that differ must fit another reading for the note to name it.
_MOST = 0.9
# Boxes and areas of the first annotations are compared, then those of every n-th: files are usually wrong throughout.
_ALL, _EVERY = 4096, 16
_BATCH, _BATCH_BYTES = 512, 1 << 21
_NO_BOX, _NO_ID = [None] * 4, 1 - MAX_INTEGER


class Redundant:
    """Compares ``bbox`` and ``area`` of the annotations of a file with their outlines, and collects their ids."""

    def __init__(self) -> None:
        self._batch: list[tuple[int, dict[str, Any], list[Any] | None]] = []
        self._n_bytes = self._n_boxes = self._n_areas = 0
        self._ids = array("q")
        self._boxes: list[np.ndarray] = []  # (n, 9): position, outline xyxy, bbox, of those that differ
        self._areas: list[np.ndarray] = []  # (n, 7): position, outline xyxy, its area, the recorded one

    def add(self, annotation: dict[str, Any], parts: list[Any] | None, n_bytes: int) -> None:
        """Add the next annotation of the file, of this length. parts: its polygons (see `polygon_parts`), or None."""
        at, number = len(self._ids), annotation.get("object_id") or annotation.get("id")
        if type(number) is not int:
            number = _NO_ID if number is None else whole(number) or 0
        self._ids.append(number if abs(number) < MAX_INTEGER else 0)
        if at < _ALL or at % _EVERY == 0:
            self._batch.append((at, annotation, parts))
            self._n_bytes += n_bytes
            if len(self._batch) == _BATCH or self._n_bytes > _BATCH_BYTES:
                self._compare()

    def notes(
        self,
        path: Path,
        image_of: np.ndarray,
        images: Sequence[dict[str, Any]],
        kept: np.ndarray,
        *,
        scored: bool,
    ) -> list[Note]:
        """At most one note each about boxes, areas and ids that differ.

        image_of: (A,) the position in ``images`` of the image of each annotation. kept: (A,) bool, which are read.
        scored: for predictions only boxes are compared, and only a difference of most of them counts, since a network
        may predict boxes and masks that differ.
        """
        self._compare()
        found = [self._box_note(path, image_of, images, scored=scored)]
        if not scored:
            found += [self._area_note(path, image_of, images), self._id_note(path, image_of, images, kept)]
        return [note for note in found if note is not None]

    def _compare(self) -> None:
        """Compare the annotations of the batch; what cannot be decoded is refused when its image is read."""
        with np.errstate(invalid="ignore", over="ignore"):  # of infinite numbers
            self._compare_batch()

    def _compare_batch(self) -> None:
        batch, self._batch, self._n_bytes = self._batch, [], 0
        drawn = [(at, annotation) for at, annotation, parts in batch if parts]
        if drawn:
            self._compare_with(drawn, _of_polygons([parts for *_, parts in batch if parts]))
        by_size: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for at, annotation, _ in batch:
            runs = annotation.get("segmentation")
            if isinstance(runs, dict):
                by_size.setdefault(str(runs.get("size")), []).append((at, annotation))
        for of_size in by_size.values():
            self._compare_with(of_size, _of_runs([annotation["segmentation"] for _, annotation in of_size]))

    def _compare_with(
        self, batch: Sequence[tuple[int, dict[str, Any]]], outlines: tuple[np.ndarray, np.ndarray] | None
    ) -> None:
        if outlines is None:
            return
        tight, areas = outlines
        at = np.array([k for k, _ in batch])
        boxes = _numbers([annotation.get("bbox") or _NO_BOX for _, annotation in batch], (len(batch), 4))
        recorded = _numbers([annotation.get("area") for _, annotation in batch], (len(batch),))
        visible = (tight[:, 2] > tight[:, 0]) & (tight[:, 3] > tight[:, 1])
        known = visible & np.isfinite(boxes).all(axis=1)
        self._n_boxes += int(known.sum())
        differs = known & _differ(tight, _corners(boxes))
        if differs.any():
            self._boxes.append(np.column_stack([at, tight, boxes])[differs])
        known = visible & np.isfinite(recorded)
        self._n_areas += int(known.sum())
        tolerance = _AREA_SHARE * areas + (tight[:, 2:] - tight[:, :2]).sum(axis=1)
        differs = known & (np.abs(recorded - areas) > tolerance)
        if differs.any():
            self._areas.append(np.column_stack([at, tight, areas, recorded])[differs])

    def _box_note(
        self, path: Path, image_of: np.ndarray, images: Sequence[dict[str, Any]], *, scored: bool
    ) -> Note | None:
        rows = np.concatenate(self._boxes) if self._boxes else np.zeros((0, 9))
        hw = _sizes(image_of, images, rows[:, 0])
        tight, boxes = rows[:, 1:5], rows[:, 5:]
        # A part outside the image is not visible: a box that was cut at the border does not differ.
        still = _differ(_cut(tight, hw), _cut(_corners(boxes), hw))
        tight, boxes, hw, rows = tight[still], boxes[still], hw[still], rows[still]
        if not len(rows) or (scored and 2 * len(rows) <= self._n_boxes):
            return None
        sides = np.column_stack([hw[:, ::-1], hw[:, ::-1]])
        readings = {
            "x1, y1, x2, y2": boxes,
            "centre x, centre y, width, height": _corners(boxes) - np.column_stack([boxes[:, 2:], boxes[:, 2:]]) / 2,
            "x, y, width, height in parts of the image": _corners(boxes * sides),
        }
        fits = [name for name, read in readings.items() if (~_differ(tight, read)).mean() >= _MOST]
        expected = np.column_stack([tight[:, :2], tight[:, 2:] - tight[:, :2]])
        text = (
            f"the bbox of {len(rows)} of {count(self._n_boxes, 'object')} compared differs from the box of the outline,"
            f" for example {_place(rows[0, 0], self._ids, image_of, images)}: got {_shown(boxes[0])}, expected "
            f"{_shown(expected[0])} (x, y, width, height)"
            + (f"; they fit {fits[0]}" if fits else "")
            + ". The outlines are used; only the AP of boxes uses bbox"
        )
        return Note("bbox differs from the outline", text, path.name)

    def _area_note(self, path: Path, image_of: np.ndarray, images: Sequence[dict[str, Any]]) -> Note | None:
        rows = np.concatenate(self._areas) if self._areas else np.zeros((0, 7))
        hw = _sizes(image_of, images, rows[:, 0])
        # The area of a polygon that leaves the image may be that of its visible part.
        rows = rows[(np.abs(_cut(rows[:, 1:5], hw) - rows[:, 1:5]) <= _EDGE_PX).all(axis=1)]
        if not len(rows):
            return None
        text = (
            f"the area of {len(rows)} of {count(self._n_areas, 'object')} compared differs from that of the outline, "
            f"for example {_place(rows[0, 0], self._ids, image_of, images)}: got {_shown(rows[0, 6:])}, expected "
            f"{_shown(rows[0, 5:6])} px. Measurements use the outlines; only the size ranges of COCO's AP use area"
        )
        return Note("area differs from the outline", text, path.name)

    def _id_note(
        self, path: Path, image_of: np.ndarray, images: Sequence[dict[str, Any]], kept: np.ndarray
    ) -> Note | None:
        positions = np.flatnonzero(kept)
        ids, of_image = np.array(self._ids, np.int64)[positions], image_of[positions]
        order = np.lexsort((ids, of_image))
        same = (np.diff(ids[order]) == 0) & (np.diff(of_image[order]) == 0)
        unusable = (ids <= 0) & (ids != _NO_ID)
        unusable[order[1:][same]] |= ids[order[1:][same]] > 0
        if not unusable.any():
            return None
        first = int(positions[unusable][0])
        image = images[image_of[first]]
        n_images = np.unique(of_image[unusable]).size
        problem = "occurs twice" if self._ids[first] > 0 else "is not a positive whole number"
        example = f"id {self._ids[first]}" if self._ids[first] > 0 else f"that of annotation {first + 1}"
        text = (
            f"{count(int(unusable.sum()), 'annotation id')} cannot be kept, for example {example} of image "
            f"{image.get('file_name', image['id'])}, which {problem}: the objects of "
            f"{count(n_images, 'image')} are numbered 1, 2, 3, ... instead"
        )
        return Note("annotation ids were replaced by 1, 2, 3, ...", text, path.name)


def _of_polygons(objects: Sequence[list[Any]]) -> tuple[np.ndarray, np.ndarray] | None:
    """Boxes (N, 4) and areas (N,) of polygons: extremes of their vertices, and the sum over the parts."""
    parts = list(chain.from_iterable(objects))
    try:
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        flat = np.fromiter(chain.from_iterable(parts), np.float64, int(lengths.sum()))
    except (TypeError, ValueError, OverflowError):
        return None
    if (lengths % 2).any():
        return None
    lengths //= 2
    x, y = flat[::2], flat[1::2]
    part_starts = np.cumsum(lengths) - lengths
    following = np.arange(1, x.size + 1)
    following[part_starts + lengths - 1] = part_starts
    part_areas = np.abs(np.add.reduceat(x * y[following] - x[following] * y, part_starts)) / 2
    n_parts = np.fromiter(map(len, objects), np.int64, len(objects))
    first = np.cumsum(n_parts) - n_parts
    starts = part_starts[first]
    extremes = [f.reduceat(v, starts) for f, v in ((np.minimum, x), (np.minimum, y), (np.maximum, x), (np.maximum, y))]
    return np.column_stack(extremes), np.add.reduceat(part_areas, first)


def _of_runs(objects: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray] | None:
    """Boxes (N, 4) and areas (N,) of the pixels of RLE of one size."""
    size = objects[0].get("size")
    if not isinstance(size, list) or list(map(type, size)) != [int, int] or min(size) <= 0:
        return None
    try:
        boxes, areas = rle.extents(objects, (size[0], size[1]))
    except (FormatError, KeyError, TypeError, ValueError, OverflowError):
        return None
    return boxes.astype(np.float64), areas.astype(np.float64)


def _numbers(values: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """The values as float64, None as NaN; NaN throughout if they are not numbers of this shape."""
    try:
        numbers = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.zeros(0)
    return numbers if numbers.shape == shape else np.full(shape, np.nan)


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.column_stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def _differ(tight: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    sides = tight[:, 2:] - tight[:, :2]
    tolerance = _EDGE_PX + _EDGE_SHARE * np.column_stack([sides, sides])
    return np.any(~(np.abs(tight - boxes) <= tolerance), axis=1)


def _cut(boxes: np.ndarray, hw: np.ndarray) -> np.ndarray:
    limits = np.column_stack([hw[:, ::-1], hw[:, ::-1]])
    return np.minimum(np.maximum(boxes, 0), limits)


def _sizes(image_of: np.ndarray, images: Sequence[dict[str, Any]], at: np.ndarray) -> np.ndarray:
    """Height and width (n, 2) of the images of these annotations; infinite where the file has none."""
    sizes = [(image.get("height"), image.get("width")) for image in images]
    known = np.array([hw if None not in hw else (np.inf, np.inf) for hw in sizes], np.float64).reshape(-1, 2)
    return known[image_of[at.astype(np.int64)]]


def _place(at: float, ids: array[int], image_of: np.ndarray, images: Sequence[dict[str, Any]]) -> str:
    k = int(at)
    image = images[image_of[k]]
    name = f"annotation id {ids[k]}" if ids[k] > 0 else f"annotation {k + 1}"
    return f"{name} of image {image.get('file_name', image['id'])}"


def _shown(values: np.ndarray) -> str:
    return ", ".join(f"{value:.5g}" for value in values)

"""labelme: one ``x.json`` next to each image ``x.png``, with outlines as shapes.

| shape | read as |
|---|---|
| polygon, circle, rotation, mask | an object; pixels whose centre is inside belong to it |
| several with one label and one group_id | one object in several parts |
| rectangle | skipped with a count, as a box is no outline; refused if there is nothing else |
| point, line, linestrip and others | skipped with a count |

The label is the class. As in labelme's own converters, ``__ignore__`` makes a region that does not count in evaluation,
and ``_background_`` is no object.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError
from cellwright.core.files import first_bytes, plain_suffix, read_json, stem_of
from cellwright.core.geometry import MAX_SIDE
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.contract import Format, ReadOptions
from cellwright.data.formats.outlines import check_outlines, checked_ring, without_empty
from cellwright.data.formats.paths import (
    AnnotatedImage,
    ImageFinder,
    annotation_files,
    first_files,
    root_of,
    split_ids,
)
from cellwright.data.images.raster import decode_png

IGNORED = "__ignore__"
BACKGROUND = "_background_"
_OUTLINES = ("polygon", "rotation", "circle", "mask")
_CIRCLE_VERTICES = 64
_MASK_PX = 2  # programs count the last pixel of a box or do not
_TAIL_BYTES = 1 << 12
_SNIFFED_FILES = 20


class LabelMe(Format):
    name = "labelme"
    description = "labelme JSON, one per image: polygons, circles and masks; labels are classes"

    def sniff(self, path: Path) -> bool:
        """Whether there is a labelme file: a JSON object with ``shapes``, and ``imagePath`` or ``imageHeight``."""
        jsons = [file for file in first_files(path) if plain_suffix(file) == ".json"]
        return any(is_labelme(file) for file in jsons[:_SNIFFED_FILES])

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Every labelme file at or below ``path``. Ids are 1..N in the order of the shapes."""
        root, files = root_of(path), annotation_files(path, is_labelme, "labelme files")
        finder, images, labels = ImageFinder(options, root), [], Counter[str]()
        passed: Counter[str] = Counter()
        for file in options.track(files, "reading shapes", len(files)):
            content = read_shapes(file)
            labels.update(item.label for item in content.objects if item.label != IGNORED)
            passed.update(content.passed)
            images.append(_image_of(file, content, finder))
        _check_outlines(labels, passed, path)
        names = options.select_classes(sorted(labels), path)
        relative = [(file.relative_to(root).parent / stem_of(file)).as_posix() for file in files]
        samples = []
        for file, image, (sample_id, split) in zip(files, images, split_ids(relative, root.name), strict=True):
            load, size_um = LoadShapes(file, image.image_hw, names), image.pixel_size_um
            samples.append(Sample(sample_id, image.path, image.image_hw, load, None, split, None, size_um, self.name))
        notes = (*finder.notes, *_passed_notes(passed))
        return Dataset(tuple(samples), names, root, info={"format": self.name}, notes=notes)


def is_labelme(path: Path) -> bool:
    """Whether a file looks like one of labelme. Never raises."""
    if plain_suffix(path) != ".json":
        return False
    start = first_bytes(path, _TAIL_BYTES)
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"{" or b'"annotations"' in start:
        return False
    both = start + _last_bytes(path)
    return b'"shapes"' in both and any(word in both for word in (b'"imagePath"', b'"imageHeight"', b'"imageData"'))


def _last_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read()
    except OSError:
        return b""


def _check_outlines(labels: Counter[str], passed: Counter[str], path: Path) -> None:
    if passed["rectangle"] and not labels:
        raise FormatError(
            "these annotations are boxes without outlines",
            where=path,
            got=count(passed["rectangle"], "rectangle"),
            expected="polygons, circles or masks",
            remedy="draw polygons: the outline of a cell cannot be made from its box",
        )


def _passed_notes(passed: Counter[str]) -> list[Note]:
    notes = []
    if n := passed.pop("rectangle", 0):
        text = f"skipped {count(n, 'rectangle')}, since the outline of a cell cannot be made from its box"
        notes.append(Note("rectangles were skipped", text))
    if passed:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(passed.items()))
        text = f"skipped {count(sum(passed.values()), 'shape')} without an area: {kinds}"
        notes.append(Note("shapes without an area were skipped", text))
    return notes


# Reading one file


@dataclass(frozen=True, eq=False)
class _Shape:
    """One object: its label, and its parts, each a ring (n, 2) or a mask at a position."""

    label: str
    rings: list[np.ndarray]
    masks: list[tuple[int, int, np.ndarray]]


@dataclass(frozen=True)
class Shapes:
    """The contents of one file. passed: the number of shapes of each kind that are no objects."""

    objects: tuple[_Shape, ...]
    passed: Counter[str]
    image_name: str | None
    image_hw: tuple[int, int] | None
    has_pixels: bool


@dataclass(frozen=True)
class LoadShapes:
    """Reads the objects of one file; labels that are not among ``class_names`` are dropped."""

    path: Path
    image_hw: tuple[int, int]
    class_names: tuple[str, ...]

    def __call__(self) -> Instances:
        objects = [
            item for item in read_shapes(self.path).objects if item.label in self.class_names or item.label == IGNORED
        ]
        where = str(self.path)
        rings = [[checked_ring(ring, self.image_hw, where) for ring in item.rings] for item in objects]
        check_outlines([[np.zeros((1, 2)), *parts] for parts in rings], self.image_hw, where)
        masks = MaskSet.from_polygons([[[ring] for ring in parts if len(ring)] for parts in rings], self.image_hw)
        if any(item.masks for item in objects):
            masks = concat([_with_masks(masks[[k]], item.masks) for k, item in enumerate(objects)])
        class_ids = [NO_CLASS if item.label == IGNORED else self.class_names.index(item.label) for item in objects]
        instances = Instances.from_masks(
            masks,
            class_ids=np.array(class_ids, np.int64),
            ignore=np.array([item.label == IGNORED for item in objects], bool),
        )
        return without_empty(instances, where)


def _with_masks(filled: MaskSet, masks: Sequence[tuple[int, int, np.ndarray]]) -> MaskSet:
    """One mask: the union of a filled outline and of masks at positions."""
    if not masks:
        return filled
    height, width = filled.image_hw
    canvas = filled.foreground()
    for x, y, mask in masks:
        top, left = max(y, 0), max(x, 0)
        part = mask[top - y : max(height - y, 0), left - x : max(width - x, 0)]
        canvas[top : top + part.shape[0], left : left + part.shape[1]] |= part
    return MaskSet.from_dense(canvas[None])


def read_shapes(path: Path) -> Shapes:
    """The shapes of one file; `FormatError` names the shape that is malformed."""
    content = read_json(path)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        got = type(content).__name__ if not isinstance(content, dict) else f"shapes: {type(shapes).__name__}"
        raise FormatError("not a labelme file", where=path, got=got, expected='{"shapes": [...], "imagePath": ...}')
    objects: dict[object, _Shape] = {}
    passed: Counter[str] = Counter()
    for k, shape in enumerate(shapes):
        where = f"{path}, shape {k + 1}"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            got = repr(shape.get("label")) if isinstance(shape, dict) else type(shape).__name__
            raise FormatError("a shape has no label", where=where, got=got, expected='"label": "..."')
        kind, label = str(shape.get("shape_type") or "polygon"), shape["label"]
        if label == BACKGROUND:
            continue
        rings, masks = _parts(shape, kind, where)
        if not rings and not masks:
            passed[kind] += 1
            continue
        group = shape.get("group_id")
        key = k if group is None else (label, str(group))
        item = objects.setdefault(key, _Shape(label, [], []))
        item.rings.extend(rings)
        item.masks.extend(masks)
    name = content.get("imagePath")
    return Shapes(
        tuple(objects.values()),
        passed,
        name if isinstance(name, str) and name else None,
        _image_hw(content, path),
        bool(content.get("imageData")),
    )


def _parts(shape: dict[str, Any], kind: str, where: str) -> tuple[list[np.ndarray], list[tuple[int, int, np.ndarray]]]:
    """The ring or the mask of one shape; nothing for a kind that encloses no area."""
    if kind not in _OUTLINES:
        return [], []
    points = _points(shape.get("points"), where)
    if kind == "mask":
        return [], [_mask(shape, points, where)]
    if kind == "circle":
        if len(points) != 2:
            got = count(len(points), "point")
            raise FormatError("a circle is malformed", where=where, got=got, expected="its centre and a point on it")
        radius = math.dist(points[0], points[1])
        angles = np.arange(_CIRCLE_VERTICES) * 2 * np.pi / _CIRCLE_VERTICES
        return [points[0] + radius * np.column_stack([np.cos(angles), np.sin(angles)])] if radius > 0 else [], []
    return [points] if len(points) >= 3 else [], []


def _points(points: object, where: str) -> np.ndarray:
    try:
        array = np.array(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros(0)
    shape: tuple[int, ...] = array.shape
    if array.size == 0 and isinstance(points, list) and not points:
        return np.zeros((0, 2))
    if len(shape) != 2 or shape[1] != 2 or not np.isfinite(array).all() or np.abs(array).max() > 1e9:
        got = repr(points)[:60]
        raise FormatError(
            "the points of a shape are malformed", where=where, got=got, expected="[[x, y], ...], numbers"
        )
    return array


def _mask(shape: dict[str, Any], points: np.ndarray, where: str) -> tuple[int, int, np.ndarray]:
    """Left, top and pixels (h, w) bool of a shape that is a mask: a PNG in base64, at its bounding box."""
    try:
        pixels = decode_png(base64.b64decode(shape.get("mask") or "", validate=True), where)
    except (TypeError, ValueError, binascii.Error):
        pixels = np.zeros(0)
    except InputError as error:
        raise FormatError("the mask of a shape is damaged", where=where, got=error.got, expected="a PNG") from error
    if pixels.ndim != 2 or len(points) != 2:
        expected = "a greyscale PNG in base64, and the corners of its box as points"
        raise FormatError("the mask of a shape is malformed", where=where, expected=expected)
    (left, top), sides = (int(value) for value in np.round(points.min(0))), np.ptp(points, axis=0)
    height, width = (int(side) for side in np.shape(pixels))
    if abs(sides[0] + 1 - width) > _MASK_PX or abs(sides[1] + 1 - height) > _MASK_PX:
        got = f"a mask of {width} x {height} (width x height) at {points.ravel().tolist()}"
        expected = "the corners of the box of the mask"
        raise FormatError("the mask of a shape and its box differ in size", where=where, got=got, expected=expected)
    return left, top, pixels > 0


def _image_hw(content: dict[str, Any], path: Path) -> tuple[int, int] | None:
    sides = content.get("imageHeight"), content.get("imageWidth")
    if None in sides:
        return None
    if not all(isinstance(side, int) and not isinstance(side, bool) and 0 < side <= MAX_SIDE for side in sides):
        got = f"imageHeight {sides[0]!r}, imageWidth {sides[1]!r}"
        raise FormatError("the size of the image is malformed", where=path, got=got, expected="whole numbers of pixels")
    return sides  # type: ignore[return-value]


def _image_of(file: Path, content: Shapes, finder: ImageFinder) -> AnnotatedImage:
    """The image that a file names, or the one with the same name as the file."""
    named = content.image_name or stem_of(file)
    try:
        return finder.find(file, (named, stem_of(file)), content.image_hw)
    except InputError as error:
        if not content.has_pixels or "did you mean" in str(error.remedy):
            raise
        remedy = "the file contains the image itself: save it next to it, with labelme_export_json"
        raise InputError(error.problem, where=file, got=error.got, expected=error.expected, remedy=remedy) from error

"""Decode the COCO annotations of one image: masks, boxes, ids, classes and scores, checked field by field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.errors import FormatError, InputError
from cellwright.core.masks import MaskSet, concat

Annotation = Mapping[str, Any]
Categories = Mapping[int, int] | Sequence[int | Mapping[str, Any]]

# Integers below this fit 64 bits and leave room for arithmetic.
MAX_INTEGER = 1 << 62


@dataclass(frozen=True, eq=False)
class Decoded:
    """N decoded annotations; the fields are those of `Instances`. ``columns`` may hold the recorded areas."""

    masks: MaskSet
    ids: np.ndarray
    boxes_xyxy: np.ndarray
    class_ids: np.ndarray
    scores: np.ndarray | None
    ignore: np.ndarray
    columns: dict[str, np.ndarray]


def decode(
    annotations: Sequence[Annotation],
    image_hw: tuple[int, int],
    *,
    categories: Categories | None,
    scored: bool | None,
    source: object,
) -> Decoded:
    """Decode the annotations of one image; `Instances.from_coco` documents the arguments.

    A crowd of an unwanted category is not annotated for the others either: it becomes a region of no class. An
    annotation whose mask has no pixel is kept with an empty mask. Boxes are those of ``bbox``, or tight boxes of the
    masks where it is missing. Ids are ``object_id`` if all annotations have one, else ``id``, else 1..N; they must be
    distinct and positive to be used.
    """
    category_of = [_category(annotation, k, source) for k, annotation in enumerate(annotations)]
    class_of = _class_ids(category_of, categories)
    pairs = [
        (annotation, class_of.get(category, NO_CLASS), _is_crowd(annotation, source))
        for annotation, category in zip(annotations, category_of, strict=True)
    ]
    pairs = [pair for pair, category in zip(pairs, category_of, strict=True) if category in class_of or pair[2]]
    kept = [annotation for annotation, _, _ in pairs]
    if scored is None:
        scored = any("score" in annotation for annotation in kept)
    masks = _masks(kept, image_hw, source)
    boxes = [_box(annotation, tight, source) for annotation, tight in zip(kept, masks.boxes, strict=True)]
    return Decoded(
        masks=masks,
        ids=_ids(kept),
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        class_ids=np.array([class_id for _, class_id, _ in pairs], np.int64),
        scores=np.array([_score(annotation, source) for annotation in kept], np.float32) if scored else None,
        ignore=np.array([is_ignored for _, _, is_ignored in pairs], bool),
        columns={} if scored else _recorded_areas(kept, masks),
    )


def _place(annotation: Annotation, source: object) -> str:
    """Where an annotation is, for messages."""
    name = f"annotation id {annotation['id']}" if "id" in annotation else "an annotation"
    image = f" of image id {annotation['image_id']}" if "image_id" in annotation else ""
    return f"{name}{image}" if source is None else f"{source}, {name}{image}"


def whole(value: object) -> int | None:
    """``value`` as int if it is a whole number: 7, 7.0 or the text "7"; otherwise None.

    >>> whole(7.0), whole("007"), whole("a7"), whole(True)
    (7, 7, None, None)
    """
    if isinstance(value, str):
        digits = value.strip()
        value = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 19 else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < MAX_INTEGER else None


def is_crowd(value: object) -> bool | None:
    """The meaning of ``iscrowd``, also written as text or as true and false; None if it has none."""
    if value is None or value == "":
        return False
    if isinstance(value, str):
        value = {"true": 1, "false": 0}.get(value.strip().lower(), whole(value))
    return bool(value) if value in (0, 1) else None


def polygon_parts(segmentation: Sequence[Any]) -> list[Any]:
    """The parts ``[x, y, x, y, ...]`` of a polygon segmentation.

    Some tools write a single part without the outer list, or vertices as ``[x, y]`` or ``{"x": x, "y": y}``. Parts of
    fewer than three vertices enclose nothing and are dropped; pycocotools reads one of four numbers as a box.

    >>> polygon_parts([[1, 1, 5, 1, 5, 4], [2, 2, 3, 3]]), polygon_parts([[1, 1], [5, 1], [5, 4]])
    ([[1, 1, 5, 1, 5, 4]], [[1, 1, 5, 1, 5, 4]])
    """
    parts = [segmentation] if segmentation and all(map(_is_number_or_vertex, segmentation)) else segmentation
    flat = [_flat(part) for part in parts]
    return [part for part in flat if not isinstance(part, (list, tuple)) or len(part) not in (0, 2, 4)]


def _is_number_or_vertex(item: object) -> bool:
    if isinstance(item, (list, tuple)):
        return len(item) == 2 and not any(isinstance(value, (list, tuple, dict)) for value in item)
    return isinstance(item, (int, float)) or (isinstance(item, dict) and "x" in item and "y" in item)


def _flat(part: Any) -> Any:
    if not isinstance(part, (list, tuple)) or not part or not isinstance(part[0], (list, tuple, dict)):
        return part
    vertices = [(item.get("x"), item.get("y")) if isinstance(item, dict) else item for item in part]
    if not all(isinstance(vertex, (list, tuple)) and len(vertex) == 2 for vertex in vertices):
        return part  # the rasteriser refuses it
    return [value for vertex in vertices for value in vertex]


def _is_crowd(annotation: Annotation, source: object) -> bool:
    crowd = is_crowd(annotation.get("iscrowd"))
    if crowd is None:
        got = repr(annotation["iscrowd"])[:40]
        raise FormatError("iscrowd is neither 0 nor 1", where=_place(annotation, source), got=got, expected="0 or 1")
    return crowd


def _category(annotation: object, k: int, source: object) -> int:
    category = annotation.get("category_id") if isinstance(annotation, Mapping) else None
    number = whole(category)
    if number is None:
        where = f"annotation {k}" if source is None else f"{source}, annotation {k}"
        got = f"category_id {category!r}" if isinstance(annotation, Mapping) else type(annotation).__name__
        expected = "a dictionary with an integer category_id"
        raise FormatError("this is not a COCO annotation", where=where, got=got, expected=expected)
    return number


def _class_ids(category_of: Sequence[int], categories: Categories | None) -> Mapping[int, int]:
    """Category id -> class id."""
    if isinstance(categories, Mapping):
        return categories
    if categories is None:
        ids = sorted(set(category_of))
    else:
        ids = [whole(category["id"] if isinstance(category, Mapping) else category) for category in categories]
    return {category: class_id for class_id, category in enumerate(ids) if category is not None}


def _box(annotation: Annotation, tight: np.ndarray, source: object) -> list[float]:
    box = annotation.get("bbox")
    if box is None or box == []:
        return tight.tolist()
    if (
        not isinstance(box, (list, tuple))
        or len(box) != 4
        or not all(_is_finite(v) and abs(v) < 1e9 for v in box)
        or min(box[2:]) < 0
    ):
        raise FormatError(
            "bbox is malformed",
            where=_place(annotation, source),
            got=str(box)[:80],
            expected="[x, y, width, height], finite numbers, width and height not negative",
        )
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def _score(annotation: Annotation, source: object) -> float:
    score = annotation.get("score")
    if _is_finite(score) and 0 <= score <= 1:
        return score
    problem, remedy = "score is out of range", "rescale the scores to 0..1"
    if score is None:
        problem, remedy = "score is missing", "give every annotation a score"
    elif not _is_finite(score):
        problem, remedy = "score is not a number", "write scores as numbers: 0.9, not text or NaN"
    expected = "a number from 0 to 1"
    raise FormatError(problem, where=_place(annotation, source), got=repr(score), expected=expected, remedy=remedy)


def _recorded_areas(annotations: Sequence[Annotation], masks: MaskSet) -> dict[str, np.ndarray]:
    """Column ``area`` if the recorded areas (of polygons, say) are not pixel counts: COCO's size ranges use them."""
    areas = [annotation.get("area") for annotation in annotations]
    if not all(_is_finite(area) for area in areas):
        return {}
    values = np.array(areas, np.float64)
    return {} if np.array_equal(values, masks.areas) else {"area": values}


def _ids(annotations: Sequence[Annotation]) -> np.ndarray:
    for field in ("object_id", "id"):
        values = [whole(annotation.get(field)) for annotation in annotations]
        positive = [value for value in values if value is not None and value > 0]
        if len(positive) == len(set(positive)) == len(values):
            return np.array(positive, np.int64)
    return np.arange(1, len(annotations) + 1)


def _masks(annotations: Sequence[Annotation], image_hw: tuple[int, int], source: object) -> MaskSet:
    """The masks of the annotations in order; RLE and polygons may be mixed."""
    runs, outlines, segmentations = [], [], []
    for k, annotation in enumerate(annotations):
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict):
            runs.append(k)
            segmentations.append(segmentation)
        elif isinstance(segmentation, list):
            outlines.append(k)
            segmentations.append(polygon_parts(segmentation))
        else:
            raise FormatError(
                "an annotation has no segmentation",
                where=_place(annotation, source),
                got="nothing" if segmentation is None else type(segmentation).__name__,
                expected="RLE or polygons",
                remedy="boxes alone are not enough: export the masks too",
            )
    kinds: tuple[tuple[list[int], Callable[..., MaskSet]], ...] = (
        (runs, MaskSet.from_rle),
        (outlines, MaskSet.from_coco_polygons),
    )
    parts = [
        _decode_masks([annotations[k] for k in chosen], [segmentations[k] for k in chosen], decoder, image_hw, source)
        for chosen, decoder in kinds
        if chosen
    ]
    if not parts:
        return MaskSet.empty(image_hw)
    if len(parts) == 1:
        return parts[0]
    return concat(parts)[np.argsort(np.array(runs + outlines), kind="stable")]


def _decode_masks(
    annotations: Sequence[Annotation],
    segmentations: Sequence[Any],
    decoder: Callable[..., MaskSet],
    image_hw: tuple[int, int],
    source: object,
) -> MaskSet:
    try:
        return decoder(segmentations, image_hw)
    except InputError as error:
        if error.where is None:  # all of them together, such as their number of pixels
            raise error.at(source) from error
        # Decode one by one to find the invalid annotation, so that the message can name it.
        for annotation, segmentation in zip(annotations, segmentations, strict=True):
            try:
                decoder([segmentation], image_hw)
            except InputError as alone:
                remedy = alone.remedy or "export the annotation again, or remove it"
                raise alone.at(_place(annotation, source), remedy) from error
        raise


def _is_finite(value: Any) -> TypeGuard[int | float]:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < MAX_INTEGER
    return isinstance(value, float) and math.isfinite(value)

"""Decode the COCO annotations of one image: masks, boxes, ids, classes and scores, checked field by field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from cellwright.core.errors import FormatError
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

    An annotation whose mask has no pixel is kept with an empty mask. Boxes are those of ``bbox``, or tight boxes of the
    masks where it is missing. Ids are ``object_id`` if all annotations have one, else ``id``, else 1..N; they must be
    distinct and positive to be used.
    """
    for k, annotation in enumerate(annotations):
        _check_category(annotation, k, source)
    class_of = _class_ids(annotations, categories)
    kept = [annotation for annotation in annotations if annotation["category_id"] in class_of]
    if scored is None:
        scored = any("score" in annotation for annotation in kept)
    masks = _masks(kept, image_hw, source)
    boxes = [_box(annotation, tight, source) for annotation, tight in zip(kept, masks.boxes, strict=True)]
    return Decoded(
        masks=masks,
        ids=_ids(kept),
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        class_ids=np.array([class_of[annotation["category_id"]] for annotation in kept], np.int64),
        scores=np.array([_score(annotation, source) for annotation in kept], np.float32) if scored else None,
        ignore=np.array([annotation.get("iscrowd", 0) == 1 for annotation in kept], bool),
        columns={} if scored else _recorded_areas(kept, masks),
    )


def _place(annotation: Annotation, source: object) -> str:
    """Where an annotation is, for messages."""
    name = f"annotation id {annotation['id']}" if "id" in annotation else "an annotation"
    image = f" of image id {annotation['image_id']}" if "image_id" in annotation else ""
    return f"{name}{image}" if source is None else f"{source}, {name}{image}"


def _check_category(annotation: object, k: int, source: object) -> None:
    category = annotation.get("category_id") if isinstance(annotation, Mapping) else None
    if not _is_finite(category) or not float(category).is_integer():
        where = f"annotation {k}" if source is None else f"{source}, annotation {k}"
        got = f"category_id {category!r}" if isinstance(annotation, Mapping) else type(annotation).__name__
        expected = "a dictionary with an integer category_id"
        raise FormatError("this is not a COCO annotation", where=where, got=got, expected=expected)


def _class_ids(annotations: Sequence[Annotation], categories: Categories | None) -> Mapping[int, int]:
    """Category id -> class id."""
    if isinstance(categories, Mapping):
        return categories
    if categories is None:
        ids = sorted({annotation["category_id"] for annotation in annotations})
    else:
        ids = [category["id"] if isinstance(category, Mapping) else category for category in categories]
    return {category: class_id for class_id, category in enumerate(ids)}


def _box(annotation: Annotation, tight: np.ndarray, source: object) -> list[float]:
    box = annotation.get("bbox")
    if box is None:
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
    if not _is_finite(score) or not 0 <= score <= 1:
        raise FormatError(
            "score is missing" if score is None else "score is out of range",
            where=_place(annotation, source),
            got=score,
            expected="a number from 0 to 1",
            remedy="give every annotation a score" if score is None else "rescale the scores to 0..1",
        )
    return score


def _recorded_areas(annotations: Sequence[Annotation], masks: MaskSet) -> dict[str, np.ndarray]:
    """Column ``area`` if the recorded areas (of polygons, say) are not pixel counts: COCO's size ranges use them."""
    areas = [annotation.get("area") for annotation in annotations]
    if not all(isinstance(area, int | float) and math.isfinite(area) for area in areas):
        return {}
    values = np.array(areas, np.float64)
    return {} if np.array_equal(values, masks.areas) else {"area": values}


def _ids(annotations: Sequence[Annotation]) -> np.ndarray:
    for field in ("object_id", "id"):
        values = [annotation.get(field) for annotation in annotations]
        whole = all(isinstance(v, int) and not isinstance(v, bool) and 0 < v < MAX_INTEGER for v in values)
        if whole and len(set(values)) == len(values):
            return np.array(values, np.int64)
    return np.arange(1, len(annotations) + 1)


def _masks(annotations: Sequence[Annotation], image_hw: tuple[int, int], source: object) -> MaskSet:
    """The masks of the annotations in order; RLE and polygons may be mixed."""
    runs, outlines = [], []
    for k, annotation in enumerate(annotations):
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict):
            runs.append(k)
        elif isinstance(segmentation, list):
            outlines.append(k)
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
        _decode_masks([annotations[k] for k in chosen], decoder, image_hw, source)
        for chosen, decoder in kinds
        if chosen
    ]
    if not parts:
        return MaskSet.empty(image_hw)
    if len(parts) == 1:
        return parts[0]
    return concat(parts)[np.argsort(np.array(runs + outlines), kind="stable")]


def _decode_masks(
    annotations: Sequence[Annotation], decoder: Callable[..., MaskSet], image_hw: tuple[int, int], source: object
) -> MaskSet:
    try:
        return decoder([annotation["segmentation"] for annotation in annotations], image_hw)
    except FormatError:
        # Decode one by one to find the invalid annotation, so that the message can name it.
        for annotation in annotations:
            try:
                decoder([annotation["segmentation"]], image_hw)
            except FormatError as error:
                raise FormatError(
                    error.problem,
                    where=_place(annotation, source),
                    got=error.got,
                    expected=error.expected,
                    remedy=error.remedy or "export the annotation again, or remove it",
                ) from error
        raise


def _is_finite(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

"""The annotations of one image in COCO's words, to `Instances` and back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from cellwright.core.errors import FormatError
from cellwright.core.files import unreadable
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat
from cellwright.data.formats.coco_index import LARGEST, whole_number


@dataclass(frozen=True, eq=False)
class CocoLoader:
    """Reads the objects of one image from their places in a COCO file (dataset, instances or results).

    image_id: what its annotations carry. spans: (n, 2) int64, bytes of each annotation in file order.
    class_of: category id -> class id; objects of other categories are left out.
    scored: whether these are predictions.

    Raises `FormatError` naming file, annotation and field. An annotation with an empty mask stays an empty mask.
    """

    path: Path
    image_id: int
    image_hw: tuple[int, int]
    spans: np.ndarray
    class_of: dict[int, int]
    scored: bool

    def __call__(self) -> Instances:
        annotations = [a for a in self._annotations() if a["category_id"] in self.class_of]
        if not annotations:
            return Instances.empty(self.image_hw, scored=self.scored)
        masks = _masks(annotations, self.image_hw, self._where)
        boxes = np.array([self._box(a, tight) for a, tight in zip(annotations, masks.boxes, strict=True)], np.float32)
        found = Instances.from_masks(
            masks,
            class_ids=np.array([self.class_of[a["category_id"]] for a in annotations]),
            scores=np.array([self._score(a) for a in annotations], np.float32) if self.scored else None,
            ids=_ids(annotations),
            ignore=np.array([a.get("iscrowd", 0) == 1 for a in annotations]),
            boxes_xyxy=boxes,
        )
        return found if self.scored else replace(found, columns=_recorded_areas(annotations, masks))

    def _annotations(self) -> list[dict[str, Any]]:
        if not len(self.spans):
            return []
        try:
            with self.path.open("rb") as file:
                texts = _read_spans(file, self.spans)
        except OSError as error:
            raise unreadable(self.path, error) from error
        try:
            annotations: list[Any] = [json.loads(text) for text in texts]
        except ValueError:
            annotations = [None]
        if not all(isinstance(a, dict) and a.get("image_id") == self.image_id for a in annotations):
            raise FormatError(
                "this file has changed since it was opened",
                where=self.path,
                got="annotations at other places than its index says",
                remedy="open the dataset again; if it lies beside a .index file, delete that file first",
            )
        return annotations

    def _where(self, annotation: dict[str, Any]) -> str:
        name = f"annotation id {annotation['id']}" if "id" in annotation else "an annotation"
        return f"{self.path}, {name} of image id {self.image_id}"

    def _box(self, annotation: dict[str, Any], tight: np.ndarray) -> list[float]:
        box = annotation.get("bbox")
        if box is None:
            return tight.tolist()
        if (
            not isinstance(box, list)
            or len(box) != 4
            or not all(_is_finite(v) and abs(v) < 1e9 for v in box)
            or min(box[2:]) < 0
        ):
            raise FormatError(
                "bbox is malformed",
                where=self._where(annotation),
                got=str(box)[:80],
                expected="[x, y, width, height], finite numbers, width and height not negative",
            )
        return [box[0], box[1], box[0] + box[2], box[1] + box[3]]

    def _score(self, annotation: dict[str, Any]) -> float:
        score = annotation.get("score")
        if not _is_finite(score) or not 0 <= score <= 1:
            raise FormatError(
                "score is out of range",
                where=self._where(annotation),
                got=score,
                expected="a number from 0 to 1",
                remedy="rescale the scores to 0..1",
            )
        return score


def _recorded_areas(annotations: Sequence[dict[str, Any]], masks: MaskSet) -> dict[str, np.ndarray]:
    """Column ``area`` where the file's areas (of polygons, say) are not pixel counts: COCO's size bands go by it."""
    areas = [a.get("area") for a in annotations]
    if not all(isinstance(area, int | float) and math.isfinite(area) for area in areas):
        return {}
    values = np.array(areas, np.float64)
    return {} if np.array_equal(values, masks.areas) else {"area": values}


def annotations_of(instances: Instances, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """COCO annotations of one image's objects, in order, with compressed RLE; ``id`` is left to the caller.

    ``object_id`` keeps the object's number, which COCO has no place for: its ids are unique in the file, ours in the
    image. Numbers are written so that they come back as the same float32.
    """
    boxes = instances.boxes_xyxy.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = [short_float(v) for v in instances.columns.get("area", instances.masks.areas)]
    written = []
    for k, runs in enumerate(instances.masks.to_rle()):
        annotation = {
            "image_id": image_id,
            "category_id": category_ids[instances.class_ids[k]],
            "object_id": int(instances.ids[k]),
            "bbox": [short_float(v) for v in (*boxes[k, :2], *sides[k])],
            "area": areas[k],
            "iscrowd": int(instances.ignore[k]),
            "segmentation": runs,
        }
        if instances.scores is not None:
            annotation["score"] = short_float(instances.scores[k])
        written.append(annotation)
    return written


def short_float(value: float) -> float | int:
    """The shortest number that reads back as the same float32; whole numbers without a point."""
    value = float(f"{float(value):.9g}")
    return int(value) if value.is_integer() else value


def _read_spans(file: Any, spans: np.ndarray) -> list[bytes]:
    """The bytes of every span, in one read where they lie close together."""
    first, last = int(spans[:, 0].min()), int(spans[:, 1].max())
    if last - first <= 2 * int((spans[:, 1] - spans[:, 0]).sum()) + (1 << 16):
        file.seek(first)
        block = file.read(last - first)
        return [block[start - first : end - first] for start, end in spans.tolist()]
    texts = []
    for start, end in spans.tolist():
        file.seek(start)
        texts.append(file.read(end - start))
    return texts


def _masks(
    annotations: list[dict[str, Any]], image_hw: tuple[int, int], where: Callable[[dict[str, Any]], str]
) -> MaskSet:
    """Masks of the annotations in order; RLE and polygons may be mixed."""
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
                where=where(annotation),
                got="nothing" if segmentation is None else type(segmentation).__name__,
                expected="RLE or polygons",
                remedy="boxes alone are not enough: write the masks too",
            )
    kinds: tuple[tuple[list[int], Callable[..., MaskSet]], ...] = (
        (runs, MaskSet.from_rle),
        (outlines, MaskSet.from_coco_polygons),
    )
    parts = [_decode([annotations[k] for k in chosen], decode, image_hw, where) for chosen, decode in kinds if chosen]
    if len(parts) == 1:
        return parts[0]
    return concat(parts)[np.argsort(np.array(runs + outlines), kind="stable")]


def _decode(
    annotations: list[dict[str, Any]],
    decode: Callable[..., MaskSet],
    image_hw: tuple[int, int],
    where: Callable[[dict[str, Any]], str],
) -> MaskSet:
    try:
        return decode([a["segmentation"] for a in annotations], image_hw)
    except FormatError:
        # One of them is at fault: find it, so that the message can name it.
        for annotation in annotations:
            try:
                decode([annotation["segmentation"]], image_hw)
            except FormatError as error:
                raise FormatError(
                    error.problem,
                    where=where(annotation),
                    got=error.got,
                    expected=error.expected,
                    remedy=error.remedy or "write the annotation again, or take it out",
                ) from error
        raise


def _ids(annotations: list[dict[str, Any]]) -> np.ndarray:
    """``object_id`` where all have one, else the annotation ids where they are unique and above 0, else 1..N."""
    for field in ("object_id", "id"):
        values = [a.get(field) for a in annotations]
        whole = all(isinstance(v, int) and not isinstance(v, bool) and 0 < v < LARGEST for v in values)
        if whole and len(set(values)) == len(values):
            return np.array(values, np.int64)
    return np.arange(1, len(annotations) + 1)


def _is_finite(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def category_map(categories: Sequence[dict[str, Any]], class_names: Sequence[str]) -> dict[int, int]:
    """Category id -> class id, for the categories whose names are among ``class_names``."""
    return {
        whole_number(c["id"], "id", "categories"): class_names.index(c["name"])
        for c in categories
        if c["name"] in class_names
    }

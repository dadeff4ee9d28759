"""What other tools write differently in COCO files, recognised from all annotations of a file.

`Facts` is filled while the file is indexed. `check` refuses what cannot be read correctly, and returns notes about what
is skipped or read in another way than the file says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellwright.core.coco import is_crowd, polygon_parts
from cellwright.core.errors import FormatError
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.coco_redundant import Redundant

# Polygons of a file whose coordinates all lie in this range are normalised to the size of the image.
_UNIT = (-0.5, 1.5)
# Fewer rectangular outlines than this may be drawn on purpose.
_MANY = 5


@dataclass
class Facts:
    """Counts over the annotations of a file.

    n: annotations. n_boxes: those with a box only. n_empty: those with neither box nor outline. n_runs, n_polygons: RLE
    and polygons. n_crowds, n_crowd_runs: crowd regions, and those of them that are RLE. n_cvat: annotations with CVAT's
    attributes. n_cut: parts of polygons with one or two vertices. in_unit_square: whether all polygons lie within
    0..1. n_rectangles: polygons that are upright rectangles. redundant: their boxes, areas and ids.
    """

    n: int = 0
    n_boxes: int = 0
    n_empty: int = 0
    n_runs: int = 0
    n_polygons: int = 0
    n_crowds: int = 0
    n_crowd_runs: int = 0
    n_cvat: int = 0
    n_cut: int = 0
    n_rectangles: int = 0
    in_unit_square: bool = True
    redundant: Redundant = field(default_factory=Redundant)

    def add(self, annotation: dict[str, Any], n_bytes: int) -> bool:
        """Count one annotation of this length in the file.

        Returns whether it has an outline (or something that the decoder will refuse).
        """
        self.n += 1
        segmentation = annotation.get("segmentation")
        crowd = is_crowd(annotation.get("iscrowd")) is True
        self.n_crowds += crowd
        attributes = annotation.get("attributes")
        self.n_cvat += isinstance(attributes, dict) and "occluded" in attributes
        parts = polygon_parts(segmentation or []) if segmentation is None or isinstance(segmentation, list) else None
        self.redundant.add(annotation, parts, n_bytes)
        if isinstance(segmentation, dict):
            self.n_runs += 1
            self.n_crowd_runs += crowd
            return True
        if parts is None:
            return True
        if not parts:
            has_box = _is_box(annotation.get("bbox"))
            self.n_boxes += has_box
            self.n_empty += not has_box
            return False
        self.n_polygons += 1
        self.n_cut += len(segmentation or []) - len(parts) if _is_nested(segmentation) else 0
        self.n_rectangles += self.n_rectangles == self.n_polygons - 1 and _is_rectangle(parts)
        self.in_unit_square = self.in_unit_square and all(map(_in_unit_square, parts))
        return True

    @property
    def crowds_are_objects(self) -> bool:
        """Whether ``iscrowd`` has no meaning: on all objects, or on all RLE of CVAT, whose older versions set it."""
        if not self.n_crowds:
            return False
        drawn = self.n_runs + self.n_polygons
        return self.n_crowds == drawn or (self.n_cvat > 0 and self.n_crowds == self.n_crowd_runs == self.n_runs)


def check(facts: Facts, path: Path, *, scored: bool) -> list[Note]:
    """Notes about the annotations of a file; `FormatError` for boxes without outlines and normalised coordinates."""
    if facts.n_polygons and facts.in_unit_square and not facts.n_runs:
        raise FormatError(
            "the coordinates of all outlines are between 0 and 1",
            where=path,
            got=f"{count(facts.n_polygons, 'outline')}, each smaller than a pixel",
            expected="pixels: x from 0 to the width, y from 0 to the height of the image",
            remedy="multiply x by the width and y by the height, or export in pixels",
        )
    if scored:
        return [_note("the objects have scores and were read as predictions", path)]
    if facts.n_boxes and facts.n_boxes + facts.n_empty == facts.n:
        raise FormatError(
            "this file has boxes without outlines",
            where=path,
            got=count(facts.n_boxes, "box"),
            expected="polygons or RLE in segmentation",
            remedy="export masks or polygons: the outline of a cell cannot be made from its box",
        )
    notes = []
    if facts.n_boxes:
        text = f"{facts.n_boxes} of {count(facts.n, 'object')} have a box but no outline and were skipped"
        notes.append(_note("objects with a box but no outline were skipped", path, text))
    if facts.n_empty:
        text = f"skipped {count(facts.n_empty, 'annotation')} with neither outline nor box"
        notes.append(_note("annotations with neither outline nor box were skipped", path, text))
    if facts.n_cut:
        text = f"skipped {count(facts.n_cut, 'outline part')} of fewer than 3 vertices, which enclose nothing"
        notes.append(_note("outline parts of fewer than 3 vertices were skipped", path, text))
    if facts.crowds_are_objects:
        which = "RLE object" if facts.n_crowds == facts.n_crowd_runs else "object"
        text = f"iscrowd is 1 for every {which}, as older versions of CVAT write it: they were read as ordinary objects"
        notes.append(_note("iscrowd was disregarded", path, text))
    elif facts.n_crowds:
        n_objects = count(facts.n, "object")
        text = f"{facts.n_crowds} of {n_objects} are crowd regions (iscrowd), which are not annotated"
        notes.append(_note("some objects are crowd regions", path, text))
    if facts.n_rectangles >= _MANY and facts.n_rectangles == facts.n_polygons and not facts.n_runs:
        text = f"all {count(facts.n_polygons, 'outline')} are upright rectangles: are they boxes?"
        notes.append(_note("all outlines are upright rectangles", path, text))
    return notes


def grouping_categories(categories: Sequence[dict[str, Any]], used: frozenset[int]) -> list[str]:
    """Names of categories without objects that only group others (Roboflow's root): the supercategory of another."""
    above = {name for category in categories if isinstance(name := category.get("supercategory"), str)}
    return [str(c["name"]) for c in categories if c["id"] not in used and c["name"] in above and len(categories) > 1]


def _note(kind: str, path: Path, text: str | None = None) -> Note:
    return Note(kind, text or kind, path.name)


def _is_box(box: object) -> bool:
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box)
    return numbers and box[2] > 0 and box[3] > 0  # type: ignore[index]


def _is_nested(segmentation: object) -> bool:
    return isinstance(segmentation, list) and isinstance(segmentation[0], list) and len(segmentation[0]) != 2


def _in_unit_square(part: Any) -> bool:
    try:
        return min(part) >= _UNIT[0] and max(part) <= _UNIT[1]
    except TypeError:  # not numbers, which the decoder refuses
        return False


def _is_rectangle(parts: Sequence[Any]) -> bool:
    if len(parts) != 1 or not isinstance(parts[0], list) or len(parts[0]) not in (8, 10):
        return False
    xs, ys = parts[0][0:8:2], parts[0][1:8:2]
    return (xs[0] == xs[1] and xs[2] == xs[3] and ys[1] == ys[2] and ys[3] == ys[0]) or (
        xs[1] == xs[2] and xs[3] == xs[0] and ys[0] == ys[1] and ys[2] == ys[3]
    )

"""Regions of interest: the parts of an image in which objects are kept, from rectangles and GeoJSON files.

An object is in a region if its anchor is: the pixel of its mask that is nearest to its mean position. So objects at the
border of a region are whole, and an object is in exactly one of several regions that do not overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.core.geometry import Window
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.outlines import checked_ring
from cellwright.data.formats.qupath import IGNORED_CLASS, Feature, read_areas
from cellwright.data.identity import digest_of

JSON_SUFFIXES = (".geojson", ".json", ".geojson.gz", ".json.gz")
_OBJECTS = ("detection", "cell")
# Windows are compared by the centres of their pixels, and a little more.
_INSET_PX = 0.25


@dataclass(frozen=True, eq=False)
class Regions:
    """Where objects are kept, in pixels of the image.

    words: what each was made from, such as "0,0,512,512" or "tumour.geojson 3f2a9c01b8d7e655"; they identify the
    regions. area: a valid polygon or multipolygon of shapely, x and y from the corner of the image.

    >>> regions = Regions.of_window(Window(0, 0, 10, 20))
    >>> regions.contain(np.array([9, 10]), np.array([19, 19])).tolist(), regions.touch([Window(9, 19, 30, 30)]).tolist()
    ([True, False], [True])
    """

    words: tuple[str, ...]
    area: shapely.Polygon | shapely.MultiPolygon

    def __post_init__(self) -> None:
        shapely.prepare(self.area)

    @staticmethod
    def of_window(window: Window) -> Regions:
        """A rectangle."""
        y0, x0, y1, x1 = window
        return Regions((f"{y0},{x0},{y1 - y0},{x1 - x0}",), shapely.box(x0, y0, x1, y1))

    @property
    def rings(self) -> list[np.ndarray]:
        """The outlines and holes, (n, 2) x, y each."""
        polygons = [polygon for polygon in shapely.get_parts(self.area) if isinstance(polygon, shapely.Polygon)]
        rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.interiors)]
        return [shapely.get_coordinates(ring) for ring in rings]

    def reduced(self, downsample: tuple[float, float]) -> Regions:
        """The same regions in a smaller copy of the image. downsample: (y, x) px of the image per px of the copy."""
        if downsample == (1.0, 1.0):
            return self
        return Regions(self.words, shapely.transform(self.area, lambda points: points / downsample[::-1]))

    def contain(self, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
        """Which pixels (N,) bool are in a region."""
        return np.asarray(shapely.contains_xy(self.area, xs + 0.5, ys + 0.5), bool)

    def touch(self, windows: Sequence[Window]) -> np.ndarray:
        """Which windows (N,) bool have a pixel in a region; other tiles have no object to keep."""
        y0, x0, y1, x1 = np.array(windows, np.float64).reshape(-1, 4).T
        boxes = shapely.box(x0 + _INSET_PX, y0 + _INSET_PX, x1 - _INSET_PX, y1 - _INSET_PX)
        return np.asarray(shapely.intersects(self.area, boxes), bool)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"words": list(self.words), "area": shapely.to_wkt(self.area, rounding_precision=-1)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Regions:
        """The opposite of `to_dict`. Raises `KeyError`, `TypeError` or `ValueError` for other values."""
        try:
            area = shapely.from_wkt(values["area"])
        except shapely.errors.ShapelyError as error:
            raise ValueError(str(error)) from error
        if not isinstance(area, shapely.Polygon | shapely.MultiPolygon) or not area.is_valid or area.is_empty:
            raise ValueError("regions without area")
        return Regions(tuple(map(str, values["words"])), area)


# --- what the user gives --------------------------------------------------------------------------------------------


def roi_words(roi: Any) -> tuple[str, ...]:
    """The regions as words, one for each rectangle ("y0,x0,height,width") and file, from the option or the parameter.

    The option: words and numbers, split at commas or not. The parameter: a path, or a sequence of paths and of windows
    (y0, x0, height, width). Raises `UsageError` for anything else.

    >>> roi_words(["0", "0", "64", "80", "a.geojson"]), roi_words([(0, 0, 64, 80)])
    (('0,0,64,80', 'a.geojson'), ('0,0,64,80',))
    """
    words: list[str] = []
    numbers: list[str] = []
    for part in [roi] if isinstance(roi, str | Path) else roi:
        text = str(part) if isinstance(part, str | Path) else ",".join(map(str, part))
        if not numbers and (isinstance(part, Path) or _is_file(text)):
            words.append(text)
            continue
        for number in text.split(","):
            numbers.append(number.strip())
            if len(numbers) == 4:
                words.append(_rectangle(numbers))
                numbers = []
    if numbers:
        _rectangle(numbers)  # raises
    return tuple(words)


def _is_file(text: str) -> bool:
    return text.lower().endswith(JSON_SUFFIXES) or Path(text).exists()


def _rectangle(numbers: Sequence[str]) -> str:
    values = [int(number) for number in numbers if number.isascii() and number.isdecimal()]
    if len(values) != 4 or len(numbers) != 4 or 0 in values[2:]:
        expected = "y0,x0,height,width in pixels, such as 0,0,4096,4096, or a GeoJSON file"
        raise UsageError("invalid `roi`", got=",".join(numbers), expected=expected)
    return ",".join(map(str, values))


def find_regions(
    words: Sequence[str], image_hw: tuple[int, int], stored: Regions | None = None
) -> tuple[Regions | None, list[Note]]:
    """The regions that ``words`` (see `roi_words`) name, in pixels of an image, and what was assumed; None without.

    stored: those of a job that goes on, taken where a file is no longer there. Raises `UsageError` or `FormatError`
    for regions outside the image and for files without any.
    """
    if not words:
        return None, []
    parts: list[Regions] = []
    notes: list[Note] = []
    for word in words:
        if not _is_file(word):
            y0, x0, height, width = map(int, word.split(","))
            part = Regions.of_window(Window(y0, x0, y0 + height, x0 + width))
        elif Path(word).exists():
            part, of_file = _of_file(Path(word), image_hw)
            notes += of_file
        elif stored is not None and _same_words(words, stored):
            text = f"{Path(word).name} is not there: its regions are those that the job has stored"
            return stored, [Note("regions were taken from the job", text)]
        else:
            raise InputError("no such file of regions", where=word, got="`roi`", remedy="check the path")
        notes += _place_notes(part, word, image_hw)
        parts.append(part)
    area = _polygons(shapely.union_all([part.area for part in parts]))
    return Regions(tuple(name for part in parts for name in part.words), area), notes


def _same_words(words: Sequence[str], stored: Regions) -> bool:
    """Whether stored regions were made from files of these names, and the same rectangles."""
    names = [word.rpartition(" ")[0] or word for word in stored.words]
    return names == [Path(word).name if _is_file(word) else word for word in words]


def _of_file(path: Path, image_hw: tuple[int, int]) -> tuple[Regions, list[Note]]:
    """The annotations of a file; its detections and cells are not regions."""
    features, n_others = read_areas(path)
    annotations = [feature for feature in features if feature.kind not in _OBJECTS]
    regions = [(feature, _area_of(feature, image_hw)) for feature in annotations]
    empty = [feature for feature, area in regions if area.area == 0]
    kept = [area for feature, area in regions if area.area > 0 and feature.class_name != IGNORED_CLASS]
    ignored = [area for feature, area in regions if area.area > 0 and feature.class_name == IGNORED_CLASS]
    n_objects = len(features) - len(annotations)
    listed = [count(n_objects, "detection")] if n_objects else []
    listed += [f"{count(n_others, 'feature')} without a polygon"] if n_others else []
    listed += [f"{count(len(empty), 'region')} without area"] if empty else []
    area = _polygons(shapely.difference(shapely.union_all(kept), shapely.union_all(ignored)))
    if area.area == 0:
        raise FormatError(
            "this file has no regions",
            where=path,
            got=", ".join(listed + ([f"only what is of the class {IGNORED_CLASS}"] if ignored else [])) or "nothing",
            expected="annotations with an area: Polygon or MultiPolygon",
            remedy="export annotations as GeoJSON, for example with QuPath",
        )
    notes = []
    if listed:
        notes.append(Note("features were not used as regions", f"{path.name}: not regions: {', '.join(listed)}"))
    if ignored:
        text = f"{path.name}: {count(len(ignored), 'region')} of the class {IGNORED_CLASS} cut out of the others"
        notes.append(Note("ignored regions were cut out", text))
    digest = digest_of(shapely.to_wkt(area, rounding_precision=-1))[:16]
    return Regions((f"{path.name} {digest}",), area), notes


def _area_of(feature: Feature, image_hw: tuple[int, int]) -> shapely.Polygon | shapely.MultiPolygon:
    """The area of a feature; crossing outlines by the even-odd rule. Raises `FormatError` for malformed outlines."""
    where = f"{feature.where}, geometry.coordinates"
    polygons = [[checked_ring(ring, image_hw, where) for ring in rings] for rings in feature.polygons]
    shapes = [
        shapely.Polygon(rings[0], [hole for hole in rings[1:] if len(hole)]) for rings in polygons if len(rings[0])
    ]
    return _polygons(shapely.union_all([_polygons(shapely.make_valid(shape)) for shape in shapes]))


def _polygons(shape: Any) -> shapely.Polygon | shapely.MultiPolygon:
    """The parts of a shape that have an area."""
    parts = [part for part in shapely.get_parts(shape) if isinstance(part, shapely.Polygon | shapely.MultiPolygon)]
    parts = [polygon for part in parts for polygon in shapely.get_parts(part) if polygon.area > 0]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _place_notes(part: Regions, word: str, image_hw: tuple[int, int]) -> list[Note]:
    """A note if a part lies beyond the image. Raises `UsageError` if a region lies outside."""
    height, width = image_hw
    for polygon in shapely.get_parts(part.area):
        if not Regions((), polygon).touch([Window(0, 0, height, width)])[0]:
            x0, y0, x1, y1 = polygon.bounds
            raise UsageError(
                "a region lies outside the image",
                got=f"`roi` {word}: x {x0:g} to {x1:g}, y {y0:g} to {y1:g}",
                expected=f"regions inside {height} x {width} px, in pixels of the full resolution",
            )
    if shapely.covers(shapely.box(0, 0, width, height), part.area):
        return []
    return [Note("regions reach beyond the image", f"{Path(word).name}: a part of the regions lies beyond the image")]

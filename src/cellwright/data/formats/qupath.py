"""What the features of a GeoJSON file are: objects, regions that contain objects, and features without an area.

QuPath exports everything in one file: cells and other detections, annotations drawn by hand, tiles, TMA cores, points.
`read_features` sorts them. It does not rasterise anything: polygons are still lists of numbers that may be malformed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError
from cellwright.core.files import read_json
from cellwright.core.geometry import MAX_SIDE
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.outlines import points_inside

MEMBER = "cellwright"  # beside the features of files that cellwright wrote: name and size of the image
# A feature with more polygons than this is not one object in several parts: CellViT writes one feature per class.
MAX_PARTS = 10
# An empty rectangle this many times larger than the detections of its file is a region.
LARGE = 10
REGION_CLASS, IGNORED_CLASS = "Region*", "Ignore*"  # two of QuPath's default classes
# Outside of the annotations of this class, nothing is annotated. QuPath's own classes that are no objects end with *.
ANNOTATED_CLASSES = ("Annotated", "Annotated*")
# Up to version 0.2, QuPath wrote the type of an object as the id of its feature.
OLD_TYPES = {
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tma_core",
    "PathRootObject": "root",
}
CONTAINERS = {"tile": "tile", "tma_core": "TMA core", "root": "whole image"}


@dataclass(frozen=True)
class Feature:
    """A feature with an area.

    polygons: its polygons [exterior, *holes], not checked; rings are closed lists of x, y.
    class_name: None if it is not classified. kind: QuPath's type of object, or "".
    """

    where: str
    kind: str
    class_name: str | None
    polygons: list[Any]
    properties: dict[str, Any]

    @property
    def is_ignored(self) -> bool:
        """Whether it is a region that is not annotated."""
        return self.class_name == IGNORED_CLASS or self._metadata.get("ignore") == "true"

    @property
    def object_class(self) -> str | None:
        """The class, of an ignored region that cellwright wrote the one that it had."""
        name = self._metadata.get("class")
        return name if self.class_name == IGNORED_CLASS and isinstance(name, str) else self.class_name

    @property
    def _metadata(self) -> dict[str, Any]:
        metadata = self.properties.get("metadata")
        return metadata if isinstance(metadata, dict) else {}


@dataclass(frozen=True)
class Content:
    """The contents of a file.

    objects: cells, nuclei and other objects. regions: annotations that contain objects. has_nuclei: whether there are
    cells with a nucleus. image_hw, scored: of a file that cellwright wrote, the size of the image and whether the
    objects are predictions (which could not be told from a file without objects).
    """

    objects: list[Feature]
    regions: list[Feature]
    has_nuclei: bool
    image_hw: tuple[int, int] | None
    scored: bool
    notes: tuple[Note, ...]


def begins_with_features(start: bytes) -> bool:
    """Whether the first bytes of a JSON file are those of GeoJSON."""
    compact = b"".join(start.split())
    begins = compact.startswith((b'{"type":"', b'[{"type":"')) and b'"coordinates":' in compact
    return (b'"type":"Feature' in compact or begins) and b'"images"' not in compact


def read_features(path: Path, *, nucleus: bool = False) -> Content:
    """The objects and regions of one file. nucleus: for cells that have a nucleus, the nucleus instead of the cell.

    Raises `FormatError` that names the feature for malformed content, for objects on several planes of a stack, and if
    there are features but neither objects nor regions.
    """
    value = read_json(path)
    features, notes = _features_in(value, path)
    member = value.get(MEMBER) if isinstance(value, dict) else None
    areas, others = _areas(features, path, nucleus=nucleus)
    with_nucleus = (feature for feature in features if isinstance(feature.get("nucleusGeometry"), dict))
    nuclei = sum(_kind(feature, str(path)) == "cell" for feature in with_nucleus)
    containers = [feature for feature in areas if feature.kind in CONTAINERS]
    areas = [feature for feature in areas if feature.kind not in CONTAINERS]
    regions = _regions(areas, path)
    objects = [feature for feature in areas if not any(feature is region for region in regions)]
    if features and not objects and not regions:
        if nucleus and not nuclei:
            raise FormatError("no cell has a nucleus", where=path, got="`nucleus=True`", remedy="omit `nucleus`")
        raise _no_objects(path, others, containers)
    _check_one_plane(features, objects, path)
    if not isinstance(member, dict):
        objects, split_notes = _without_collections(objects)
        notes = [*notes, *split_notes]
    member = member if isinstance(member, dict) else {}
    notes += _notes_about(others, containers, objects, regions, len(features))
    if nuclei and not nucleus:
        text = (
            f"the nucleus of {count(nuclei, 'cell')} was not read; to read it instead of the cell, use `nucleus=True`"
        )
        notes.append(Note("the nuclei of cells were not read", text))
    scored = member.get("scored") is True
    return Content(objects, regions, nuclei > 0, _image_hw(member, path), scored, tuple(notes))


def read_areas(path: Path) -> tuple[list[Feature], int]:
    """The features of a file that have an area, whatever they are, and the number of others.

    Raises `FormatError` that names the feature for malformed content.
    """
    features, _ = _features_in(read_json(path), path)
    areas, others = _areas(features, path, nucleus=False)
    return areas, len(others)


# Finding features in the file


def _areas(
    features: Sequence[dict[str, Any]], path: Path, *, nucleus: bool
) -> tuple[list[Feature], list[tuple[str, str]]]:
    """The features with an area, and place and type of geometry of the others."""
    areas, others = [], []
    for k, feature in enumerate(features):
        where = f"{path}, feature {k}"
        kind = _kind(feature, where)
        name = "nucleusGeometry" if nucleus and kind == "cell" else "geometry"
        polygons = _polygons(feature.get(name), f"{where}, {name}")
        if not polygons:
            others.append((where, _geometry_type(feature.get(name))))
            continue
        properties = _properties(feature, where)
        areas.append(Feature(where, kind, _class_name(properties, where), polygons, properties))
    return areas, others


def _features_in(value: Any, path: Path) -> tuple[list[dict[str, Any]], list[Note]]:
    """The features of a collection, of a list, or a single one; bare geometries become features."""
    features, notes = [], []
    for entry in _flattened(value, 0):
        kind = entry.get("type") if isinstance(entry, dict) else None
        if kind == "Feature":
            features.append(entry)
        elif kind == "MultiPolygon" and isinstance(entry.get("coordinates"), list):
            parts = entry["coordinates"]
            features += [_bare({"type": "Polygon", "coordinates": part}) for part in parts]
            text = f"the {count(len(parts), 'polygon')} of a MultiPolygon without a feature were read as objects"
            notes.append(Note("the polygons of a MultiPolygon were read as objects", text))
        elif kind in ("Polygon", "Point", "MultiPoint", "LineString", "MultiLineString"):
            features.append(_bare(entry))
        else:
            raise FormatError(
                "not a GeoJSON file of features",
                where=path,
                got=f"an entry of type {kind}" if kind else f"{type(entry).__name__} {str(entry)[:40]}",
                expected='{"type": "FeatureCollection", "features": [...]}',
            )
    return features, notes


def _flattened(value: Any, depth: int) -> Iterator[Any]:
    """The features and geometries in lists, feature collections and geometry collections."""
    inner = value
    if isinstance(value, dict):
        name = {"FeatureCollection": "features", "GeometryCollection": "geometries"}.get(str(value.get("type")))
        inner = value.get(name) if name else None
    if isinstance(inner, list) and depth < 8:
        for entry in inner:
            yield from _flattened(entry, depth + 1)
    else:
        yield value


def _bare(geometry: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": {}}


def _kind(feature: dict[str, Any], where: str) -> str:
    properties = _properties(feature, where)
    kind = properties.get("objectType", properties.get("object_type"))
    return kind.lower() if isinstance(kind, str) else OLD_TYPES.get(str(feature.get("id")), "")


def _properties(feature: dict[str, Any], where: str) -> dict[str, Any]:
    properties = feature.get("properties")
    if not isinstance(properties, dict | None):
        raise FormatError(
            "the properties of a feature are malformed", where=where, got=str(properties)[:60], expected="an object"
        )
    return properties or {}


def _class_name(properties: dict[str, Any], where: str) -> str | None:
    """QuPath's class: ``{"name"}``, or ``{"names"}`` for a derived class, such as "Tumor: Positive"."""
    kind = properties.get("classification")
    name = kind.get("name") if isinstance(kind, dict) else kind
    names = kind.get("names") if isinstance(kind, dict) else None
    if name is None and isinstance(names, list) and all(isinstance(part, str) for part in names):
        name = ": ".join(names)
    if name is None or name == "":
        return None
    if not isinstance(name, str):
        where, expected = f"{where}, properties.classification", '{"name": text}'
        raise FormatError("a class is malformed", where=where, got=str(kind)[:60], expected=expected)
    return name


def _polygons(geometry: Any, where: str, depth: int = 0) -> list[Any]:
    """The polygons of a geometry; empty if it encloses no area."""
    if not isinstance(geometry, dict) or depth > 8:
        return []
    if geometry.get("type") == "GeometryCollection":
        parts = geometry.get("geometries")
        parts = parts if isinstance(parts, list) else []
        return [polygon for part in parts for polygon in _polygons(part, where, depth + 1)]
    if geometry.get("type") not in ("Polygon", "MultiPolygon"):
        return []
    polygons = geometry.get("coordinates")
    polygons = [polygons] if geometry["type"] == "Polygon" else polygons
    if not isinstance(polygons, list) or not all(isinstance(rings, list) and rings for rings in polygons):
        where, expected = f"{where}.coordinates", "lists of rings"
        raise FormatError("an outline is malformed", where=where, got=str(polygons)[:60], expected=expected)
    return polygons


def _geometry_type(geometry: Any) -> str:
    return str(geometry.get("type")) if isinstance(geometry, dict) else "no geometry"


def _image_hw(member: dict[str, Any], path: Path) -> tuple[int, int] | None:
    if "image_hw" not in member:
        return None
    sides = member["image_hw"]
    if not isinstance(sides, list) or len(sides) != 2 or not all(_is_side(side) for side in sides):
        where, expected = f"{path}, {MEMBER}.image_hw", "[height, width]"
        raise FormatError("an image size is malformed", where=where, got=str(sides)[:60], expected=expected)
    return sides[0], sides[1]


def _is_side(value: object) -> bool:
    return type(value) is int and 0 < value <= MAX_SIDE


# Telling objects from regions


def _regions(features: Sequence[Feature], path: Path) -> list[Feature]:
    """The annotations that are regions: those of the classes Region* and Annotated, those that contain detections, and
    rectangles that contain several objects or are much larger than the detections. Others are cells drawn by hand.

    `FormatError` if every one of several annotations contains exactly one detection: either could be the cells.
    """
    corners = [_exterior(feature) for feature in features]
    centres = np.array([ring.mean(0) if len(ring) else (np.nan, np.nan) for ring in corners]).reshape(-1, 2)
    detected = np.array([feature.kind in ("detection", "cell") for feature in features], bool)
    with np.errstate(over="ignore"):  # coordinates of hundreds of digits are refused later
        boxes = np.array([float(np.prod(np.ptp(ring, axis=0))) if len(ring) else 0.0 for ring in corners])
    large = LARGE * np.median(boxes[detected]) if detected.any() else np.inf
    centres_detected = centres[detected]
    regions, n_within = [], []
    for k, feature in enumerate(features):
        if feature.kind != "annotation" or feature.class_name == IGNORED_CLASS or not len(corners[k]):
            continue
        n_detections = int(points_inside(corners[k], centres_detected).sum())
        is_region = n_detections > 0 or feature.class_name in (REGION_CLASS, *ANNOTATED_CLASSES)
        if not is_region and len(feature.polygons) == 1 and _is_rectangle(corners[k]):
            # The rectangle contains its own centre too.
            is_region = boxes[k] > large or int(points_inside(corners[k], centres).sum()) > 2
        if is_region:
            regions.append(feature)
            n_within.append(n_detections)
    if len(regions) > 2 and set(n_within) == {1}:
        raise FormatError(
            "annotations and detections outline the same objects",
            where=path,
            got=f"{count(len(regions), 'annotation')} with one detection inside each",
            expected="the outlines of each object once",
            remedy="in QuPath, select the annotations or the detections, and export the selected objects only",
        )
    return regions


def _exterior(feature: Feature) -> np.ndarray:
    """The vertices (n, 2) of the longest exterior ring, n = 0 if it is malformed."""
    ring = max((rings[0] for rings in feature.polygons), key=lambda ring: len(ring) if isinstance(ring, list) else 0)
    try:
        points = np.asarray(ring, np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.zeros((0, 2))
    return points[:, :2] if points.ndim == 2 and points.shape[1] >= 2 else np.zeros((0, 2))


def _is_rectangle(ring: np.ndarray) -> bool:
    """Whether a closed or open ring is a rectangle along the axes."""
    corners = np.unique(ring, axis=0)
    return len(corners) == 4 and len(np.unique(corners[:, 0])) == len(np.unique(corners[:, 1])) == 2


def _check_one_plane(features: Sequence[dict[str, Any]], objects: Sequence[Feature], path: Path) -> None:
    wanted = {feature.where for feature in objects}
    planes = Counter(_plane(feature) for k, feature in enumerate(features) if f"{path}, feature {k}" in wanted)
    if len(planes) > 1:
        shown = [f"z {z}, t {t}: {count(n, 'object')}" for (z, t), n in sorted(planes.items())]
        raise FormatError(
            "these objects are on several planes of a stack",
            where=path,
            got="; ".join(shown[:4]) + ("; ..." if len(shown) > 4 else ""),
            expected="the objects of one image",
            remedy="save each plane as a separate image, and export its objects to a file beside it",
        )


def _plane(feature: dict[str, Any]) -> tuple[int, int]:
    """z and t of QuPath's plane of a geometry."""
    geometry = feature.get("geometry")
    plane = geometry.get("plane") if isinstance(geometry, dict) else None
    numbers = [plane.get(axis) if isinstance(plane, dict) else 0 for axis in ("z", "t")]
    z, t = [number if isinstance(number, int) else 0 for number in numbers]
    return z, t


def _without_collections(objects: Sequence[Feature]) -> tuple[list[Feature], list[Note]]:
    """The objects, those of very many polygons replaced by an object per polygon."""
    parts, notes = [], []
    for feature in objects:
        if len(feature.polygons) <= MAX_PARTS:
            parts.append(feature)
            continue
        parts += [replace(feature, polygons=[polygon]) for polygon in feature.polygons]
        n, name = count(len(feature.polygons), "polygon"), feature.where.rpartition(", ")[2]
        text = f"the {n} of {name} were read as separate objects"
        notes.append(Note("features of very many polygons were read as separate objects", text))
    return parts, notes


def _no_objects(path: Path, others: Sequence[tuple[str, str]], containers: Sequence[Feature]) -> FormatError:
    if not others:
        got = f"{_listed(containers)}, which contain objects but are none"
        remedy = "export the detections or annotations too"
        return FormatError("this file has no objects", where=path, got=got, remedy=remedy)
    where, kind = others[0]
    remedy = "export outlines; points and lines have no pixels"
    if kind == "MultiPoint":
        remedy = (
            "export outlines, not points (CellViT writes outlines to cells.geojson, points to cell_detection.geojson)"
        )
    problem = "an object is not an area" if len(others) == 1 else f"none of {len(others)} objects is an area"
    return FormatError(problem, where=f"{where}, geometry", got=kind, expected="Polygon or MultiPolygon", remedy=remedy)


def _listed(containers: Sequence[Feature]) -> str:
    """``"12 tiles, 1 TMA core"``."""
    counts = Counter(CONTAINERS[feature.kind] for feature in containers)
    return ", ".join(count(n, name) for name, n in counts.items())


def _notes_about(
    others: Sequence[tuple[str, str]],
    containers: Sequence[Feature],
    objects: Sequence[Feature],
    regions: Sequence[Feature],
    total: int,
) -> list[Note]:
    notes = []
    if others:
        kinds = ", ".join(f"{kind} ({n})" for kind, n in Counter(kind for _, kind in others).items())
        first = others[0][0].rpartition(", ")[2]
        text = f"{len(others)} of {count(total, 'feature')} not read, because they enclose no area: {kinds}, as {first}"
        notes.append(Note("features without an area were not read", text))
    if containers:
        notes.append(
            Note("tiles and TMA cores are not objects", f"{_listed(containers)} not read: they are not objects")
        )
    bounds = sum(feature.class_name in ANNOTATED_CLASSES for feature in regions)
    if bounds:
        text = f"{count(bounds, 'annotation')} of the class Annotated: what lies outside is not annotated"
        notes.append(Note("only regions of the class Annotated are annotated", text))
    if len(regions) > bounds:
        text = f"{count(len(regions) - bounds, 'annotation')} read as a region, not as an object, in an image that is "
        text += "annotated everywhere; the class Annotated says that what lies outside is not"
        notes.append(Note("annotations that contain objects were read as regions", text))
    drawn = sum(feature.kind == "annotation" and not feature.is_ignored for feature in objects)
    if 0 < drawn < len(objects) and any(feature.kind in ("detection", "cell") for feature in objects):
        text = f"{count(drawn, 'annotation')} beside {count(len(objects) - drawn, 'detection')} read as objects too"
        notes.append(Note("annotations that contain no detection were read as objects", text))
    ignored = sum(feature.class_name == IGNORED_CLASS for feature in objects)
    if ignored:
        text = f"{count(ignored, 'object')} of class {IGNORED_CLASS} read as regions that are not annotated"
        notes.append(Note("objects of the class Ignore* are not annotated", text))
    return notes

"""QuPath's GeoJSON: one file per image, one feature per object, in full-resolution pixels with the corner at (0, 0).

Reads feature collections, bare lists and single features of Polygon or MultiPolygon, with the classes and measurements
of QuPath 0.2 to 0.6. The nucleus of a cell (``nucleusGeometry``) is not read.

Writes ``id``, a UUID made from sample and object id (so that exporting again gives the same ids), ``objectType``
detection, ``name`` (the id of the object), ``classification``, ``measurements`` (the columns and the score, never NaN),
and ``metadata`` for crowd regions. Every polygon is valid; holes and multiple parts are kept. A member ``cellwright``
next to the features, which QuPath ignores, stores the name and size of the image.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError
from cellwright.core.files import read_json, write_json
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.polygons import MultiPolygon
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, ReadOptions, WriteOptions
from cellwright.data.formats.outlines import check_cover, checked_ring, ids_from_names, without_empty
from cellwright.data.formats.paths import (
    ImageFinder,
    annotation_files,
    copy_image,
    first_bytes,
    first_files,
    output_path,
    root_of,
    split_ids,
)

SCORE = "score"
_MEMBER = "cellwright"
_MAX_SIDE = 1_000_000

# The palette of Okabe and Ito, distinguishable with any kind of colour vision.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (0, 114, 178), (204, 121, 167), (240, 228, 66))


class GeoJson(Format):
    name = "geojson"
    description = (
        "QuPath feature collections with classes, measurements and scores; loses objects without a pixel, splits"
    )

    def sniff(self, path: Path) -> bool:
        """Whether there is a ``.geojson`` file, or a ``.json`` file that begins with features."""
        for file in first_files(path)[:40]:
            if file.suffix.lower() == ".geojson":
                return True
            if file.suffix.lower() == ".json" and _begins_with_features(first_bytes(file, 400)):
                return True
        return False

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Every GeoJSON at or below ``path``. Ids are the names of the objects if these are whole numbers, else 1..N.

        The image of ``x.geojson`` is ``x.tif`` (or .png ...) next to it, or in ``images/`` next to its folder.
        """
        root = root_of(path)
        files = annotation_files(path, self.sniff, "GeoJSON files")
        finder, images, class_names = ImageFinder(options), [], set()
        for file in options.track(files, "reading outlines", len(files)):
            content = _content(file)
            for k, feature in enumerate(content.features):
                where = f"{file}, feature {k}"
                class_names.add(_class_name(_properties(feature, where), where))
            images.append(finder.find(file, file.stem, content.image_hw))
        names = options.select_classes(sorted(class_names), path)
        places = split_ids([file.relative_to(root).with_suffix("").as_posix() for file in files], root.name)
        samples = []
        for file, image, (sample_id, split) in zip(files, images, places, strict=True):
            load, size_um = LoadFeatures(file, image.image_hw, names), image.pixel_size_um
            samples.append(Sample(sample_id, image.path, image.image_hw, load, None, split, None, size_um, self.name))
        return Dataset(tuple(samples), names, root, info={"format": self.name})

    def write(self, dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
        """Write ``out/<sample id>.geojson``, and the image next to it if ``copy_images`` is set.

        Objects without a pixel are dropped.
        """
        written: list[Path] = []
        for sample in options.track(dataset, "writing GeoJSON", len(dataset)):
            target = output_path(out, sample.id, ".geojson")
            instances = without_empty(sample.read_instances(), sample.id)
            image_name = sample.image_path.name if sample.image_path else None
            collection = feature_collection(instances, dataset.class_names, sample_id=sample.id, image_name=image_name)
            write_json(target, collection, indent=None)
            written.append(target)
            if options.copy_images:
                written += copy_image(sample, output_path(out, sample.id, ""))
        return written


# Reading


@dataclass(frozen=True)
class _Content:
    """A parsed file: its features and, if cellwright wrote it, the size of the image and whether the objects are
    predictions (which could not be told from a file without objects)."""

    features: list[dict[str, Any]]
    image_hw: tuple[int, int] | None
    scored: bool


def _begins_with_features(start: bytes) -> bool:
    compact = b"".join(start.split())
    return b'"type":"Feature' in compact and b'"images"' not in compact


def _content(path: Path) -> _Content:
    value = read_json(path)
    if isinstance(value, dict) and value.get("type") == "FeatureCollection":
        features = value.get("features")
    else:
        features = [value] if isinstance(value, dict) and value.get("type") == "Feature" else value
    if not isinstance(features, list) or not all(isinstance(f, dict) and f.get("type") == "Feature" for f in features):
        raise FormatError(
            "not a GeoJSON file of features",
            where=path,
            got=type(features).__name__ if not isinstance(features, list) else "a list with other entries",
            expected='{"type": "FeatureCollection", "features": [...]}',
        )
    member = value.get(_MEMBER) if isinstance(value, dict) else None
    member = member if isinstance(member, dict) else {}
    return _Content(features, _image_hw(member, path), member.get("scored") is True)


def _image_hw(member: dict[str, Any], path: Path) -> tuple[int, int] | None:
    if "image_hw" not in member:
        return None
    sides = member["image_hw"]
    if not isinstance(sides, list) or len(sides) != 2 or not all(_is_side(side) for side in sides):
        where, expected = f"{path}, {_MEMBER}.image_hw", "[height, width]"
        raise FormatError("an image size is malformed", where=where, got=str(sides)[:60], expected=expected)
    return sides[0], sides[1]


def _is_side(value: object) -> bool:
    return type(value) is int and 0 < value <= _MAX_SIDE


def _properties(feature: dict[str, Any], where: str) -> dict[str, Any]:
    properties = feature.get("properties")
    if not isinstance(properties, dict | None):
        raise FormatError(
            "the properties of a feature are malformed", where=where, got=str(properties)[:60], expected="an object"
        )
    return properties or {}


def _class_name(properties: dict[str, Any], where: str) -> str:
    """QuPath's class: ``{"name"}``, or ``{"names"}`` for a derived class, such as "Tumor: Positive"."""
    kind = properties.get("classification")
    if kind is None:
        return DEFAULT_CLASS
    name = kind.get("name") if isinstance(kind, dict) else kind
    names = kind.get("names") if isinstance(kind, dict) else None
    if name is None and isinstance(names, list) and names and all(isinstance(part, str) for part in names):
        name = ": ".join(names)
    if not isinstance(name, str) or not name:
        where, expected = f"{where}, properties.classification", '{"name": text}'
        raise FormatError("a class is malformed", where=where, got=str(kind)[:60], expected=expected)
    return name


def _measurements(properties: dict[str, Any], where: str) -> dict[str, float]:
    """Name -> number; QuPath 0.2 wrote a list of ``{"name", "value"}``. Values that are not numbers become NaN."""
    values = properties.get("measurements") or {}
    if isinstance(values, list) and all(isinstance(entry, dict) for entry in values):
        values = {str(entry.get("name")): entry.get("value") for entry in values}
    if not isinstance(values, dict):
        where, expected = f"{where}, properties.measurements", "names and numbers"
        raise FormatError("measurements are malformed", where=where, got=str(values)[:60], expected=expected)
    return {name: _number(value) for name, value in values.items()}


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan


def _polygons(feature: dict[str, Any], image_hw: tuple[int, int], where: str) -> list[list[np.ndarray]]:
    geometry = feature.get("geometry")
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if not isinstance(geometry, dict) or kind not in ("Polygon", "MultiPolygon"):
        raise FormatError(
            "an object is not an area",
            where=f"{where}, geometry",
            got=str(kind),
            expected="Polygon or MultiPolygon",
            remedy="export areas only, no points or lines",
        )
    parts: Any = geometry.get("coordinates")
    parts = [parts] if kind == "Polygon" else parts
    if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
        where, expected = f"{where}, geometry.coordinates", "lists of rings"
        raise FormatError("an outline is malformed", where=where, got=str(parts)[:60], expected=expected)
    place = f"{where}, geometry.coordinates"
    polygons = [[checked_ring(ring, image_hw, place) for ring in part] for part in parts]
    # A hole without area removes nothing, and an exterior without area contains nothing.
    return [[r for r in rings if len(r)] for rings in polygons if rings and len(rings[0])]


@dataclass(frozen=True)
class LoadFeatures:
    """Rasterises the features of one file. ``class_names`` are the classes to keep, in order."""

    path: Path
    image_hw: tuple[int, int]
    class_names: tuple[str, ...]

    def __call__(self) -> Instances:
        content = _content(self.path)
        features = content.features
        if not features:
            return Instances.empty(self.image_hw, scored=content.scored)
        places = [f"{self.path}, feature {k}" for k in range(len(features))]
        properties = [_properties(feature, place) for feature, place in zip(features, places, strict=True)]
        names = [_class_name(entry, place) for entry, place in zip(properties, places, strict=True)]
        kept = [k for k, name in enumerate(names) if name in self.class_names]
        objects = [_polygons(features[k], self.image_hw, places[k]) for k in kept]
        check_cover([[ring for rings in polygons for ring in rings] for polygons in objects], self.image_hw, self.path)
        columns = _columns([_measurements(properties[k], places[k]) for k in kept])
        scores = columns.pop(SCORE, None)
        if scores is not None and not ((scores >= 0) & (scores <= 1)).all():
            columns[SCORE], scores = scores, None  # a measurement that happens to be called "score"
        instances = Instances.from_masks(
            MaskSet.from_polygons(objects, self.image_hw),
            class_ids=np.array([self.class_names.index(names[k]) for k in kept], np.int64),
            ids=ids_from_names([properties[k].get("name") for k in kept]),
            scores=None if scores is None else scores.astype(np.float32),
            ignore=np.array([_is_ignored(properties[k]) for k in kept], bool),
        )
        return without_empty(replace(instances, columns=columns), self.path)


def _columns(measurements: Sequence[dict[str, float]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for values in measurements for name in values)
    return {name: np.array([values.get(name, math.nan) for values in measurements], np.float64) for name in names}


def _is_ignored(properties: dict[str, Any]) -> bool:
    metadata = properties.get("metadata")
    return isinstance(metadata, dict) and metadata.get("ignore") == "true"


# Writing


def feature_collection(
    instances: Instances, class_names: Sequence[str], *, sample_id: str, image_name: str | None
) -> dict[str, Any]:
    """The GeoJSON of the objects of one image; objects without a pixel are dropped."""
    features = []
    for k, polygons in enumerate(instances.masks.to_polygons()):
        if polygons:
            features.append(_feature(instances, k, class_names, polygons, sample_id))
    member = {"image": image_name, "image_hw": list(instances.image_hw), "scored": instances.scores is not None}
    return {"type": "FeatureCollection", _MEMBER: member, "features": features}


def _feature(
    instances: Instances, k: int, class_names: Sequence[str], polygons: MultiPolygon, sample_id: str
) -> dict[str, Any]:
    number, class_id = int(instances.ids[k]), int(instances.class_ids[k])
    closed = [[np.vstack([ring, ring[:1]]).tolist() for ring in rings] for rings in polygons]
    one_part = len(closed) == 1
    measurements = {
        name: float(values[k])
        for name, values in instances.columns.items()
        if values.dtype.kind in "biuf" and math.isfinite(values[k])
    }
    if instances.scores is not None:
        measurements[SCORE] = float(instances.scores[k])
    properties: dict[str, Any] = {
        "objectType": "detection",
        "name": str(number),
        "classification": {"name": class_names[class_id], "color": list(_COLOURS[class_id % len(_COLOURS)])},
        "measurements": measurements,
    }
    if instances.ignore[k]:
        properties["metadata"] = {"ignore": "true"}
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"cellwright:{sample_id}:{number}")),
        "geometry": {
            "type": "Polygon" if one_part else "MultiPolygon",
            "coordinates": closed[0] if one_part else closed,
        },
        "properties": properties,
    }

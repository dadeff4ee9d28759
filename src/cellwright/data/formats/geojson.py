"""QuPath's GeoJSON: one file per image, one feature per object, in full-resolution pixels with the corner at (0, 0).

Reads feature collections, bare lists, single features and bare geometries, also compressed with gzip, with the classes
and measurements of QuPath 0.2 to 0.6. `cellwright.data.formats.qupath` tells objects from regions, tiles and points.

Writes ``id``, a UUID made from sample and object id (so that exporting again gives the same ids), ``objectType``
detection (or cell, with ``nucleusGeometry``, for nuclei with their cells), ``name`` (the id of the object),
``classification``, and ``measurements`` (the columns and the score, never NaN); regions that are not annotated are
annotations of the class Ignore*. Every polygon is valid; holes and multiple
parts are kept. A member ``cellwright`` next to the features, which QuPath ignores, stores the name and size of the
image.
"""

from __future__ import annotations

import math
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError
from cellwright.core.files import write_json
from cellwright.core.ignored import with_regions
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.notes import Note, with_where
from cellwright.core.polygons import MultiPolygon, trace_crop
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, ReadOptions, WriteOptions
from cellwright.data.formats.outlines import (
    check_outlines,
    checked_ring,
    class_of_unclassified,
    ids_from_names,
    repeated_ids,
    without_empty,
)
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
from cellwright.data.formats.qupath import (
    ANNOTATED_CLASSES,
    IGNORED_CLASS,
    MEMBER,
    Content,
    Feature,
    begins_with_features,
    read_features,
)

SCORE = "score"
_MAX_COLUMNS = 2000

# The palette of Okabe and Ito, distinguishable with any kind of colour vision.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (0, 114, 178), (204, 121, 167), (240, 228, 66))
_GREY = (180, 180, 180)  # that of QuPath for Ignore*


class GeoJson(Format):
    name = "geojson"
    description = (
        "QuPath feature collections with classes, measurements and scores; loses objects without a pixel, splits"
    )

    def sniff(self, path: Path) -> bool:
        """Whether there is a ``.geojson`` file or a ``.json`` file that begins with features, also with gzip."""
        for file in first_files(path)[:40]:
            name = file.name.lower().removesuffix(".gz")
            if name.endswith(".geojson"):
                return True
            if name.endswith(".json") and begins_with_features(first_bytes(file, 400)):
                return True
        return False

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Every GeoJSON at or below ``path``. Ids are the names of the objects if these are whole numbers, else 1..N.

        The image of ``x.geojson`` is ``x.tif`` (or .png ...) next to it, or in ``images/`` next to its folder. With
        ``options.nucleus``, the objects are the nuclei of QuPath's cells. Regions are in
        ``info["qupath_regions"]``: for each sample with regions, a list of ``{"class", "polygons"}``.
        """
        root = root_of(path)
        files = annotation_files(path, self.sniff, "GeoJSON files")
        finder, images, found, notes = ImageFinder(options, root), [], Counter[str | None](), list[Note]()
        regions, has_nuclei = [], False
        for file in options.track(files, "reading outlines", len(files)):
            content = read_features(file, nucleus=options.nucleus)
            found.update(feature.object_class for feature in content.objects)
            repeated = repeated_ids(feature.properties.get("name") for feature in content.objects)
            notes += with_where([*content.notes, *repeated], file.relative_to(root).as_posix())
            regions.append([_region(feature) for feature in content.regions])
            has_nuclei = has_nuclei or content.has_nuclei
            images.append(finder.find(file, _without_suffix(file.name), content.image_hw))
        if options.nucleus and not has_nuclei:
            raise InputError("no cell has a nucleus", where=path, got="`nucleus=True`", remedy="omit `nucleus`")
        names = {name for name in found if name is not None and name != IGNORED_CLASS}
        unclassified, class_notes = class_of_unclassified(names, found[None], options.class_names)
        class_names = options.select_classes(sorted(names | ({unclassified} if found[None] else set())), path)
        places = split_ids([_without_suffix(file.relative_to(root).as_posix()) for file in files], root.name)
        samples = []
        for file, image, (sample_id, split) in zip(files, images, places, strict=True):
            load = LoadFeatures(file, image.image_hw, class_names, unclassified, options.nucleus)
            size_um = image.pixel_size_um
            samples.append(Sample(sample_id, image.path, image.image_hw, load, None, split, None, size_um, self.name))
        of_samples = {sample.id: entries for sample, entries in zip(samples, regions, strict=True) if entries}
        info = {"format": self.name} | ({"qupath_regions": of_samples} if of_samples else {})
        return Dataset(tuple(samples), class_names, root, info=info, notes=(*finder.notes, *notes, *class_notes))

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


def _without_suffix(name: str) -> str:
    """``"a/x"`` of ``"a/x.geojson"`` and of ``"a/x.geojson.gz"``."""
    return name.removesuffix(".gz").rpartition(".")[0]


def _region(feature: Feature) -> dict[str, Any]:
    return {"class": feature.class_name, "polygons": feature.polygons}


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


def _checked_polygons(feature: Feature, image_hw: tuple[int, int]) -> list[list[np.ndarray]]:
    place = f"{feature.where}, geometry.coordinates"
    polygons = [[checked_ring(ring, image_hw, place) for ring in rings] for rings in feature.polygons]
    # A hole without area removes nothing, and an exterior without area contains nothing.
    return [[r for r in rings if len(r)] for rings in polygons if len(rings[0])]


@dataclass(frozen=True)
class LoadFeatures:
    """Rasterises the features of one file.

    class_names: the classes to keep, in order. unclassified: the class of objects without one. nucleus: whether to read
    the nuclei of cells.
    """

    path: Path
    image_hw: tuple[int, int]
    class_names: tuple[str, ...]
    unclassified: str = DEFAULT_CLASS
    nucleus: bool = False

    def __call__(self) -> Instances:
        content = read_features(self.path, nucleus=self.nucleus)
        bounds = [feature for feature in content.regions if feature.class_name in ANNOTATED_CLASSES]
        instances = self._instances(content)
        if not bounds:
            return instances
        annotated = MaskSet.from_polygons([_checked_polygons(f, self.image_hw) for f in bounds], self.image_hw)
        return with_regions(instances, MaskSet.empty(self.image_hw), annotated)

    def _instances(self, content: Content) -> Instances:
        if not content.objects:
            return Instances.empty(self.image_hw, scored=content.scored)
        kept = [(feature, self._class_id(feature)) for feature in content.objects]
        kept = [(feature, class_id) for feature, class_id in kept if class_id is not None]
        features = [feature for feature, _ in kept]
        objects = [_checked_polygons(feature, self.image_hw) for feature in features]
        check_outlines(
            [[ring for rings in polygons for ring in rings] for polygons in objects], self.image_hw, self.path
        )
        columns = _columns([_measurements(feature.properties, feature.where) for feature in features], self.path)
        scores = columns.pop(SCORE, None)
        if scores is not None and not ((scores >= 0) & (scores <= 1)).all():
            columns[SCORE], scores = scores, None  # a measurement that happens to be called "score"
        instances = Instances.from_masks(
            MaskSet.from_polygons(objects, self.image_hw),
            class_ids=np.array([class_id for _, class_id in kept], np.int64),
            ids=ids_from_names([feature.properties.get("name") for feature in features]),
            scores=None if scores is None else scores.astype(np.float32),
            ignore=np.array([feature.is_ignored for feature in features], bool),
        )
        return without_empty(replace(instances, columns=columns), self.path)

    def _class_id(self, feature: Feature) -> int | None:
        """The class id; `NO_CLASS` for ignored regions without a wanted class; None if an object is not wanted."""
        name = feature.object_class or self.unclassified
        if feature.is_ignored and name not in self.class_names:
            return NO_CLASS
        return self.class_names.index(name) if name in self.class_names else None


def _columns(measurements: Sequence[dict[str, float]], path: Path) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for values in measurements for name in values)
    if len(names) > _MAX_COLUMNS:
        got, expected = f"{len(names)} different names", f"at most {_MAX_COLUMNS}"
        remedy = "export the objects without measurements"
        raise FormatError("too many measurements", where=path, got=got, expected=expected, remedy=remedy)
    return {name: np.array([values.get(name, math.nan) for values in measurements], np.float64) for name in names}


# Writing


def feature_collection(
    instances: Instances,
    class_names: Sequence[str],
    *,
    sample_id: str,
    image_name: str | None,
    cells: MaskSet | None = None,
) -> dict[str, Any]:
    """The GeoJSON of the objects of one image; objects without a pixel are dropped.

    cells: the objects are the nuclei of these cells, in the same order.
    """
    member = {"image": image_name, "image_hw": list(instances.image_hw), "scored": instances.scores is not None}
    objects = list(features(instances, class_names, sample_id=sample_id, cells=cells))
    return {"type": "FeatureCollection", MEMBER: member, "features": objects}


def features(
    instances: Instances, class_names: Sequence[str], *, sample_id: str, cells: MaskSet | None = None
) -> Iterator[dict[str, Any]]:
    """The features of a `feature_collection`, made one by one."""
    for k, box in enumerate(instances.masks.boxes):
        polygons = trace_crop(instances.masks.crop(k), box)
        if not polygons:
            continue
        feature = _feature(instances, k, class_names, polygons, sample_id)
        if cells is not None and not instances.ignore[k]:
            nucleus, cell = feature["geometry"], trace_crop(cells.crop(k), cells.boxes[k])
            feature["properties"]["objectType"] = "cell"
            feature = feature | {"geometry": _geometry(cell), "nucleusGeometry": nucleus}
        yield feature


def _feature(
    instances: Instances, k: int, class_names: Sequence[str], polygons: MultiPolygon, sample_id: str
) -> dict[str, Any]:
    number, class_id = int(instances.ids[k]), int(instances.class_ids[k])
    measurements = {
        name: float(values[k])
        for name, values in instances.columns.items()
        if values.dtype.kind in "biuf" and math.isfinite(values[k])
    }
    if instances.scores is not None:
        measurements[SCORE] = float(instances.scores[k])
    properties: dict[str, Any] = {"objectType": "detection", "name": str(number)}
    if instances.ignore[k]:
        properties["objectType"] = "annotation"
        properties["classification"] = {"name": IGNORED_CLASS, "color": list(_GREY)}
        properties["metadata"] = {"ignore": "true"}
        if class_id != NO_CLASS:
            properties["metadata"]["class"] = class_names[class_id]
    else:
        colour = list(_COLOURS[class_id % len(_COLOURS)])
        properties["classification"] = {"name": class_names[class_id], "color": colour}
    properties["measurements"] = measurements
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"cellwright:{sample_id}:{number}")),
        "geometry": _geometry(polygons),
        "properties": properties,
    }


def _geometry(polygons: MultiPolygon) -> dict[str, Any]:
    closed = [[np.vstack([ring, ring[:1]]).tolist() for ring in rings] for rings in polygons]
    if len(closed) == 1:
        return {"type": "Polygon", "coordinates": closed[0]}
    return {"type": "MultiPolygon", "coordinates": closed}

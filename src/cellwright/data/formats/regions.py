"""Regions that are not annotated, as files beside or in the annotations give them; all become
`Instances.ignore`, of no class.

- ``info.regions`` of a COCO file: a list of ``{"image_id", "kind": "ignore" or "annotated", "box" or "polygon"}``;
  cellwright writes ``object_id`` too.
- An ignore mask ``x_ignore.png`` beside the image ``x.tif`` or beside its label image, for every format: what is not 0
  is not annotated.

QuPath's classes Ignore* and Annotated are read by `geojson`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.coco import polygon_parts, whole
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError
from cellwright.core.files import atomic_path, stem_of
from cellwright.core.ignored import ignored_region, with_regions
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.label_io import read_raster
from cellwright.data.formats.outlines import checked_ring
from cellwright.data.images.names import IGNORE_MASK

KINDS = ("ignore", "annotated")


@dataclass(frozen=True)
class Region:
    """An outline in pixels, of one or more polygons [exterior] of vertices (n, 2); inside is annotated, or ignored.

    number: the id that the object should have, if any.
    """

    polygons: tuple[np.ndarray, ...]
    is_annotated: bool
    number: int | None = None


@dataclass(frozen=True, eq=False)
class WithRegions:
    """A `Sample.load` with the regions of a file."""

    load: Callable[[], Instances]
    regions: tuple[Region, ...]

    def __call__(self) -> Instances:
        instances = self.load()
        ignored, annotated = (
            MaskSet.from_polygons(
                [[[ring] for ring in region.polygons] for region in self.regions if region.is_annotated == wanted],
                instances.image_hw,
            )
            for wanted in (False, True)
        )
        ids = [region.number for region in self.regions if not region.is_annotated]
        return with_regions(instances, ignored, annotated if len(annotated) else None, ids=ids)


# --- info.regions of a COCO file ----------------------------------------------------------------------------------


Record = tuple[str, Mapping[str, Any]]
"""A region as a file has it, and where."""


def coco_regions(info: Mapping[str, Any], images: Sequence[Mapping[str, Any]], path: Path) -> dict[int, list[Record]]:
    """The regions of each image that has some, by its position in ``images``; `FormatError` for one of no image.

    info: of the file; ``regions`` that are no list are not ours.
    """
    records = info.get("regions")
    if not isinstance(records, list):
        return {}
    position: dict[Any, int] = {}
    for k, image in enumerate(images):
        for key in ("sample_id", "file_name", "id"):
            position[image.get(key)] = k
    found: dict[int, list[Record]] = {}
    for number, record in enumerate(records):
        where = f"{path}, info.regions[{number}]"
        if not isinstance(record, dict):
            raise FormatError("a region is malformed", where=where, got=str(record)[:60], expected="an object")
        name = record.get("image_id")
        k = position.get(name, position.get(whole(name))) if isinstance(name, int | float | str) else None
        if k is None:
            expected = "the id or file_name of an image of this file"
            raise FormatError("a region is of no image", where=where, got=f"image_id {name!r}"[:60], expected=expected)
        found.setdefault(k, []).append((where, record))
    return found


def region_of(record: Record, image_hw: tuple[int, int]) -> Region:
    """The region of an image of size ``image_hw``; `FormatError` for a malformed one."""
    where, values = record
    return _region(values, image_hw, where)


def _region(record: Mapping[str, Any], image_hw: tuple[int, int], where: str) -> Region:
    kind = record.get("kind")
    if kind not in KINDS:
        expected = " or ".join(KINDS)
        raise FormatError("a region has no kind", where=f"{where}.kind", got=repr(kind)[:40], expected=expected)
    box, polygon = record.get("box"), record.get("polygon")
    if (box is None) == (polygon is None):
        got = "neither" if box is None else "both"
        raise FormatError("a region needs one outline", where=where, got=got, expected="a box or a polygon")
    if box is not None:
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) <= 0:
            expected = "[x, y, width, height], finite numbers, width and height above 0"
            raise FormatError("a box is malformed", where=f"{where}.box", got=str(box)[:60], expected=expected)
        x, y, width, height = map(float, box)
        parts: list[Any] = [[[x, y], [x + width, y], [x + width, y + height], [x, y + height]]]
    else:
        parts = polygon_parts(polygon) if isinstance(polygon, list) else []
        parts = [_pairs(part) for part in parts]
    if not parts:
        expected = "[[x, y], [x, y], ...], at least three vertices"
        raise FormatError("a polygon is malformed", where=f"{where}.polygon", got=str(polygon)[:60], expected=expected)
    rings = [checked_ring(part, image_hw, where) for part in parts]
    number = whole(record.get("object_id"))
    return Region(
        tuple(ring for ring in rings if len(ring)),
        kind == "annotated",
        number if number is not None and number > 0 else None,
    )


def region_records(instances: Instances, image_id: int) -> list[dict[str, Any]]:
    """The entries of ``info.regions`` for the regions of no class, along the edges of their pixels."""
    regions = instances[(instances.class_ids == NO_CLASS) & (instances.masks.areas > 0)]
    records = []
    for k, number in enumerate(regions.ids.tolist()):
        x0, y0 = regions.masks.boxes[k, :2].tolist()
        rings = _rings_without_holes(regions.masks.crop(k).astype(bool))
        polygon = [(ring + np.array([x0, y0])).astype(np.int64).ravel().tolist() for ring in rings]
        records.append({"image_id": image_id, "kind": "ignore", "object_id": number, "polygon": polygon})
    return records


def _rings_without_holes(mask: np.ndarray) -> list[np.ndarray]:
    """Polygons (n, 2) that together are the mask (H, W). A part with a hole is cut in two along the top of the hole."""
    (polygons,) = MaskSet.from_dense(mask[None]).to_polygons()
    tops = [int(np.asarray(hole)[:, 1].min()) for _, *holes in polygons for hole in holes]
    if not tops:
        return [np.asarray(ring) for ring, *_ in polygons]
    cuts, rings = [0, *sorted(set(tops)), len(mask)], []
    for top, bottom in itertools.pairwise(cuts):
        rings += [ring + np.array([0, top]) for ring in _rings_without_holes(mask[top:bottom])]
    return rings


def _pairs(part: Any) -> Any:
    """Vertices ``[x, y]`` of a flat list ``[x, y, x, y, ...]``."""
    is_flat = isinstance(part, list) and len(part) % 2 == 0 and all(map(_is_number, part))
    return [part[k : k + 2] for k in range(0, len(part), 2)] if is_flat else part


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e9


# --- ignore masks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class WithIgnoreMask:
    """A `Sample.load` with an ignore mask, which must be of the size of the image."""

    load: Callable[[], Instances]
    path: Path

    def __call__(self) -> Instances:
        instances = self.load()
        if instances.scores is not None:
            return instances
        mask = read_raster(self.path).values != 0
        if mask.shape != instances.image_hw:
            raise FormatError(
                "an ignore mask and its image differ in size",
                where=self.path,
                got=f"{mask.shape[0]} x {mask.shape[1]} (height x width)",
                expected=f"{instances.image_hw[0]} x {instances.image_hw[1]}",
            )
        return with_regions(instances, MaskSet.from_dense(mask[None]))


def with_ignore_masks(dataset: Dataset, path: Path, *, quiet: bool = False) -> Dataset:
    """The dataset with the ignore masks that lie beside its images or label images, and a note about them."""
    folders: dict[Path, frozenset[str]] = {}
    samples, used = [], []
    for sample in dataset:
        mask = _mask_beside(sample, folders)
        samples.append(sample if mask is None else dataclasses.replace(sample, load=WithIgnoreMask(sample.load, mask)))
        used += [] if mask is None else [mask]
    if not used:
        return dataset
    text = f"{count(len(used), 'ignore mask')} read, such as {used[0].name}: what is not 0 there is not annotated"
    note = Note("ignore masks were read", text, str(path))
    notes = dataset.notes if quiet else (*dataset.notes, note)
    return dataclasses.replace(dataset, samples=tuple(samples), notes=notes)


def _mask_beside(sample: Sample, folders: dict[Path, frozenset[str]]) -> Path | None:
    labels = getattr(sample.load, "path", None)
    stems = [stem_of(sample.image_path.name)] if sample.image_path is not None else []
    stems.append(sample.id.rpartition("/")[2])
    for file in (sample.image_path, labels):
        if not isinstance(file, Path):
            continue
        if file.parent not in folders:
            folders[file.parent] = _ignore_masks_in(file.parent)
        for stem in stems:
            if stem + IGNORE_MASK in folders[file.parent]:
                return file.parent / (stem + IGNORE_MASK)
    return None


def _ignore_masks_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in folder.iterdir() if entry.name.endswith(IGNORE_MASK))
    except OSError:  # reported when the images are read
        return frozenset()


def write_ignore_mask(path: Path, instances: Instances) -> None:
    """Write the ignored regions as an ignore mask: 255 is not annotated."""
    import imagecodecs

    region = ignored_region(instances)
    mask = region.foreground() if len(region) else np.zeros(instances.image_hw, bool)
    with atomic_path(path) as temporary:
        temporary.write_bytes(imagecodecs.png_encode(np.where(mask, 255, 0).astype(np.uint8)))

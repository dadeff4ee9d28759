"""Aperio ImageScope XML, in which MoNuSeg and MoNuSAC publish their outlines: one ``<Region>`` per object.

The class is the name of the ``<Annotation>`` layer, else the value or name of its first attribute (other than
"Description"). The pixel size is ``MicronsPerPixel``. Vertices follow the convention of MATLAB's ``poly2mask``, whose
pixel centres are at whole numbers from 1: with the corner of the image at 0, a vertex is at (x - 0.5, y - 0.5).
Outlines are filled by `poly2mask`, like the masks of MoNuSeg, and may overlap. A region marked ``NegativeROA`` is cut
out of the region around it.

The file is parsed as a stream. Document type declarations, and with them all entities, raise an error.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

import numpy as np

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError
from cellwright.core.files import is_gzip, plain_suffix, read_plain, stem_of, unreadable
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.notes import Note, with_where
from cellwright.core.polygons import check_lengths
from cellwright.core.text import count
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, ReadOptions
from cellwright.data.formats.outlines import check_outlines, checked_ring, repeated_ids, without_empty
from cellwright.data.formats.paths import ImageFinder, annotation_files, first_bytes, first_files, root_of, split_ids
from cellwright.data.formats.poly2mask import poly2mask

# Aperio's region types that enclose an area; other types are arrows and rulers.
_FREEHAND, _RECTANGLE, _ELLIPSE = "0", "1", "2"
_ELLIPSE_VERTICES = 72
_MAX_COORDINATE = 1e7
_MAX_LENGTH = 1 << 25  # pixels along all outlines of an image: those of MoNuSeg have 100,000
_CHUNK = 1 << 20


# Nuclei in the test images of MoNuSAC that its authors could not classify; its evaluation leaves them out.
AMBIGUOUS = "Ambiguous"


class XmlOutlines(Format):
    name = "xml_outlines"
    description = "Aperio ImageScope XML outlines (MoNuSeg, MoNuSAC) with microns per pixel"

    def sniff(self, path: Path) -> bool:
        """Whether one of the first XML files begins as ImageScope's files do."""
        files = [file for file in first_files(path) if plain_suffix(file) == ".xml"]
        return any(b"<Annotations" in first_bytes(file) for file in files[:3])

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Every XML at or below ``path``. Ids are those of the regions if they are unique, else 1..N in file order.

        The image of ``x.xml`` is ``x.tif`` (or .png ...) next to it, or in ``Tissue Images/`` or ``images/`` next to
        its folder.
        """
        root = root_of(path)
        files = annotation_files(path, lambda file: plain_suffix(file) == ".xml", "Aperio XML files")
        finder, images, class_names, notes = ImageFinder(options, root), [], set(), list[Note]()
        n_ambiguous = 0
        for file in options.track(files, "reading outlines", len(files)):
            outlines = parse(file)
            class_names.update(name for name in outlines.class_names if name != AMBIGUOUS)
            n_ambiguous += outlines.class_names.count(AMBIGUOUS)
            notes += with_where(outlines.notes, file.relative_to(root).as_posix())
            image, microns = finder.find(file, stem_of(file)), outlines.microns_per_pixel
            images.append((image, (microns, microns) if microns else image.pixel_size_um))
        names = options.select_classes(sorted(class_names), path)
        if n_ambiguous:
            text = f"{count(n_ambiguous, 'outline')} of class {AMBIGUOUS} read as regions that are not annotated"
            notes.append(Note("outlines of the class Ambiguous are ignored", text))
        places = split_ids([file.relative_to(root).with_name(stem_of(file)).as_posix() for file in files], root.name)
        samples = []
        for file, (image, size_um), (sample_id, split) in zip(files, images, places, strict=True):
            load = LoadOutlines(file, image.image_hw, names)
            samples.append(Sample(sample_id, image.path, image.image_hw, load, None, split, None, size_um, self.name))
        return Dataset(tuple(samples), names, root, info={"format": self.name}, notes=(*finder.notes, *notes))


@dataclass
class _Region:
    where: str
    number: int
    kind: str
    negative: bool
    layer: int
    vertices: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class _Layer:
    name: str
    attribute: str = ""


@dataclass(frozen=True)
class Outlines:
    """The contents of one file.

    rings: for each object its outline, (n, 2) x, y, followed by its holes. places: file and line of each object, for
    messages. notes: what was not read.
    """

    numbers: tuple[int, ...]
    class_names: tuple[str, ...]
    rings: tuple[tuple[np.ndarray, ...], ...]
    places: tuple[str, ...]
    microns_per_pixel: float | None
    notes: tuple[Note, ...] = ()


class _Reader:
    """Collects layers and regions while expat parses the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layers: list[_Layer] = []
        self.regions: list[_Region] = []
        self.microns: float | None = None
        self._open: list[str] = []
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.EntityDeclHandler = self._refuse
        self._parser.buffer_text = True

    def parse(self) -> None:
        try:
            with io.BytesIO(read_plain(self.path)) if is_gzip(self.path) else self.path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    self._parser.Parse(chunk, False)
            self._parser.Parse(b"", True)
        except expat.ExpatError as error:
            where = f"{self.path}, line {error.lineno}, column {error.offset}"
            got = expat.ErrorString(error.code)
            raise FormatError("this file is not valid XML", where=where, got=got, remedy="get a fresh copy") from error
        except (LookupError, ValueError) as error:  # an encoding that Python does not support
            raise FormatError(
                "this XML cannot be decoded", where=self.path, got=str(error), remedy="save it as UTF-8"
            ) from error
        except OSError as error:
            raise unreadable(self.path, error) from error

    def _where(self) -> str:
        return f"{self.path}, line {self._parser.CurrentLineNumber}"

    def _refuse(self, *_declaration: object) -> None:
        raise FormatError(
            "this XML declares a document type or entities, which cellwright never expands",
            where=self._where(),
            expected="elements only, as ImageScope writes them",
            remedy="remove the <!DOCTYPE ...> part",
        )

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._open and tag != "Annotations":
            raise FormatError("not an Aperio XML file", where=self._where(), got=f"<{tag}>", expected="<Annotations>")
        self._open.append(tag)
        if tag == "Annotations":
            self.microns = self._microns(attributes)
        elif tag == "Annotation":
            self.layers.append(_Layer(attributes.get("Name", "").strip()))
        elif tag == "Attribute" and self.layers and self._open[-3:-1] == ["Annotation", "Attributes"]:
            self._attribute(attributes)
        elif tag == "Region":
            self._region(attributes)
        elif tag == "Vertex" and self._open[-3:-1] == ["Region", "Vertices"]:
            point = self._number(attributes, "X"), self._number(attributes, "Y")
            self.regions[-1].vertices.append(point)

    def _end(self, _tag: str) -> None:
        self._open.pop()

    def _microns(self, attributes: dict[str, str]) -> float | None:
        value = attributes.get("MicronsPerPixel", "").strip()
        if not value:
            return None
        microns = self._number(attributes, "MicronsPerPixel")
        return microns if microns > 0 else None

    def _attribute(self, attributes: dict[str, str]) -> None:
        name, value = attributes.get("Name", "").strip(), attributes.get("Value", "").strip()
        layer = self.layers[-1]
        layer.attribute = layer.attribute or value or (name if name != "Description" else "")

    def _region(self, attributes: dict[str, str]) -> None:
        if not self.layers:
            raise FormatError(
                "a <Region> is outside any <Annotation>", where=self._where(), remedy="export the annotations again"
            )
        text = attributes.get("Id", "").strip()
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else 0
        negative = attributes.get("NegativeROA", "0") == "1"
        kind = attributes.get("Type", _FREEHAND)
        self.regions.append(_Region(self._where(), number, kind, negative, len(self.layers) - 1))

    def _number(self, attributes: dict[str, str], name: str) -> float:
        text = attributes.get(name, "")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not abs(value) <= _MAX_COORDINATE:
            where = f"{self._where()}, attribute {name}"
            raise FormatError(
                "an attribute is not a valid number", where=where, got=repr(text[:40]), expected="a number"
            )
        return value


def parse(path: Path) -> Outlines:
    """The outlines of one file, shifted to (x - 0.5, y - 0.5), with the corner of the image as the origin.

    Arrows and rulers among outlines are passed over, with a note. Raises `FormatError` that names the line for
    malformed content, a file with arrows and rulers only, and a negative region that is not inside another one.
    """
    reader = _Reader(path)
    reader.parse()
    regions, notes = _with_area(reader.regions)
    rings = [_ring(region) for region in regions]
    outer = [k for k, region in enumerate(regions) if not region.negative]
    holes: dict[int, list[np.ndarray]] = {k: [] for k in outer}
    negative = [k for k, region in enumerate(regions) if region.negative]
    for k, around in zip(negative, _around(rings, regions, outer, negative), strict=True):
        holes[around].append(rings[k])
    notes = (*notes, *repeated_ids(regions[k].number for k in outer))
    layers = [layer.name or layer.attribute or DEFAULT_CLASS for layer in reader.layers]
    return Outlines(
        tuple(regions[k].number for k in outer),
        tuple(layers[regions[k].layer] for k in outer),
        tuple((rings[k], *holes[k]) for k in outer),
        tuple(regions[k].where for k in outer),
        reader.microns,
        notes,
    )


def _with_area(regions: list[_Region]) -> tuple[list[_Region], tuple[Note, ...]]:
    """The regions that enclose pixels, and a note about the others: arrows and rulers."""
    areas = [region for region in regions if region.kind in (_FREEHAND, _RECTANGLE, _ELLIPSE)]
    if len(areas) == len(regions):
        return regions, ()
    others = [region for region in regions if region.kind not in (_FREEHAND, _RECTANGLE, _ELLIPSE)]
    if not areas:
        raise FormatError(
            "a region is an arrow or a ruler, which encloses no pixels",
            where=others[0].where,
            got=f"Type {others[0].kind[:20]!r}",
            expected="Type 0 (outline), 1 (rectangle) or 2 (ellipse)",
            remedy="draw outlines of the objects in ImageScope",
        )
    line = others[0].where.rpartition(", ")[2]
    number = f"{len(others)} of {count(len(regions), 'region')}"
    text = f"{number} not read, because arrows and rulers enclose no pixels: {line}"
    return areas, (Note("arrows and rulers were not read", text + (", ..." if len(others) > 1 else "")),)


def _ring(region: _Region) -> np.ndarray:
    """Vertices (n, 2) of a region, with n = 0 if it encloses nothing."""
    points = np.array(region.vertices, np.float64).reshape(-1, 2) - 0.5
    if region.kind == _ELLIPSE and len(points) >= 2:
        low, high = points.min(0), points.max(0)
        angles = np.linspace(0, 2 * np.pi, _ELLIPSE_VERTICES, endpoint=False)
        return (low + high) / 2 + (high - low) / 2 * np.stack([np.cos(angles), np.sin(angles)], 1)
    if region.kind == _RECTANGLE and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    return points if len(points) >= 3 else np.zeros((0, 2))


def _around(rings: list[np.ndarray], regions: list[_Region], outer: list[int], holes: list[int]) -> list[int]:
    """For each hole, the smallest region in its layer that contains its first vertex."""
    from cellwright.core import _polygon_kernels

    if not holes:
        return []
    sizes = [float(np.prod(np.ptp(rings[k], axis=0))) if len(rings[k]) else 0.0 for k in outer]
    by_size = [outer[k] for k in np.argsort(sizes, kind="stable")]
    starts = np.cumsum([0] + [len(rings[k]) for k in by_size])
    points = np.array([rings[k][0] if len(rings[k]) else (np.nan, np.nan) for k in holes], np.float64)
    found = _polygon_kernels.first_around(
        np.concatenate([np.zeros((0, 2)), *(rings[k] for k in by_size)]),
        starts,
        np.array([regions[k].layer for k in by_size], np.int64),
        points,
        np.array([regions[k].layer for k in holes], np.int64),
    )
    if (found < 0).any():
        where = regions[holes[int(np.flatnonzero(found < 0)[0])]].where
        raise FormatError("a negative region is not inside another region", where=where, expected="a region around it")
    return [by_size[k] for k in found.tolist()]


@dataclass(frozen=True)
class LoadOutlines:
    """Rasterises the outlines of one file. ``class_names`` are the classes to keep, in order."""

    path: Path
    image_hw: tuple[int, int]
    class_names: tuple[str, ...]

    def __call__(self) -> Instances:
        outlines = parse(self.path)
        kept = [k for k, name in enumerate(outlines.class_names) if name in (*self.class_names, AMBIGUOUS)]
        objects = [self._checked(outlines, k) for k in kept]
        check_outlines(objects, self.image_hw, self.path)
        check_lengths((ring for rings in objects for ring in rings), self.path, most=_MAX_LENGTH)
        cut = [poly2mask(rings, self.image_hw) for rings in objects]
        boxes = np.array([box for box, _ in cut], np.int32).reshape(-1, 4)
        masks = MaskSet.from_crops(boxes, [crop for _, crop in cut], self.image_hw)
        numbers = np.array([outlines.numbers[k] for k in kept], np.int64)
        if np.unique(numbers).size < numbers.size or (numbers <= 0).any():
            numbers = np.arange(1, len(kept) + 1)
        ids = {AMBIGUOUS: NO_CLASS, **{name: k for k, name in enumerate(self.class_names)}}
        classes = np.array([ids[outlines.class_names[k]] for k in kept], np.int64)
        ignore = np.array([outlines.class_names[k] == AMBIGUOUS for k in kept], bool)
        instances = Instances.from_masks(masks, class_ids=classes, ids=numbers, ignore=ignore)
        return without_empty(instances, self.path)

    def _checked(self, outlines: Outlines, k: int) -> list[np.ndarray]:
        return [checked_ring(ring, self.image_hw, outlines.places[k]) for ring in outlines.rings[k]]

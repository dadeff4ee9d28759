"""ImageJ ROIs: ``x_rois.zip`` (or ``x.zip``, ``x_RoiSet.zip``) or single ``.roi`` files next to the image ``x.tif``.

Reads polygons, freehand and traced outlines, rectangles, ovals, ellipses, rotated rectangles and composites (even-odd)
as ImageJ 1.53t fills them, to the pixel. Lines, points, text and images enclose no pixels: among outlines they are
passed over with a note, alone they raise an error, as do ROIs on several slices of a stack.

Writes one zip per image with one entry per object, named by its id. An object of one part without holes becomes a
traced polygon, any other a composite. Both follow pixel edges, so that ImageJ's masks are equal to ours to the pixel.
Class, score and crowd flag are properties of the ROI (shown by Image > Overlay > Properties), and the group, which
determines the colour, is the class. The comment of the zip, which ImageJ ignores, stores the image's name and size.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError
from cellwright.core.files import unreadable, write_bytes
from cellwright.core.geometry import MAX_SIDE
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.notes import Note, with_where
from cellwright.core.polygons import MultiPolygon
from cellwright.core.text import count
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, ReadOptions, WriteOptions
from cellwright.data.formats.outlines import (
    check_outlines,
    checked_ring,
    class_of_unclassified,
    concat_in_order,
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
    images_named,
    is_file,
    output_path,
    root_of,
    split_ids,
    stem_of,
)
from cellwright.data.images.read import is_image_name, is_own_output

if TYPE_CHECKING:
    from roifile import ImagejRoi

# What people add to the name of an image for the zip of its ROIs: "x_rois", "x_RoiSet", "RoiSet x", "x-ROI-set".
_ENDING = re.compile(r"(.+?)[ _.-]+roi(?:s|[ _-]?sets?)?", re.IGNORECASE)
_BEGINNING = re.compile(r"roi(?:s|[ _-]?sets?)?[ _.-]+(.+)", re.IGNORECASE)
_ROI_SET = re.compile(
    r"(?:roi(?:s|[ _-]?sets?)?)(?: ?\(\d+\)|[ _-]\d+)?", re.IGNORECASE
)  # without the name of an image
_GROUP = "group "
_MAX_ROI_BYTES = 1 << 25
_MAX_ZIP_BYTES, _MAX_ZIP_RATIO = 1 << 29, 100
_ZIP_TAIL = 65_536 + 22  # the end record and the longest possible comment
_BROKEN_ROI = (
    ValueError, TypeError, IndexError, KeyError, struct.error, RuntimeError, NotImplementedError, OverflowError,
    MemoryError,
)  # fmt: skip


class ImagejRois(Format):
    name = "imagej_roi"
    description = (
        "ImageJ ROI zips and single ROIs, classes and scores as ROI properties; loses objects without a pixel, "
        "measurements, splits"
    )

    def sniff(self, path: Path) -> bool:
        """Whether there is a ``.roi`` file, or a zip of them."""
        return any(_is_roi_file(file) for file in first_files(path)[:60])

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Every ROI zip and single ROI at or below ``path``. Ids are the names of the ROIs if these are whole numbers,
        else 1..N."""
        root, sources = root_of(path), _sources(path)
        finder, images, found, notes = ImageFinder(options, root), [], Counter[str | None](), list[Note]()
        for source in options.track(sources, "reading ROIs", len(sources)):
            content = read_content(source.files)
            found.update(_class_name(roi) for roi in content.rois if not is_region(roi))
            repeated = repeated_ids(
                e.name for e, roi in zip(content.entries, content.rois, strict=True) if not is_region(roi)
            )
            notes += with_where([*content.notes, *repeated], source.files[0].relative_to(root).as_posix())
            images.append(finder.find(source.files[0], Path(source.stem).name, content.recorded_hw))
        named = {name for name in found if name is not None}
        if named and all(name.startswith(_GROUP) for name in named):
            unclassified = DEFAULT_CLASS  # to have no group is a group
        else:
            unclassified, class_notes = class_of_unclassified(named, found[None], options.class_names)
            notes += class_notes
        names = options.select_classes(sorted(named | ({unclassified} if found[None] else set())), path)
        places = split_ids([source.stem for source in sources], root.name)
        samples = []
        for source, image, (sample_id, split) in zip(sources, images, places, strict=True):
            load, size_um = LoadRois(source.files, image.image_hw, names, unclassified), image.pixel_size_um
            samples.append(Sample(sample_id, image.path, image.image_hw, load, None, split, None, size_um, self.name))
        return Dataset(tuple(samples), names, root, info={"format": self.name}, notes=(*finder.notes, *notes))

    def write(self, dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
        """Write ``out/<sample id>_rois.zip``, and the image next to it if ``copy_images`` is set.

        Objects without a pixel, measurements, and the names of classes without objects are lost.
        """
        written: list[Path] = []
        for sample in options.track(dataset, "writing ROIs", len(dataset)):
            target = output_path(out, sample.id, "_rois.zip")
            instances = without_empty(sample.read_instances(), sample.id)
            image_name = sample.image_path.name if sample.image_path else None
            write_bytes(target, zip_bytes(instances, dataset.class_names, image_name=image_name))
            written.append(target)
            if options.copy_images:
                written += copy_image(sample, output_path(out, sample.id, ""))
        return written


# Finding and parsing ROIs


@dataclass(frozen=True)
class Entry:
    """The bytes of one ROI, its name, and its location for messages."""

    name: str
    where: str
    data: bytes


@dataclass(frozen=True)
class _Content:
    """The ROIs of one image that enclose pixels.

    scored: whether cellwright wrote the file for predictions. recorded_hw: the size of the image that it wrote there.
    """

    entries: list[Entry]
    rois: list[ImagejRoi]
    scored: bool
    recorded_hw: tuple[int, int] | None
    notes: list[Note]


@dataclass(frozen=True)
class _Source:
    """The ROI files of one image, and the path (relative, without extension) of the image and its sample."""

    files: tuple[Path, ...]
    stem: str


def _is_roi_file(path: Path) -> bool:
    if path.suffix.lower() == ".roi":
        return True
    # The first bytes of a zip contain the name of its first entry; an empty zip has nothing but its own name.
    start = first_bytes(path, 300) if path.suffix.lower() == ".zip" else b""
    if start[:4] == b"PK\x03\x04" and len(start) > 30:
        length = int.from_bytes(start[26:28], "little")
        first = start[30 : 30 + length].decode("utf-8", "replace")
        return _is_roi_name(first) or (_is_skipped(first) and _contains_rois(path))
    return start[:4] == b"PK\x05\x06" and _stem_without_roi_set(path.stem) != path.stem


def _is_skipped(name: str) -> bool:
    """Whether an entry of a zip is a folder, hidden, or one of those that macOS adds."""
    return name.endswith("/") or name.rpartition("/")[2].startswith(".") or "__MACOSX" in name.split("/")


def _is_roi_name(name: str) -> bool:
    return name.lower().endswith(".roi") and not _is_skipped(name)


def _contains_rois(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(map(_is_roi_name, archive.namelist()))
    except (OSError, zipfile.BadZipFile):
        return False


def _stem_without_roi_set(stem: str) -> str:
    """The name of the image in the name of a zip.

    >>> [_stem_without_roi_set(stem) for stem in ("x_rois", "RoiSet x", "x-RoiSet", "heroi")]
    ['x', 'x', 'x', 'heroi']
    """
    named = _ENDING.fullmatch(stem) or _BEGINNING.fullmatch(stem)
    return named[1] if named else stem


def read_content(files: Sequence[Path]) -> _Content:
    """The ROIs of one image. Raises `FormatError` for damaged files, for ROIs on several slices, for outlines that
    cannot be filled as ImageJ does, and if no ROI encloses pixels."""
    contents = [_read_entries(file) for file in files]
    entries = [entry for part, _ in contents for entry in part]
    pairs = [(entry, _parse(entry)) for entry in entries]
    areas = [(entry, roi) for entry, roi in pairs if _has_area(roi)]
    others = [(entry, roi) for entry, roi in pairs if not _has_area(roi)]
    if others and not areas:
        entry, roi = others[0]
        raise FormatError(
            "this ROI encloses no pixels" if len(others) == 1 else f"none of these {len(others)} ROIs encloses pixels",
            where=entry.where,
            got=_kind(roi),
            expected="a polygon, freehand or traced outline, rectangle, oval or composite",
            remedy="draw outlines of the objects, or save only those in the ROI Manager",
        )
    for entry, roi in areas:
        _check_fill(roi, entry)
    _check_one_slice([roi for _, roi in areas], files[0])
    notes = []
    if others:
        entry, roi = others[0]
        number = f"{len(others)} of {count(len(pairs), 'ROI')}"
        text = f"{number} not read, because they enclose no pixels: {_kind(roi)} {entry.name}"
        notes.append(Note("points and lines among the ROIs were not read", text + (", ..." if len(others) > 1 else "")))
    recorded = next((hw for hw in (_recorded_hw(note) for _, note in contents) if hw is not None), None)
    scored = any(note.get("scored") is True for _, note in contents)
    return _Content([entry for entry, _ in areas], [roi for _, roi in areas], scored, recorded, notes)


def _read_entries(path: Path) -> tuple[list[Entry], dict[str, Any]]:
    """The ROIs of a ``.roi`` or zip file, and the note that cellwright left in the comment of the zip."""
    try:
        if path.suffix.lower() == ".roi":
            with path.open("rb") as file:
                return [Entry(path.stem, str(path), file.read(_MAX_ROI_BYTES))], {}
        _check_zip_end(path)
        with zipfile.ZipFile(path) as archive:
            return _zip_entries(archive, path), _note(archive.comment)
    except OSError as error:
        raise unreadable(path, error) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, *_BROKEN_ROI) as error:
        raise FormatError(
            "this zip of ROIs is broken", where=path, got=str(error)[:200], remedy="save it again"
        ) from error


def _check_zip_end(path: Path) -> None:
    """`FormatError` if the file ends within its last record, which the standard library does not notice."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _ZIP_TAIL))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22 + int.from_bytes(tail[at + 20 : at + 22], "little"):
        raise FormatError(
            "this zip is truncated", where=path, got="an incomplete end record", remedy="save or copy it again"
        )


def _zip_entries(archive: zipfile.ZipFile, path: Path) -> list[Entry]:
    infos = [info for info in archive.infolist() if _is_roi_name(info.filename)]
    size = sum(info.file_size for info in infos)
    most = min(_MAX_ZIP_BYTES, max(_MAX_ROI_BYTES, _MAX_ZIP_RATIO * path.stat().st_size))
    if size > most or any(info.file_size > _MAX_ROI_BYTES for info in infos):
        expected = f"at most {most} bytes, {_MAX_ROI_BYTES} per ROI"
        raise FormatError("this zip is too large for ROIs", where=path, got=f"{size} bytes unpacked", expected=expected)
    entries = []
    for info in infos:
        with archive.open(info) as file:
            data = file.read(_MAX_ROI_BYTES + 1)
        entries.append(Entry(Path(info.filename).name[:-4], f"{path}, {info.filename}", data))
    return entries


def _note(comment: bytes) -> dict[str, Any]:
    try:
        note = json.loads(comment.decode())
    except (ValueError, RecursionError):
        return {}  # a comment that cellwright did not write
    return note if isinstance(note, dict) else {}


def _recorded_hw(note: dict[str, Any]) -> tuple[int, int] | None:
    sides = note.get("image_hw")
    if (
        not isinstance(sides, list)
        or len(sides) != 2
        or any(type(s) is not int or not 0 < s <= MAX_SIDE for s in sides)
    ):
        return None
    return sides[0], sides[1]


def _parse(entry: Entry) -> ImagejRoi:
    import roifile

    try:
        return roifile.ImagejRoi.frombytes(entry.data)
    except _BROKEN_ROI as error:
        remedy = "save the ROIs again"
        raise FormatError("this ROI is broken", where=entry.where, got=str(error)[:200], remedy=remedy) from error


def _rings(roi: ImagejRoi, entry: Entry, image_hw: tuple[int, int]) -> list[np.ndarray]:
    """The rings (even-odd) of any ROI that has an area, except ovals."""
    from roifile import ROI_TYPE

    try:
        if roi.roitype == ROI_TYPE.RECT and not roi.composite:
            x0, y0, x1, y1 = _bounds(roi)
            paths: Any = [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])]
        else:
            paths = roi.coordinates(multi=True)
    except _BROKEN_ROI as error:
        raise FormatError(
            "the path of this ROI is broken",
            where=entry.where,
            got=str(error)[:200],
            remedy="save the ROI again with ImageJ",
        ) from error
    rings = [checked_ring(ring, image_hw, entry.where) for ring in paths]
    return [ring for ring in rings if len(ring)]


def _bounds(roi: ImagejRoi) -> tuple[int, int, int, int]:
    """The whole pixels x0, y0, x1, y1 that ImageJ uses for a rectangle or oval, also if it has subpixel coordinates."""
    if roi.subpixelrect:
        x0, y0 = int(roi.xd), int(roi.yd)
        return x0, y0, x0 + math.ceil(roi.widthd), y0 + math.ceil(roi.heightd)
    return roi.left, roi.top, roi.right, roi.bottom


def _oval(roi: ImagejRoi, entry: Entry, image_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Box and crop of an oval: the pixels whose centres are in the ellipse."""
    x0, y0, x1, y1 = _bounds(roi)
    corners = checked_ring([[x0, y0], [x1, y0], [x1, y1]], image_hw, entry.where)
    if not len(corners) or x1 <= x0 or y1 <= y0:
        return np.zeros(4, np.int32), np.zeros((0, 0), bool)
    left, top = max(0, int(np.floor(x0))), max(0, int(np.floor(y0)))
    right, bottom = min(image_hw[1], int(np.ceil(x1))), min(image_hw[0], int(np.ceil(y1)))
    if right <= left or bottom <= top:
        return np.zeros(4, np.int32), np.zeros((0, 0), bool)
    u = (np.arange(left, right) + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)
    v = (np.arange(top, bottom) + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2)
    return np.array([left, top, right, bottom], np.int32), u[None] ** 2 + v[:, None] ** 2 <= 1


def _has_area(roi: ImagejRoi) -> bool:
    from roifile import ROI_SUBTYPE, ROI_TYPE

    areas = (ROI_TYPE.POLYGON, ROI_TYPE.RECT, ROI_TYPE.OVAL, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)
    return roi.roitype in areas and roi.subtype not in (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.ARROW, ROI_SUBTYPE.IMAGE)


def _kind(roi: ImagejRoi) -> str:
    return roi.roitype.name.lower() if roi.subtype.name == "UNDEFINED" else roi.subtype.name.lower()


def _check_fill(roi: ImagejRoi, entry: Entry) -> None:
    """`FormatError` for a spline or a rounded rectangle, of which the file contains only the control points."""
    from roifile import ROI_OPTIONS, ROI_TYPE

    is_round = roi.roitype == ROI_TYPE.RECT and not roi.composite and roi.rounded_rect_arc_size > 0
    if is_round or roi.options & ROI_OPTIONS.SPLINE_FIT:
        raise FormatError(
            "the file does not contain the outline of this ROI",
            where=entry.where,
            got="a rectangle with round corners" if is_round else "the nodes of a spline",
            expected="an outline, rectangle, oval or composite",
            remedy="in ImageJ, convert it with Edit > Selection > Interpolate, update it in the ROI Manager, and save",
        )


def _check_one_slice(rois: Sequence[ImagejRoi], where: object) -> None:
    """`FormatError` if ROIs are on several slices. Position 0 means that a ROI belongs to no slice in particular."""
    for what, slices in (
        ("slice", {roi.position for roi in rois}),
        ("z", {roi.z_position for roi in rois}),
        ("time point", {roi.t_position for roi in rois}),
    ):
        several = sorted(slices - {0})
        if len(several) > 1:
            raise FormatError(
                "these ROIs are on several slices of a stack",
                where=where,
                got=f"{what} {', '.join(map(str, several[:4]))}" + (", ..." if len(several) > 4 else ""),
                expected="the ROIs of one image",
                remedy="save each slice as an image, and its ROIs (select them in the ROI Manager) beside it",
            )


def _class_name(roi: ImagejRoi) -> str | None:
    """The property "class", else the group, else None."""
    return _property(roi, "class") or (f"{_GROUP}{roi.group}" if roi.group else None)


def is_region(roi: ImagejRoi) -> bool:
    """Whether it is not annotated for any class: ignored, and without a class."""
    return _property(roi, "ignore") == "true" and _class_name(roi) is None


def _property(roi: ImagejRoi, key: str) -> str | None:
    """The text of a property. Ours are JSON strings, so that text in any script fits ImageJ's line format."""
    for line in roi.props.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == key:
            value = value.strip()
            try:
                decoded = json.loads(value) if value.startswith('"') else value
            except (ValueError, RecursionError):
                decoded = value
            return decoded if isinstance(decoded, str) and decoded else None
    return None


def _score(roi: ImagejRoi) -> float | None:
    text = _property(roi, "score")
    try:
        score = float(text) if text is not None else None
    except ValueError:
        return None
    return score if score is not None and 0 <= score <= 1 else None


@dataclass(frozen=True)
class LoadRois:
    """Rasterises the ROIs of one image.

    class_names: the classes to keep, in order. unclassified: the class of ROIs without one. group_names: the classes of
    the groups 1, 2, ... if they are known.
    """

    files: tuple[Path, ...]
    image_hw: tuple[int, int]
    class_names: tuple[str, ...]
    unclassified: str = DEFAULT_CLASS
    group_names: tuple[str, ...] = ()

    def class_name(self, roi: ImagejRoi) -> str:
        """The class of a ROI."""
        if _property(roi, "class") is None and 0 < roi.group <= len(self.group_names):
            return self.group_names[roi.group - 1]
        return _class_name(roi) or self.unclassified

    def __call__(self) -> Instances:
        content = read_content(self.files)
        entries, rois = content.entries, content.rois
        if not entries:
            return Instances.empty(self.image_hw, scored=content.scored)
        class_of = {name: k for k, name in enumerate(self.class_names)}
        class_ids = [NO_CLASS if is_region(roi) else class_of.get(self.class_name(roi), NO_CLASS) for roi in rois]
        ignore = [_property(roi, "ignore") == "true" for roi in rois]
        kept = [k for k in range(len(rois)) if class_ids[k] != NO_CLASS or ignore[k]]
        entries, rois = [entries[k] for k in kept], [rois[k] for k in kept]
        scores = [_score(roi) for roi in rois]
        instances = Instances.from_masks(
            self.masks(rois, entries),
            class_ids=np.array([class_ids[k] for k in kept], np.int64),
            ids=ids_from_names([entry.name for entry in entries]),
            scores=None if None in scores else np.array(scores, np.float32),
            ignore=np.array([ignore[k] for k in kept], bool),
        )
        return without_empty(instances, self.files[0])

    def masks(self, rois: Sequence[ImagejRoi], entries: Sequence[Entry]) -> MaskSet:
        """What ImageJ fills of each ROI."""
        from roifile import ROI_TYPE

        is_oval = [roi.roitype == ROI_TYPE.OVAL for roi in rois]
        pairs = list(zip(rois, entries, is_oval, strict=True))
        ringed = [_rings(roi, entry, self.image_hw) for roi, entry, oval in pairs if not oval]
        check_outlines(ringed, self.image_hw, self.files[0])
        polygons = MaskSet.from_polygons(
            [[rings] if rings else [] for rings in ringed], self.image_hw, like_imagej=True
        )
        cut = [_oval(roi, entry, self.image_hw) for roi, entry, oval in pairs if oval]
        boxes = np.array([box for box, _ in cut], np.int32).reshape(-1, 4)
        ovals = MaskSet.from_crops(boxes, [crop for _, crop in cut], self.image_hw)
        return concat_in_order(polygons, ovals, [not oval for oval in is_oval])


def _sources(path: Path) -> list[_Source]:
    """The ROI files at or below ``path``, grouped by image.

    A zip is named after its image, and so is a ``.roi`` file if there is such an image next to it. Otherwise all
    ``.roi`` files of a folder with a single image belong to that image, and so does a ``RoiSet.zip``. `InputError` for
    two files with the ROIs of one image, which may contain the same objects.
    """
    root = root_of(path)
    groups: dict[str, list[Path]] = {}
    for file in annotation_files(path, _is_roi_file, "ImageJ ROI files"):
        groups.setdefault((file.parent / _image_stem(file)).relative_to(root).as_posix(), []).append(file)
    for files in groups.values():
        if len(files) > 1 and any(file.suffix.lower() == ".zip" for file in files):
            raise InputError(
                "several files have ROIs of one image",
                where=files[0].parent,
                got=", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else ""),
                expected="one zip per image, or single .roi files",
                remedy="move the other files away, or save all ROIs together from the ROI Manager",
            )
    return [_Source(tuple(files), stem) for stem, files in groups.items()]


def _image_stem(file: Path) -> str:
    """The name of the image that a ROI file belongs to, without its suffix."""
    if images_named(file.parent, file.stem):
        return file.stem
    stem = _stem_without_roi_set(file.stem)
    single = file.suffix.lower() == ".roi" and not images_named(file.parent, stem)
    if single or (_ROI_SET.fullmatch(file.stem) and not images_named(file.parent, stem)):
        names = [entry.name for entry in file.parent.iterdir() if is_image_name(entry.name) and is_file(entry)]
        names = [name for name in names if not is_own_output(name)]
        return stem_of(names[0]) if len(names) == 1 else stem
    return stem


# Writing


def _roi_of(polygons: MultiPolygon, name: str) -> ImagejRoi:
    """A traced polygon for one part without holes, else a composite of all rings."""
    import roifile

    rings = [np.asarray(ring, np.int64) for rings in polygons for ring in rings]
    if len(rings) == 1:
        roi = roifile.ImagejRoi.frompoints(rings[0], name=name)
        roi.roitype = roifile.ROI_TYPE.TRACED
        return roi
    points = np.concatenate(rings)
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    path = []
    for ring in rings:  # java.awt.geom.PathIterator: 0 moves, 1 draws, 4 closes
        for k, (x, y) in enumerate(ring.tolist()):
            path += [1.0 if k else 0.0, x, y]
        path.append(4.0)
    roi = roifile.ImagejRoi(roitype=roifile.ROI_TYPE.RECT, name=name, left=left, top=top, right=right, bottom=bottom)
    roi.shape_roi_size = len(path)
    roi.multi_coordinates = np.array(path, np.float32)
    return roi


def zip_bytes(instances: Instances, class_names: Sequence[str], *, image_name: str | None) -> bytes:
    """The ROI zip of the objects of one image; objects without a pixel are dropped."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for k, polygons in enumerate(instances.masks.to_polygons()):
            if not polygons:
                continue
            class_id = int(instances.class_ids[k])
            roi = _roi_of(polygons, f"{int(instances.ids[k]):04d}")
            roi.group = class_id + 1 if len(class_names) > 1 and class_id < 255 else 0  # 0 of no class
            lines = [] if class_id == NO_CLASS else [f"class: {json.dumps(class_names[class_id])}"]
            if instances.scores is not None:
                lines.append(f"score: {float(instances.scores[k]):.9g}")
            if instances.ignore[k]:
                lines.append("ignore: true")
            roi.props = "".join(f"{line}\n" for line in lines)
            # With a fixed time, equal objects give equal bytes.
            archive.writestr(zipfile.ZipInfo(f"{roi.name}.roi"), roi.tobytes(), zipfile.ZIP_DEFLATED)
        note = {"image": image_name, "image_hw": list(instances.image_hw), "scored": instances.scores is not None}
        archive.comment = json.dumps({"cellwright": 1, **note}).encode()[:65535]
    return buffer.getvalue()

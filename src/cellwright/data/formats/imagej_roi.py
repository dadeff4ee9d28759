"""ImageJ ROIs: ``x_rois.zip`` (or ``x.zip``, ``x_RoiSet.zip``) or single ``.roi`` files next to the image ``x.tif``.

Reads polygons, freehand and traced outlines, rectangles, ovals, ellipses, rotated rectangles and composites (even-odd).
Lines, points, text and images enclose no pixels; they raise an error, as do ROIs on several slices of a stack.

Writes one zip per image with one entry per object, named by its id. An object of one part without holes becomes a
traced polygon, any other a composite. Both follow pixel edges, so that ImageJ's masks are equal to ours to the pixel.
Class, score and crowd flag are properties of the ROI (shown by Image > Overlay > Properties), and the group, which
determines the colour, is the class. The comment of the zip, which ImageJ ignores, stores the image's name and size.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError
from cellwright.core.files import unreadable, write_bytes
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.polygons import MultiPolygon
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, ReadOptions, WriteOptions
from cellwright.data.formats.outlines import check_cover, checked_ring, concat_in_order, ids_from_names, without_empty
from cellwright.data.formats.paths import (
    ImageFinder,
    annotation_files,
    copy_image,
    first_bytes,
    first_files,
    images_named,
    output_path,
    root_of,
    split_ids,
)
from cellwright.data.images.read import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from roifile import ImagejRoi

_ENDINGS = ("_rois", "_roi", "-rois", "_RoiSet", "-RoiSet", ".RoiSet")
_MAX_ROI_BYTES = 1 << 25
_MAX_ZIP_BYTES = 1 << 29
_ZIP_TAIL = 65_536 + 22  # the end record and the longest possible comment
_MAX_SIDE = 1_000_000
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
        finder, images, class_names = ImageFinder(options), [], set()
        for source in options.track(sources, "reading ROIs", len(sources)):
            recorded_hw = None
            for file in source.files:
                entries, note = _read_entries(file)
                class_names.update(_class_name(_parse(entry)) for entry in entries)
                recorded_hw = recorded_hw or _recorded_hw(note)
            images.append(finder.find(source.files[0], Path(source.stem).name, recorded_hw))
        names = options.select_classes(sorted(class_names), path)
        places = split_ids([source.stem for source in sources], root.name)
        samples = []
        for source, image, (sample_id, split) in zip(sources, images, places, strict=True):
            load, size_um = LoadRois(source.files, image.image_hw, names), image.pixel_size_um
            samples.append(Sample(sample_id, image.path, image.image_hw, load, None, split, None, size_um, self.name))
        return Dataset(tuple(samples), names, root, info={"format": self.name})

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
        return start[30 : 30 + length].lower().endswith(b".roi")
    return start[:4] == b"PK\x05\x06" and path.stem.endswith(_ENDINGS)


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
    infos = [info for info in archive.infolist() if info.filename.lower().endswith(".roi")]
    size = sum(info.file_size for info in infos)
    if size > _MAX_ZIP_BYTES or any(info.file_size > _MAX_ROI_BYTES for info in infos):
        expected = f"at most {_MAX_ZIP_BYTES} bytes, {_MAX_ROI_BYTES} per ROI"
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
        or any(type(s) is not int or not 0 < s <= _MAX_SIDE for s in sides)
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


def _bounds(roi: ImagejRoi) -> tuple[float, float, float, float]:
    if roi.subpixelrect:
        return roi.xd, roi.yd, roi.xd + roi.widthd, roi.yd + roi.heightd
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


def _check_area(roi: ImagejRoi, entry: Entry) -> None:
    from roifile import ROI_SUBTYPE, ROI_TYPE

    areas = (ROI_TYPE.POLYGON, ROI_TYPE.RECT, ROI_TYPE.OVAL, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)
    if roi.roitype not in areas or roi.subtype in (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.ARROW, ROI_SUBTYPE.IMAGE):
        raise FormatError(
            "this ROI encloses no pixels",
            where=entry.where,
            got=f"{roi.roitype.name.lower()}, {roi.subtype.name.lower()}",
            expected="a polygon, freehand or traced outline, rectangle, oval or composite",
            remedy="delete it in the ROI Manager and save again",
        )


def _check_one_slice(rois: Sequence[ImagejRoi], where: object) -> None:
    slices = {(roi.position, roi.z_position, roi.t_position) for roi in rois}
    if len(slices) > 1:
        raise FormatError(
            "these ROIs are on several slices of a stack",
            where=where,
            got=f"{len(slices)} positions (position, z, t): {', '.join(map(str, sorted(slices)[:4]))}",
            expected="one image",
            remedy="save the ROIs of each slice separately",
        )


def _class_name(roi: ImagejRoi) -> str:
    name = _property(roi, "class")
    if name is not None:
        return name
    return f"group {roi.group}" if roi.group else DEFAULT_CLASS


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
    """Rasterises the ROIs of one image. ``class_names`` are the classes to keep, in order."""

    files: tuple[Path, ...]
    image_hw: tuple[int, int]
    class_names: tuple[str, ...]

    def __call__(self) -> Instances:
        contents = [_read_entries(file) for file in self.files]
        entries = [entry for part, _ in contents for entry in part]
        if not entries:
            return Instances.empty(self.image_hw, scored=any(note.get("scored") is True for _, note in contents))
        rois = [_parse(entry) for entry in entries]
        _check_one_slice(rois, self.files[0])
        names = [_class_name(roi) for roi in rois]
        kept = [k for k, name in enumerate(names) if name in self.class_names]
        entries, rois, names = [entries[k] for k in kept], [rois[k] for k in kept], [names[k] for k in kept]
        scores = [_score(roi) for roi in rois]
        instances = Instances.from_masks(
            self._masks(rois, entries),
            class_ids=np.array([self.class_names.index(name) for name in names], np.int64),
            ids=ids_from_names([entry.name for entry in entries]),
            scores=None if None in scores else np.array(scores, np.float32),
            ignore=np.array([_property(roi, "ignore") == "true" for roi in rois], bool),
        )
        return without_empty(instances, self.files[0])

    def _masks(self, rois: Sequence[ImagejRoi], entries: Sequence[Entry]) -> MaskSet:
        from roifile import ROI_TYPE

        for roi, entry in zip(rois, entries, strict=True):
            _check_area(roi, entry)
        is_oval = [roi.roitype == ROI_TYPE.OVAL for roi in rois]
        pairs = list(zip(rois, entries, is_oval, strict=True))
        ringed = [_rings(roi, entry, self.image_hw) for roi, entry, oval in pairs if not oval]
        check_cover(ringed, self.image_hw, self.files[0])
        polygons = MaskSet.from_polygons([[rings] if rings else [] for rings in ringed], self.image_hw)
        cut = [_oval(roi, entry, self.image_hw) for roi, entry, oval in pairs if oval]
        boxes = np.array([box for box, _ in cut], np.int32).reshape(-1, 4)
        ovals = MaskSet.from_crops(boxes, [crop for _, crop in cut], self.image_hw)
        return concat_in_order(polygons, ovals, [not oval for oval in is_oval])


def _sources(path: Path) -> list[_Source]:
    """The ROI files at or below ``path``, grouped by image.

    A zip is named after its image, and so is a ``.roi`` file if there is such an image next to it. Otherwise all
    ``.roi`` files of a folder with a single image belong to that image.
    """
    root = root_of(path)
    groups: dict[str, list[Path]] = {}
    for file in annotation_files(path, _is_roi_file, "ImageJ ROI files"):
        stem = next((file.stem.removesuffix(end) for end in _ENDINGS if file.stem.endswith(end)), file.stem)
        if file.stem.lower() == "roiset" or (file.suffix.lower() == ".roi" and not images_named(file.parent, stem)):
            images = [
                entry for entry in file.parent.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file()
            ]
            stem = images[0].stem if len(images) == 1 else stem
        groups.setdefault((file.parent / stem).relative_to(root).as_posix(), []).append(file)
    return [_Source(tuple(files), stem) for stem, files in groups.items()]


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
            roi.group = class_id + 1 if len(class_names) > 1 and class_id < 255 else 0
            lines = [f"class: {json.dumps(class_names[class_id])}"]
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

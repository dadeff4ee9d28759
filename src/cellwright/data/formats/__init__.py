"""The annotation formats that cellwright reads and writes.

Each format is a class in a file of its own and one line in ``FORMATS``; see `Format` for how to write one.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from cellwright.core.claim import check_complete
from cellwright.core.dataset import Dataset
from cellwright.core.errors import InputError, UsageError, did_you_mean
from cellwright.core.files import plain_suffix, require_regular
from cellwright.core.notes import Note
from cellwright.core.result_folders import kind_of_result
from cellwright.core.text import count
from cellwright.data.formats.cellpose_seg import CellposeSeg
from cellwright.data.formats.class_masks import ClassMasks
from cellwright.data.formats.coco import Coco, is_own_folder
from cellwright.data.formats.coco_results import CocoResults
from cellwright.data.formats.contract import DEFAULT_CLASS, Clutter, Format, ReadOptions, WriteOptions
from cellwright.data.formats.ctc import CellTrackingChallenge
from cellwright.data.formats.geojson import GeoJson
from cellwright.data.formats.image_folder import ImageFolder, describe_contents
from cellwright.data.formats.imagej_roi import ImagejRois
from cellwright.data.formats.inst_maps import InstanceMaps
from cellwright.data.formats.label_images import LabelFolder, LabelImages, NuInsSeg
from cellwright.data.formats.label_zarr import LabelZarr
from cellwright.data.formats.labelme import LabelMe
from cellwright.data.formats.mask_folder import MaskFolder
from cellwright.data.formats.npy_stacks import NpyStacks
from cellwright.data.formats.orientation import follow_orientation
from cellwright.data.formats.paths import GivenImages, first_files, unannotated_note, walk
from cellwright.data.formats.predictions import Predictions
from cellwright.data.formats.regions import with_ignore_masks
from cellwright.data.formats.rle_csv import Dsb2018Csv, RleCsv, RleCsvSubmission
from cellwright.data.formats.tile_job import TileJob
from cellwright.data.formats.voc import Voc
from cellwright.data.formats.xml_outlines import XmlOutlines
from cellwright.data.formats.yolo_seg import YoloSeg
from cellwright.data.images.names import IMAGE_SUFFIXES
from cellwright.data.images.passed_over import passed_over_note, results_note, vendor_kinds

__all__ = [
    "DEFAULT_CLASS",
    "FORMATS",
    "Clutter",
    "Format",
    "ReadOptions",
    "WriteOptions",
    "get_format",
    "no_annotations",
    "read_dataset",
    "require_annotations",
    "sniff",
]

FORMATS: dict[str, Format] = {
    "coco": Coco(),
    "predictions": Predictions(),
    "tile_job": TileJob(),
    "coco_results": CocoResults(),
    "mask_folder": MaskFolder(),
    "class_masks": ClassMasks(),
    "rle_csv": RleCsv(),
    "rle_csv_submission": RleCsvSubmission(),
    "dsb2018_csv": Dsb2018Csv(),
    "nuinsseg": NuInsSeg(),
    "ctc": CellTrackingChallenge(),
    "voc": Voc(),
    "inst_maps": InstanceMaps(),
    "npy_stacks": NpyStacks(),
    "cellpose": CellposeSeg(),
    "label_images": LabelImages(),
    "label_folder": LabelFolder(),
    "label_zarr": LabelZarr(),
    "xml_outlines": XmlOutlines(),
    "imagej_roi": ImagejRois(),
    "geojson": GeoJson(),
    "labelme": LabelMe(),
    "yolo_seg": YoloSeg(),
    "image_folder": ImageFolder(),
}

# Formats in which images without annotation beside annotated ones can be told (others do so themselves).
_ONE_ANNOTATION_PER_IMAGE = ("coco", "labelme", "yolo_seg", "geojson", "imagej_roi", "xml_outlines", "voc", "rle_csv")

# Suffixes of annotations, and of files beside them; annotations of other formats have notes of their own.
_KNOWN_SUFFIXES = (
    ".json", ".geojson", ".csv", ".tsv", ".xml", ".zip", ".roi", ".npy", ".mat", ".yaml", ".yml", ".index", ".md",
)  # fmt: skip
_WITH_TEXTS, _TEXTS = ("yolo_seg", "ctc", "voc"), (".txt", ".names", ".data")
_ABOUT = re.compile(r"readme|licen[cs]e|copying|thumbs\.db|desktop\.ini", re.IGNORECASE)

_ANNOTATION_SUFFIXES = (".json", ".csv", ".tsv", ".geojson", ".xml", ".zip")

# How many entries of a folder an error message names.
SHOWN_ENTRIES = 8


def get_format(format: str | Format) -> Format:  # noqa: A002
    """The format with this name, or ``format`` itself if it is a `Format` already.

    Raises `UsageError` that suggests the nearest name, and for an object of any other type.

    >>> get_format("geojson")
    GeoJson(name='geojson', read and write)
    """
    if isinstance(format, Format):
        return format
    if not isinstance(format, str):
        is_class = isinstance(format, type) and issubclass(format, Format)
        raise UsageError(
            "invalid `format`",
            got=f"the class {format.__name__}" if is_class else type(format).__name__,
            expected="the name of a format, or an instance of a class derived from cellwright.Format",
            remedy=f"pass an instance: {format.__name__}()" if is_class else None,
        )
    if format not in FORMATS:
        raise UsageError("no such format", got=repr(format), remedy=did_you_mean(format, FORMATS))
    return FORMATS[format]


def sniff(path: Path, option: str = "format") -> Format:
    """The format of ``path``, detected from names and first bytes.

    option: the parameter that chooses one, for the message. Raises `InputError` that describes what is there if no
    format matches, or if several do.
    """
    require_regular(path)
    if not path.exists():
        raise InputError("no such file or folder", where=path, remedy="check the path")
    for own in ("coco", "predictions", "tile_job"):
        if path.is_dir() and FORMATS[own].sniff(path):
            return FORMATS[own]  # a prediction folder also contains label images, outlines and tables
    if path.is_dir() and (kind := kind_of_result(path)) is not None:
        expected = "images and their annotations, or predictions"
        raise InputError(f"this is {kind}, which has no objects to read", where=path, expected=expected)
    matches = [candidate for candidate in FORMATS.values() if candidate.sniff(path)]
    for preferred in (
        [candidate for candidate in matches if candidate.published],
        [candidate for candidate in matches if not candidate.generic],
        matches,
    ):
        if len(preferred) == 1:
            return preferred[0]
        if preferred:
            names = ", ".join(candidate.name for candidate in preferred)
            remedy = f'choose one of them, such as `{option}="{preferred[0].name}"`'
            raise InputError("several formats match", where=path, got=names, remedy=remedy)
    if path.is_dir() and next(path.iterdir(), None) is None:
        raise InputError("this folder is empty", where=path, expected="images and their annotations, or predictions")
    known = "\n".join(f"    {candidate.name}: {candidate.description}" for candidate in FORMATS.values())
    folders = [folder.name for folder in sorted(path.iterdir()) if folder.is_dir()] if path.is_dir() else []
    inner = [name for name in folders if any(candidate.sniff(path / name) for candidate in FORMATS.values())][
        :SHOWN_ENTRIES
    ]
    remedy = f"use one of the folders in it: {', '.join(inner)}" if inner else None
    raise InputError("unknown format", where=path, got=_contents(path), expected=f"one of\n{known}", remedy=remedy)


def read_dataset(
    path: Path,
    options: ReadOptions | None = None,
    *,
    format: str | Format | None = None,  # noqa: A002
) -> Dataset:
    """The dataset at ``path``, read by ``format`` (a name or a `Format`), or by the format that matches the path.

    Raises `InputError` for images without annotations that are recognised, unless ``options.no_objects`` is set or
    ``format`` is "image_folder".
    """
    options = ReadOptions() if options is None else options
    check_complete(path)
    reader = sniff(path) if format is None else get_format(format)
    if format is None and reader.name == "image_folder" and not options.no_objects:
        raise no_annotations(path)
    dataset = follow_orientation(reader.read(path, options), quiet=is_own_folder(path))
    dataset = with_ignore_masks(dataset, path, quiet=is_own_folder(path))
    others = [] if format is None else _other_formats_note(reader, path)
    notes = (*dataset.notes, *_not_given_notes(dataset, options), *_passed_over(dataset, path), *others)
    return dataclasses.replace(dataset, notes=notes)


def require_annotations(dataset: Dataset, path: Path, options: ReadOptions) -> Dataset:
    """``dataset``; raises `InputError` if none of its images has an object, unless ``options.no_objects`` is set.

    Reads samples until one has an object. Ignored regions do not count.
    """
    n_ignored = 0
    for sample in dataset:
        instances = sample.read_instances()
        if (~instances.ignore & (instances.masks.areas > 0)).any():
            return dataset
        n_ignored += int(instances.ignore.sum())
    if options.no_objects or not len(dataset):
        return dataset
    ignored = f" and {count(n_ignored, 'ignored region')}" if n_ignored else ""
    raise InputError(
        "no image of this source has an object",
        where=path,
        got=f"{count(len(dataset), 'image')}, 0 objects{ignored}, read as {dataset.info.get('format', 'a dataset')}",
        expected="at least one object",
        remedy="check that the annotations are complete, or choose another `format`; to accept images without objects, "
        "convert them with `no_objects=True`",
    )


def no_annotations(path: Path) -> InputError:
    """The error for images beside which no annotation is recognised; it names what is there."""
    skipped = results_note(path) if path.is_dir() else None
    return InputError(
        "these images have no annotations that cellwright recognises",
        where=path,
        got=describe_contents(path) + ("" if skipped is None else f"; {skipped.text}"),
        expected="annotations in one of the formats of docs/formats.md",
        remedy="save the annotations in one of these formats, or choose one with `format`; to read images without "
        "objects, convert them with `no_objects=True`",
    )


def _not_given_notes(dataset: Dataset, options: ReadOptions) -> list[Note]:
    """One line for each image that was read although the user named others."""
    if options.images is None or isinstance(options.images, Dataset) or not options.require_images:
        return []
    given = {os.path.realpath(file) for file in GivenImages(options.images).files}
    kind = "the image is not among those of `images`; the one that belongs to the annotation was read"
    return [
        Note(kind, f"its image is not among those of `images`; {sample.image_path or 'the source'} was read", sample.id)
        for sample in dataset
        if (sample.image_path is None and sample.pixels is not None)
        or (sample.image_path is not None and os.path.realpath(sample.image_path) not in given)
    ]


def _passed_over(dataset: Dataset, path: Path) -> list[Note]:
    """Notes about images in the source that were not read."""
    if not path.is_dir() or is_own_folder(path):
        return []
    note = passed_over_note(path, None if dataset.info.get("format") == "image_folder" else vendor_kinds())
    has_pairs = dataset.info.get("format") in _ONE_ANNOTATION_PER_IMAGE
    bare = unannotated_note(dataset) if has_pairs else None
    found = (note, results_note(path), bare, _other_kinds_note(dataset, path), _unread_note(dataset, path))
    return [each for each in found if each is not None]


def _unread_note(dataset: Dataset, path: Path) -> Note | None:
    """One line about files of kinds that are no annotations of the format, such as text files and tables of a lab."""
    read_as = str(dataset.info.get("format"))
    known = {*_KNOWN_SUFFIXES, *IMAGE_SUFFIXES, *vendor_kinds(), *(_TEXTS if read_as in _WITH_TEXTS else ())}
    files = [file for file in walk(path) if plain_suffix(file) not in known and not _ABOUT.match(file.name)]
    if not files:
        return None
    names: dict[str, list[str]] = {}
    for file in files:
        names.setdefault(file.suffix.lower() or file.name, []).append(file.name)
    parts = [f"{len(of_kind)} {kind} ({of_kind[0]})" for kind, of_kind in sorted(names.items())]
    more = f" and {count(len(parts) - SHOWN_ENTRIES, 'more kind')}" if len(parts) > SHOWN_ENTRIES else ""
    text = f"skipped {count(len(files), 'file')} that {read_as} does not read: {', '.join(parts[:SHOWN_ENTRIES])}{more}"
    return Note("files of other kinds were skipped", text, path.name)


def _other_formats_note(reader: Format, path: Path) -> list[Note]:
    """One line about the other formats that match a source whose format was chosen."""
    others = [form.name for form in FORMATS.values() if form is not reader and not form.generic and form.sniff(path)]
    if not others or is_own_folder(path):
        return []
    text = f"the annotations were read as {reader.name}, as chosen; what matches {', '.join(others)} was not"
    return [Note("other annotations in the folder were not read", text, path.name)]


def _other_kinds_note(dataset: Dataset, path: Path) -> Note | None:
    """One line about annotation files of another format directly in the source."""
    read_as = str(dataset.info.get("format"))
    texts = [file for file in first_files(path) if file.parent == path and plain_suffix(file) in _ANNOTATION_SUFFIXES]
    others = []
    for file in texts[:SHOWN_ENTRIES]:
        names = [form.name for form in FORMATS.values() if not form.generic and form.sniff(file)]
        if names and read_as not in (*names, "rle_csv" if names[0].endswith("_csv") else ""):
            others.append(f"{file.name} ({names[0]})")
    if not others or read_as == "image_folder":
        return None
    text = f"the annotations were read as {read_as}; other annotations in the folder were not: {', '.join(others)}"
    return Note("other annotations in the folder were not read", text, path.name)


def _contents(path: Path) -> str:
    if path.is_file():
        return f"a file {path.name} of {path.stat().st_size} bytes"
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    more = f" and {len(entries) - SHOWN_ENTRIES} more" if len(entries) > SHOWN_ENTRIES else ""
    return "a folder with " + (", ".join(entries[:SHOWN_ENTRIES]) + more if entries else "hidden files only")

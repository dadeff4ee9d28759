"""Label images: one TIFF or PNG per image whose pixel values are object ids, as Cellpose and StarDist use them.

Layouts, also below split folders (``train/``, ``test/``):

- ``images/x.tif`` and ``masks/x.tif`` (or ``labels/``), the same names in two folders;
- ``x.tif`` (or ``x_img.tif``) next to ``x_masks.tif``, ``x_cp_masks.png``, ``x_mask``, ``x_labels`` or ``x_label``;
- ``x_seg.npy`` as saved by Cellpose's GUI, used if there is no such label image next to it;
- a folder of label images only, or a single one: the predictions of another tool, read if images are not required.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError
from cellwright.core.instances import Instances
from cellwright.core.unpickle import read_npy_object
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, ReadOptions, WriteOptions
from cellwright.data.formats.label_io import (
    LABEL_SUFFIXES,
    flat_labels,
    looks_labelled,
    read_label_map,
    write_label_map,
)
from cellwright.data.formats.paths import (
    ImageFinder,
    copy_image,
    first_files,
    images_named,
    output_path,
    root_of,
    split_ids,
    walk,
)
from cellwright.data.images.read import IMAGE_SUFFIXES, image_hw_of

_LABEL_FOLDERS = ("masks", "labels", "label")
_IMAGE_FOLDER = "images"
_ENDING = re.compile(r"(.+?)(_cp_masks|_masks|_mask|_labels|_label)")
_ONE_CLASS = re.compile(r"class\d+")  # the label maps of `class_masks`
_CELLPOSE = "_seg.npy"
_MAX_DECODED = 4  # how many files with arbitrary names `sniff` decodes


class LabelImages(Format):
    name = "label_images"
    description = (
        "images next to label TIFF/PNG (_masks, images/ + masks/, Cellpose _seg.npy); loses classes, scores, "
        "ignore flags, overlaps"
    )

    def sniff(self, path: Path) -> bool:
        """Whether there are label images with one of the names listed above (see `LabelFolder` for other names)."""
        files = first_files(path)
        if any(_label_stem(file) is not None for file in files):
            return not _is_mask_folder(files)
        return _has_pairs(files)

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Every label image at or below ``path`` with its image; the labels are the ids, and there is one class."""
        return _read(path, options)

    def write(self, dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
        """Write ``out/<sample id>_masks.tif``, uint32, with the ids as labels; and the image next to it if
        ``copy_images`` is set.

        Overlapping objects are flattened, with a warning (see `flat_labels`). Classes, scores and ignore flags are
        lost.
        """
        written: list[Path] = []
        for sample in options.track(dataset, "writing label images", len(dataset)):
            target = output_path(out, sample.id, "_masks.tif")
            write_label_map(target, flat_labels(sample.read_instances(), sample.id))
            written.append(target)
            if options.copy_images:
                written += copy_image(sample, output_path(out, sample.id, ""))
        return written


class LabelFolder(Format):
    name = "label_folder"
    description = "label images alone, under any names (the predictions of another tool); loses what label_images loses"

    def sniff(self, path: Path) -> bool:
        """Whether the TIFF and PNG files, whatever their names, look like label images: regions of equal values."""
        listed = first_files(path)
        files = [file for file in listed if file.suffix.lower() in LABEL_SUFFIXES]
        # If the folder itself is called "labels" or "masks", that says nothing about the layout below it.
        if not files or len(files) < len(listed) or _has_marked([f for f in files if f.parent != path]):
            return False
        if any(_label_stem(f) is not None or f.stem == "image" or _ONE_CLASS.fullmatch(f.stem) for f in files):
            return False
        answers = [looks_labelled(file) for file in files[:_MAX_DECODED]]
        return True in answers and False not in answers

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """As `LabelImages.read`."""
        return _read(path, options)


@dataclass(frozen=True)
class _Pair:
    """A label file, the name of its sample (a path relative to the root), and its image if that is known."""

    labels: Path
    name: str
    image: Path | None


def _has_marked(files: list[Path]) -> bool:
    return any(_label_stem(file) is not None or file.parent.name in (_IMAGE_FOLDER, *_LABEL_FOLDERS) for file in files)


def _is_mask_folder(files: list[Path]) -> bool:
    """Whether ``images/`` and ``masks/`` contain one image and one file per object: the ``mask_folder`` format."""
    in_masks = [file for file in files if file.parent.name == "masks" and file.suffix.lower() in LABEL_SUFFIXES]
    return bool(in_masks) and not _has_pairs(files)


def _has_pairs(files: list[Path]) -> bool:
    try:
        return bool(_folder_pairs(files, Path()))
    except InputError:  # ambiguous names, which `read` reports
        return True


def _label_stem(file: Path) -> str | None:
    """The stem of the image that a label file is named after; None if the name is not that of a label file."""
    if file.name.endswith(_CELLPOSE) and file.name != _CELLPOSE:
        return file.name[: -len(_CELLPOSE)]
    match = _ENDING.fullmatch(file.stem)
    return match[1] if match and file.suffix.lower() in LABEL_SUFFIXES else None


def _folder_pairs(files: list[Path], root: Path) -> list[_Pair]:
    """Pairs of equal names in ``images/`` and ``masks/`` (or ``labels/``).

    The names of label files may end in ``_masks`` and the like. Empty if a label file has no image, since then it is
    another layout.
    """
    pairs = []
    for file in files:
        if file.parent.name not in _LABEL_FOLDERS or file.suffix.lower() not in LABEL_SUFFIXES:
            continue
        above = file.parent.parent
        for stem in dict.fromkeys((file.stem, _label_stem(file) or file.stem)):
            images = images_named(above / _IMAGE_FOLDER, stem)
            if images:
                break
        else:
            return []
        if len(images) > 1:
            got = ", ".join(image.name for image in images)
            raise InputError("two images match one label image", where=file, got=got, expected="one image")
        name = above.relative_to(root) / stem if above.is_relative_to(root) else Path(stem)
        pairs.append(_Pair(file, name.as_posix(), images[0]))
    return pairs


def _marked_pairs(files: list[Path], root: Path) -> list[_Pair]:
    """Label files marked as such by their names; a ``_seg.npy`` only if there is no label image for the same stem."""
    chosen: dict[Path, Path] = {}
    for file in sorted(files, key=lambda file: file.suffix == ".npy"):
        stem = _label_stem(file)
        if stem is None:
            continue
        other = chosen.setdefault(file.parent / stem, file)
        if other is not file and file.suffix != ".npy":
            raise InputError(
                "two label images belong to the same image",
                where=file.parent,
                got=f"{other.name} and {file.name}",
                expected="one label image per image",
                remedy="remove one of them",
            )
    return [_Pair(file, stem.relative_to(root).as_posix(), None) for stem, file in sorted(chosen.items())]


def _pairs(path: Path) -> list[_Pair]:
    root = root_of(path)
    files = list(walk(root)) if path.is_dir() else [path]
    pairs = _folder_pairs(files, root) or _marked_pairs(files, root)
    if not pairs:
        alone = [file for file in files if file.suffix.lower() in LABEL_SUFFIXES]
        pairs = [_Pair(file, file.relative_to(root).with_suffix("").as_posix(), None) for file in alone]
    if not pairs:
        raise InputError(
            "no label images here",
            where=path,
            expected="x.tif next to x_masks.tif, or images/x.tif and masks/x.tif, or label images only",
        )
    return pairs


def _read(path: Path, options: ReadOptions) -> Dataset:
    root, pairs = root_of(path), _pairs(path)
    names = options.name_classes([DEFAULT_CLASS], path)
    finder = ImageFinder(options)
    samples = []
    places = split_ids([pair.name for pair in pairs], root.name)
    for pair, (sample_id, split) in options.track(zip(pairs, places, strict=True), "reading headers", len(pairs)):
        image_hw = _seg_hw(pair.labels) if pair.labels.suffix == ".npy" else image_hw_of(pair.labels)
        image_path, size_um = pair.image, None
        if image_path is None:
            image = finder.find(pair.labels, _image_stem(pair), image_hw)
            image_path, size_um = image.path, image.pixel_size_um
        load = LoadLabels(pair.labels, image_hw if pair.image is None else image_hw_of(pair.image))
        samples.append(Sample(sample_id, image_path, load.image_hw, load, None, split, None, size_um, "label_images"))
    return Dataset(tuple(samples), names, root, info={"format": "label_images"}, notes=finder.notes)


def _image_stem(pair: _Pair) -> str:
    stem = Path(pair.name).name
    if any((pair.labels.parent / f"{stem}_img{suffix}").is_file() for suffix in IMAGE_SUFFIXES):
        return f"{stem}_img"  # the names in Cellpose's own training folders
    return stem


@dataclass(frozen=True)
class LoadLabels:
    """Reads one label file, whose size must be ``image_hw``."""

    path: Path
    image_hw: tuple[int, int]

    def __call__(self) -> Instances:
        labels = _seg_labels(self.path) if self.path.suffix == ".npy" else read_label_map(self.path)
        if labels.shape != self.image_hw:
            raise FormatError(
                "a label image and its image differ in size",
                where=self.path,
                got=f"{labels.shape[0]} x {labels.shape[1]} (height x width)",
                expected=f"{self.image_hw[0]} x {self.image_hw[1]}",
                remedy="pair the labels with the image they were made on",
            )
        return Instances.from_label_map(labels)


def _seg_hw(path: Path) -> tuple[int, int]:
    height, width = _seg_labels(path).shape
    return height, width


def _seg_labels(path: Path) -> np.ndarray:
    """Labels (H, W) of a Cellpose ``_seg.npy``, a pickled dict, read by the restricted `read_npy_object`."""
    content: Any = read_npy_object(path)
    masks = content.get("masks") if isinstance(content, dict) else None
    if (
        not isinstance(masks, np.ndarray)
        or masks.dtype.kind not in "iub"
        or masks.squeeze().ndim != 2
        or not masks.size
    ):
        got = f"{masks.dtype} of shape {masks.shape}" if isinstance(masks, np.ndarray) else type(masks).__name__
        raise FormatError(
            "not a 2-D Cellpose segmentation",
            where=f"{path}, entry 'masks'",
            got=got,
            expected="a label array (height, width)",
            remedy="save each plane of a stack separately",
        )
    if masks.min() < 0:
        raise FormatError(
            "a label is negative", where=f"{path}, entry 'masks'", got=int(masks.min()), expected="0 or more"
        )
    labels = masks.squeeze()
    return labels.astype(np.uint8) if labels.dtype.kind == "b" else labels

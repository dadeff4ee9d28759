"""Label images: one TIFF or PNG an image whose pixel values are object ids. What Cellpose and StarDist use.

Layouts, also below split folders (``train/``, ``test/``):

- ``images/x.tif`` and ``masks/x.tif`` (or ``labels/``), the same names in two folders;
- ``x.tif`` (or ``x_img.tif``) beside ``x_masks.tif``, ``x_cp_masks.png``, ``x_mask``, ``x_labels`` or ``x_label``;
- ``x_seg.npy`` as the Cellpose window saves it, used where no such label image lies beside it;
- a folder of label images alone, or one file: the predictions of other tools, read where images are not required.
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
from cellwright.data.formats.class_names import DEFAULT_CLASS, unnamed_classes
from cellwright.data.formats.contract import Format, ReadOptions, WriteOptions
from cellwright.data.formats.label_maps import (
    LABEL_SUFFIXES,
    flat_labels,
    instances_of,
    looks_labelled,
    read_label_map,
    write_label_map,
)
from cellwright.data.formats.pairing import (
    Pictures,
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
_LOOKED_AT = 4  # label images without a telling name that a sniff decodes


@dataclass(frozen=True)
class _Pair:
    """A label file, the path below the root that its sample is called after, and the stem of its image."""

    labels: Path
    name: str
    image: Path | None


def sniff(path: Path) -> bool:
    """Whether label images lie here under one of the names above (see `sniff_alone` for any other name)."""
    files = first_files(path)
    if any(_label_stem(file) is not None for file in files):
        return not _is_mask_folder(files)
    return _has_pairs(files)


def sniff_alone(path: Path) -> bool:
    """Whether the TIFFs and PNGs here, under whatever names, look like label images: flat areas on a background."""
    seen = first_files(path)
    files = [file for file in seen if file.suffix.lower() in LABEL_SUFFIXES]
    # A folder that is itself called "labels" or "masks" is only a label folder like any other.
    if not files or len(files) < len(seen) or _has_marked([f for f in files if f.parent != path]):
        return False
    if any(_label_stem(f) is not None or f.stem == "image" or _ONE_CLASS.fullmatch(f.stem) for f in files):
        return False
    answers = [looks_labelled(file) for file in files[:_LOOKED_AT]]
    return True in answers and False not in answers


def _has_marked(files: list[Path]) -> bool:
    return any(_label_stem(file) is not None or file.parent.name in (_IMAGE_FOLDER, *_LABEL_FOLDERS) for file in files)


def _is_mask_folder(files: list[Path]) -> bool:
    """Whether ``images/`` and ``masks/`` hold one image and a file for each object: the ``mask_folder`` format."""
    in_masks = [file for file in files if file.parent.name == "masks" and file.suffix.lower() in LABEL_SUFFIXES]
    return bool(in_masks) and not _has_pairs(files)


def _has_pairs(files: list[Path]) -> bool:
    try:
        return bool(_folder_pairs(files, Path()))
    except InputError:  # ambiguous names: `read` says so
        return True


def _label_stem(file: Path) -> str | None:
    """The stem of the image that a label file is named after; None where the name does not mark a label file."""
    if file.name.endswith(_CELLPOSE) and file.name != _CELLPOSE:
        return file.name[: -len(_CELLPOSE)]
    match = _ENDING.fullmatch(file.stem)
    return match[1] if match and file.suffix.lower() in LABEL_SUFFIXES else None


def _folder_pairs(files: list[Path], root: Path) -> list[_Pair]:
    """Pairs of the same name below ``images/`` and ``masks/`` (or ``labels/``).

    A label file's name may end in ``_masks`` and the like. Empty where a label file has no image: then the layout is
    another one.
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
            raise InputError("two images have the name of one label image", where=file, got=got, expected="one image")
        name = above.relative_to(root) / stem if above.is_relative_to(root) else Path(stem)
        pairs.append(_Pair(file, name.as_posix(), images[0]))
    return pairs


def _marked_pairs(files: list[Path], root: Path) -> list[_Pair]:
    """Label files that are marked by their names; ``_seg.npy`` only where no label image has its stem."""
    chosen: dict[Path, Path] = {}
    for file in sorted(files, key=lambda file: file.suffix == ".npy"):
        stem = _label_stem(file)
        if stem is None:
            continue
        other = chosen.setdefault(file.parent / stem, file)
        if other is not file and file.suffix != ".npy":
            raise InputError(
                "two label images name the same image",
                where=file.parent,
                got=f"{other.name} and {file.name}",
                expected="one label image an image",
                remedy="take one of them away",
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
            expected="x.tif beside x_masks.tif, or images/x.tif and masks/x.tif, or label images alone",
        )
    return pairs


def read(path: Path, options: ReadOptions) -> Dataset:
    """Every label image at or below ``path`` with its image; ids as labelled, one class."""
    root, pairs = root_of(path), _pairs(path)
    names = unnamed_classes([DEFAULT_CLASS], options, path)
    pictures = Pictures(options)
    samples = []
    places = split_ids([pair.name for pair in pairs], root.name)
    for pair, (sample_id, split) in options.track(zip(pairs, places, strict=True), "reading headers", len(pairs)):
        image_hw = _seg_hw(pair.labels) if pair.labels.suffix == ".npy" else image_hw_of(pair.labels)
        image, size_um = pair.image, None
        if image is None:
            picture = pictures.of(pair.labels, _image_stem(pair), image_hw)
            image, size_um = picture.path, picture.pixel_size_um
        load = LoadLabels(pair.labels, image_hw if pair.image is None else image_hw_of(pair.image))
        samples.append(Sample(sample_id, image, load.image_hw, load, None, split, None, size_um, "label_images"))
    return Dataset(tuple(samples), names, root, info={"format": FORMAT.name})


def _image_stem(pair: _Pair) -> str:
    stem = Path(pair.name).name
    if any((pair.labels.parent / f"{stem}_img{suffix}").is_file() for suffix in IMAGE_SUFFIXES):
        return f"{stem}_img"  # Cellpose's own training folders
    return stem


@dataclass(frozen=True)
class LoadLabels:
    """Reads one label file; its size must be ``image_hw``."""

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
        return instances_of(labels)


def _seg_hw(path: Path) -> tuple[int, int]:
    height, width = _seg_labels(path).shape
    return height, width


def _seg_labels(path: Path) -> np.ndarray:
    """Labels (H, W) of a Cellpose ``_seg.npy``, a pickled dict read by `read_npy_object`."""
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
            "this is no 2-D Cellpose segmentation",
            where=f"{path}, entry 'masks'",
            got=got,
            expected="a label array (height, width)",
            remedy="save each plane of a stack by itself",
        )
    if masks.min() < 0:
        raise FormatError(
            "a label is negative", where=f"{path}, entry 'masks'", got=int(masks.min()), expected="0 and above"
        )
    return masks.squeeze()


def write(dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
    """``out/<sample id>_masks.tif``, uint32, the ids as labels; with ``copy_images`` the image beside it.

    Overlapping objects are flattened with a notice (`flat_labels`). Classes, scores and ignore flags are not carried.
    """
    written: list[Path] = []
    for sample in options.track(dataset, "writing label images", len(dataset)):
        target = output_path(out, sample.id, "_masks.tif")
        write_label_map(target, flat_labels(sample.read_instances(), sample.id))
        written.append(target)
        if options.copy_images:
            written += copy_image(sample, output_path(out, sample.id, ""))
    return written


FORMAT_ALONE = Format(
    name="label_folder",
    describe="label images alone, under any names (the predictions of another tool); loses what label_images loses",
    sniff=sniff_alone,
    read=read,
)
FORMAT = Format(
    name="label_images",
    describe="images beside label TIFF/PNG (_masks, images/ + masks/, Cellpose _seg.npy); loses classes, scores, "
    "ignore flags, overlaps",
    sniff=sniff,
    read=read,
    write=write,
)

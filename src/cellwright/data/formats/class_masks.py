"""Class masks: ``<id>/image.tif`` beside ``class1.tif`` .. ``classK.tif``, one label map a class.

A class that an image does not hold has no file. Labels are whole numbers in any type (the files met in the wild are
float64) with gaps allowed. A sample's id is its folder's path below the root. An object's id is its label where no
label stands in two classes of the image; where some label does, the ids of class k (counted from 0) are
``label + k * 1_000_000``, for all classes of that image.

A JSON list ``test_image_name_to_ids.json`` beside the folders names the images of a submission; images found by it are
not samples (they have no annotations), the list is what ``--image-ids`` takes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError, OutputError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat
from cellwright.data.formats.class_names import unnamed_classes
from cellwright.data.formats.contract import Format, ReadOptions, WriteOptions
from cellwright.data.formats.label_maps import LABEL_SUFFIXES, flat_labels, read_label_map, write_label_map
from cellwright.data.formats.pairing import copy_image, first_files, output_path, root_of, split_ids, walk
from cellwright.data.images.read import IMAGE_SUFFIXES, image_hw_of

CLASS_ID_STRIDE = 1_000_000

_CLASS_FILE = re.compile(r"class([1-9]\d{0,3})")


def class_number(path: Path) -> int | None:
    """K of a file ``classK.tif`` (or .tiff, .png), counted from 1; None for any other file."""
    match = _CLASS_FILE.fullmatch(path.stem)
    return int(match[1]) if match and path.suffix.lower() in LABEL_SUFFIXES else None


def sniff(path: Path) -> bool:
    """Whether a folder holds ``classK`` label maps beside an image called ``image``."""
    if not path.is_dir():
        return False
    files = first_files(path)
    numbered = {file.parent for file in files if class_number(file) is not None}
    pictured = {file.parent for file in files if file.stem == "image" and file.suffix.lower() in IMAGE_SUFFIXES}
    return bool(numbered) and (bool(numbered & pictured) or not pictured)


@dataclass(frozen=True)
class LoadClassMasks:
    """Reads the objects of one folder: ``files`` pairs a class id (from 0) with its label map."""

    files: tuple[tuple[int, Path], ...]
    image_hw: tuple[int, int]

    def __call__(self) -> Instances:
        parts: list[tuple[int, MaskSet, np.ndarray]] = []
        for class_id, path in self.files:
            labels = read_label_map(path)
            if labels.shape != self.image_hw:
                raise FormatError(
                    "a class mask and its image differ in size",
                    where=path,
                    got=f"{labels.shape[0]} x {labels.shape[1]} (height x width)",
                    expected=f"{self.image_hw[0]} x {self.image_hw[1]}",
                    remedy="pair each mask with the image it was made on",
                )
            parts.append((class_id, *MaskSet.from_label_map(labels)))
        if not parts:
            return Instances.empty(self.image_hw)
        class_ids = np.concatenate([np.full(len(ids), class_id, np.int64) for class_id, _, ids in parts])
        labels = np.concatenate([ids for _, _, ids in parts])
        return Instances.from_masks(
            concat([masks for _, masks, _ in parts]), class_ids=class_ids, ids=unique_ids(labels, class_ids)
        )


def unique_ids(labels: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """Ids (N,) int64 from labels (N,) that are unique within a class: see the module's rule.

    The stride grows tenfold where a label does not fit below it.
    """
    if np.unique(labels).size == labels.size:
        return labels
    stride = CLASS_ID_STRIDE
    while int(labels.max()) >= stride:
        stride *= 10
    return labels + class_ids * stride


def read(path: Path, options: ReadOptions) -> Dataset:
    """Every folder with class masks, or with an image called ``image``, at or below ``path``."""
    root = root_of(path)
    folders: dict[Path, list[Path]] = {}
    for file in walk(root):
        if class_number(file) is not None or (file.stem == "image" and file.suffix.lower() in IMAGE_SUFFIXES):
            folders.setdefault(file.parent, []).append(file)
    if not any(class_number(file) is not None for files in folders.values() for file in files):
        raise InputError(
            "no class masks here", where=path, expected="folders with image.tif and class1.tif .. classK.tif"
        )
    n_classes = max(class_number(file) or 0 for files in folders.values() for file in files)
    names = unnamed_classes([f"class{k + 1}" for k in range(n_classes)], options, path)
    places = split_ids([folder.relative_to(root).as_posix() for folder in folders], root.resolve().name)
    samples = [
        _sample(place, folders[folder], options)
        for folder, place in options.track(zip(folders, places, strict=True), "reading headers", len(folders))
    ]
    return Dataset(tuple(samples), names, root, info={"format": FORMAT.name})


def _sample(place: tuple[str, str | None], files: list[Path], options: ReadOptions) -> Sample:
    images = [file for file in files if class_number(file) is None]
    masks = sorted((number - 1, file) for file in files if (number := class_number(file)) is not None)
    if len(images) > 1 or len({number for number, _ in masks}) < len(masks):
        raise InputError(
            "a folder holds one image or one class twice",
            where=files[0].parent,
            got=", ".join(file.name for file in files),
            expected="one image and at most one file a class",
        )
    if not images and options.require_images:
        raise InputError("a folder of class masks has no image", where=files[0].parent, expected="a file image.tif")
    image_hw = image_hw_of(images[0] if images else masks[0][1])
    load = LoadClassMasks(tuple(masks), image_hw)
    sample_id, split = place
    return Sample(sample_id, images[0] if images else None, image_hw, load, split=split, source="class_masks")


def write(dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
    """``out/<sample id>/classK.tif`` (uint32, zlib), with ``copy_images`` the image beside it.

    An image without objects gets an empty ``class1.tif``. Within a class overlapping objects are flattened (with a
    notice), between classes they are kept. Scores, ignore flags and class names are not carried.
    """
    written: list[Path] = []
    for sample in options.track(dataset, "writing class masks", len(dataset)):
        instances = sample.read_instances()
        if len(instances) and int(instances.class_ids.max()) >= len(dataset.class_names):
            raise OutputError(
                "an object has a class without a name",
                where=sample.id,
                got=int(instances.class_ids.max()),
                remedy="name every class of the dataset",
            )
        for class_id in np.unique(instances.class_ids).tolist() or [0]:
            target = output_path(out, sample.id, f"/class{class_id + 1}.tif")
            chosen = instances[instances.class_ids == class_id]
            write_label_map(target, flat_labels(chosen, f"{sample.id}, class {dataset.class_names[class_id]}"))
            written.append(target)
        if options.copy_images:
            written += copy_image(sample, output_path(out, sample.id, "/image"))
    return written


FORMAT = Format(
    name="class_masks",
    describe="<id>/image.tif beside class1.tif .. classK.tif label maps; loses scores, class names, ignore flags, "
    "overlaps within a class",
    sniff=sniff,
    read=read,
    write=write,
)

"""Class masks: ``<id>/image.tif`` next to ``class1.tif`` .. ``classK.tif``, one label map per class.

A class that does not occur in an image has no file. Labels are whole numbers of any type (published files use
float64), and gaps are allowed. The id of a sample is the path of its folder below the root. The id of an object is its
label, if no label occurs in two classes of the image. Otherwise the ids of class k (counted from 0) are
``label + k * 1_000_000``, for all classes of that image.

A JSON list ``test_image_name_to_ids.json`` next to the folders defines the images of a submission (see
``WriteOptions.image_ids``). These images are not samples, since they have no annotations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError, OutputError
from cellwright.core.files import plain_suffix, stem_of
from cellwright.core.ignored import objects_only
from cellwright.core.instances import Instances
from cellwright.core.masks import concat
from cellwright.data.formats.contract import Format, ReadOptions, WriteOptions
from cellwright.data.formats.label_io import LABEL_SUFFIXES, flat_labels, read_raster, write_label_map
from cellwright.data.formats.label_kinds import Meaning, examine, examined
from cellwright.data.formats.paths import (
    GivenImages,
    copy_image,
    first_files,
    output_path,
    root_of,
    split_ids,
    walk,
)
from cellwright.data.images.read import IMAGE_SUFFIXES, image_hw_of

CLASS_ID_STRIDE = 1_000_000

_CLASS_FILE = re.compile(r"class([1-9]\d{0,3})")


class ClassMasks(Format):
    name = "class_masks"
    description = (
        "<id>/image.tif next to class1.tif .. classK.tif label maps; loses scores, class names, ignore flags, "
        "overlaps within a class"
    )

    def sniff(self, path: Path) -> bool:
        """Whether a folder contains ``classK`` label maps next to an image called ``image``."""
        if not path.is_dir():
            return False
        files = first_files(path)
        with_masks = {file.parent for file in files if class_number(file) is not None}
        with_image = {file.parent for file in files if _is_image(file)}
        return bool(with_masks) and (bool(with_masks & with_image) or not with_image)

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """A sample for each folder at or below ``path`` with class masks, or with an image called ``image``."""
        root = root_of(path)
        folders: dict[Path, list[Path]] = {}
        for file in walk(root):
            if class_number(file) is not None or _is_image(file):
                folders.setdefault(file.parent, []).append(file)
        if not any(class_number(file) is not None for files in folders.values() for file in files):
            raise InputError(
                "no class masks here", where=path, expected="folders with image.tif and class1.tif .. classK.tif"
            )
        n_classes = max(class_number(file) or 0 for files in folders.values() for file in files)
        names = options.name_classes([f"class{k + 1}" for k in range(n_classes)], path)
        maps = examined([file for files in folders.values() for file in files if class_number(file) is not None])
        rasters = ((str(file), read_raster(file)) for file in maps)
        meaning, notes = examine(options.track(rasters, "examining label maps", len(maps)), options, path)
        if len(meaning.classes) > 1:
            raise InputError(
                "the class masks contain classes of their own",
                where=path,
                got=f"the values {', '.join(map(str, meaning.classes))}",
                expected="one class per file",
                remedy="give masks of 0 and one other value, or label maps",
            )
        places = split_ids([folder.relative_to(root).as_posix() for folder in folders], root.resolve().name)
        given = GivenImages(options.images) if options.images is not None else None
        samples = [
            _sample(place, folders[folder], options, meaning, given)
            for folder, place in options.track(zip(folders, places, strict=True), "reading headers", len(folders))
        ]
        return Dataset(tuple(samples), names, root, info={"format": self.name}, notes=notes)

    def write(self, dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
        """Write ``out/<sample id>/classK.tif`` (uint32, zlib), and the image next to it if ``copy_images`` is set.

        An image without objects gets an empty ``class1.tif``. Overlaps between classes are kept; overlaps within a
        class are flattened, with a warning. Scores, ignored regions and class names are lost.
        """
        written: list[Path] = []
        for sample in options.track(dataset, "writing class masks", len(dataset)):
            instances = objects_only(sample.read_instances())
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


def class_number(path: Path) -> int | None:
    """K of a file ``classK.tif`` (or .tiff, .png), counted from 1; None for any other file."""
    match = _CLASS_FILE.fullmatch(stem_of(path))
    return int(match[1]) if match and plain_suffix(path) in LABEL_SUFFIXES else None


def _is_image(file: Path) -> bool:
    return stem_of(file) == "image" and plain_suffix(file) in IMAGE_SUFFIXES


def _sample(
    place: tuple[str, str | None],
    files: list[Path],
    options: ReadOptions,
    meaning: Meaning,
    given: GivenImages | None,
) -> Sample:
    images = [file for file in files if class_number(file) is None]
    masks = sorted((number - 1, file) for file in files if (number := class_number(file)) is not None)
    if len(images) > 1 or len({number for number, _ in masks}) < len(masks):
        raise InputError(
            "a folder has two images, or two masks of one class",
            where=files[0].parent,
            got=", ".join(file.name for file in files),
            expected="one image, and at most one file per class",
        )
    if given is not None:
        found = given.find(files[0].parent, place[0])
        found = found.image_path if isinstance(found, Sample) else found
        images = [found] if found is not None else images
    if not images and options.require_images:
        raise InputError(
            "a folder of class masks has no image",
            where=files[0].parent,
            expected=f"a file image.tif, or an image {place[0]}.tif or .png in the folder that `images` names",
        )
    image_hw = image_hw_of(images[0], options.series) if images else image_hw_of(masks[0][1])
    load = LoadClassMasks(tuple(masks), image_hw, meaning)
    sample_id, split = place
    return Sample(sample_id, images[0] if images else None, image_hw, load, split=split, source="class_masks")


@dataclass(frozen=True)
class LoadClassMasks:
    """Reads the objects of one folder; ``files`` pairs each class id (from 0) with its label map."""

    files: tuple[tuple[int, Path], ...]
    image_hw: tuple[int, int]
    meaning: Meaning

    def __call__(self) -> Instances:
        parts: list[tuple[int, Instances]] = []
        for class_id, path in self.files:
            raster = read_raster(path)
            if raster.values.shape != self.image_hw:
                raise FormatError(
                    "a class mask and its image differ in size",
                    where=path,
                    got=f"{raster.values.shape[0]} x {raster.values.shape[1]} (height x width)",
                    expected=f"{self.image_hw[0]} x {self.image_hw[1]}",
                    remedy="pair each mask with the image it was made on",
                )
            parts.append((class_id, self.meaning.objects(raster, path)))
        if not parts:
            return Instances.empty(self.image_hw)
        class_ids = np.concatenate([np.full(len(part), class_id, np.int64) for class_id, part in parts])
        labels = np.concatenate([part.ids for _, part in parts])
        ignore = np.concatenate([part.ignore for _, part in parts])
        return Instances.from_masks(
            concat([part.masks for _, part in parts]),
            class_ids=np.where(ignore, NO_CLASS, class_ids),
            ids=unique_ids(labels, class_ids),
            ignore=ignore,
        )


def unique_ids(labels: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """Object ids (N,) int64 from labels (N,) that are unique only within a class, as the module docstring describes.

    If a label is not below the stride, the stride grows tenfold.
    """
    if np.unique(labels).size == labels.size:
        return labels
    stride = CLASS_ID_STRIDE
    while int(labels.max()) >= stride:
        stride *= 10
    return labels + class_ids * stride

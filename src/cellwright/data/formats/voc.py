"""Pascal VOC and its relatives: ``JPEGImages/``, ``SegmentationObject/`` (instances) and ``SegmentationClass/``
(classes).

Pixels of 255, the contours of VOC's objects, are ignored regions. The class of an object is the most frequent value
under it; `labelmap.txt` (CVAT) names the classes. ``Annotations/*.xml`` holds boxes, which are not outlines and are not
read.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError
from cellwright.core.files import plain_suffix, stem_of
from cellwright.core.instances import Instances
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, ReadOptions
from cellwright.data.formats.label_images import LoadLabels
from cellwright.data.formats.label_io import LABEL_SUFFIXES, read_labels
from cellwright.data.formats.label_kinds import examine, examined
from cellwright.data.formats.paths import SPLITS, first_bytes, first_files, images_named, root_of, walk
from cellwright.data.images.read import image_hw_of

_OBJECTS, _CLASSES, _IMAGES = "SegmentationObject", "SegmentationClass", "JPEGImages"
_VOID = 255


class Voc(Format):
    name = "voc"
    description = "Pascal VOC: JPEGImages/ with SegmentationObject/ and SegmentationClass/ PNG; boxes are refused"
    published = True

    def sniff(self, path: Path) -> bool:
        """Whether there is a folder of VOC's masks, or VOC's XML of boxes."""
        if not path.is_dir():
            return False
        files = first_files(path)
        if any(file.parent.name in (_OBJECTS, _CLASSES) and plain_suffix(file) in LABEL_SUFFIXES for file in files):
            return True
        xml = [file for file in files if file.suffix.lower() == ".xml"]
        return any(b"<annotation>" in first_bytes(file) and b"<bndbox>" in first_bytes(file) for file in xml[:3])

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Every image with a mask of instances."""
        root = root_of(path)
        files = [file for file in walk(root) if plain_suffix(file) in LABEL_SUFFIXES]
        masks = [file for file in files if file.parent.name == _OBJECTS]
        if not masks:
            masks = [file for file in files if file.parent.name == _CLASSES]
        if not masks:
            n_xml = sum(file.suffix.lower() == ".xml" for file in walk(root))
            raise InputError(
                "these annotations are boxes, not outlines",
                where=path,
                got=f"{count(n_xml, 'XML file')} of boxes, no {_OBJECTS}/",
                expected=f"masks of instances in {_OBJECTS}/",
                remedy="export the annotations as masks or polygons; boxes cannot be used for instance segmentation",
            )
        options = dataclasses.replace(options, void=_VOID) if options.void is None else options
        chosen = examined(masks)
        rasters = ((str(file), read_labels(file)) for file in chosen)
        meaning, notes = examine(options.track(rasters, "examining masks", len(chosen)), options, path)
        notes = tuple(note for note in notes if note.kind != "the void value does not occur")
        by_class = {file: file.parent.parent / _CLASSES / file.name for file in masks if file.parent.name == _OBJECTS}
        by_class = {file: other for file, other in by_class.items() if other.is_file()}
        values = sorted({v for file in by_class.values() for v in _values(file, options.void)})
        names = _label_map(root)
        defaults = [names.get(value, f"class{value}") for value in values] or meaning.class_names or [DEFAULT_CLASS]
        splits = _splits(root)
        samples = []
        for file in masks:
            images = images_named(file.parent.parent / _IMAGES, stem_of(file))
            if not images and options.require_images:
                raise InputError("a mask has no image", where=file, expected=f"{_IMAGES}/{stem_of(file)}.jpg")
            hw = image_hw_of(images[0], options.series) if images else image_hw_of(file)
            load = LoadVoc(LoadLabels(file, hw, meaning), by_class.get(file), tuple(values))
            image = images[0] if images else None
            samples.append(
                Sample(_sample_id(file, root), image, hw, load, split=splits.get(stem_of(file)), source=self.name)
            )
        if any(file not in by_class for file in masks) and values:
            text = f"some masks have no file in {_CLASSES}/; their objects are {defaults[0]}"
            notes = (*notes, Note("the classes of some masks are unknown", text, str(path)))
        classes = options.name_classes(defaults, path)
        return Dataset(tuple(samples), classes, root, info={"format": self.name}, notes=notes)


@dataclass(frozen=True)
class LoadVoc:
    """Reads a mask of instances, and their classes from a mask of classes."""

    objects: LoadLabels
    class_mask: Path | None
    values: tuple[int, ...]

    def __call__(self) -> Instances:
        instances = self.objects()
        if self.class_mask is None or not len(instances):
            return instances
        classes = read_labels(self.class_mask).values
        if classes.shape != instances.image_hw:
            raise FormatError(
                "a mask of classes has another size than its mask of instances",
                where=self.class_mask,
                got=classes.shape,
                expected=instances.image_hw,
            )
        class_ids = instances.class_ids.copy()
        for k, (x0, y0, x1, y1) in enumerate(instances.masks.boxes.tolist()):
            if instances.ignore[k]:
                continue
            under = classes[y0:y1, x0:x1][instances.masks.crop(k) > 0]
            counts = [int((under == value).sum()) for value in self.values]
            if max(counts, default=0):
                class_ids[k] = int(np.argmax(counts))
            else:
                where = f"{self.class_mask}, object {instances.ids[k]}"
                raise FormatError("an object has no class", where=where, expected="a class under each object")
        return dataclasses.replace(instances, class_ids=class_ids)


def _values(file: Path, void: int | None) -> set[int]:
    return set(np.unique(read_labels(file).values).tolist()) - {0, void}


def _sample_id(file: Path, root: Path) -> str:
    above = file.parent.parent.relative_to(root)
    return (above / stem_of(file)).as_posix()


def _splits(root: Path) -> dict[str, str]:
    """Split by image name, from ``ImageSets/Segmentation/train.txt`` and so on."""
    return {
        line.strip(): SPLITS[file.stem.lower()]
        for file in walk(root)
        if file.suffix.lower() == ".txt" and "ImageSets" in file.parts and file.stem.lower() in SPLITS
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    }


def _label_map(root: Path) -> dict[int, str]:
    """Class name by packed colour, from CVAT's ``labelmap.txt`` with lines ``name:r,g,b:parts:actions``."""
    names = {}
    file = root / "labelmap.txt"
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            parts = line.split(":")
            numbers = parts[1].split(",") if len(parts) > 1 and not line.startswith("#") else []
            if len(numbers) == 3 and all(number.strip().isdecimal() for number in numbers):
                red, green, blue = map(int, numbers)
                names[(red << 16) | (green << 8) | blue] = parts[0]
    return names

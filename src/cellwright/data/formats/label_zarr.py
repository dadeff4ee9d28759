"""An OME-Zarr label image of any size: each number above 0 is one object."""

from __future__ import annotations

from pathlib import Path

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import InputError
from cellwright.core.files import stem_of
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, ReadOptions
from cellwright.data.formats.large_labels import LargeLabels
from cellwright.data.formats.paths import ImageFinder
from cellwright.data.images.read import image_hw_of
from cellwright.data.images.zarr import is_label_zarr, is_zarr


class LabelZarr(Format):
    name = "label_zarr"
    description = "an OME-Zarr label image (with image-label metadata) of any size; loses what label_images loses"

    def sniff(self, path: Path) -> bool:
        """Whether ``path`` is the folder of an OME-Zarr label image."""
        return path.is_dir() and is_label_zarr(path)

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """One sample, whose image is that in which the labels lie (``image.zarr/labels/cells``), or has their name."""
        if not self.sniff(path):
            expected = "a Zarr folder with image-label in its metadata"
            raise InputError("this is not an OME-Zarr label image", where=path, expected=expected)
        image_hw = image_hw_of(path)
        inside = path.resolve().parent
        own = inside.parent if inside.name == "labels" and is_zarr(inside.parent) else None
        finder = ImageFinder(options, path.parent)
        image = finder.find(path, stem_of(path), image_hw, None if options.images is not None else own)
        load = LargeLabels(path, image_hw)
        sample = Sample(stem_of(path), image.path, image_hw, load, pixel_size_um=image.pixel_size_um, source=self.name)
        names = options.name_classes([DEFAULT_CLASS], path)
        return Dataset((sample,), names, root=path.parent, info={"format": self.name}, notes=finder.notes)

"""Annotations of pictures that are stored turned (EXIF orientation), as cameras do.

Images are read upright, as viewers show them. Most annotations are drawn on that; some tools ignore the orientation and
annotate the pixels as they are stored. Where height and width differ, the recorded size tells which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import InputError
from cellwright.core.files import plain_suffix
from cellwright.core.instances import Instances
from cellwright.core.notes import Note
from cellwright.data.images.raster import RASTER_SUFFIXES, TURNS
from cellwright.data.images.read import image_header


def follow_orientation(dataset: Dataset, *, quiet: bool = False) -> Dataset:
    """The dataset with the objects where they lie in the upright images, and notes about what was assumed.

    Objects whose image size is that of the stored pixels are turned with the image. ``quiet`` omits the notes about
    images whose sizes do not tell, for a dataset that was written by cellwright.
    """
    samples, notes = [], []
    for sample in dataset:
        turned, note = _followed(sample)
        samples.append(turned)
        notes += [] if note is None or (quiet and turned is sample) else [note]
    if not notes and all(new is old for new, old in zip(samples, dataset, strict=True)):
        return dataset
    return dataclasses.replace(dataset, samples=tuple(samples), notes=(*dataset.notes, *notes))


def _followed(sample: Sample) -> tuple[Sample, Note | None]:
    path = sample.image_path
    if path is None or plain_suffix(path) not in RASTER_SUFFIXES:
        return sample, None
    try:
        header = image_header(path)
    except InputError:  # reported when the image is read
        return sample, None
    if header.orientation == 1:
        return sample, None
    height, width = header.image_hw
    turns = TURNS[header.orientation][1] % 2 == 1
    if turns and height != width:
        if tuple(sample.image_hw) != (width, height):
            return sample, None  # drawn on the upright image, or of a wrong size, which is reported elsewhere
        load = TurnedObjects(sample.load, header.orientation)
        text = (
            f"annotated as it is stored ({width} x {height}, height x width); image and objects were turned upright, "
            "as its EXIF orientation says"
        )
        note = Note("annotations were turned upright with their image", text, str(path))
        return dataclasses.replace(sample, image_hw=header.image_hw, load=load), note
    text = "its EXIF orientation turns it, and sizes do not tell whether its annotations were drawn on it upright, as "
    text += "viewers show it: that was assumed"
    return sample, Note("annotations were assumed to be drawn on the upright image", text, str(path))


@dataclass(frozen=True)
class TurnedObjects:
    """A `Sample.load` that turns objects upright which were annotated on the stored pixels."""

    load: Callable[[], Instances]
    orientation: int

    def __call__(self) -> Instances:
        objects = self.load()
        flip, quarter_turns = TURNS[self.orientation]
        masks = (objects.masks.flip("horizontal") if flip else objects.masks).rot90(quarter_turns)
        turned = Instances.from_masks(masks)
        return dataclasses.replace(
            objects, image_hw=masks.image_hw, masks=masks, boxes_xyxy=turned.boxes_xyxy, soft_masks=None
        )

"""The reader of the napari plugin: datasets, prediction folders, tile jobs and label files, with their images."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwright.core.errors import CellwrightError
from cellwright.core.text import count
from cellwright.plugin_napari.layers import LayerData, features_of, image_layers, labels_layer

if TYPE_CHECKING:
    from cellwright.core.dataset import Dataset, Sample

MAX_IMAGES = 50  # more would make too many layers
Read = Callable[[Any], list[LayerData]]


def get_reader(path: str | list[str]) -> Read | None:
    """The reader for what `cellwright.read_dataset` reads with objects; None for anything else, such as images."""
    from cellwright.data.formats import sniff

    paths = [Path(one) for one in (path if isinstance(path, list) else [path])]
    try:
        kinds = [sniff(one).name for one in paths]
    except CellwrightError:
        return None
    return None if "image_folder" in kinds else read


def read(path: str | list[str]) -> list[LayerData]:
    """An image layer (or one for each channel) and a labels layer for each image; the first is shown.

    The features of the labels are class, score and all measurements. Raises what reading a dataset raises.
    """
    layers: list[LayerData] = []
    for one in path if isinstance(path, list) else [path]:
        layers += _layers_of(Path(one), is_first=not layers)
    return layers


def _layers_of(path: Path, *, is_first: bool) -> list[LayerData]:
    from cellwright.api.read import read_dataset
    from cellwright.core.notes import summarise
    from cellwright.evaluation.pairing import above_threshold

    dataset = above_threshold(read_dataset(path, require_images=False))
    notes = summarise(dataset.notes)
    if len(dataset) > MAX_IMAGES:
        notes.append(f"the first {MAX_IMAGES} of {count(len(dataset), 'image')} are shown; open fewer at a time")
    _tell(notes)
    layers: list[LayerData] = []
    for sample in dataset.samples[:MAX_IMAGES]:
        layers += _sample_layers(sample, dataset, visible=is_first and not layers)
    return layers


def _sample_layers(sample: Sample, dataset: Dataset, *, visible: bool) -> list[LayerData]:
    from cellwright.api.measure import LARGE_PX, MeasurePlan, measure_sample
    from cellwright.data.images.reading import Reading

    objects = sample.read_instances()
    objects = objects[~objects.ignore]
    layers: list[LayerData] = []
    size_um = sample.pixel_size_um
    if sample.image_path is not None and math.prod(sample.image_hw) <= LARGE_PX:
        image = Reading.recorded(dataset.info).of(sample).read(sample.image_path)
        size_um = image.pixel_size_um
        layers = image_layers(image, sample.id, visible=visible)
    elif sample.image_path is not None:
        _tell([f"{sample.id} is large: its pixels are not loaded; open the image itself with napari"])
    table = measure_sample(sample, dataset, MeasurePlan(Path(sample.id)))
    layers.append(labels_layer(objects, f"{sample.id} objects", features_of(table), size_um, visible=visible))
    return layers


def _tell(lines: list[str]) -> None:
    """Show lines in napari, which has an area for them; in scripts they are printed."""
    from napari.utils.notifications import show_info

    for line in lines:
        show_info(line)

"""``data info``: counts and distributions of a dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cyclopts import Parameter

from cellwright.api.convert import summary_line
from cellwright.api.read import images_only_note, of_split, read_annotations
from cellwright.api.shared_options import Channel, FormatName, Planes, Series, TimePoint, reading_of
from cellwright.core.dataset import Dataset
from cellwright.core.image import Image
from cellwright.core.notes import summarise
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.table import Table
from cellwright.core.text import count
from cellwright.data.images.read import is_single
from cellwright.data.images.reading import Reading
from cellwright.data.images.regions import ImageSource, describe_rows

# Images whose values are measured.
SAMPLED = 20
# Pixels of an image that are measured; of larger ones a smaller copy, or the middle.
OVERVIEW_PIXELS = 1 << 24


@Parameter(name="*")
@dataclass(frozen=True)
class InfoPlan:
    """Show counts, classes, sizes and bit depth of a dataset, or what an image or slide contains."""

    dataset: Path
    """A dataset folder, anything that `data convert` reads, images without annotations, or one image of any size."""
    _: KW_ONLY
    split: str | None = None
    """Only this split."""
    format: FormatName = None
    channel: Channel = ()
    z: Planes = None
    t: TimePoint = None
    series: Series = None


def run(plan: InfoPlan, screen: ProgressReporter = SILENT) -> Table:
    """Measure the dataset; returns a table of names and values."""
    from cellwright.data.info import describe_dataset

    dataset = of_split(
        read_annotations(plan.dataset, reading_of(plan), screen, format=plan.format, no_objects=True), plan.split
    )
    if dataset.info.get("format") == "image_folder" and is_single(plan.dataset):
        return _of_image(plan.dataset, Reading.recorded(dataset.info), screen)
    for line in images_only_note(dataset):
        screen.note(line)
    rows = describe_dataset(dataset, track=screen.track).rows()
    return Table(summary_line(dataset), ("what", "value"), [*rows, *_of_images(dataset)])


def _of_image(path: Path, reading: Reading, screen: ProgressReporter) -> Table:
    """The facts of one image."""
    source = reading.open(path)
    for line in summarise(source.notes):
        screen.note(line)
    return Table(path.name, ("what", "value"), [*describe_rows(source), _brightest([(path, reading)])])


def _of_images(dataset: Dataset) -> list[tuple[str, str]]:
    """The channels of the first image, those that are used, and the values of a few images."""
    from cellwright.data.images.channels import numbered

    recorded = Reading.recorded(dataset.info)
    images = [(s.image_path, recorded.of(s)) for s in dataset if s.image_path is not None]
    if not images:
        return []
    rows, (first, reading) = [], images[0]
    channels = [name for name in reading.open(first).channels if name != "A"]
    if len(channels) > 1:
        rows.append(("channels", numbered(channels)))
    if reading.channels:
        rows.append(("channel used", ", ".join(reading.open(first, chosen=True).channels)))
    return [*rows, _brightest(images[:: max(len(images) // SAMPLED, 1)][:SAMPLED])]


def _brightest(images: Sequence[tuple[Path, Reading]]) -> tuple[str, str]:
    from cellwright.data.value_range import ImageValues, depth_of

    values = [ImageValues.of(_overview(reading.open(path, chosen=True)).without_alpha()) for path, reading in images]
    bright = [image.bright for image in values]
    depth = depth_of(values)
    range_ = "" if depth is None else f", of 0 to {depth:g}"
    if len(values) == 1:
        return "brightest values", f"{bright[0]:.5g}{range_}"
    return "brightest values", f"{min(bright):.5g} to {max(bright):.5g}{range_} ({count(len(values), 'image')})"


def _overview(source: ImageSource) -> Image:
    """The first level of at most `OVERVIEW_PIXELS`, or the middle of the last one."""
    sizes = [level.image_hw for level in source.levels]
    level = next((k for k, (h, w) in enumerate(sizes) if h * w <= OVERVIEW_PIXELS), len(sizes) - 1)
    (height, width), side = sizes[level], math.isqrt(OVERVIEW_PIXELS)
    h, w = (height, width) if height * width <= OVERVIEW_PIXELS else (min(height, side), min(width, side))
    return source.read((height - h) // 2, (width - w) // 2, h, w, level)

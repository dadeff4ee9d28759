"""``data info``: counts and distributions of a dataset."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cyclopts import Parameter

from cellwright.api.convert import summary_line
from cellwright.api.read import images_only_note, of_split, read_annotations
from cellwright.api.shared_options import Channel, FormatName, Planes, Series, TimePoint, reading_of
from cellwright.core.dataset import Dataset
from cellwright.core.notes import summarise
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.table import Table
from cellwright.core.text import count
from cellwright.data.images.reading import Reading

# Images whose values are measured.
SAMPLED = 20


@Parameter(name="*")
@dataclass(frozen=True)
class InfoPlan:
    """Show counts, classes, sizes, density, overlaps and bit depth of a dataset."""

    dataset: Path
    """A dataset folder, anything that `data convert` reads, or images without annotations."""
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
        read_annotations(plan.dataset, reading_of(plan), format=plan.format, no_objects=True), plan.split
    )
    for line in [*images_only_note(dataset), *summarise(dataset.notes)]:
        screen.note(line)
    rows = describe_dataset(dataset, track=screen.track).rows()
    return Table(summary_line(dataset), ("what", "value"), [*rows, *_of_images(dataset)])


def _of_images(dataset: Dataset) -> list[tuple[str, str]]:
    """The channels of the first image, those that are used, and the values of a few images."""
    from cellwright.data.images.channels import numbered
    from cellwright.data.value_range import ImageValues, depth_of

    reading, paths = Reading.recorded(dataset.info), [s.image_path for s in dataset if s.image_path is not None]
    if not paths:
        return []
    rows = []
    first = reading.read(paths[0]).without_alpha()
    if first.n_channels > 1:
        rows.append(("channels", numbered(first.channels)))
    if reading.channels:
        rows.append(("channel used", ", ".join(reading.chosen(paths[0]).channels)))
    picked = paths[:: max(len(paths) // SAMPLED, 1)][:SAMPLED]
    values = [ImageValues.of(reading.chosen(path).without_alpha()) for path in picked]
    bright = [image.bright for image in values]
    depth = depth_of(values)
    range_ = "" if depth is None else f", of 0 to {depth:g}"
    rows.append(("brightest values", f"{min(bright):.5g} to {max(bright):.5g}{range_} ({count(len(values), 'image')})"))
    return rows

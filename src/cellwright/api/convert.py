"""``data convert``: annotations of any known format as a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from cyclopts import Parameter

from cellwright.api.outputs import dataset_output, write_once
from cellwright.api.read import DATASET_FILE, read_dataset
from cellwright.api.shared_options import FormatName, Planes, Series, TimePoint, reading_of
from cellwright.api.sources import find_images_option, separate_images, split_by_name
from cellwright.core.dataset import Dataset
from cellwright.core.errors import InputError
from cellwright.core.instances import Instances
from cellwright.core.notes import Note, summarise
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.text import count
from cellwright.data.formats.contract import Prefer
from cellwright.data.images.reading import Reading

FAILED = "this image was not converted"


@Parameter(name="*")
@dataclass(frozen=True)
class ConvertPlan:
    """Convert annotations of any known format to a dataset."""

    sources: tuple[Path, ...]
    """Folders or files to read; several are merged. Image files given here are the images of the annotations."""
    _: KW_ONLY
    format: FormatName = None
    classes: tuple[str, ...] | None = None
    """Class names, for formats without them; for other formats, the classes to keep."""
    images: Path | None = None
    """Folder or dataset of the images, if they are not beside their annotations."""
    rle_order: Literal["row", "column"] | None = None
    """How a Kaggle table counts pixels, if its columns do not show it."""
    rle_first: Literal[0, 1] | None = None
    """The number of the first pixel in a Kaggle table (default: 1, unless the runs show otherwise)."""
    foreground: Literal["split", "refuse"] | None = None
    """split: masks of foreground and background become one object per connected part."""
    void: int | None = None
    """Pixel value in masks that is neither an object nor background, such as 255."""
    nucleus: bool = False
    """For QuPath cells that have a nucleus, read the nuclei instead of the cells."""
    prefer: Prefer | None = None
    """Which file of an image to read if several in a prediction folder were edited differently."""
    no_objects: bool = False
    """Accept sources in which no image has an object."""
    channel: tuple[str, ...] = ()
    """Name or number of the channel that the dataset is about, where there are several; the dataset records it, and
    also `z`, `t` and `series`."""
    z: Planes = None
    t: TimePoint = None
    series: Series = None
    copy_images: bool = False
    """Copy the images into the dataset instead of referring to them."""
    out: Path = Path("work/dataset")
    """Dataset folder to write."""
    overwrite: bool = False
    """Replace an existing dataset."""


def run(plan: ConvertPlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> Dataset | None:
    """Read the sources, write the dataset, and return it as it is on disk; None after a dry run.

    Of a prediction folder it takes the objects that reach the score threshold, as edited. Images of which several files
    were edited differently are omitted; `failed` lists them. Raises `InputError` for a source that cannot be read (with
    file and object), `OutputError` if the dataset exists.
    """
    from cellwright.data.formats import FORMATS, ReadOptions, WriteOptions, require_annotations
    from cellwright.data.formats import read_dataset as read
    from cellwright.data.formats.predictions import as_annotations, without_conflicts
    from cellwright.data.merge import merge_datasets

    inputs = [path for path in (*plan.sources, plan.images) if path is not None]
    output = dataset_output(plan.out, "data convert", inputs=inputs, overwrite=plan.overwrite)
    sources, given = separate_images(plan.sources)
    images = find_images_option(plan.images, screen.track) if plan.images is not None else given or None
    options = ReadOptions(
        class_names=plan.classes or None,
        rle_order=plan.rle_order,
        rle_first=plan.rle_first,
        images=images,
        foreground=plan.foreground,
        void=plan.void,
        nucleus=plan.nucleus,
        prefer=plan.prefer,
        no_objects=plan.no_objects,
        series=plan.series,
        track=screen.track,
    )
    read_parts = [without_conflicts(read(source, options, format=plan.format)) for source in sources]
    errors = [error for _, of_part in read_parts for error in of_part]
    parts = [
        require_annotations(as_annotations(part), source, options)
        for (part, _), source in zip(read_parts, sources, strict=True)
    ]
    parts, tallies = _tallied(split_by_name(parts, sources))
    dataset = parts[0] if len(parts) == 1 else merge_datasets(parts)
    if errors and not len(dataset):
        raise errors[0]
    if not len(dataset):
        raise InputError(
            "the sources contain no images",
            where=", ".join(map(str, plan.sources)),
            got="0 images",
            remedy="give a folder or file in one of the formats of docs/formats.md",
        )
    dataset = _with_reading(dataset, reading_of(plan))
    for line in summarise(dataset.notes):
        screen.note(line)
    to_write = WriteOptions(copy_images=plan.copy_images, place=output.place, track=screen.track)
    announcement = f"{plan.out / DATASET_FILE} ({count(len(dataset), 'image')})"

    def write(folder: Path) -> None:
        FORMATS["coco"].write(dataset, folder, to_write)

    if not write_once(output, write, announcement, screen, dry_run=dry_run):
        return None
    for line in _what_was_read(sources, parts, tallies):
        screen.note(line)
    failures = tuple(Note(FAILED, str(error)) for error in errors)
    return dataclasses.replace(read_dataset(plan.out), notes=failures)


def failed(dataset: Dataset) -> list[str]:
    """What is wrong with each image that `run` omitted."""
    return [note.text for note in dataset.notes if note.kind == FAILED]


@dataclass(frozen=True, eq=False)
class _Tally:
    """What was read of one source, by sample: the number of objects of each class, and of those without a pixel."""

    by_class: dict[str, list[int]] = field(default_factory=dict)
    omitted: dict[str, int] = field(default_factory=dict)

    def describe(self, class_names: Sequence[str]) -> str:
        """``"24 images, 1,234 objects (nucleus 1,200, debris 34)"``."""
        totals = [sum(numbers) for numbers in zip(*self.by_class.values(), strict=True)] or [0] * len(class_names)
        named = ", ".join(f"{name} {n:,}" for name, n in zip(class_names, totals, strict=True))
        text = f"{count(len(self.by_class), 'image')}, {count(sum(totals), 'object')}"
        return f"{text} ({named})" if sum(totals) else text


def _what_was_read(sources: Sequence[Path], parts: Sequence[Dataset], tallies: Sequence[_Tally]) -> Iterator[str]:
    """A line per source, and lines about objects without a pixel and images without objects."""
    for source, part, tally in zip(sources, parts, tallies, strict=True):
        if tally.by_class:  # nothing is read again if the dataset is complete
            yield f"read {source} as {part.info.get('format', 'a dataset')}: {tally.describe(part.class_names)}"
    if n_omitted := sum(sum(tally.omitted.values()) for tally in tallies):
        yield f"skipped {count(n_omitted, 'object')} without a pixel"
    if n_empty := sum(not sum(numbers) for tally in tallies for numbers in tally.by_class.values()):
        yield f"without objects: {n_empty:,} of {count(sum(map(len, parts)), 'image')}"


@dataclass(frozen=True, eq=False)
class _TalliedLoad:
    """A `Sample.load` that omits annotated objects without a pixel, and counts what it has read and omitted."""

    sample_id: str
    n_classes: int
    load: Callable[[], Instances]
    tally: _Tally

    def __call__(self) -> Instances:
        instances = self.load()
        n = len(instances)
        if instances.scores is None:
            instances = instances[instances.masks.areas > 0]
        class_ids = instances.class_ids[~instances.ignore]
        self.tally.by_class[self.sample_id] = np.bincount(class_ids, minlength=self.n_classes).tolist()
        self.tally.omitted[self.sample_id] = n - len(instances)
        return instances


def _tallied(parts: Sequence[Dataset]) -> tuple[list[Dataset], list[_Tally]]:
    """The datasets, and of each a tally that is filled when its objects are read."""
    tallies, tallied = [_Tally() for _ in parts], []
    for part, tally in zip(parts, tallies, strict=True):
        n = len(part.class_names)
        samples = [dataclasses.replace(s, load=_TalliedLoad(s.id, n, s.load, tally)) for s in part]
        tallied.append(part.with_samples(samples))
    return tallied, tallies


def _with_reading(dataset: Dataset, reading: Reading) -> Dataset:
    """The dataset that records the choice, which is tried on its first image."""
    dataset = reading.recorded_in(dataset)
    reading = Reading.recorded(dataset.info)
    first = next((sample for sample in dataset if sample.image_path is not None), None)
    if first is not None and first.image_path is not None:
        reading.of(first).check(first.image_path)
    return dataset


def summary_line(dataset: Dataset) -> str:
    """``"24 images, 1 class (nucleus), splits train, val: work/vrdl"``."""
    classes = f"{count(len(dataset.class_names), 'class')} ({', '.join(dataset.class_names)})"
    splits = f", splits {', '.join(dataset.splits)}" if dataset.splits else ""
    return f"{count(len(dataset), 'image')}, {classes}{splits}: {dataset.root}"

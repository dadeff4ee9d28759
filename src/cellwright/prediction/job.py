"""The job of a prediction folder: what identifies it, and whether a folder can be resumed with it.

Images are compared by content, models by their weights, options by value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from cellwright.core.errors import InputError, UsageError
from cellwright.core.events import plain
from cellwright.core.file_identity import FileIdentity, digest_of
from cellwright.core.image import Image
from cellwright.core.text import count, differences, listed
from cellwright.data.formats.coco import PREDICTIONS_NAME
from cellwright.data.formats.predictions import EDITABLE
from cellwright.data.images.names import CELL_MASKS
from cellwright.prediction.ledger import Done
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.sources import Source, Stack
from cellwright.prediction.tiling.label_writers import LabelKind

PREDICTIONS, SUMMARY, FAILURES = PREDICTIONS_NAME, "summary.csv", "failures.csv"
RECIPE, CONTACT_SHEET = "recipe.yaml", "contact_sheet.png"
MEASUREMENTS, MEASUREMENTS_PARQUET = "measurements.csv", "measurements.parquet"
WELLS, COUNTS, PLATE = "wells.csv", "counts.png", "plate.png"
MADE_BY = "made_by"  # in the info of predictions: models, chosen options, versions
Save = Literal["masks", "overlay", "geojson", "rois", "measurements"]
SAVES: tuple[Save, ...] = get_args(Save)
# What follows the image's id in the name of each file.
ENDINGS: dict[str, str] = {**EDITABLE, "overlay": "_overlay.png", "measurements": "_measurements.csv"}
ENDINGS["cell_masks"] = CELL_MASKS
SeeImage = Callable[[Source], tuple[Image, Image]]
"""Reads an image as the job does: all channels, and those that the predictor sees."""


@dataclass(frozen=True)
class Job:
    """What is predicted and written; two equal jobs write the same files.

    recipe_yaml: the resolved recipe, written as ``recipe.yaml``. model: identifies the weights (a digest). reading: how
    images are read (channel, z, t, series, pixel size). predicting: further options of the predictor (diameter, views).
    save: the files per image. ring_px: width of the ring in which background is measured; None: it is not. info:
    further facts for predictions.json (JSON values), which do not identify the job.
    stacks: the images of which planes or time points are sources. stitch: the overlap (IoU) from which objects of
    consecutive ones are joined; None: they are not. stack_labels: the form of their labels.
    made_by: what ``model`` identifies. own: options that were not chosen but are the model's own, for messages.
    """

    sources: tuple[Source, ...]
    class_names: tuple[str, ...]
    recipe_yaml: str
    model: str
    options: PredictOptions
    reading: Mapping[str, Any] = field(default_factory=dict)
    predicting: Mapping[str, Any] = field(default_factory=dict)
    save: tuple[Save, ...] = SAVES
    ring_px: int | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    made_by: str = "the model"
    own: PredictOptions | None = None
    stacks: tuple[Stack, ...] = ()
    stitch: float | None = None
    stack_labels: LabelKind = "tiff"

    def __post_init__(self) -> None:
        unknown = [name for name in self.save if name not in SAVES]
        if unknown:
            raise UsageError("unknown output in `save`", got=", ".join(unknown), expected=", ".join(SAVES))
        if self.ring_px is not None and self.ring_px < 1:
            raise UsageError("invalid `ring`", got=self.ring_px, expected="at least 1 pixel")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of files per image, see `ENDINGS`."""
        has_cells = self.options.expand is not None and "masks" in self.save
        return (*self.save, "cell_masks") if has_cells else self.save

    def request(self) -> dict[str, Any]:
        """What identifies the job, apart from the images: JSON values."""
        options = {**self.options.as_values(), **self.predicting, "save": sorted(self.save), "ring": self.ring_px}
        options |= {} if self.stitch is None else {"stitch": self.stitch}
        options |= {} if self.stack_labels == "tiff" else {"labels": self.stack_labels}
        return {
            "model": digest_of(repr((self.model, self.class_names))),
            "recipe": digest_of(self.recipe_yaml),
            "options": plain(options),
            "reading": plain({name: value for name, value in self.reading.items() if value is not None}),
        }


def changes(
    job: Job, request: Mapping[str, Any], done: Mapping[str, Done], see: SeeImage | None, *, is_finished: bool
) -> list[str]:
    """Why the images that are done would come out otherwise in ``job``: parts of a sentence; empty if they would not.

    request: that of the job which they belong to. done: by id. is_finished: no image is left to be done. see: reads an
    image as ``job`` does. A choice of channel, plane or series that gives the same pixels is no change; nor is one that
    cannot be used for an image that is done, while others remain to be done.
    """
    now, sources = job.request(), {source.id: source for source in job.sources}
    found = [name for key, name in _named(job).items() if now[key] != request.get(key)]
    own = {} if job.own is None else job.own.as_values()
    found += differences(now["options"], _options(request, "options"), own)
    missing = [name for name in done if name not in sources]
    if missing:
        found.append(f"the images: {count(len(missing), 'image')} fewer ({listed(missing)})")
    added = [name for name in sources if name not in done]
    if added and is_finished:
        found.append(f"the images: {count(len(added), 'image')} more ({listed(added)})")
    present = {name: sources[name] for name in done if name in sources}
    files = {}
    for name, source in present.items():  # many sources may be planes of one file, which is read once
        if source.path not in files:
            files[source.path] = FileIdentity.of(source.path, done[name].file)
    changed = [name for name, source in present.items() if files[source.path].digest != done[name].file.digest]
    if changed:
        found.append(f"the content of {count(len(changed), 'image')} ({listed(changed)})")
    reading = differences(now["reading"], _options(request, "reading"))
    if reading and not found:
        read = present if see is None else _read_otherwise(present, done, see, strict=not added)
        if read:
            found.append(f"{', '.join(reading)}, which changes {count(len(read), 'image')} ({listed(list(read))})")
    return found


def digest_of_pixels(image: Image, seen: Image) -> str:
    """A hash of what is measured and of what the predictor sees."""
    digest = hashlib.blake2b(digest_size=16)
    for one in (image, seen):
        digest.update(repr((one.data.shape, str(one.data.dtype), one.channels, one.pixel_size_um)).encode())
        digest.update(np.ascontiguousarray(one.data).data)
    return digest.hexdigest()


def _options(request: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    options = request.get(name)
    return options if isinstance(options, Mapping) else {}


def _named(job: Job) -> dict[str, str]:
    return {"model": job.made_by, "recipe": "the recipe"}


def _read_otherwise(
    sources: Mapping[str, Source], done: Mapping[str, Done], see: SeeImage, *, strict: bool
) -> dict[str, Source]:
    """The images that now give other pixels; with ``strict``, also those that cannot be read so."""

    def is_same(name: str, source: Source) -> bool:
        try:
            return digest_of_pixels(*see(source)) == done[name].pixels
        except (InputError, UsageError):
            return not strict

    return {name: source for name, source in sources.items() if not is_same(name, source)}


def group_failures(failures: Sequence[tuple[str, Exception]]) -> list[str]:
    """One line per kind of failure: how many images, the problem, and how to fix it."""
    kinds: dict[str, list[tuple[str, Exception]]] = {}
    for name, error in failures:
        kinds.setdefault(getattr(error, "problem", str(error)), []).append((name, error))
    return [_failure_line(problem, of_kind) for problem, of_kind in kinds.items()]


def _failure_line(problem: str, failures: Sequence[tuple[str, Exception]]) -> str:
    names = [name for name, _ in failures]
    line = f"{count(len(names), 'image')} ({listed(names)}): {problem}"
    for part, label in (("got", "got "), ("expected", "expected "), ("remedy", "")):
        values = list(dict.fromkeys(str(getattr(error, part, None)) for _, error in failures))
        if values[0] != "None" and (len(values) == 1 or part == "remedy"):
            line += f"; {label}{values[0]}"
    return line

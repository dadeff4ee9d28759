"""The job of a prediction folder: what identifies it, and whether a folder can be resumed with it.

``.job.json`` of a folder holds the request, and once all images are done also the content of each of them. Images are
compared by content, models by their weights, options by value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.core.events import plain
from cellwright.core.files import read_json, write_json
from cellwright.core.image import Image
from cellwright.core.text import count, differences
from cellwright.data.formats.predictions import EDITABLE
from cellwright.data.identity import FileIdentity, digest_of, listed
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.sources import Source

JOB_FILE = ".job.json"
SCHEMA_VERSION = 1
Save = Literal["masks", "overlay", "geojson", "rois", "measurements"]
SAVES: tuple[Save, ...] = get_args(Save)
# What follows the image's id in the name of each file.
ENDINGS: dict[str, str] = {**EDITABLE, "overlay": "_overlay.png", "measurements": "_measurements.csv"}
SeeImage = Callable[[Path], tuple[Image, Image]]
"""Reads an image as the job does: all channels, and those that the predictor sees."""

# What a user calls the options that are named otherwise here.
_PARAMETERS = {"score_threshold": "score", "min_area_px": "min_area"}


@dataclass(frozen=True)
class Job:
    """What is predicted and written; two equal jobs write the same files.

    recipe_yaml: the resolved recipe, written as ``recipe.yaml``. model: identifies the weights (a digest). reading: how
    images are read (channel, z, t, series, pixel size). predicting: further options of the predictor (diameter, views).
    save: the files per image. ring_px: width of the ring in which background is measured; None: it is not. info:
    further facts for predictions.json (JSON values), which do not identify the job.
    made_by: what ``model`` identifies.
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

    def __post_init__(self) -> None:
        unknown = [name for name in self.save if name not in SAVES]
        if unknown:
            raise UsageError("unknown output in `save`", got=", ".join(unknown), expected=", ".join(SAVES))
        if self.ring_px is not None and self.ring_px < 1:
            raise UsageError("invalid `ring`", got=self.ring_px, expected="at least 1 pixel")

    def request(self) -> dict[str, Any]:
        """What identifies the job, apart from the images: JSON values."""
        options = {**asdict(self.options), **self.predicting, "save": sorted(self.save), "ring": self.ring_px}
        return {
            "model": digest_of(repr((self.model, self.class_names))),
            "recipe": digest_of(self.recipe_yaml),
            "options": plain({_PARAMETERS.get(name, name): value for name, value in options.items()}),
            "reading": plain({name: value for name, value in self.reading.items() if value is not None}),
        }


@dataclass(frozen=True)
class Done:
    """An image that is done: its file, a hash of the pixels that were read, and the number of objects."""

    file: FileIdentity
    pixels: str
    objects: int

    def write(self, path: Path, image_id: str) -> None:
        """Write a file that `read` reads."""
        write_json(path, {"id": image_id, **asdict(self)})

    @staticmethod
    def read(path: Path) -> tuple[str, Done]:
        """The id of the image, and what was recorded. Raises `FormatError` if the file is damaged."""
        content = read_json(path)
        done = Done.from_dict(content, path)
        return str(content.get("id")), done

    @staticmethod
    def from_dict(values: Any, where: Path) -> Done:
        """From JSON values. Raises `FormatError` for others."""
        try:
            return Done(FileIdentity(**values["file"]), str(values["pixels"]), int(values["objects"]))
        except (KeyError, TypeError, ValueError) as error:
            remedy = "use `overwrite=True` to start again, or choose another `out`"
            raise FormatError("a record of this job is damaged", where=where, got=str(error), remedy=remedy) from error


@dataclass(frozen=True)
class JobRecord:
    """The content of a folder's ``.job.json``: the request, and all images by id once all of them are done."""

    request: Mapping[str, Any]
    images: Mapping[str, Done] | None = None

    @staticmethod
    def read(path: Path) -> JobRecord:
        """Raises `FormatError` if the file is damaged."""
        content = read_json(path)
        try:
            request, images = content["request"], content.get("images")
            done = None if images is None else {str(name): Done.from_dict(one, path) for name, one in images.items()}
            return JobRecord(dict(request), done)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            remedy = "use `overwrite=True` to start again, or choose another `out`"
            raise FormatError("the record of this job is damaged", where=path, got=str(error), remedy=remedy) from error

    def write(self, path: Path) -> None:
        """Write the file."""
        images = None if self.images is None else {name: asdict(done) for name, done in self.images.items()}
        content = {"schema_version": SCHEMA_VERSION, "request": dict(self.request)}
        write_json(path, content if images is None else {**content, "images": images})


def changes(job: Job, recorded: JobRecord, done: Mapping[str, Done], see: SeeImage | None) -> list[str]:
    """Why the images that are done would come out otherwise in ``job``: parts of a sentence; empty if they would not.

    done: by id. see: reads an image as ``job`` does. A choice of channel, plane or series that gives the same pixels is
    no change; nor is one that cannot be used for an image that is done, while others remain to be done.
    """
    now, sources = job.request(), {source.id: source for source in job.sources}
    found = [name for key, name in _named(job).items() if now[key] != recorded.request.get(key)]
    found += differences(now["options"], recorded.request.get("options", {}))
    missing = [name for name in done if name not in sources]
    if missing:
        found.append(f"the images: {count(len(missing), 'image')} fewer ({listed(missing)})")
    added = [name for name in sources if name not in done]
    if added and recorded.images is not None:
        found.append(f"the images: {count(len(added), 'image')} more ({listed(added)})")
    present = {name: sources[name].path for name in done if name in sources}
    files = {name: FileIdentity.of(path, done[name].file) for name, path in present.items()}
    changed = [name for name, file in files.items() if file.digest != done[name].file.digest]
    if changed:
        found.append(f"the content of {count(len(changed), 'image')} ({listed(changed)})")
    reading = differences(now["reading"], recorded.request.get("reading", {}))
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


def _named(job: Job) -> dict[str, str]:
    return {"model": job.made_by, "recipe": "the recipe"}


def _read_otherwise(
    paths: Mapping[str, Path], done: Mapping[str, Done], see: SeeImage, *, strict: bool
) -> dict[str, Path]:
    """The images that now give other pixels; with ``strict``, also those that cannot be read so."""

    def is_same(name: str, path: Path) -> bool:
        try:
            return digest_of_pixels(*see(path)) == done[name].pixels
        except (InputError, UsageError):
            return not strict

    return {name: path for name, path in paths.items() if not is_same(name, path)}


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

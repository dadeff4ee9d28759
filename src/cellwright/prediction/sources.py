"""The images to predict on: files, each with an id that names its outputs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from cellwright.config.input import InputConfig
from cellwright.core.dataset import Dataset
from cellwright.core.errors import CellwrightError, InputError, UsageError
from cellwright.core.files import as_utf8
from cellwright.core.image import Image
from cellwright.core.memory import check_memory
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.image_folder import sample_ids
from cellwright.data.formats.label_files import labels_among
from cellwright.data.images.channels import ChannelChoice, choose_channels
from cellwright.data.images.read import find_images, is_single
from cellwright.data.images.reading import Reading
from cellwright.data.network_input import network_channels
from cellwright.prediction.predictor import Predictor, SegmenterPredictor

if TYPE_CHECKING:
    from cellwright.data.images.stack import StackFacts

# Memory that an image takes besides a network, as measured with the classical method on images of 2,000 and 4,000 px:
# bytes per pixel for objects, pictures and tables, and per byte of its values.
WORK_BYTES_PER_PX, READ_BYTES = 40, 3
_ABOUT_CHOICES = ("none was chosen", "do not match the network")


@dataclass(frozen=True)
class Source:
    """One image to predict on.

    id: ``<relative dir>/<stem>``, the beginning of its outputs' names; unique among the sources.
    path: the file. It is opened only when it is processed, so that a damaged file does not stop the others.
    image_id: the COCO number; None takes the position. group, split: those of a dataset.
    error: why it cannot be read, where that is known before; raised when it is processed.
    z, t: the plane and the time point of the file that it is, where each is an image by itself (see `each_plane`).
    """

    id: str
    path: Path
    image_id: int | None = None
    group: str | None = None
    split: str | None = None
    error: InputError | None = None
    z: int | None = None
    t: int | None = None


@dataclass(frozen=True)
class Stack:
    """An image file of which each plane, each time point or both are sources.

    id: ``<relative dir>/<stem>``, the beginning of the ids of its sources. numbers: of the sources, by time point and
    plane (T, Z). z, t: their numbers in the file; None where that axis is not taken apart. z_step_um: distance of two
    planes; None if unknown.
    """

    id: str
    path: Path
    numbers: tuple[tuple[int, ...], ...]
    z: tuple[int, ...] | None
    t: tuple[int, ...] | None
    z_step_um: float | None = None


def each_plane(sources: Sequence[Source], reading: Reading) -> tuple[list[Source], list[Stack]]:
    """Each plane and each time point as a source, as ``reading`` says, and which stacks they are from.

    An image of one plane stays as it is, and so does one that cannot be read, which fails by itself. The id of a plane
    is that of its image with the numbers of time point and plane, such as ``cells_t02_z07``.

    Raises `UsageError` where two sources have the same id.
    """
    if not reading.takes_each:
        return list(sources), []
    planes: list[Source] = []
    stacks: list[Stack] = []
    for source in sources:
        facts = _facts(source, reading)
        z = facts.z if facts is not None and reading.z == "all" and len(facts.z) > 1 else None
        t = facts.t if facts is not None and reading.t == "all" and len(facts.t) > 1 else None
        if facts is None or (z is None and t is None) or not (source.z is None and source.t is None):
            planes.append(source)
            continue
        numbers = []
        for time in t or (None,):
            numbers.append(tuple(range(len(planes), len(planes) + len(z or (None,)))))
            planes += [_plane(source, (time, t), (plane, z)) for plane in z or (None,)]
        stacks.append(Stack(source.id, source.path, tuple(numbers), z, t, facts.z_step_um))
    _check_ids(planes)
    return planes, stacks


def _facts(source: Source, reading: Reading) -> StackFacts | None:
    try:
        return reading.stack(source.path) if source.error is None else None
    except (InputError, UsageError):
        return None


Numbered: TypeAlias = tuple[int | None, Sequence[int] | None]
"""The number of a plane or time point, and those of all; None where the axis is not taken apart."""


def _plane(source: Source, t: Numbered, z: Numbered) -> Source:
    """One plane of a source."""
    name = source.id
    for letter, (number, every) in (("t", t), ("z", z)):
        if number is not None and every is not None:
            name += f"_{letter}{number:0{len(str(max(every)))}d}"
    group = source.id if source.group is None else source.group  # the planes of a stack look alike
    return dataclasses.replace(source, id=name, image_id=None, group=group, t=t[0], z=z[0])


def _check_ids(sources: Sequence[Source]) -> None:
    """Raise `UsageError` where two sources have the same id."""
    known: dict[str, Source] = {}
    for source in sources:
        other = known.setdefault(source.id.lower(), source)
        if other is not source:
            raise _same_outputs([other, source])


def _same_outputs(sources: Sequence[Source]) -> UsageError:
    return UsageError(
        "two images would write to the same output files",
        got=", ".join(str(source.path) for source in sources[:2]),
        remedy="predict on them separately, with different `out`, or rename one of them",
    )


def sources_of_paths(paths: Sequence[Path], *, labels_of: dict[Path, set[Path]] | None = None) -> list[Source]:
    """The images among ``paths`` and in the folders among them, at any depth, in order; each file once.

    Ids are relative to the given folder. The folder's own name is added where two folders contain the same names, and
    the extension is kept where two images differ only in it. Hidden files, folders of results, and label images and
    masks of other images in the folder are skipped. Folders that cannot be listed, broken links and pipes named like
    images are sources with an error. labels_of: receives the skipped label images and masks of each folder. Raises
    `InputError` for a path without images, `UsageError` where two images still have the same id.
    """
    known: set[Path] = set()
    named: list[tuple[Path, Source]] = []
    for path in paths:
        problems: list[InputError] = []
        files = find_images(path, problems)
        errors = {Path(str(error.where)): error for error in problems}
        files = sorted([*files, *errors])
        root = path.parent if is_single(path) else path
        labels = set[Path]() if is_single(path) else labels_among(files, root)
        if labels_of is not None:
            labels_of[path] = labels
        files = [file for file in files if file not in labels]
        for file, name in zip(files, sample_ids(files, root), strict=True):
            error = errors.get(file) or _not_utf8(file)
            if error is not None:
                named.append((path, Source(as_utf8(name), file, error=error)))
            elif (real := file.resolve()) not in known:
                known.add(real)
                named.append((path, Source(name, file)))
    return _with_distinct_ids(named)


def naming_notes(sources: Sequence[Source]) -> list[Note]:
    """Notes about ids that have more in them than a file's path and name below its folder: how outputs are named."""
    kept = [source for source in sources if source.id.endswith(source.path.suffix) and source.path.suffix]
    if not kept:
        return []
    kind = "names that differ only in the extension"
    text = "its files keep the extension ({}_masks.tif), since another image has the same name"
    return [Note(kind, text.format(source.id), source.path.name) for source in kept]


def sources_of_dataset(dataset: Dataset) -> list[Source]:
    """The images of a dataset, with its ids and numbers. `InputError` names a sample without an image file."""
    sources = []
    for sample in dataset:
        if sample.image_path is None:
            remedy = "convert the dataset again with its images in place"
            raise InputError("a sample has no image file", where=f"{dataset.root}, sample {sample.id}", remedy=remedy)
        error = _not_utf8(sample.image_path)
        sources.append(
            Source(
                as_utf8(sample.id),
                sample.image_path,
                sample.image_id,
                sample.group,
                sample.split,
                error,
                sample.z,
                sample.t,
            )
        )
    return sources


def read_and_choose(source: Source, predictor: Predictor, reading: Reading) -> tuple[Image, Image]:
    """An image with all channels, and with those that the predictor sees.

    Raises `InputError`, before it is read, if there is not enough memory to predict on it.
    """
    path, reading = source.path, reading.of(source)
    facts = reading.open(path)
    height, width = facts.image_hw
    bytes_per_px = WORK_BYTES_PER_PX + READ_BYTES * len(facts.channels) * facts.dtype.itemsize
    check_memory(
        float(height) * width * bytes_per_px,
        f"predicting this image of {height} x {width} pixels",
        where=path,
        remedy="predict it in a command of its own, which takes it tile by tile if the model can, reduce its size",
    )
    image = reading.read(path)
    return image, seen_by(predictor, image, reading.channel)


def check_choices(sources: Sequence[Source], predictor: Predictor, reading: Reading) -> None:
    """Raise the error of the first image if for no image the channels and planes are as chosen; nothing is decoded."""
    first: CellwrightError | None = None
    for source in sources:
        if source.error is not None:
            return
        try:
            facts = reading.of(source).open(source.path)
            pixels = np.zeros((1, 1, len(facts.channels)), facts.dtype)
            seen = seen_by(predictor, Image(pixels, facts.channels, None, str(source.path)), reading.channel)
            _check_network(predictor, seen)
        except (InputError, UsageError) as error:
            if isinstance(error, InputError) and not any(text in error.problem for text in _ABOUT_CHOICES):
                return  # the image itself cannot be used
            first = first or error
        else:
            return
    if first is not None:
        raise first


def _check_network(predictor: Predictor, seen: Image) -> None:
    """Raise the error of a network for an image, of which only the channels count, that does not fit it."""
    if predictor.n_channels is None or isinstance(predictor, SegmenterPredictor):
        return
    try:
        network_channels(seen, InputConfig(channels=predictor.n_channels))
    except InputError as error:
        got = f"{count(seen.n_channels, 'channel')} ({', '.join(seen.channels)})"
        raise InputError(
            error.problem, where=error.where, got=got, expected=error.expected, remedy=error.remedy
        ) from error


def _not_utf8(file: Path) -> InputError | None:
    if as_utf8(file) == str(file):
        return None
    remedy = "rename the file, for example with convmv"
    return InputError(
        "the name of this file is not UTF-8, so results cannot refer to it", where=as_utf8(file), remedy=remedy
    )


def seen_by(predictor: Predictor, image: Image, channel: ChannelChoice | None = None) -> Image:
    """The channels of an image that a predictor sees: those that were chosen, or what `choose_channels` assumes."""
    return choose_channels(image, channel, predictor.n_channels, trained=predictor.trained_channels)


def _with_distinct_ids(named: list[tuple[Path, Source]]) -> list[Source]:
    for rename in (_with_folder, _with_suffix):
        # Ids that differ only in case are the same file on some disks.
        counts = Counter(source.id.lower() for _, source in named)
        named = [(path, rename(path, source) if counts[source.id.lower()] > 1 else source) for path, source in named]
    counts = Counter(source.id.lower() for _, source in named)
    repeated = [source for _, source in named if counts[source.id.lower()] > 1]
    if repeated:
        raise _same_outputs(repeated)
    return [source for _, source in named]


def _with_suffix(path: Path, source: Source) -> Source:
    if source.id.endswith(source.path.suffix):
        return source
    return Source(source.id + source.path.suffix, source.path)


def _with_folder(path: Path, source: Source) -> Source:
    return Source(f"{path.resolve().name}/{source.id}", source.path) if not is_single(path) else source

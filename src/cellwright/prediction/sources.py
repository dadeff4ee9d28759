"""What is predicted on: image files, each with the name that its outputs get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cellwright.core.dataset import Dataset
from cellwright.core.errors import InputError, UsageError
from cellwright.data.formats.image_folder import sample_ids
from cellwright.data.images.read import find_images


@dataclass(frozen=True)
class Source:
    """One image to predict on.

    id: ``<relative dir>/<stem>``, where its outputs go; unique among the sources.
    path: the file; it is first touched when its turn comes, so that a damaged one cannot stop the others.
    image_id: the COCO number, or None for the position.
    """

    id: str
    path: Path
    image_id: int | None = None
    group: str | None = None
    split: str | None = None


def sources_of_paths(paths: Sequence[Path]) -> list[Source]:
    """The images among ``paths`` and below the folders among them, in order, a file once.

    Names are relative to the folder that was given; the folder's own name comes first where two folders hold the same
    names, and the extension stays where two would be the same without it. Hidden files and our own outputs are
    passed over. `InputError` for a path without images; `UsageError` where two images keep one name.
    """
    seen: set[Path] = set()
    found: list[tuple[Path, Source]] = []
    for path in paths:
        files = find_images(path)
        if path.is_dir():
            # A prediction folder below the images holds our own outputs only.
            own = {file.parent for file in path.rglob("predictions.json")}
            files = [file for file in files if own.isdisjoint(file.parents)]
        root = path if path.is_dir() else path.parent
        for file, name in zip(files, sample_ids(files, root), strict=True):
            if (real := file.resolve()) not in seen:
                seen.add(real)
                found.append((path, Source(name, file)))
    return _named_apart(found)


def sources_of_dataset(dataset: Dataset) -> list[Source]:
    """The images of a dataset under its own ids and numbers. `InputError` names a sample without an image."""
    sources = []
    for sample in dataset:
        if sample.image_path is None:
            remedy = "convert it with the images in place"
            raise InputError("a sample has no image", where=f"{dataset.root}, sample {sample.id}", remedy=remedy)
        sources.append(Source(sample.id, sample.image_path, sample.image_id, sample.group, sample.split))
    return sources


def _named_apart(found: list[tuple[Path, Source]]) -> list[Source]:
    for rename in (_with_folder, _with_suffix):
        # Names that differ in case alone are one file on some disks.
        counts = Counter(source.id.lower() for _, source in found)
        found = [(path, rename(path, source) if counts[source.id.lower()] > 1 else source) for path, source in found]
    counts = Counter(source.id.lower() for _, source in found)
    twice = [source for _, source in found if counts[source.id.lower()] > 1]
    if twice:
        raise UsageError(
            "two images would write the same outputs",
            got=", ".join(str(source.path) for source in twice[:2]),
            remedy="predict on them in two commands with different --out, or rename one",
        )
    return [source for _, source in found]


def _with_suffix(path: Path, source: Source) -> Source:
    if source.id.endswith(source.path.suffix):
        return source
    return Source(source.id + source.path.suffix, source.path)


def _with_folder(path: Path, source: Source) -> Source:
    return Source(f"{path.resolve().name}/{source.id}", source.path) if path.is_dir() else source

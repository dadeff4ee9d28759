"""The sources of ``data convert``: annotations, the images beside them, and the splits that their names tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cellwright.core.dataset import Dataset
from cellwright.core.notes import Note
from cellwright.core.progress import Track, no_progress


def find_images_option(path: Path, track: Track = no_progress) -> Dataset | Path:
    """What ``images`` names: a dataset (of ours, or a COCO file) as such, a folder or an image file as a path."""
    from cellwright.data.formats import ReadOptions, read_dataset
    from cellwright.data.formats.coco import is_own_folder

    if is_own_folder(path) or path.suffix.lower() == ".json" or not path.exists():
        return read_dataset(path, ReadOptions(no_objects=True, require_images=False, track=track))
    return path


def separate_images(sources: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Annotation sources and image files, where both were given, as in ``img.tif img_labels.tif``.

    Without annotation files, everything is a source.
    """
    from cellwright.data.formats import sniff
    from cellwright.data.images.read import is_image_name, is_single

    images = [path for path in sources if is_single(path) and is_image_name(path.name) and sniff(path).generic]
    annotations = [path for path in sources if path not in images]
    return (annotations, images) if annotations and images else (list(sources), [])


def split_by_name(parts: Sequence[Dataset], sources: Sequence[Path]) -> list[Dataset]:
    """The datasets with the splits that the names of their sources tell (``train/``, ``val.json``), if all differ.

    Datasets that have splits keep them.
    """
    from cellwright.data.formats.paths import SPLITS, split_named

    names = [
        SPLITS.get(path.name.lower()) or SPLITS.get(path.parent.name.lower() if path.is_file() else "")
        or split_named(path.stem)
        for path in (source.resolve() for source in sources)
    ]  # fmt: skip
    if len(parts) < 2 or None in names or len(set(names)) < len(names) or any(part.splits for part in parts):
        return list(parts)
    named = []
    for part, split in zip(parts, names, strict=True):
        samples = [dataclasses.replace(sample, split=split) for sample in part]
        named.append(part.with_samples(samples))
    text = f"the splits {', '.join(map(str, names))} were taken from the names of the sources"
    named[0] = dataclasses.replace(named[0], notes=(*named[0].notes, Note("splits were taken from names", text)))
    return named

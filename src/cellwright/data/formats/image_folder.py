"""Bare images: one file or a folder of them, without objects. What `predict` is given."""

from __future__ import annotations

from pathlib import Path

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.instances import Instances
from cellwright.data.formats.class_names import DEFAULT_CLASS, unnamed_classes
from cellwright.data.formats.contract import Clutter, Format, ReadOptions
from cellwright.data.images.read import find_images, image_hw_of, is_image_name, is_own_output


def sniff(path: Path) -> bool:
    """Whether ``path`` is an image or holds one directly or one folder down, with no folder of masks below it."""
    if path.is_file():
        return is_image_name(path.name)
    if not path.is_dir() or next(path.glob("*/*/masks"), None) is not None:
        return False  # masks read as images would be a dataset of nonsense
    return any(
        is_image_name(file.name) and not is_own_output(file.name)
        for pattern in ("*", "*/*")
        for file in path.glob(pattern)
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )


def read(path: Path, options: ReadOptions) -> Dataset:
    """Every image below ``path`` as a sample with no objects; ids are relative paths without the extension.

    Where two images differ in the extension alone, it stays in both ids.
    """
    root = path if path.is_dir() else path.parent
    files = find_images(path)
    samples = []
    for sample_id, file in zip(sample_ids(files, root), options.track(files, "reading image sizes"), strict=True):
        image_hw = image_hw_of(file)
        samples.append(Sample(sample_id, file, image_hw, Loaded(Instances.empty(image_hw)), source=FORMAT.name))
    class_names = unnamed_classes((DEFAULT_CLASS,), options, path)
    return Dataset(tuple(samples), class_names, root=root, info={"format": FORMAT.name})


def sample_ids(files: list[Path], root: Path) -> list[str]:
    """Relative path of each file without its extension, or with it where two would be the same."""
    full = [file.relative_to(root).as_posix() for file in files]
    bare = [file.relative_to(root).with_suffix("").as_posix() for file in files]
    twice = {name for name in bare if bare.count(name) > 1} if len(set(bare)) < len(bare) else set()
    return [long if short in twice else short for long, short in zip(full, bare, strict=True)]


def clutter(root: Path) -> list[Clutter]:
    """Hidden entries and files that are not images, below ``root``."""
    found = []
    for entry in sorted(root.rglob("*")):
        hidden = [part for part in entry.relative_to(root).parts if part.startswith(".")]
        if hidden and entry.name == hidden[0]:
            found.append(Clutter(entry, "hidden"))
        elif not hidden and entry.is_file() and not is_image_name(entry.name):
            found.append(Clutter(entry, "not an image"))
    return found


FORMAT = Format(
    name="image_folder",
    describe="images without objects: one file, or a folder of PNG, JPEG, TIFF",
    sniff=sniff,
    read=read,
    clutter=clutter,
    generic=True,
)

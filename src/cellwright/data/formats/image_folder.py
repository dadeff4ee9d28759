"""Images without annotations: one file or a folder of them, such as the input of ``predict``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import InputError
from cellwright.core.files import plain_suffix, stem_of, walk
from cellwright.core.instances import Instances
from cellwright.core.result_folders import kind_of_result
from cellwright.core.text import count
from cellwright.data.formats.contract import DEFAULT_CLASS, Clutter, Format, ReadOptions
from cellwright.data.formats.label_io import LABEL_SUFFIXES, read_raster
from cellwright.data.formats.label_kinds import looks_annotated
from cellwright.data.images.read import find_images, image_hw_of, is_image_name, is_own_output, is_single

# At most this many files are decoded to see whether they are label images.
_MAX_DECODED = 6


class ImageFolder(Format):
    name = "image_folder"
    description = "images without objects: one file, or a folder of PNG, JPEG, TIFF"
    generic = True

    def sniff(self, path: Path) -> bool:
        """Whether ``path`` is an image, or a folder with an image in it or in a subfolder, but no folder of masks."""
        if is_single(path):
            return is_image_name(path.name) or path.is_dir()
        if not path.is_dir() or kind_of_result(path) or next(path.glob("*/*/masks"), None) is not None:
            return False  # otherwise masks would be read as images
        files = walk(path, 1, problems=[], zarr=True)
        return any(is_image_name(file.name) and not is_own_output(file.name) for file in files)

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Every image below ``path`` as a sample without objects; see `sample_ids` for the ids."""
        root = path.parent if is_single(path) else path
        files = find_images(path)
        samples = []
        for sample_id, file in zip(sample_ids(files, root), options.track(files, "reading image sizes"), strict=True):
            image_hw = image_hw_of(file, options.series)
            samples.append(Sample(sample_id, file, image_hw, Loaded(Instances.empty(image_hw)), source=self.name))
        class_names = options.name_classes((DEFAULT_CLASS,), path)
        return Dataset(tuple(samples), class_names, root=root, info={"format": self.name})

    def clutter(self, root: Path) -> list[Clutter]:
        """Hidden entries and files that are not images, below ``root``."""
        ignored = []
        for entry in sorted(root.rglob("*")):
            hidden = [part for part in entry.relative_to(root).parts if part.startswith(".")]
            if hidden and entry.name == hidden[0]:
                ignored.append(Clutter(entry, "hidden"))
            elif not hidden and entry.is_file() and not is_image_name(entry.name):
                ignored.append(Clutter(entry, "not an image"))
        return ignored


def describe_contents(path: Path) -> str:
    """What is at ``path`` besides images, for a message: other files by suffix, and files that look like label images.

    "2 images; beside them 1 .json file (x.json)".
    """
    files = list(walk(path)) if path.is_dir() else [path]
    images = [file for file in files if is_image_name(file.name)]
    others = [file for file in files if not is_image_name(file.name)]
    by_suffix = Counter(file.suffix.lower() or file.name for file in others)
    names = {file.suffix.lower() or file.name: file.name for file in reversed(others)}
    beside = [f"{count(n, f'{suffix} file')} ({names[suffix]})" for suffix, n in by_suffix.most_common(6)]
    lossless = [file for file in images if plain_suffix(file) in LABEL_SUFFIXES]
    step = max(1, len(lossless) // _MAX_DECODED)
    labels = [file for file in lossless[::step][:_MAX_DECODED] if _looks_annotated(file)]
    if labels:
        beside.append(f"{labels[0].relative_to(path) if path.is_dir() else path.name}, which looks like a label image")
    text = count(len(images), "image")
    return f"{text}; beside them {', '.join(beside)}" if beside else f"{text} and nothing else"


def _looks_annotated(file: Path) -> bool:
    try:
        return looks_annotated(read_raster(file)) is True
    except InputError:
        return False


def sample_ids(files: list[Path], root: Path) -> list[str]:
    """The path of each file relative to ``root``, without its extension unless two ids would then be equal.

    >>> sample_ids([Path("a/x.ome.tif"), Path("a/y.png"), Path("a/y.tif")], Path("a"))
    ['x', 'y.png', 'y.tif']
    """
    full = [file.relative_to(root).as_posix() for file in files]
    bare = [(file.relative_to(root).parent / stem_of(file)).as_posix() for file in files]
    duplicates = {name for name, n in Counter(bare).items() if n > 1}
    return [long if short in duplicates else short for long, short in zip(full, bare, strict=True)]

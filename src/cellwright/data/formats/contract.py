"""`Format`, the base class of all file formats, and the options for reading and writing.

To add a format, derive a class from `Format` in a file of this package and add one line to the table ``FORMATS``.
``docs/extending.md`` shows a complete format in 30 lines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from cellwright.core.dataset import Dataset
from cellwright.core.errors import FormatError, UsageError, did_you_mean
from cellwright.core.progress import Track, no_progress
from cellwright.core.public import public

# Which file of an image in a prediction folder to read: see `cellwright.data.formats.predictions`.
Prefer = Literal["masks", "rois", "geojson", "json"]

# The class name for formats (and files) without class names.
DEFAULT_CLASS = "cell"
_MAX_CLASSES = 10_000


@public
@dataclass(frozen=True)
class ReadOptions:
    """Options for reading a dataset. A format uses the ones that apply to it.

    class_names: if the files name their classes, the classes to keep, in this order; objects of other classes are
        dropped. If the files only number their classes, the names to give them. None keeps all classes.
    images: where the images of the annotations are: a folder, image files, or a dataset that contains them. They are
        searched before the places where images usually lie, and replace the paths of a dataset whose images were moved.
    require_images: whether a missing image file raises `InputError`. If False, such samples have
        ``image_path=None``, which is enough for comparing masks with masks.
    rle_order, rle_first: how a run-length table counts pixels, and the number of the first one, if it does not tell.
    foreground: what to do with masks that only separate foreground from background: "split" makes one object of each
        connected part, "refuse" raises; None raises too, and says that there is a choice.
    void: the value of pixels in label images and class masks that count neither as object nor as background.
    nucleus: whether to read the nuclei of QuPath's cells instead of the cells.
    prefer: which file of an image in a prediction folder to read if several were edited differently; None raises.
    series: the number or name of the image that is meant in files of several; its size is that of the sample.
    no_objects: whether a source in which no image has an object is accepted. Images beside annotated ones that have no
        annotation then are images without objects, too; they are skipped otherwise.
    track: wraps loops over samples to report progress.

    >>> ReadOptions(class_names=("nucleus",)).name_classes(["cell"])
    ('nucleus',)
    """

    class_names: tuple[str, ...] | None = None
    images: Dataset | Path | Sequence[Path] | None = None
    require_images: bool = True
    rle_order: Literal["row", "column"] | None = None
    rle_first: Literal[0, 1] | None = None
    foreground: Literal["split", "refuse"] | None = None
    void: int | None = None
    nucleus: bool = False
    prefer: Prefer | None = None
    no_objects: bool = False
    series: int | str | None = None
    track: Track = no_progress

    def name_classes(self, defaults: Sequence[str], where: object = None) -> tuple[str, ...]:
        """Class names for files that only number their classes: ``class_names``, or else ``defaults``.

        Raises `UsageError` if there are fewer ``class_names`` than classes in the files.
        """
        names = _checked_classes(defaults, where) if self.class_names is None else self.class_names
        if len(names) < len(defaults):
            raise UsageError(
                "too few class names",
                where=where,
                got=f"{len(names)}: {', '.join(names)}",
                expected=f"{len(defaults)}, for {', '.join(defaults)}",
                remedy="give `classes` one name per class, in this order",
            )
        return names

    def select_classes(self, names: Sequence[str], where: object = None) -> tuple[str, ...]:
        """Class names for files that name their classes: ``class_names`` if given, else ``names``.

        names: the class names in the files; if there are none, the result is ``("cell",)``. Raises `UsageError` for
        one of ``class_names`` that is not among them.
        """
        if self.class_names is None:
            return _checked_classes(names, where) or (DEFAULT_CLASS,)
        for name in self.class_names:
            if names and name not in names:
                raise UsageError(
                    "no object has this class", where=where, got=repr(name), remedy=did_you_mean(name, names)
                )
        return self.class_names


def _checked_classes(names: Sequence[str], where: object) -> tuple[str, ...]:
    if len(names) > _MAX_CLASSES:
        raise FormatError(
            "this source has too many classes",
            where=where,
            got=f"{len(names)}, such as {names[0]!r}"[:100],
            expected=f"at most {_MAX_CLASSES}",
            remedy="if names of objects were taken for classes, choose the classes to keep with `classes`",
        )
    return tuple(names)


@public
@dataclass(frozen=True)
class WriteOptions:
    """Options for writing a dataset. A format uses the ones that apply to it.

    image_ids: a JSON list of ``{"file_name", "id", "height", "width"}`` that defines the images of a submission and
        their ids; used by ``coco_results`` only.
    copy_images: copy the images next to the annotations, rather than referring to the original files.
    place: the folder to which the output will be moved, if it is another one, so that paths to images fit there; used
        by ``coco`` only.
    track: wraps loops over samples to report progress.

    >>> WriteOptions(copy_images=True).copy_images
    True
    """

    image_ids: Path | None = None
    copy_images: bool = False
    place: Path | None = None
    track: Track = no_progress


@dataclass(frozen=True)
class Clutter:
    """A file or folder that a format ignores, and the reason."""

    path: Path
    why: str


@public
class Format(ABC):
    """A file format of annotated images. Derive a class from it to read (and write) your own files.

    A format has no state. Give ``read_dataset`` an instance as ``format``, and test it with
    `cellwright.testing.check_format`. The built-in formats are subclasses, too.

    name: a short identifier, such as "coco".
    description: one line that says which files it reads, for help texts and messages.
    generic: True if the format is only chosen when no other format matches a path.
    published: True for the layout of one dataset or tool, which is chosen over formats that match parts of it.

    >>> class Centres(Format):
    ...     name, description = "centres", "a CSV file of centres and radii per image"
    ...     def sniff(self, path): return path.suffix == ".centres"
    ...     def read(self, path, options): return Dataset((), options.name_classes(["cell"]))
    >>> Centres()
    Centres(name='centres', read only)
    """

    name: ClassVar[str]
    description: ClassVar[str]
    generic: ClassVar[bool] = False
    published: ClassVar[bool] = False

    @abstractmethod
    def sniff(self, path: Path) -> bool:
        """Whether ``path`` (a file or folder) looks like this format.

        Look at names and the first bytes of files only, so that this is fast, and never raise, whatever is there.
        """

    @abstractmethod
    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """The dataset at ``path``. Read headers and sizes only; leave decoding the objects to each `Sample.load`.

        Raise `FormatError` for malformed content and `InputError` for missing files, with a message that names the
        file and the place in it.
        """

    def write(self, dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
        """Write ``dataset`` to ``out`` and return the paths written. A format that does not override this is read only.

        Raises `UsageError` if the format is read only.
        """
        raise UsageError(f"the format {self.name} is read only", where=out, remedy="choose another format")

    def clutter(self, root: Path) -> list[Clutter]:
        """Files and folders below ``root`` that `read` ignores; empty unless a format overrides it."""
        return []

    @property
    def is_writable(self) -> bool:
        """Whether the format can write."""
        return type(self).write is not Format.write

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, {'read and write' if self.is_writable else 'read only'})"

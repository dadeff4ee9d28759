"""What a format is: one file here, one line in the table of `cellwright.data.formats`.

`read` lists samples and touches headers only; the objects of a sample are decoded when `Sample.read_instances` is
called. `write` is the export of the same format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cellwright.core.dataset import Dataset
from cellwright.core.progress import Track, no_progress


@dataclass(frozen=True)
class ReadOptions:
    """How to read.

    class_names: for a format without names, what its classes are called; for a format with names, which of them to
        keep, in this order (objects of the other classes are left out). None keeps what the files say.
    images: the dataset whose images a list of predictions belongs to; only `coco_results` needs it.
    require_images: raise `InputError` where an image file is absent. False gives such samples ``image_path=None``,
        which is enough for scoring masks against masks.
    rle_order: "row" or "column": how a Kaggle table counts pixels, where its columns do not say; only the run-length
        tables need it.
    """

    class_names: tuple[str, ...] | None = None
    images: Dataset | None = None
    require_images: bool = True
    rle_order: Literal["row", "column"] | None = None
    track: Track = no_progress


@dataclass(frozen=True)
class WriteOptions:
    """How to write.

    image_ids: a JSON list of ``{"file_name", "id", "height", "width"}`` that fixes which images a submission holds
        and what they are called; only `coco_results` uses it.
    copy_images: put the images beside the annotations instead of naming them where they are.
    """

    image_ids: Path | None = None
    copy_images: bool = False
    track: Track = no_progress


@dataclass(frozen=True)
class Clutter:
    """A file or folder that a reader passed over, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class Format:
    """One way objects lie on disk.

    name: what ``--format`` and ``--to`` take.
    describe: one line for help texts and messages.
    sniff: whether a path looks like this format; never raises on foreign content.
    read: path -> `Dataset`.
    write: (dataset, out, options) -> the paths written; None where the format is read only.
    clutter: what `read` passes over below a root; None where a format looks at named files only.
    generic: chosen only where no other format fits.
    """

    name: str
    describe: str
    sniff: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions], Dataset]
    write: Callable[[Dataset, Path, WriteOptions], list[Path]] | None = None
    clutter: Callable[[Path], list[Clutter]] | None = None
    generic: bool = False

"""`Dataset`: an immutable sequence of samples whose objects are read on demand. Predictions are datasets too."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import UsageError, did_you_mean
from cellwright.core.instances import Instances
from cellwright.core.notes import Note
from cellwright.core.public import public
from cellwright.core.text import count


@public
@dataclass(frozen=True, eq=False, repr=False)
class Sample:
    """One image of a dataset, with a function that reads its objects.

    id: unique in the dataset; the relative path of the image without its extension, or the id that the source uses.
    image_path: None where only the objects are available (a results file).
    image_hw: (H, W).
    load: reads the objects; it can be pickled, so worker processes can call it.
    image_id: the image id of COCO, or None.
    split: "train", "val", "test" or another name; None if the dataset has not been split.
    group: samples with the same group are always placed in the same split.
    pixel_size_um: (y, x) in microns, or None if unknown.
    source: the dataset or format that the sample comes from.
    z, t: the plane and the time point of ``image_path`` that this image is, where each is an image by itself.
    pixels: reads the pixels (H, W, C) of an image that is not a file of its own; None otherwise. When the dataset is
        written, the image is written with it.

    >>> cells = Instances.from_label_map(np.eye(8, dtype=np.uint8))
    >>> sample = Sample("plate1/a", None, (8, 8), Loaded(cells), split="val")
    >>> sample
    Sample('plate1/a', 8 x 8 px, no image file, split val)
    >>> len(sample.read_instances())
    1
    """

    id: str
    image_path: Path | None
    image_hw: tuple[int, int]
    load: Callable[[], Instances]
    image_id: int | None = None
    split: str | None = None
    group: str | None = None
    pixel_size_um: tuple[float, float] | None = None
    source: str = ""
    pixels: Callable[[], np.ndarray] | None = None
    z: int | None = None
    t: int | None = None

    def read_instances(self) -> Instances:
        """Read and decode the objects; nothing is cached."""
        return self.load()

    def __repr__(self) -> str:
        image = "no image file" if self.image_path is None else str(self.image_path)
        parts = [repr(self.id), f"{self.image_hw[0]} x {self.image_hw[1]} px", image]
        parts += [f"split {self.split}"] if self.split is not None else []
        parts += [f"group {self.group}"] if self.group is not None else []
        return f"Sample({', '.join(parts)})"


@public
@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Sequence[Sample]):
    """Samples and the names of their classes: class id k is ``class_names[k]``.

    root: the folder that displayed paths are relative to, or None.
    licence: the licence of the images and annotations, if known.
    info: further facts from the source (JSON values), kept when the dataset is written.
    notes: what was assumed or skipped while reading; they are shown to the user and not written.

    Raises `UsageError` if two samples have the same id.

    >>> cells = Instances.from_label_map(np.eye(8, dtype=np.uint8))
    >>> samples = [Sample(name, None, (8, 8), Loaded(cells), split=s) for name, s in (("a", "train"), ("b", "val"))]
    >>> dataset = Dataset(tuple(samples), ("nucleus",))
    >>> dataset
    Dataset(2 images, 1 class (nucleus), splits train 1, val 1)
    >>> [sample.id for sample in dataset.with_split("val")]
    ['b']
    """

    samples: tuple[Sample, ...]
    class_names: tuple[str, ...]
    root: Path | None = None
    licence: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        ids = Counter(sample.id for sample in self.samples)
        repeated = next((sample_id for sample_id, times in ids.items() if times > 1), None)
        if repeated is not None:
            raise UsageError(
                "two samples have the same id", where=self.root, got=repr(repeated), remedy="rename one of the images"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:5]) + (", ..." if len(self.class_names) > 5 else "")
        parts = [count(len(self), "image"), f"{count(len(self.class_names), 'class')} ({names})"]
        sizes = Counter(sample.split for sample in self.samples if sample.split is not None)
        if sizes:
            parts.append("splits " + ", ".join(f"{name} {n}" for name, n in sizes.items()))
        parts += [str(self.root)] if self.root is not None else []
        return f"Dataset({', '.join(parts)})"

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in order of appearance."""
        return tuple(dict.fromkeys(sample.split for sample in self.samples if sample.split is not None))

    def with_samples(self, samples: Sequence[Sample]) -> Dataset:
        """This dataset with other samples."""
        return dataclasses.replace(self, samples=tuple(samples))

    def with_split(self, split: str) -> Dataset:
        """Only the samples of one split. Raises a `UsageError` that lists the splits of this dataset."""
        if split not in self.splits:
            known = ", ".join(self.splits) or "none"
            remedy = f"choose one of: {known}" if self.splits else "create splits with: cellwright data split"
            raise UsageError("no such split", where=self.root, got=repr(split), expected=known, remedy=remedy)
        return self.with_samples([sample for sample in self.samples if sample.split == split])

    def sample(self, sample_id: str) -> Sample:
        """The sample with this id. Raises a `UsageError` that suggests the most similar id."""
        for sample in self.samples:
            if sample.id == sample_id:
                return sample
        remedy = did_you_mean(sample_id, [sample.id for sample in self.samples])
        raise UsageError("no such sample", where=self.root, got=repr(sample_id), remedy=remedy)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A `Sample.load` for objects that are already in memory."""

    instances: Instances

    def __call__(self) -> Instances:
        return self.instances

"""`Dataset`: an immutable sequence of samples whose objects are read on demand. Predictions are one too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellwright.core.errors import UsageError, did_you_mean
from cellwright.core.instances import Instances


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and the way to its objects.

    id: unique in the dataset; the image's relative path without its extension, or the source's own id.
    image_path: None where only objects are known (a results file).
    image_hw: (H, W).
    load: reads the objects; picklable, so that worker processes may call it.
    image_id: the COCO number, or None. split: "train", "val", ... or None. group: samples of one group never part.
    pixel_size_um: (y, x) microns, or None. source: what it was converted from.
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

    def read_instances(self) -> Instances:
        """The objects, decoded now."""
        return self.load()


@dataclass(frozen=True, eq=False)
class Dataset(Sequence[Sample]):
    """Samples and the names of their classes; class id k is ``class_names[k]``.

    root: the folder that paths are shown relative to. info: free facts that travel along (JSON values).
    """

    samples: tuple[Sample, ...]
    class_names: tuple[str, ...]
    root: Path | None = None
    licence: str = ""
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = [sample.id for sample in self.samples]
        if len(set(ids)) != len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise UsageError(
                "two samples have the same id", where=self.root, got=repr(twice), remedy="rename one of the images"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that exist, in order of appearance."""
        return tuple(dict.fromkeys(sample.split for sample in self.samples if sample.split is not None))

    def with_samples(self, samples: Sequence[Sample]) -> Dataset:
        """The same dataset with other samples."""
        return dataclasses.replace(self, samples=tuple(samples))

    def with_split(self, split: str) -> Dataset:
        """Only the samples of one split. `UsageError` names the splits that exist."""
        if split not in self.splits:
            known = ", ".join(self.splits) or "none"
            remedy = f"choose one of: {known}" if self.splits else "make one with: cellwright data split"
            raise UsageError("no such split", where=self.root, got=repr(split), expected=known, remedy=remedy)
        return self.with_samples([sample for sample in self.samples if sample.split == split])

    def sample(self, sample_id: str) -> Sample:
        """The sample of this id. `UsageError` names the nearest one."""
        for one in self.samples:
            if one.id == sample_id:
                return one
        remedy = did_you_mean(sample_id, [one.id for one in self.samples])
        raise UsageError("no such sample", where=self.root, got=repr(sample_id), remedy=remedy)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A `Sample.load` that returns objects already in memory."""

    instances: Instances

    def __call__(self) -> Instances:
        return self.instances

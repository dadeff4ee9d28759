"""What identifies the inputs of a job: the content of images and annotations, not names, sizes or dates."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError
from cellwright.core.file_identity import DIGEST_BYTES, FileIdentity, digest_of
from cellwright.core.instances import Instances
from cellwright.core.progress import Track, no_progress
from cellwright.core.text import count, listed


@dataclass(frozen=True)
class SampleIdentity:
    """The content of an annotated image: its file, its objects, how many of each class, and its split.

    annotation: see `annotation_digest`; "" in records of earlier versions.
    """

    image: FileIdentity
    objects: str
    classes: Mapping[str, int]
    split: str | None = None
    annotation: str = ""


@dataclass(frozen=True)
class Identity:
    """The content of a dataset: its classes and its samples by id, in order."""

    classes: tuple[str, ...]
    samples: Mapping[str, SampleIdentity]

    @staticmethod
    def of(dataset: Dataset, known: Identity | None = None, track: Track = no_progress) -> Identity:
        """Read all images and objects. known: as recorded earlier; unchanged image files are not read again."""
        samples, before = {}, {} if known is None else known.samples
        for sample in track(dataset.samples, "checking images and annotations"):
            recorded = before.get(sample.id)
            image = FileIdentity.of(sample.image_path, None if recorded is None else recorded.image)
            samples[sample.id] = _of_sample(sample, image, dataset.class_names)
        return Identity(dataset.class_names, samples)

    @property
    def digest(self) -> str:
        """One hash of everything."""
        parts = [(name, s.split, s.image.digest, s.objects) for name, s in self.samples.items()]
        return digest_of(repr((self.classes, parts)))

    def changes(self, before: Identity) -> list[str]:
        """What differs from an earlier identity, one part of a sentence each: "the annotations of 2 images (a, b)"."""
        if self.digest == before.digest:
            return []
        both = [name for name in self.samples if name in before.samples]
        pairs = [(name, before.samples[name], self.samples[name]) for name in both]
        kinds = [
            ("the annotations of", [name for name, old, new in pairs if old.objects != new.objects]),
            ("the pixels of", [name for name, old, new in pairs if old.image.digest != new.image.digest]),
            ("the split of", [name for name, old, new in pairs if old.split != new.split]),
            ("added:", [name for name in self.samples if name not in before.samples]),
            ("removed:", [name for name in before.samples if name not in self.samples]),
        ]
        classes = []
        if self.classes != before.classes:
            classes = [f"the classes ({', '.join(self.classes)} instead of {', '.join(before.classes)})"]
        named = [f"{what} {count(len(names), 'image')} ({listed(names)})" for what, names in kinds if names]
        return [*classes, *named] or ["the order of the images"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"classes": list(self.classes), "samples": {name: asdict(s) for name, s in self.samples.items()}}

    @staticmethod
    def from_dict(values: Mapping[str, Any], where: Path) -> Identity:
        """The opposite of `to_dict`. Raises `FormatError` for other values."""
        try:
            samples = {
                str(name): SampleIdentity(**(sample | {"image": FileIdentity(**sample["image"])}))
                for name, sample in values["samples"].items()
            }
            return Identity(tuple(map(str, values["classes"])), samples)
        except (AttributeError, KeyError, TypeError) as error:
            remedy = "remove this file; the content of the inputs is then not compared with what they were"
            raise FormatError("invalid record of the inputs", where=where, got=str(error), remedy=remedy) from error

    def counts(self, split: str | None = None) -> Counter[str]:
        """Number of objects of each class, in the samples of one split or in all."""
        total: Counter[str] = Counter()
        for sample in self.samples.values():
            if split is None or sample.split == split:
                total.update(sample.classes)
        return total


def digest_of_objects(instances: Instances) -> str:
    """A hash of the objects of an image, in order: size, classes, boxes, masks, ignored regions and scores."""
    digest = hashlib.blake2b(repr(tuple(map(int, instances.image_hw))).encode(), digest_size=DIGEST_BYTES)
    masks = instances.masks
    scores = np.zeros(0) if instances.scores is None else instances.scores
    values = (instances.class_ids, instances.ignore, instances.boxes_xyxy, scores, masks.boxes, masks.crops)
    for array in values:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def annotation_digest(instances: Instances, sample_id: str) -> str:
    """A hash that identifies an annotated image in any format and under any name.

    It depends on the image size and on the boxes and areas of the objects; for an image without objects, on the last
    part of its name.
    """
    rows = np.column_stack([instances.masks.boxes.astype(np.int64), instances.masks.areas.astype(np.int64)])
    rows = rows[np.lexsort(rows.T)]
    content = repr(tuple(map(int, instances.image_hw))).encode() + np.ascontiguousarray(rows).tobytes()
    if not len(rows):
        content += PurePosixPath(sample_id).name.encode()
    return hashlib.sha256(content).hexdigest()[:16]


def digest_of_files(paths: Iterable[Path]) -> str:
    """A hash of the content of files and folders, in order."""
    return digest_of(repr([FileIdentity.of(path).digest for path in paths]))


def _of_sample(sample: Sample, image: FileIdentity, class_names: Sequence[str]) -> SampleIdentity:
    instances = sample.read_instances()
    counts = np.bincount(instances.class_ids[~instances.ignore], minlength=len(class_names))
    classes = {name: int(n) for name, n in zip(class_names, counts, strict=True) if n}
    annotation = annotation_digest(instances, sample.id)
    return SampleIdentity(image, digest_of_objects(instances), classes, sample.split, annotation)

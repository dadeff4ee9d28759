"""What a job needs to know of a project, as JSON for the worker; and its objects as datasets that every verb reads.

Corrected images are read from the dataset ``corrected/``, all others from the prediction that they came from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.dataset import Dataset
from cellwright.core.errors import InputError, UsageError, did_you_mean
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat
from cellwright.core.text import count

CORRECTED_STATES = ("corrected", "training")
MOSTLY = 0.5  # an object with a larger share of its pixels in regions that are not annotated is left out with them


@dataclass(frozen=True)
class ImageFacts:
    """An image of a project: see `serve.project`. prediction: the folder that its prediction came from, or None."""

    id: str
    path: Path
    hw: tuple[int, int]
    state: str
    prediction: Path | None = None

    @property
    def is_corrected(self) -> bool:
        """Whether its objects are those of ``corrected/``."""
        return self.state in CORRECTED_STATES


@dataclass(frozen=True)
class ProjectFacts:
    """A project as a job sees it."""

    folder: Path
    corrected: Path
    class_names: tuple[str, ...]
    images: tuple[ImageFacts, ...]

    def chosen(self, ids: Sequence[str] | None, fits: Callable[[ImageFacts], bool], what: str) -> list[ImageFacts]:
        """The images with these ids, or all that fit. Raises `UsageError` for one that does not, or if there is none.

        what: "corrected" and so on, for messages.
        """
        known = {image.id: image for image in self.images}
        if ids is None:
            images = [image for image in self.images if fits(image)]
        else:
            for one in ids:
                if one not in known:
                    raise UsageError("no such image in this project", got=one, remedy=did_you_mean(one, known))
            images = [known[one] for one in dict.fromkeys(ids)]
            if others := [image.id for image in images if not fits(image)]:
                raise UsageError(f"{count(len(others), 'image')} not {what}", got=", ".join(others[:5]))
        if not images:
            raise UsageError(f"no image is {what}", got=count(len(self.images), "image"))
        return images

    def to_json(self) -> dict[str, Any]:
        """See `from_json`."""
        return {
            "folder": str(self.folder),
            "corrected": str(self.corrected),
            "class_names": list(self.class_names),
            "images": [
                {**dataclasses.asdict(image), "path": str(image.path)}
                | {"prediction": None if image.prediction is None else str(image.prediction)}
                for image in self.images
            ],
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> ProjectFacts:
        """Of what `to_json` returned."""
        images = [
            ImageFacts(
                one["id"],
                Path(one["path"]),
                tuple(one["hw"]),
                one["state"],
                None if one["prediction"] is None else Path(one["prediction"]),
            )
            for one in values["images"]
        ]
        folder, corrected = Path(values["folder"]), Path(values["corrected"])
        return ProjectFacts(folder, corrected, tuple(values["class_names"]), tuple(images))


@dataclass(frozen=True, eq=False)
class Part:
    """Objects that one command can read.

    dataset: with their own ids of images, and all candidates of a prediction. named: the same with the ids of the
    project. folder: where they are, or None if they have to be written first.
    """

    dataset: Dataset
    named: Dataset
    folder: Path | None

    @property
    def shown(self) -> Dataset:
        """Without the candidates below the score threshold."""
        from cellwright.evaluation.pairing import above_threshold

        return above_threshold(self.named)

    @property
    def folder_by_id(self) -> Path | None:
        """The folder, if its images have the ids of the project."""
        same = all(own.id == named.id for own, named in zip(self.dataset, self.named, strict=True))
        return self.folder if same else None

    @property
    def as_read(self) -> Dataset:
        """As it is read from the folder that `written` returns."""
        return self.named if self.folder is None else self.dataset

    def written(self, folder: Path) -> Path:
        """The folder to read them from; ``folder`` is written if there is none yet."""
        if self.folder is None:
            write_dataset(self.named, folder)
        return self.folder or folder


def corrected_part(project: ProjectFacts, images: Sequence[ImageFacts], *, annotations: bool) -> Part | None:
    """The corrected images among these, or None.

    annotations: True for training and evaluation, which leave regions that are not annotated out; otherwise they are no
    objects, and omitted.
    """
    wanted = {image.id for image in images if image.is_corrected}
    if not wanted:
        return None
    dataset = _read(project.corrected)
    samples, changed = [], False
    for sample in dataset:
        if sample.id in wanted:
            load = _Regions(sample.load) if annotations else _Objects(sample.load)
            is_other = sample.read_instances().ignore.any()
            samples.append(dataclasses.replace(sample, load=load) if is_other else sample)
            changed |= bool(is_other)
    if missing := wanted.difference(sample.id for sample in samples):
        raise InputError("a corrected image is not in the dataset", where=project.corrected, got=min(missing))
    is_whole = len(samples) == len(dataset) and not changed
    dataset = dataset.with_samples(samples)
    return Part(dataset, dataset, project.corrected if is_whole else None)


def predicted_parts(project: ProjectFacts, images: Sequence[ImageFacts]) -> list[Part]:
    """The predicted images among these that were not corrected; one part per folder."""
    of_folder: dict[Path, dict[Path, ImageFacts]] = {}
    for image in images:
        if image.prediction is not None and not image.is_corrected:
            of_folder.setdefault(image.prediction, {})[image.path.resolve()] = image
    parts = []
    for folder, wanted in of_folder.items():
        dataset = _read(folder)
        found = [
            (sample, wanted[sample.image_path.resolve()])
            for sample in dataset
            if sample.image_path is not None and sample.image_path.resolve() in wanted
        ]
        if len(found) < len(wanted):
            got = f"{count(len(found), 'image')} of {len(wanted)}"
            raise InputError("the prediction of an image is gone", where=folder, got=got, remedy="predict it again")
        samples = [sample for sample, _ in found]
        named = [dataclasses.replace(sample, id=image.id) for sample, image in found]
        is_whole = len(found) == len(dataset)
        parts.append(Part(dataset.with_samples(samples), dataset.with_samples(named), folder if is_whole else None))
    return parts


def object_parts(project: ProjectFacts, ids: Sequence[str] | None) -> list[Part]:
    """The objects of all images that have some, or of those with these ids: corrected images first."""
    fits = lambda image: image.is_corrected or image.prediction is not None  # noqa: E731
    images = project.chosen(ids, fits, "predicted or corrected")
    corrected = corrected_part(project, images, annotations=False)
    return [*([] if corrected is None else [corrected]), *predicted_parts(project, images)]


def joined(parts: Sequence[Part], class_names: Sequence[str], *, scored: bool = False) -> Part:
    """One part; of several, those that are shown, as annotations without scores unless ``scored``.

    class_names: those of the project.
    """
    from cellwright.data.merge import merge_datasets

    if len(parts) == 1:
        return parts[0]
    datasets = []
    for part in parts:
        samples = list(part.shown)
        if not scored:
            samples = [dataclasses.replace(sample, load=_Unscored(sample.load)) for sample in samples]
        names = part.named.class_names
        # A single class is the same kind of object, whatever its name.
        names = tuple(class_names) if len(names) == len(class_names) == 1 else names
        datasets.append(dataclasses.replace(part.shown, samples=tuple(samples), class_names=names))
    merged = merge_datasets(datasets)
    return Part(merged, merged, None)


def write_dataset(dataset: Dataset, folder: Path) -> None:
    """Write a dataset for a command to read: ``dataset.json``; the images stay where they are."""
    from cellwright.data.formats import FORMATS, WriteOptions

    folder.mkdir(parents=True, exist_ok=True)
    FORMATS["coco"].write(dataset, folder, WriteOptions(place=folder))


def only_objects(dataset: Dataset, ids_of: Mapping[str, Iterable[int]]) -> Dataset:
    """The dataset with only these objects of each image, by id."""
    samples = [
        dataclasses.replace(sample, load=_Chosen(sample.load, frozenset(ids_of.get(sample.id, ()))))
        for sample in dataset
    ]
    return dataset.with_samples(samples)


def _read(folder: Path) -> Dataset:
    from cellwright.data.formats import ReadOptions, read_dataset

    return read_dataset(folder, ReadOptions(require_images=False, no_objects=True))


@dataclass(frozen=True, eq=False)
class _Regions:
    """A `Sample.load` in which objects that lie mostly in regions that are not annotated are left out with these, and
    the regions do not cover the other objects.
    """

    load: Callable[[], Instances]

    def __call__(self) -> Instances:
        instances = self.load()
        regions, objects = instances[instances.ignore], instances[~instances.ignore]
        hidden = regions.masks.foreground()
        k, _, shared = objects.masks.intersections(MaskSet.from_dense(hidden[None]))
        hidden_px = np.bincount(k, shared, minlength=len(objects))
        objects = objects[hidden_px <= MOSTLY * objects.masks.areas]
        covered = objects.masks.foreground().astype(bool)
        boxes = regions.masks.boxes
        crops = [
            regions.masks.crop(i).astype(bool) & ~covered[y0:y1, x0:x1] for i, (x0, y0, x1, y1) in enumerate(boxes)
        ]
        masks = concat([objects.masks, MaskSet.from_crops(boxes, crops, instances.image_hw)])
        return Instances.from_masks(
            masks,
            ids=np.concatenate([objects.ids, regions.ids]),
            class_ids=np.concatenate([objects.class_ids, regions.class_ids]),
            ignore=np.arange(len(masks)) >= len(objects),
        )


@dataclass(frozen=True, eq=False)
class _Objects:
    """A `Sample.load` without regions that are not annotated."""

    load: Callable[[], Instances]

    def __call__(self) -> Instances:
        instances = self.load()
        return instances[~instances.ignore]


@dataclass(frozen=True, eq=False)
class _Chosen:
    """A `Sample.load` of objects by id."""

    load: Callable[[], Instances]
    ids: frozenset[int]

    def __call__(self) -> Instances:
        instances = self.load()
        return instances[np.isin(instances.ids, list(self.ids))]


@dataclass(frozen=True, eq=False)
class _Unscored:
    """A `Sample.load` of annotations."""

    load: Callable[[], Instances]

    def __call__(self) -> Instances:
        return dataclasses.replace(self.load(), scores=None, class_probs=None)

"""What a job needs to know of a project, as JSON for the worker; and its objects as datasets that every verb reads.

Corrected images are read from the dataset ``corrected/``, all others from the prediction that they came from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.dataset import Dataset
from cellwright.core.errors import InputError, UsageError, did_you_mean
from cellwright.core.instances import Instances
from cellwright.core.result_folders import is_job_folder
from cellwright.core.text import count


@dataclass(frozen=True)
class ImageFacts:
    """An image of a project. name: of the user's file where no other image has it, else the id; for files that are
    written. channels: their names, or none where they are not known.

    is_corrected: its objects are those of ``corrected/``. objects: otherwise, where they are as the page shows them, or
    None if they have to be written first; is_annotated: these are annotations. has_objects: whether there are any, or a
    prediction that found none. prediction: the last one, whatever was corrected since. reading: of the image file.
    """

    id: str
    path: Path
    hw: tuple[int, int]
    is_corrected: bool = False
    is_annotated: bool = False
    has_objects: bool = False
    objects: Path | None = None
    prediction: Path | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    channels: tuple[str, ...] = ()

    @property
    def is_truth(self) -> bool:
        """Whether its objects can be learned from."""
        return self.is_corrected or self.is_annotated

    def to_json(self) -> dict[str, Any]:
        """See `from_json`."""
        paths = {name: None if (path := getattr(self, name)) is None else str(path) for name in _PATHS}
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return values | paths | {"reading": dict(self.reading)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> ImageFacts:
        """Of what `to_json` returned."""
        paths = {name: None if values[name] is None else Path(values[name]) for name in _PATHS}
        height, width = values["hw"]
        channels = tuple(values["channels"])
        return ImageFacts(**{**values, **paths, "hw": (height, width), "channels": channels})


_PATHS = ("path", "objects", "prediction")


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
                raise UsageError(
                    f"{count(len(others), 'image')} not {what}",
                    got=", ".join(others[:5]),
                    expected=f"images that are {what}",
                )
        if not images:
            raise UsageError(f"no image is {what}", got=count(len(self.images), "image"), expected="at least one")
        return images

    def to_json(self) -> dict[str, Any]:
        """See `from_json`."""
        return {
            "folder": str(self.folder),
            "corrected": str(self.corrected),
            "class_names": list(self.class_names),
            "images": [image.to_json() for image in self.images],
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> ProjectFacts:
        """Of what `to_json` returned."""
        images = tuple(ImageFacts.from_json(one) for one in values["images"])
        return ProjectFacts(Path(values["folder"]), Path(values["corrected"]), tuple(values["class_names"]), images)


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

    def with_names(self, project: ProjectFacts) -> Part:
        """The part with the names of the user's files, for what is written for the user; the labels of a tile job stay
        where they are.
        """
        names = {image.id: image.name or image.id for image in project.images}
        wanted = [names[named.id] for named in self.named]
        if self.folder is not None and ([own.id for own in self.dataset] == wanted or is_job_folder(self.folder)):
            return self
        samples = [dataclasses.replace(sample, id=name) for sample, name in zip(self.shown, wanted, strict=True)]
        renamed = self.shown.with_samples(samples)
        return Part(renamed, renamed, None)

    def written(self, folder: Path) -> Path:
        """The folder to read them from; ``folder`` is written if there is none yet."""
        if self.folder is None:
            write_dataset(self.named, folder)
        return self.folder or folder


def truth_part(project: ProjectFacts, ids: Sequence[str] | None) -> Part:
    """The images that can be learned from, or those of them with these ids: corrected, or annotated from the start."""
    images = project.chosen(ids, lambda image: image.is_truth, "corrected")
    corrected = corrected_part(project, images)
    parts = [*([] if corrected is None else [corrected]), *_parts_of(images, lambda image: image.objects)]
    return joined(parts, project.class_names)


def object_parts(project: ProjectFacts, ids: Sequence[str] | None) -> list[Part]:
    """The objects of all images that have some, or of those with these ids: corrected images first."""
    images = project.chosen(ids, lambda image: image.is_corrected or image.has_objects, "predicted or corrected")
    corrected = corrected_part(project, images)
    return [*([] if corrected is None else [corrected]), *_parts_of(images, lambda image: image.objects)]


def predicted_part(project: ProjectFacts, ids: Sequence[str] | None) -> Part:
    """The last predictions of images that can be learned from, with all candidates if one folder has them all."""
    usable = lambda image: image.is_truth and image.prediction is not None  # noqa: E731
    images = project.chosen(ids, usable, "corrected after a prediction")
    as_predicted = [dataclasses.replace(image, is_corrected=False) for image in images]
    return joined(_parts_of(as_predicted, lambda image: image.prediction), project.class_names, scored=True)


def corrected_part(project: ProjectFacts, images: Sequence[ImageFacts]) -> Part | None:
    """The corrected images among these, or None."""
    wanted = {image.id for image in images if image.is_corrected}
    if not wanted:
        return None
    dataset = _read(project.corrected)
    samples = [sample for sample in dataset if sample.id in wanted]
    if missing := wanted.difference(sample.id for sample in samples):
        remedy = "correct it again, or start the page again"
        raise InputError(
            "a corrected image is not in the dataset", where=project.corrected, got=min(missing), remedy=remedy
        )
    is_whole = len(samples) == len(dataset)
    dataset = dataset.with_samples(samples)
    return Part(dataset, dataset, project.corrected if is_whole else None)


def _parts_of(images: Sequence[ImageFacts], place: Callable[[ImageFacts], Path | None]) -> list[Part]:
    """The images among these that were not corrected, one part for each folder with their objects."""
    of_folder: dict[Path, dict[Path, ImageFacts]] = {}
    for image in images:
        if (folder := place(image)) is not None and not image.is_corrected:
            of_folder.setdefault(folder, {})[image.path.resolve()] = image
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
            raise InputError("the objects of an image are gone", where=folder, got=got, remedy="predict it again")
        samples = [sample for sample, _ in found]
        named = [dataclasses.replace(sample, id=image.id) for sample, image in found]
        is_whole = len(found) == len(dataset)
        parts.append(Part(dataset.with_samples(samples), dataset.with_samples(named), folder if is_whole else None))
    return parts


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

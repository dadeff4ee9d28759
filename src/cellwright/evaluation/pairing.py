"""Pair the images of a prediction with those of the ground truth, and give both the same classes.

Both sides are datasets, from any format. Objects are read on demand, image by image.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, overload

import numpy as np

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import InputError, UsageError
from cellwright.core.files import plain_suffix, stem_of
from cellwright.core.ignored import objects_only
from cellwright.core.instances import Instances
from cellwright.core.notes import summarise
from cellwright.core.scores import ScoreThreshold, reaches_threshold, recorded_threshold
from cellwright.core.text import count
from cellwright.data.formats.contract import DEFAULT_CLASS
from cellwright.data.identity import annotation_digest
from cellwright.data.images.read import IMAGE_SUFFIXES
from cellwright.data.images.reading import Reading
from cellwright.data.merge import class_advice, map_classes

ONE_CLASS = "object"  # the class of all objects where classes are ignored
Choose = Callable[[Instances], np.ndarray]
"""Which objects (N,) bool."""


class LazyInstances(Sequence[Instances]):
    """The objects of samples, read each time they are indexed, so that one image is in memory at a time."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Instances: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Instances]: ...
    def __getitem__(self, index: int | slice) -> Instances | Sequence[Instances]:
        if isinstance(index, slice):
            return LazyInstances(self._samples[index])
        return self._samples[index].read_instances()


@dataclass(frozen=True, eq=False)
class PairedImages:
    """The images to evaluate: sample k of ``predicted`` and of ``truth`` are the same image, with the same classes.

    name: of the prediction. score_threshold: predictions below it are used for AP and ranking only; one number, or one
    per class. notes: what a reader of the results should know. seen: ``trained_on`` and ``tuned_on`` of the model that
    predicted (see ``ModelInfo``), as far as they are known. predicted_format: the file format
    of the predictions, "" if they come from no file. reading: which part of each image file the ground truth is about.
    """

    name: str
    predicted: tuple[Sample, ...]
    truth: tuple[Sample, ...]
    class_names: tuple[str, ...]
    score_threshold: ScoreThreshold = 0.0
    notes: tuple[str, ...] = ()
    seen: Mapping[str, Any] = field(default_factory=dict)
    predicted_format: str = ""
    reading: Reading = Reading()  # noqa: RUF009 - frozen

    @property
    def coco_ids(self) -> list[int] | None:
        """The COCO ids of the images, from the ground truth or else from the predictions; None if some have none."""
        for samples in (self.truth, self.predicted):
            ids = [sample.image_id for sample in samples if sample.image_id is not None]
            if len(ids) == len(samples):
                return ids
        return None

    def without_border(self) -> PairedImages:
        """The same images without the objects at the border of the image, which may be cut off; see `without`."""
        return self.without(_touches_border, "objects at the border of the image are left out")

    def without(self, is_outside: Choose, note: str) -> PairedImages:
        """The same images without some objects. is_outside: which (N,) bool; note: why, for the report.

        Annotated ones are ignored, so that predictions that match them do not count. Predicted ones are omitted, unless
        the annotated object that they overlap most is not left out.
        """
        truth = tuple(dataclasses.replace(sample, load=_Ignored(sample.load, is_outside)) for sample in self.truth)
        predicted = tuple(
            dataclasses.replace(sample, load=_Omitted(sample.load, true.load, is_outside))
            for sample, true in zip(self.predicted, self.truth, strict=True)
        )
        return dataclasses.replace(self, truth=truth, predicted=predicted, notes=(*self.notes, note))

    def without_classes(self) -> PairedImages:
        """The same images with all objects in one class, `ONE_CLASS`. Thresholds that differ by class are applied."""
        threshold = self.score_threshold
        return dataclasses.replace(
            self,
            predicted=_in_one_class(self.predicted, threshold),
            truth=_in_one_class(self.truth),
            class_names=(ONE_CLASS,),
            score_threshold=_common_threshold(threshold),
        )


def _touches_border(objects: Instances) -> np.ndarray:
    return objects.masks.touches_border


@dataclass(frozen=True, eq=False)
class _Ignored:
    """A `Sample.load` that ignores the objects outside."""

    load: Callable[[], Instances]
    is_outside: Choose

    def __call__(self) -> Instances:
        objects = self.load()
        return dataclasses.replace(objects, ignore=objects.ignore | self.is_outside(objects))


@dataclass(frozen=True, eq=False)
class _Omitted:
    """A `Sample.load` of predictions without those outside, unless they belong to an annotated object inside."""

    load: Callable[[], Instances]
    truth: Callable[[], Instances]
    is_outside: Choose

    def __call__(self) -> Instances:
        predicted, truth = self.load(), self.truth()
        i, j, shared = predicted.masks.intersections(truth.masks)
        order = np.lexsort((shared, i))  # of each prediction, the pair with most pixels comes last
        inside = np.zeros(len(predicted), bool)
        inside[i[order]] = ~self.is_outside(truth)[j[order]]
        return predicted[~self.is_outside(predicted) | inside]


def pair_datasets(
    name: str, predicted: Dataset, truth: Dataset, part: Dataset | None = None, *, ignore_classes: bool = False
) -> PairedImages:
    """Pair predictions with ground truth by image.

    truth: all annotated images. part: those to evaluate (a split); None: all. Raises `InputError` if an image to
    evaluate has no prediction, or an image with predictions is not annotated, since results on the remaining images
    would be misleading; `UsageError` if the classes cannot be matched.
    """
    part = truth if part is None else part
    predicted, truth, part, notes = _same_classes(predicted, truth, part, ignore_classes=ignore_classes)
    predicted, renamed = only_pair(predicted, truth)
    notes += renamed
    paired = partners(part, predicted)
    missing = [sample.id for sample, partner in zip(part, paired, strict=True) if partner is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {count(len(part), 'image')} have no prediction",
            where=name,
            got=f"predictions for {shown_ids([sample.id for sample in predicted]) or 'no image'}",
            expected=shown_ids(missing),
            remedy="predict on these images too, or evaluate a split that was predicted on (`split`)",
        )
    annotated = partners(predicted, truth)
    lonely = [sample.id for sample, partner in zip(predicted, annotated, strict=True) if partner is None]
    if lonely:
        raise InputError(
            f"{len(lonely)} of {count(len(predicted), 'image')} with predictions have no ground truth",
            where=name,
            got=shown_ids(lonely),
            expected=f"images such as {shown_ids([sample.id for sample in truth]) or '(the ground truth has none)'}",
            remedy="annotate them (images without objects too), or omit their predictions",
        )
    return PairedImages(
        name=name,
        predicted=_objects_only([sample for sample in paired if sample is not None]),
        truth=part.samples,
        class_names=part.class_names,
        score_threshold=score_threshold_of(predicted),
        notes=(*notes, *summarise((*predicted.notes, *truth.notes))),
        seen=predicted.info,
        predicted_format=str(predicted.info.get("format", "")),
        reading=Reading.recorded(truth.info),
    )


def pair_in_order(
    predicted: Dataset | Sequence[Instances],
    truth: Dataset | Sequence[Instances],
    image_ids: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> PairedImages:
    """Pair the images of two sequences by position.

    image_ids, class_names: None takes those of a dataset, or numbers. Raises `InputError` if the sequences differ in
    length.
    """
    if len(predicted) != len(truth):
        raise InputError(
            "predictions and ground truth have different numbers of images",
            got=count(len(predicted), "image"),
            expected=f"{count(len(truth), 'image')}, as in the ground truth",
        )
    datasets = [side for side in (truth, predicted) if isinstance(side, Dataset)]
    lists = [side for side in (truth, predicted) if not isinstance(side, Dataset)]
    if image_ids is None:
        image_ids = [sample.id for sample in datasets[0]] if datasets else [str(k) for k in range(len(truth))]
    if len(image_ids) != len(truth):
        raise InputError("`image_ids` and images differ in number", got=len(image_ids), expected=len(truth))
    if class_names is None:
        class_names = datasets[0].class_names if datasets else _class_numbers([*chain(*lists)])
    return PairedImages(
        name="predictions",
        predicted=_objects_only(_samples(predicted, image_ids)),
        truth=_samples(truth, image_ids),
        class_names=tuple(class_names),
        score_threshold=score_threshold_of(predicted) if isinstance(predicted, Dataset) else 0.0,
        seen=predicted.info if isinstance(predicted, Dataset) else {},
    )


def _objects_only(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Predictions without ignored regions, which are no objects: only those of the ground truth decide what counts."""
    return tuple(dataclasses.replace(sample, load=_Objects(sample.load)) for sample in samples)


@dataclass(frozen=True, eq=False)
class _Objects:
    """A `Sample.load` without ignored regions."""

    load: Callable[[], Instances]

    def __call__(self) -> Instances:
        return objects_only(self.load())


def _class_numbers(images: Sequence[Instances]) -> list[str]:
    highest = max((int(instances.class_ids.max(initial=0)) for instances in images), default=0)
    return [str(k) for k in range(highest + 1)]


def _samples(side: Dataset | Sequence[Instances], image_ids: Sequence[str]) -> tuple[Sample, ...]:
    if isinstance(side, Dataset):
        samples = side.samples
    else:
        samples = tuple(Sample("", None, instances.image_hw, Loaded(instances)) for instances in side)
    return tuple(dataclasses.replace(sample, id=image_id) for sample, image_id in zip(samples, image_ids, strict=True))


def partners(samples: Dataset, others: Dataset) -> list[Sample | None]:
    """For each sample, the one of ``others`` with the same id, or with the same last part of the id if it is unique.

    The last parts may differ in ``.ome``, in the suffix of an image, and in how umlauts are composed.
    """
    by_id = {other.id: other for other in others}
    other_names = Counter(_name(other) for other in others)
    by_name = {_name(other): other for other in others if other_names[_name(other)] == 1}
    names = Counter(_name(sample) for sample in samples)
    return [
        by_id.get(sample.id) or (by_name.get(_name(sample)) if names[_name(sample)] == 1 else None)
        for sample in samples
    ]


def _name(sample: Sample) -> str:
    name = unicodedata.normalize("NFC", PurePosixPath(sample.id).name)
    if plain_suffix(name) in IMAGE_SUFFIXES:
        name = stem_of(name)
    return name.removesuffix(".ome") or name


def only_pair(predicted: Dataset, truth: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """The prediction under the name of the ground truth, and a note, if both sides have one image of the same size."""
    if len(predicted) != 1 or len(truth) != 1 or partners(predicted, truth)[0] is not None:
        return predicted, ()
    one, other = predicted[0], truth[0]
    if one.image_hw != other.image_hw:
        return predicted, ()
    note = f"{one.id} was paired with {other.id}, the only image on the other side, although their names differ"
    return predicted.with_samples([dataclasses.replace(one, id=other.id)]), (note,)


def shown_ids(ids: Sequence[str]) -> str:
    """The first three ids and the number of the others.

    >>> shown_ids(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


def score_threshold_of(dataset: Dataset) -> ScoreThreshold:
    """The score threshold recorded with predictions: one number, or one per class; 0 if there is none."""
    return recorded_threshold(dataset.info)


def above_threshold(dataset: Dataset) -> Dataset:
    """Predictions without those below the recorded score threshold; other datasets as they are."""
    threshold = score_threshold_of(dataset)
    if threshold == 0.0:
        return dataset
    samples = [dataclasses.replace(sample, load=_LoadAbove(sample.load, threshold)) for sample in dataset]
    info = {key: value for key, value in dataset.info.items() if key != "score_threshold"}
    return dataclasses.replace(dataset, samples=tuple(samples), info=info)


def with_threshold(dataset: Dataset, threshold: ScoreThreshold) -> Dataset:
    """The dataset with another score threshold."""
    return dataclasses.replace(dataset, info=dataset.info | {"score_threshold": threshold})


@dataclass(frozen=True, eq=False)
class _LoadAbove:
    """A `Sample.load` that returns the predictions that reach the threshold of their class."""

    load: Callable[[], Instances]
    threshold: ScoreThreshold

    def __call__(self) -> Instances:
        instances = self.load()
        return instances[reaches_threshold(instances.scores, instances.class_ids, self.threshold)]


def _same_classes(
    predicted: Dataset, truth: Dataset, part: Dataset, *, ignore_classes: bool
) -> tuple[Dataset, Dataset, Dataset, tuple[str, ...]]:
    """The three datasets with the same class names, and notes.

    Classes are matched by name. If either side has a single class with a name that the other does not have, classes
    cannot be matched and are ignored.
    """
    own, true_names = predicted.class_names, truth.class_names
    if not ignore_classes and (own == true_names or set(own) & set(true_names)):
        extra = tuple(name for name in own if name not in true_names)
        names = (*true_names, *extra)
        notes = (f"predicted classes that the ground truth does not have: {', '.join(extra)}",) if extra else ()
        return with_class_names(predicted, names), with_class_names(truth, names), with_class_names(part, names), notes
    if not ignore_classes and min(len(own), len(true_names)) > 1:
        raise UsageError(
            "predictions and ground truth have no class in common",
            where=predicted.root,
            got=", ".join(own),
            expected=", ".join(true_names),
            remedy=f"{class_advice(own, true_names)}; or use `ignore_classes=True`",
        )
    if len(own) == len(true_names) == 1:
        # Both sides have one kind of object, whatever each tool calls it.
        note = f"the only class of the predictions ({own[0]}) is treated as that of the ground truth ({true_names[0]})"
        notes = () if DEFAULT_CLASS in (*own, *true_names) else (note,)
        return dataclasses.replace(predicted, class_names=true_names), truth, part, notes
    note = f"classes are ignored: the predictions have {', '.join(own)}, the ground truth {', '.join(true_names)}"
    return without_classes(predicted), without_classes(truth), without_classes(part), (note,)


def with_class_names(dataset: Dataset, names: tuple[str, ...]) -> Dataset:
    """The dataset with the classes ``names``, which include all of its own; its score thresholds are reordered too."""
    if dataset.class_names == names:
        return dataset
    threshold = score_threshold_of(dataset)
    mapped = map_classes(dataset, {}, names)
    if isinstance(threshold, tuple):
        by_name = dict(zip(dataset.class_names, threshold, strict=True))
        threshold = tuple(by_name.get(name, 0.0) for name in names)
    return with_threshold(mapped, threshold)


def without_classes(dataset: Dataset) -> Dataset:
    """The dataset with all objects in one class, `ONE_CLASS`.

    Score thresholds that differ by class are applied first, since they would have no meaning afterwards.
    """
    threshold = score_threshold_of(dataset)
    info = {key: value for key, value in dataset.info.items() if key != "category_ids"}
    return dataclasses.replace(
        dataset,
        samples=_in_one_class(dataset.samples, threshold),
        class_names=(ONE_CLASS,),
        info=info | {"score_threshold": _common_threshold(threshold)},
    )


def _common_threshold(threshold: ScoreThreshold) -> float:
    """The threshold if it is the same for all classes, otherwise 0."""
    if isinstance(threshold, tuple):
        return threshold[0] if len(set(threshold)) == 1 else 0.0
    return threshold


def _in_one_class(samples: Sequence[Sample], threshold: ScoreThreshold = 0.0) -> tuple[Sample, ...]:
    differs = isinstance(threshold, tuple) and len(set(threshold)) > 1
    loads = (_LoadAbove(sample.load, threshold) if differs else sample.load for sample in samples)
    return tuple(
        dataclasses.replace(sample, load=_LoadInOneClass(load)) for sample, load in zip(samples, loads, strict=True)
    )


@dataclass(frozen=True, eq=False)
class _LoadInOneClass:
    """A `Sample.load` that returns all objects with class id 0."""

    load: Callable[[], Instances]

    def __call__(self) -> Instances:
        instances = self.load()
        class_ids = np.minimum(instances.class_ids, 0)  # of no class stays so
        return dataclasses.replace(instances, class_ids=class_ids, class_probs=None)


def seen_warnings(images: PairedImages) -> list[str]:
    """Warnings if images are evaluated that the model of the predictions was trained or tuned on."""
    tuned_on = images.seen.get("tuned_on")
    tuned_on = tuned_on if isinstance(tuned_on, Mapping) else {}
    trained, tuned = _digests(images.seen.get("trained_on")), _digests(tuned_on.get("images"))
    if not trained and not tuned:
        return []
    digests = [annotation_digest(sample.read_instances(), sample.id) for sample in images.truth]
    of_all, warnings = count(len(digests), "image"), []
    advice = "so the results are optimistic; report results on other images"
    if n := sum(digest in trained for digest in digests):
        warnings.append(f"warning: the model was trained on {n} of these {of_all}, {advice}")
    if n := sum(digest in tuned for digest in digests):
        what = f"score thresholds and calibration were tuned on {n} of these {of_all} (split {tuned_on.get('split')})"
        warnings.append(f"warning: {what}, {advice}")
    return warnings


def _digests(recorded: object) -> set[str]:
    """Digests as recorded in a file."""
    return {value for value in recorded if isinstance(value, str)} if isinstance(recorded, list | tuple) else set()

"""Merge datasets, and rename, merge or omit classes."""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cellwright.core.class_ids import NO_CLASS, values_of_class
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import UsageError, did_you_mean
from cellwright.core.instances import Instances
from cellwright.data.images.reading import Reading


@dataclass(frozen=True, eq=False)
class RenumberedClasses:
    """A `Sample.load` that replaces class ids and omits the objects of classes without a new id.

    A crowd of such a class is not annotated for the others either: it becomes a region of no class.
    new_ids: (K,) int64, the new id of each old class, or `NO_CLASS`.
    """

    load: Callable[[], Instances]
    new_ids: np.ndarray

    def __call__(self) -> Instances:
        instances = self.load()
        new_ids = values_of_class(instances.class_ids, self.new_ids, NO_CLASS)
        # The probabilities are those of the old classes.
        renumbered = dataclasses.replace(
            instances, class_ids=np.where(instances.ignore, new_ids, new_ids.clip(0)), class_probs=None
        )
        return renumbered[(new_ids >= 0) | instances.ignore]


def map_classes(dataset: Dataset, new_name: Mapping[str, str | None], class_names: Sequence[str]) -> Dataset:
    """The dataset with the classes ``class_names``.

    new_name: old class name -> new class name, or None to omit its objects. Classes that are not listed keep their
        name.

    Raises `UsageError` for an old name that is not a class of the dataset, or a new name that is not among
    ``class_names``.
    """
    for name in new_name:
        if name not in dataset.class_names:
            raise UsageError(
                "no such class", where=dataset.root, got=repr(name), remedy=did_you_mean(name, dataset.class_names)
            )
    names = list(class_names)
    new_ids = np.full(len(dataset.class_names), NO_CLASS, np.int64)
    for old, name in enumerate(dataset.class_names):
        new = new_name.get(name, name)
        if new is None:
            continue
        if new not in names:
            raise UsageError(
                "a class is not among the new classes",
                where=dataset.root,
                got=repr(new),
                expected=", ".join(names),
                remedy=f"map {name!r} to one of them, or to nothing to omit its objects",
            )
        new_ids[old] = names.index(new)
    info = {key: value for key, value in dataset.info.items() if key != "category_ids"}
    samples = [dataclasses.replace(s, load=RenumberedClasses(s.load, new_ids)) for s in dataset]
    return dataclasses.replace(dataset, samples=tuple(samples), class_names=tuple(names), info=info)


def keep_classes(dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    """Only the objects of these classes, in this order. Raises `UsageError` that suggests the most similar class."""
    for name in class_names:
        if name not in dataset.class_names:
            raise UsageError(
                "no such class", where=dataset.root, got=repr(name), remedy=did_you_mean(name, dataset.class_names)
            )
    omitted = {name: None for name in dataset.class_names if name not in class_names}
    return map_classes(dataset, omitted, class_names)


def merge_datasets(datasets: Sequence[Dataset], class_map: Mapping[str, str | None] | None = None) -> Dataset:
    """One dataset with the samples of several datasets, in order.

    class_map: old class name -> new class name, or None to omit its objects; other classes keep their name. Classes
        with the same name become one class, in order of first appearance.

    Sample ids that occur in more than one dataset are prefixed with the name of the dataset's folder. Splits and groups
    are kept. Images are renumbered from 1 if an image id is missing or occurs twice. Raises `UsageError` for an empty
    list, and if the map contains a name that is not a class, or omits all classes.
    """
    if not datasets:
        raise UsageError("there is no dataset to merge", remedy="name at least one dataset")
    mapping = dict(class_map or {})
    old_names = dict.fromkeys(name for dataset in datasets for name in dataset.class_names)
    for name in mapping:
        if name not in old_names:
            raise UsageError("no such class", where="class map", got=repr(name), remedy=did_you_mean(name, old_names))
    new_names = list(dict.fromkeys(n for n in (mapping.get(name, name) for name in old_names) if n is not None))
    if not new_names:
        raise UsageError("the class map omits all classes", got=mapping, remedy="map at least one class to a name")
    mapped = [
        map_classes(dataset, {name: mapping[name] for name in dataset.class_names if name in mapping}, new_names)
        for dataset in datasets
    ]
    samples = _distinct_numbers(_distinct_ids(mapped))
    licences = dict.fromkeys(dataset.licence for dataset in datasets if dataset.licence)
    notes = tuple(note for dataset in datasets for note in dataset.notes)
    merged = Dataset(tuple(samples), tuple(new_names), None, "; ".join(licences), notes=notes)
    return _merged_reading(datasets).recorded_in(merged)


def _merged_reading(datasets: Sequence[Dataset]) -> Reading:
    """What all datasets record; names of one channel become alternatives. Raises `UsageError` if they contradict."""
    readings = list(dict.fromkeys(Reading.recorded(dataset.info) for dataset in datasets))
    known = [reading for reading in readings if reading != Reading()]
    if len(known) <= 1:
        return known[0] if known else Reading()
    names = list(dict.fromkeys(str(channel) for reading in known for channel in reading.channels))
    one_name = all(len(reading.channels) == 1 and not str(reading.channels[0]).isdecimal() for reading in known)
    if one_name and len({dataclasses.replace(reading, channel=None) for reading in known}) == 1:
        return dataclasses.replace(known[0], channel="|".join(names))
    raise UsageError(
        "the datasets use different channels or planes of their images",
        got="; ".join(str(reading.to_dict()) for reading in readings),
        expected="the same, or one channel by name in each",
        remedy="convert them again, with the same `channel`, `z` and `t`",
    )


def _distinct_ids(datasets: Sequence[Dataset]) -> list[Sample]:
    counts = Counter(sample.id for dataset in datasets for sample in dataset)
    samples = []
    for k, dataset in enumerate(datasets):
        prefix = dataset.root.resolve().name if dataset.root is not None else f"dataset{k + 1}"
        for sample in dataset:
            repeated = counts[sample.id] > 1
            samples.append(dataclasses.replace(sample, id=f"{prefix}/{sample.id}") if repeated else sample)
    return samples


def _distinct_numbers(samples: list[Sample]) -> list[Sample]:
    numbers = [sample.image_id for sample in samples]
    if None not in numbers and len(set(numbers)) == len(numbers):
        return samples
    return [dataclasses.replace(sample, image_id=k + 1) for k, sample in enumerate(samples)]


def class_advice(names: Sequence[str], wanted: Sequence[str]) -> str:
    """How to give a dataset or predictions with classes ``names`` the classes ``wanted``: a remedy for errors.

    >>> class_advice(["Nucleus", "debris"], ["nucleus"])
    'rename, combine or drop classes with cellwright data merge, such as `map="Nucleus=nucleus"`, or keep only some \
with `keep`, or when converting with `classes`'
    """
    if set(names) == set(wanted):
        order = ", ".join(repr(name) for name in wanted)
        return f"put the classes in the same order with cellwright data merge: `keep=({order},)`"
    others = [name for name in names if name not in wanted] or list(names)
    targets = [name for name in wanted if name not in names] or list(wanted)
    closest = {name: difflib.get_close_matches(name.lower(), [t.lower() for t in targets], 1, 0.6) for name in others}
    old = next((name for name in others if closest[name]), others[0])
    new = next((t for t in targets if [t.lower()] == closest[old]), targets[0])
    return (
        f'rename, combine or drop classes with cellwright data merge, such as `map="{old}={new}"`, or keep only some '
        "with `keep`, or when converting with `classes`"
    )

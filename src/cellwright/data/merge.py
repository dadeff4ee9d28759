"""Several datasets as one, and classes renamed, united or left out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import UsageError, did_you_mean
from cellwright.core.instances import Instances


@dataclass(frozen=True, eq=False)
class RenumberedClasses:
    """A `Sample.load` whose class ids are replaced; objects whose class has no new id are left out.

    new_ids: (K,) int64, the new class id of every old one, -1 for none.
    """

    load: Callable[[], Instances]
    new_ids: np.ndarray

    def __call__(self) -> Instances:
        instances = self.load()
        kept = instances[self.new_ids[instances.class_ids] >= 0]
        # Probabilities of old classes mean nothing under the new numbers.
        return dataclasses.replace(kept, class_ids=self.new_ids[kept.class_ids], class_probs=None)


def map_classes(dataset: Dataset, new_name: Mapping[str, str | None], class_names: Sequence[str]) -> Dataset:
    """The dataset with classes ``class_names``: old class k becomes ``new_name[k]``, and None leaves its objects out.

    Classes that ``new_name`` does not name keep theirs. `UsageError` for a name that is not a class of the dataset,
    or a new name that is not among ``class_names``.
    """
    for name in new_name:
        if name not in dataset.class_names:
            raise UsageError(
                "no such class", where=dataset.root, got=repr(name), remedy=did_you_mean(name, dataset.class_names)
            )
    names = list(class_names)
    new_ids = np.full(len(dataset.class_names), -1, np.int64)
    for old, name in enumerate(dataset.class_names):
        wanted = new_name.get(name, name)
        if wanted is None:
            continue
        if wanted not in names:
            raise UsageError(
                "a class has no place among the new ones",
                where=dataset.root,
                got=repr(wanted),
                expected=", ".join(names),
                remedy=f"map {name!r} to one of them, or to nothing to leave its objects out",
            )
        new_ids[old] = names.index(wanted)
    info = {key: value for key, value in dataset.info.items() if key != "category_ids"}
    samples = [dataclasses.replace(s, load=RenumberedClasses(s.load, new_ids)) for s in dataset]
    return dataclasses.replace(dataset, samples=tuple(samples), class_names=tuple(names), info=info)


def keep_classes(dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    """Only the objects of these classes, numbered in this order. `UsageError` names the nearest class."""
    for name in class_names:
        if name not in dataset.class_names:
            raise UsageError(
                "no such class", where=dataset.root, got=repr(name), remedy=did_you_mean(name, dataset.class_names)
            )
    left_out = {name: None for name in dataset.class_names if name not in class_names}
    return map_classes(dataset, left_out, class_names)


def merge_datasets(datasets: Sequence[Dataset], class_map: Mapping[str, str | None] | None = None) -> Dataset:
    """All samples of several datasets, in order.

    class_map: old class name -> new one, or None to leave its objects out; names that it does not hold stay. Classes of
        one name are one class, in the order in which they first occur.
    Sample ids that occur in two datasets are prefixed with their dataset's folder. Splits and groups stay; image
    numbers are given anew where two samples would share one. `UsageError` for a map that names no class of any.
    """
    if not datasets:
        raise UsageError("there is no dataset to merge", remedy="name one dataset or more")
    mapping = dict(class_map or {})
    old_names = dict.fromkeys(name for dataset in datasets for name in dataset.class_names)
    for name in mapping:
        if name not in old_names:
            raise UsageError("the class map names no class", got=repr(name), remedy=did_you_mean(name, old_names))
    new_names = list(dict.fromkeys(n for n in (mapping.get(name, name) for name in old_names) if n is not None))
    if not new_names:
        raise UsageError("the class map leaves no class", got=mapping, remedy="map one class at least to a name")
    mapped = [
        map_classes(one, {name: mapping[name] for name in one.class_names if name in mapping}, new_names)
        for one in datasets
    ]
    samples = _distinct_numbers(_distinct_ids(mapped))
    licences = dict.fromkeys(one.licence for one in datasets if one.licence)
    return Dataset(tuple(samples), tuple(new_names), None, "; ".join(licences))


def _distinct_ids(datasets: Sequence[Dataset]) -> list[Sample]:
    counts = Counter(sample.id for dataset in datasets for sample in dataset)
    samples = []
    for k, dataset in enumerate(datasets):
        prefix = dataset.root.resolve().name if dataset.root is not None else f"dataset{k + 1}"
        for sample in dataset:
            twice = counts[sample.id] > 1
            samples.append(dataclasses.replace(sample, id=f"{prefix}/{sample.id}") if twice else sample)
    return samples


def _distinct_numbers(samples: list[Sample]) -> list[Sample]:
    numbers = [sample.image_id for sample in samples]
    if None not in numbers and len(set(numbers)) == len(numbers):
        return samples
    return [dataclasses.replace(sample, image_id=k + 1) for k, sample in enumerate(samples)]

"""Merging datasets and mapping classes, with known numbers of objects."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from small_sets import counted_dataset

from cellwright.core.dataset import Dataset
from cellwright.core.errors import UsageError
from cellwright.data.merge import keep_classes, map_classes, merge_datasets


def named(counts: list[list[int]], *names: str, root: str | None = None) -> Dataset:
    dataset = counted_dataset(counts)
    return dataclasses.replace(dataset, class_names=names, root=Path(root) if root else None)


def counts_of(dataset: Dataset) -> list[list[int]]:
    return [np.bincount(s.read_instances().class_ids, minlength=len(dataset.class_names)).tolist() for s in dataset]


def test_classes_with_the_same_name_are_merged_in_order_of_appearance() -> None:
    merged = merge_datasets([named([[1, 2]], "a", "b", root="/x/one"), named([[4, 8]], "c", "a", root="/x/two")])
    assert merged.class_names == ("a", "b", "c")
    assert counts_of(merged) == [[1, 2, 0], [8, 0, 4]]
    assert [s.id for s in merged] == ["one/s0", "two/s0"]
    assert [s.image_id for s in merged] == [1, 2]


def test_a_class_map_renames_merges_and_omits() -> None:
    parts = [named([[1, 2, 4]], "tumour", "stroma", "dirt"), named([[8]], "nucleus")]
    merged = merge_datasets(parts, {"tumour": "nucleus", "stroma": "nucleus", "dirt": None})
    assert merged.class_names == ("nucleus",)
    assert counts_of(merged) == [[3], [8]]
    assert pickle.loads(pickle.dumps(merged[0])).read_instances().masks == merged[0].read_instances().masks


def test_distinct_sample_and_image_ids_are_kept() -> None:
    first, second = counted_dataset([[1], [1]]), counted_dataset([[1]])
    second = second.with_samples([dataclasses.replace(second[0], id="t", image_id=77)])
    merged = merge_datasets([first, second])
    assert [(s.id, s.image_id) for s in merged] == [("s0", 1), ("s1", 2), ("t", 77)]


def test_object_ids_are_kept_when_classes_are_omitted() -> None:
    kept = keep_classes(named([[2, 3, 4]], "a", "b", "c"), ["c", "a"])
    assert kept.class_names == ("c", "a")
    assert kept[0].read_instances().ids.tolist() == [1, 2, 6, 7, 8, 9]
    assert counts_of(kept) == [[4, 2]]


def test_unknown_class_names_are_reported() -> None:
    dataset = named([[1, 1]], "tumour", "stroma")
    with pytest.raises(UsageError, match="did you mean 'tumour'"):
        keep_classes(dataset, ["tumor"])
    with pytest.raises(UsageError, match="did you mean 'tumour'"):
        merge_datasets([dataset], {"tumor": "x"})
    with pytest.raises(UsageError, match=r"not among the new classes(.|\n)*got: 'stroma'"):
        map_classes(dataset, {"tumour": "x"}, ["x"])
    with pytest.raises(UsageError, match="omits all classes"):
        merge_datasets([dataset], {"tumour": None, "stroma": None})
    with pytest.raises(UsageError, match="no dataset to merge"):
        merge_datasets([])

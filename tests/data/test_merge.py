"""Merging and class maps, on datasets whose counts are known."""

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


def test_classes_unite_by_name_in_order_of_appearance() -> None:
    merged = merge_datasets([named([[1, 2]], "a", "b", root="/x/one"), named([[4, 8]], "c", "a", root="/x/two")])
    assert merged.class_names == ("a", "b", "c")
    assert counts_of(merged) == [[1, 2, 0], [8, 0, 4]]
    assert [s.id for s in merged] == ["one/s0", "two/s0"]
    assert [s.image_id for s in merged] == [1, 2]


def test_a_map_renames_unites_and_leaves_out() -> None:
    parts = [named([[1, 2, 4]], "tumour", "stroma", "dirt"), named([[8]], "nucleus")]
    merged = merge_datasets(parts, {"tumour": "nucleus", "stroma": "nucleus", "dirt": None})
    assert merged.class_names == ("nucleus",)
    assert counts_of(merged) == [[3], [8]]
    assert pickle.loads(pickle.dumps(merged[0])).read_instances().masks == merged[0].read_instances().masks


def test_distinct_ids_and_numbers_stay() -> None:
    one, two = counted_dataset([[1], [1]]), counted_dataset([[1]])
    other = two.with_samples([dataclasses.replace(two[0], id="t", image_id=77)])
    merged = merge_datasets([one, other])
    assert [(s.id, s.image_id) for s in merged] == [("s0", 1), ("s1", 2), ("t", 77)]


def test_ids_of_objects_stay_when_classes_are_left_out() -> None:
    kept = keep_classes(named([[2, 3, 4]], "a", "b", "c"), ["c", "a"])
    assert kept.class_names == ("c", "a")
    assert kept[0].read_instances().ids.tolist() == [1, 2, 6, 7, 8, 9]
    assert counts_of(kept) == [[4, 2]]


def test_names_that_do_not_exist_are_said() -> None:
    dataset = named([[1, 1]], "tumour", "stroma")
    with pytest.raises(UsageError, match="did you mean 'tumour'"):
        keep_classes(dataset, ["tumor"])
    with pytest.raises(UsageError, match="did you mean 'tumour'"):
        merge_datasets([dataset], {"tumor": "x"})
    with pytest.raises(UsageError, match=r"no place among the new ones(.|\n)*got: 'stroma'"):
        map_classes(dataset, {"tumour": "x"}, ["x"])
    with pytest.raises(UsageError, match="leaves no class"):
        merge_datasets([dataset], {"tumour": None, "stroma": None})
    with pytest.raises(UsageError, match="no dataset to merge"):
        merge_datasets([])

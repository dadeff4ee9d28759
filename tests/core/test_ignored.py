"""Regions that are not annotated: which objects count, and how regions are added."""

from __future__ import annotations

import numpy as np
import pytest

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import InputError
from cellwright.core.ignored import annotated_px, counted_objects, resolve_ignored, with_regions
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.scores import reaches_threshold
from cellwright.data.merge import keep_classes
from cellwright.evaluation.pairing import without_classes
from cellwright.measurement.table import measure_instances


def drawn(seed: int) -> Instances:
    rng = np.random.default_rng(seed)
    dense = np.zeros((14, 40, 50), bool)
    for mask in dense:
        y, x, h, w = rng.integers(0, 36), rng.integers(0, 46), rng.integers(1, 20), rng.integers(1, 20)
        mask[y : y + h, x : x + w] = True
    return Instances.from_masks(MaskSet.from_dense(dense), ignore=rng.random(14) < 0.3, ids=np.arange(20, 34))


@pytest.mark.parametrize("seed", range(4))
def test_an_object_counts_as_a_whole_or_not_at_all(seed: int) -> None:
    before = drawn(seed)
    after = resolve_ignored(before)
    dense, region = before.masks.to_dense().astype(bool), before.masks[before.ignore].foreground().astype(bool)
    inside = (dense & region).sum((1, 2))
    assert after.ignore.tolist() == (before.ignore | (2 * inside > before.masks.areas)).tolist()
    counted = dense[~after.ignore].any(0)
    expected = np.where(after.ignore[:, None, None], dense & ~counted, dense)
    assert np.array_equal(after.masks.to_dense().astype(bool), expected)
    assert after.ids.tolist() == before.ids.tolist()
    assert np.array_equal(after.boxes_xyxy, after.masks.boxes)
    assert resolve_ignored(after).masks == after.masks  # nothing is left to resolve
    assert counted_objects(before).ids.tolist() == before.ids[~after.ignore].tolist()
    assert annotated_px(before) == 40 * 50 - int(expected[after.ignore].any(0).sum())


def test_regions_are_added_once() -> None:
    labels = np.zeros((20, 30), np.uint16)
    labels[2:8, 2:8] = 7
    cells = Instances.from_label_map(labels)
    region, annotated = np.zeros((2, 20, 30), bool)
    region[:, 25:], annotated[:, :20] = True, True
    added = with_regions(cells, MaskSet.from_dense(region[None]), MaskSet.from_dense(annotated[None]))
    assert (added.ids.tolist(), added.ignore.tolist()) == ([7, 8, 9], [False, True, True])
    assert np.array_equal(added.masks[added.ignore].foreground(), region | ~annotated)
    assert with_regions(added, MaskSet.from_dense(region[None])) is added


def test_no_class_is_never_the_last_class() -> None:
    masks = drawn(0).masks[:3]
    with pytest.raises(InputError, match="except -1 for ignored regions"):
        Instances.from_masks(masks, class_ids=[0, NO_CLASS, 1])
    with pytest.raises(InputError, match="must not be negative"):
        Instances.from_masks(masks, class_ids=[0, -2, 1], ignore=[True, True, True])
    cells = Instances.from_masks(masks, class_ids=[0, NO_CLASS, 1], ignore=[False, True, False], scores=[0.5, 0.5, 0.5])
    assert repr(cells).startswith("Instances(3 objects, 40 x 50 px, classes 0, 1, score 0.5, 1 ignored")
    assert reaches_threshold(cells.scores, cells.class_ids, (0.4, 0.6)).tolist() == [True, True, False]
    assert measure_instances(cells, class_names=("a", "b"))["class"].tolist() == ["a", "", "b"]
    dataset = Dataset((Sample("a", None, cells.image_hw, Loaded(cells)),), ("a", "b"))
    assert without_classes(dataset)[0].read_instances().class_ids.tolist() == [0, NO_CLASS, 0]
    assert keep_classes(dataset, ["b", "a"])[0].read_instances().class_ids.tolist() == [1, NO_CLASS, 0]
    assert not counted_objects(cells).ignore.any()

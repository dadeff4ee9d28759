"""Splits: exact sizes, undivided groups, balanced parts, reproducibility; groups of similar images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from small_sets import counted_dataset, drawn_sample

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import UsageError
from cellwright.core.instances import Instances
from cellwright.data.split import folds, group_alike, split_dataset, with_groups
from cellwright.data.synthetic import draw_field


def sizes(dataset: Dataset) -> dict[str | None, int]:
    return dict(Counter(sample.split for sample in dataset))


def random_counts(n: int, n_classes: int = 1, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(1, 60, (n, n_classes)).tolist()


@pytest.mark.parametrize(
    ("n", "val", "expected"), [(24, 1 / 6, 4), (10, 0.2, 2), (664, 0.2, 133), (3, 0.01, 1), (2, 0.5, 1)]
)
def test_sizes_are_the_rounded_shares(n: int, val: float, expected: int) -> None:
    assert sizes(split_dataset(counted_dataset(random_counts(n)), val)) == {"train": n - expected, "val": expected}


def test_three_parts() -> None:
    assert sizes(split_dataset(counted_dataset(random_counts(50)), 0.2, test=0.1)) == {
        "train": 35,
        "val": 10,
        "test": 5,
    }


def test_a_split_depends_on_the_seed_and_changes_nothing_else() -> None:
    dataset = counted_dataset(random_counts(30))
    first, same, other = (split_dataset(dataset, 0.2, seed) for seed in (3, 3, 4))
    assert [s.split for s in first] == [s.split for s in same]
    assert [s.split for s in first] != [s.split for s in other]
    assert [(s.id, s.load) for s in first] == [(s.id, s.load) for s in dataset]
    assert dataset[0].split is None


def test_parts_are_balanced_in_density() -> None:
    counts = [[c] for c in (5, 20, 80, 300) for _ in range(9)]
    for seed in range(5):
        val = split_dataset(counted_dataset(counts), 1 / 3, seed).with_split("val")
        assert sorted(Counter(len(s.read_instances()) for s in val).values()) == [3, 3, 3, 3]


def test_a_rare_class_occurs_in_every_part() -> None:
    rng = np.random.default_rng(0)
    counts = [[int(rng.integers(20, 30)), 40 if k in (3, 11, 17, 19) else 0] for k in range(20)]
    for seed in range(5):
        val = split_dataset(counted_dataset(counts), 0.25, seed).with_split("val")
        assert sum(int((s.read_instances().class_ids == 1).sum()) for s in val) == 40


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_not_divided(seed: int) -> None:
    groups = [None if k % 7 == 0 else f"g{k % 9}" for k in range(60)]
    dataset = split_dataset(counted_dataset(random_counts(60), groups), 0.25, seed, test=0.1)
    for group in {g for g in groups if g is not None}:
        assert len({s.split for s in dataset if s.group == group}) == 1
    assert 9 <= sizes(dataset)["val"] <= 21
    for fold in folds(dataset.with_samples([s for s in dataset if s.split != "test"]), 4, seed):
        for group in {s.group for s in fold if s.group is not None}:
            assert len({s.split for s in fold if s.group == group}) == 1


def test_each_sample_is_in_the_validation_set_of_one_fold() -> None:
    dataset = counted_dataset(random_counts(24))
    parts = folds(dataset, 5, 1)
    held_out = [s.id for fold in parts for s in fold.with_split("val")]
    assert sorted(held_out) == sorted(s.id for s in dataset)
    assert sorted(sizes(fold)["val"] for fold in parts) == [4, 5, 5, 5, 5]


def test_samples_of_the_test_split_keep_it() -> None:
    dataset = split_dataset(counted_dataset(random_counts(20)), 0.2, test=0.2)
    marked = [s.id for s in dataset.with_split("test")]
    again = split_dataset(dataset, 0.25, 9)
    assert [s.id for s in again.with_split("test")] == marked
    assert sizes(again) == {"train": 12, "val": 4, "test": 4}
    assert all(marked == [s.id for s in fold.with_split("test")] for fold in folds(dataset, 3))


def test_groups_from_ids() -> None:
    dataset = counted_dataset(random_counts(12))
    assert [s.group for s in with_groups(dataset, r"s(\d)")][-3:] == ["9", "1", "1"]
    assert [s.group for s in with_groups(dataset, r"1.")][-2:] == ["10", "11"]
    assert with_groups(dataset, r"1.")[0].group is None
    with pytest.raises(UsageError, match="not a regular expression"):
        split_dataset(dataset, 0.2, group="(")
    with pytest.raises(UsageError, match=r"matches no sample id(.|\n)*ids like s0"):
        split_dataset(dataset, 0.2, group="TCGA-(..)")


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(UsageError, match=r"got: val 1, test 0\n  expected: 0 < val"):
        split_dataset(counted_dataset(random_counts(5)), 1.0)
    with pytest.raises(UsageError, match=r"too few images or groups(.|\n)*got: 4 images in 1 group\n"):
        split_dataset(counted_dataset(random_counts(4), ["a"] * 4), 0.5)
    with pytest.raises(UsageError, match=r"got: 3 images in 3 groups\n  expected: at least 4"):
        folds(counted_dataset(random_counts(3)), 4)
    with pytest.raises(UsageError, match="at least two folds"):
        folds(counted_dataset(random_counts(3)), 1)


def test_no_objects_at_all() -> None:
    assert sizes(split_dataset(counted_dataset([[0]] * 10), 0.3)) == {"train": 7, "val": 3}


def fields(folder: Path, seed: int, *, gain: float = 1.0) -> list[Sample]:
    """Six overlapping windows of one synthetic slide."""
    image, _ = draw_field(seed, (300, 400), 260)
    slide, samples = np.clip(image.data[:, :, :3] * gain, 0, 255).astype(np.uint8), []
    for k in range(6):
        sample = drawn_sample(folder, f"{seed}_{k}", Instances.empty((200, 200)), k)
        assert sample.image_path is not None
        Pillow.fromarray(slide[20 * k : 20 * k + 200, 40 * k : 40 * k + 200]).save(sample.image_path)
        samples.append(sample)
    return samples


def test_the_images_of_a_slide_form_a_group_that_is_not_divided(tmp_path: Path) -> None:
    bright, dim = fields(tmp_path, 1), fields(tmp_path, 2, gain=0.4)
    noise = drawn_sample(tmp_path, "noise", Instances.empty((200, 200)), 0)
    grouped = group_alike(Dataset((*bright, *dim, noise), ("nucleus",)))
    groups = [sample.group for sample in grouped]
    assert len(set(groups[:6])) == len(set(groups[6:12])) == 1
    assert len({groups[0], groups[6], groups[12]}) == 3
    divided = split_dataset(grouped, 0.4)
    assert len({sample.split for sample in divided.samples[:6]}) == 1


def test_similar_images_share_a_group_only_if_they_have_the_same_size(tmp_path: Path) -> None:
    truth = Instances.empty((64, 64))
    noise = drawn_sample(tmp_path, "noise", truth, 1)
    similar = drawn_sample(tmp_path, "similar", truth, 2)  # different noise of the same strength
    wider = drawn_sample(tmp_path, "wider", Instances.empty((64, 80)), 1)
    first, second, third = group_alike(Dataset((noise, similar, wider), ("nucleus",)))
    assert first.group == second.group != third.group


def test_a_sample_without_an_image_is_named() -> None:
    dataset = Dataset((Sample("bare", None, (8, 8), Loaded(Instances.empty((8, 8)))),), ("nucleus",))
    with pytest.raises(UsageError, match="bare"):
        group_alike(dataset)

"""`Dataset` and `Sample`: splits, lookups and reprs."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import UsageError
from cellwright.core.instances import Instances

CELLS = Instances.from_label_map(np.eye(8, dtype=np.uint8))
SAMPLES = [Sample(f"s{k}", None, (8, 8), Loaded(CELLS), split="val" if k else "train") for k in range(3)]
DATASET = Dataset(tuple(SAMPLES), ("nucleus",))


def test_splits_and_samples() -> None:
    assert DATASET.splits == ("train", "val")
    assert [sample.id for sample in DATASET.with_split("val")] == ["s1", "s2"]
    assert DATASET.sample("s1") is SAMPLES[1]
    assert len(DATASET[0].read_instances()) == 1
    with pytest.raises(UsageError, match="choose one of: train, val"):
        DATASET.with_split("test")
    unsplit = DATASET.with_samples([dataclasses.replace(sample, split=None) for sample in DATASET])
    with pytest.raises(UsageError, match="cellwright data split"):
        unsplit.with_split("val")
    with pytest.raises(UsageError, match="did you mean"):
        DATASET.sample("s11")
    with pytest.raises(UsageError, match=r"same id\n  got: 's0'"):
        Dataset((SAMPLES[0], SAMPLES[0]), ("nucleus",))


def test_reprs_are_one_line() -> None:
    assert repr(DATASET) == "Dataset(3 images, 1 class (nucleus), splits train 1, val 2)"
    names = tuple(f"class{k}" for k in range(80))
    shown = repr(Dataset((), names, Path("work/mine")))
    assert shown == "Dataset(0 images, 80 classes (class0, class1, class2, class3, class4, ...), work/mine)"
    assert repr(SAMPLES[0]) == "Sample('s0', 8 x 8 px, no image file, split train)"
    sample = dataclasses.replace(SAMPLES[0], image_path=Path("a/s0.png"), split=None, group="plate 1")
    assert repr(sample) == "Sample('s0', 8 x 8 px, a/s0.png, group plate 1)"


def test_datasets_survive_pickling() -> None:
    again = pickle.loads(pickle.dumps(DATASET))
    assert type(again) is Dataset
    assert [sample.id for sample in again] == ["s0", "s1", "s2"]
    assert again[2].read_instances().masks == CELLS.masks

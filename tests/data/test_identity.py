"""The content of a dataset: what changes its identity, and what does not."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.files import write_png
from cellwright.core.instances import Instances
from cellwright.data.identity import FileIdentity, Identity, digest_of_files, digest_of_objects

LABELS = np.zeros((12, 16), np.int64)
LABELS[2:6, 2:7], LABELS[8:11, 9:15] = 1, 2


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    samples = []
    for k, name in enumerate(("a", "b", "c")):
        pixels = np.full((12, 16), 20 * k, np.uint8)
        write_png(tmp_path / f"{name}.png", pixels)
        objects = Instances.from_label_map(LABELS, class_ids=[0, k % 2])
        split = "val" if name == "c" else "train"
        samples.append(Sample(name, tmp_path / f"{name}.png", (12, 16), Loaded(objects), split=split))
    return Dataset(tuple(samples), ("cell", "debris"))


def with_objects(dataset: Dataset, index: int, objects: Instances) -> Dataset:
    samples = list(dataset)
    samples[index] = dataclasses.replace(samples[index], load=Loaded(objects))
    return dataset.with_samples(samples)


def test_names_dates_and_places_do_not_matter(dataset: Dataset, tmp_path: Path) -> None:
    before = Identity.of(dataset)
    for sample in dataset:
        assert sample.image_path is not None
        os.utime(sample.image_path, ns=(1, 1))
    assert Identity.of(dataset) != before, "the dates are recorded"
    assert Identity.of(dataset).changes(before) == []
    (tmp_path / "a.png").rename(tmp_path / "moved.png")
    samples = [dataclasses.replace(dataset[0], image_path=tmp_path / "moved.png"), *dataset.samples[1:]]
    assert Identity.of(dataset.with_samples(samples)).digest == before.digest


def test_every_change_is_named(dataset: Dataset, tmp_path: Path) -> None:
    before = Identity.of(dataset)

    def changes(changed: Dataset) -> list[str]:
        assert Identity.of(changed).digest != before.digest
        return Identity.of(changed, known=before).changes(before)

    objects = dataset[1].read_instances()
    one_pixel = LABELS.copy()
    one_pixel[2, 2] = 0  # the box of the object is the same
    moved = dataclasses.replace(dataset[0], split="val")
    assert changes(with_objects(dataset, 1, objects[:1])) == ["the annotations of 1 image (b)"]
    assert changes(with_objects(dataset, 0, Instances.from_label_map(one_pixel))) == ["the annotations of 1 image (a)"]
    other_class = dataclasses.replace(objects, class_ids=1 - objects.class_ids)
    assert changes(with_objects(dataset, 1, other_class)) == ["the annotations of 1 image (b)"]
    assert changes(dataset.with_samples([moved, *dataset.samples[1:]])) == ["the split of 1 image (a)"]
    assert changes(dataset.with_samples(dataset.samples[:2])) == ["removed: 1 image (c)"]
    assert changes(dataset.with_samples(dataset.samples[::-1])) == ["the order of the images"]
    renamed = dataclasses.replace(dataset, class_names=("cell", "dirt"))
    assert changes(renamed)[0] == "the classes (cell, dirt instead of cell, debris)"
    # The same number of bytes: PNG stores these pixels as they are.
    path, size = tmp_path / "b.png", (tmp_path / "b.png").stat().st_size
    write_png(path, np.full((12, 16), 21, np.uint8))
    assert path.stat().st_size == size
    assert changes(dataset) == ["the pixels of 1 image (b)"]


def test_unchanged_files_are_not_read_again(dataset: Dataset, tmp_path: Path) -> None:
    before = FileIdentity.of(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    assert FileIdentity.of(tmp_path / "a.png", before) == before
    (tmp_path / "a.png").chmod(0o644)
    stale = dataclasses.replace(before, modified_ns=before.modified_ns - 1)
    assert FileIdentity.of(tmp_path / "a.png", stale) == before


def test_folders_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a.zarr" / "0").mkdir(parents=True)
    (tmp_path / "a.zarr" / "0" / "c").write_bytes(b"123")
    before = FileIdentity.of(tmp_path / "a.zarr")
    assert before.digest == FileIdentity.of(tmp_path / "a.zarr").digest != ""
    (tmp_path / "a.zarr" / "0" / "c").write_bytes(b"124")
    assert FileIdentity.of(tmp_path / "a.zarr").digest != before.digest
    assert FileIdentity.of(tmp_path / "nowhere") == FileIdentity.of(None) == FileIdentity()
    assert digest_of_files([tmp_path / "a.zarr"]) != digest_of_files([tmp_path / "nowhere"])


def test_counts_of_classes_by_split(dataset: Dataset) -> None:
    identity = Identity.of(dataset)
    assert dict(identity.counts("train")) == {"cell": 3, "debris": 1}
    assert dict(identity.counts("val")) == {"cell": 2}
    assert identity.counts()["cell"] == 5
    assert Identity.from_dict(identity.to_dict(), Path("x")) == identity


def test_scores_are_part_of_predictions() -> None:
    scored = [digest_of_objects(Instances.from_label_map(LABELS, scores=[0.5, score])) for score in (0.5, 0.6)]
    assert len({*scored, digest_of_objects(Instances.from_label_map(LABELS))}) == 3

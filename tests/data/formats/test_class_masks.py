"""Class masks: a published sample, the rule for ids, splits, and malformed files."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import tifffile

from cellwright.core.errors import CellwrightError, FormatError, InputError, UsageError
from cellwright.data.formats import ReadOptions, class_masks, sniff
from cellwright.data.formats.class_masks import ClassMasks


@pytest.fixture
def sample(samples_root, tmp_path):
    with zipfile.ZipFile(samples_root / "nycu2025_sample.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path / "nycu2025_sample"


def folder(root, **files):
    root.mkdir(parents=True)
    for name, array in files.items():
        tifffile.imwrite(root / f"{name}.tif", array)
    return root


def test_a_published_sample(sample):
    assert sniff(sample).name == "class_masks"
    dataset = ClassMasks().read(sample, ReadOptions())
    assert dataset.class_names == ("class1", "class2")
    assert [(each.id, each.image_hw) for each in dataset] == [("sample", (397, 482))]
    cells = dataset[0].read_instances()
    assert np.bincount(cells.class_ids).tolist() == [2, 159]
    for k, name in enumerate(("class1", "class2")):
        labels = tifffile.imread(sample / "sample" / f"{name}.tif")
        of_class = cells[cells.class_ids == k]
        np.testing.assert_array_equal(of_class.masks.to_label_map(of_class.ids), labels)
    assert dataset[0].image_path == sample / "sample" / "image.tif"


def test_the_image_folder_itself_is_a_dataset(sample):
    dataset = ClassMasks().read(sample / "sample", ReadOptions(class_names=("a", "b", "c", "d")))
    assert dataset[0].id == "sample"
    assert dataset.class_names == ("a", "b", "c", "d")


LEFT = np.array([[1, 1, 0, 0], [0, 0, 0, 2]])
RIGHT = np.array([[0, 0, 5, 2], [0, 0, 0, 0]])


def test_ids_used_by_two_classes_are_made_unique(tmp_path):
    folder(tmp_path / "a", image=np.zeros((2, 4, 4), np.uint8), class1=LEFT.astype(float), class3=RIGHT.astype(float))
    cells = ClassMasks().read(tmp_path, ReadOptions())[0].read_instances()
    assert sorted(cells.ids.tolist()) == [1, 2, 2_000_002, 2_000_005]
    assert cells.class_ids.tolist() == [0, 0, 2, 2]
    assert cells.masks.areas.tolist() == [2, 1, 1, 1]


def test_ids_used_by_one_class_only_are_kept(tmp_path):
    folder(tmp_path / "a", image=np.zeros((2, 4), np.uint8), class1=LEFT, class2=np.where(RIGHT == 5, 5, 0))
    assert ClassMasks().read(tmp_path, ReadOptions())[0].read_instances().ids.tolist() == [1, 2, 5]


def test_large_labels_stay_unique():
    ids = class_masks.unique_ids(np.array([1, 3_000_001, 1]), np.array([0, 0, 3]))
    assert ids.tolist() == [1, 3_000_001, 30_000_001]


def test_splits_and_images_without_cells(tmp_path):
    image = np.zeros((2, 4), np.uint8)
    folder(tmp_path / "train" / "a", image=image, class1=LEFT)
    folder(tmp_path / "val" / "b", image=image)
    dataset = ClassMasks().read(tmp_path, ReadOptions())
    assert [(each.id, each.split, len(each.read_instances())) for each in dataset] == [
        ("a", "train", 2),
        ("b", "val", 0),
    ]


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (np.full((2, 4), 0.5), FormatError, "whole number"),
        (np.zeros((3, 4)), FormatError, "differ in size"),
        (-LEFT, FormatError, "a label is negative"),
    ],
)
def test_errors_name_the_malformed_mask(labels, error, words, tmp_path):
    folder(tmp_path / "a", image=np.zeros((2, 4), np.uint8), class1=LEFT, class2=labels)
    with pytest.raises(error, match=words) as caught:
        ClassMasks().read(tmp_path, ReadOptions())[0].read_instances()
    assert "class2.tif" in str(caught.value)


def test_missing_parts(tmp_path):
    folder(tmp_path / "a", class1=LEFT, class2=RIGHT)
    with pytest.raises(InputError, match="no image"):
        ClassMasks().read(tmp_path, ReadOptions())
    assert ClassMasks().read(tmp_path, ReadOptions(require_images=False))[0].image_hw == (2, 4)
    with pytest.raises(UsageError, match="too few class names"):
        ClassMasks().read(tmp_path, ReadOptions(class_names=("one",), require_images=False))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no class masks here"):
        ClassMasks().read(tmp_path / "empty", ReadOptions())


def test_two_files_for_one_class(tmp_path):
    root = folder(tmp_path / "a", image=np.zeros((2, 4), np.uint8), class1=LEFT)
    tifffile.imwrite(root / "class1.tiff", LEFT)
    with pytest.raises(CellwrightError, match="two masks of one class"):
        ClassMasks().read(tmp_path, ReadOptions())

"""Detecting the format of a path among all formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from cellwright.core.errors import InputError, UsageError
from cellwright.data.formats import (
    ReadOptions,
    WriteOptions,
    get_format,
    read_dataset,
    sniff,
)
from cellwright.data.formats.coco import Coco
from cellwright.data.formats.image_folder import ImageFolder


def save_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.zeros((8, 9), np.uint8)).save(path)
    return path


def test_formats_are_detected(tmp_path: Path) -> None:
    save_image(tmp_path / "folder/s1/images/s1.png")
    save_image(tmp_path / "folder/s1/masks/mask_1.png")
    save_image(tmp_path / "images/sub/a.png")
    (tmp_path / "results.json").write_text('[{"image_id": 1, "category_id": 1}]')
    (tmp_path / "instances.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    Coco().write(
        read_dataset(tmp_path / "images", ReadOptions(no_objects=True)),
        tmp_path / "dataset",
        WriteOptions(copy_images=True),
    )
    for name, expected in {
        "folder": "mask_folder",
        "images": "image_folder",
        "images/sub/a.png": "image_folder",
        "results.json": "coco_results",
        "instances.json": "coco",
        "dataset": "coco",
        "dataset/dataset.json": "coco",
    }.items():
        assert sniff(tmp_path / name).name == expected, name


def test_published_datasets_are_detected(vrdl_root: Path, dsb_root: Path, tmp_path: Path) -> None:
    for name, root in (("vrdl", vrdl_root / "train"), ("dsb", dsb_root)):
        some = tmp_path / name  # of 24 and 670 folders with 44,000 files
        some.mkdir()
        for folder in sorted(path for path in root.iterdir() if path.is_dir())[:6]:
            (some / folder.name).symlink_to(folder, target_is_directory=True)
        assert sniff(some).name == "mask_folder"
    tmp_path = tmp_path / "test"
    tmp_path.mkdir()
    whole, other = sorted((vrdl_root / "test").glob("*.png"))[:2]
    shutil.copy(whole, tmp_path)
    cv2.imwrite(str(tmp_path / other.name), cv2.imread(str(other))[:200, :200])
    with pytest.raises(InputError, match="2 images and nothing else"):
        read_dataset(tmp_path)
    test = read_dataset(tmp_path, ReadOptions(no_objects=True))
    assert len(test) == 2
    assert all(len(sample.read_instances()) == 0 for sample in test)
    assert test[0].id == "TCGA-50-5931-01Z-00-DX1"


def test_no_format_matches(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "sub").mkdir()
    with pytest.raises(
        InputError, match=r"unknown format\n(.|\n)*got: a folder with notes\.txt, sub/\n(.|\n)*mask_folder: <id>"
    ):
        sniff(tmp_path)
    with pytest.raises(InputError, match=r"got: a file notes\.txt of 0 bytes"):
        sniff(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="no such file or folder"):
        sniff(tmp_path / "absent")


def test_several_formats_match_and_a_name_chooses(tmp_path: Path) -> None:
    save_image(tmp_path / "s1/images/s1.png")
    save_image(tmp_path / "s1/masks/mask_1.png")
    save_image(tmp_path / "s2/image.png")
    save_image(tmp_path / "s2/class1.png")
    with pytest.raises(InputError, match=r"several formats match(.|\n)*got: mask_folder, class_masks(.|\n)*`format="):
        sniff(tmp_path)
    assert read_dataset(tmp_path, format="mask_folder")[0].id == "s1"
    with pytest.raises(UsageError, match="did you mean 'mask_folder'"):
        get_format("mask_foldr")


def test_a_prediction_folder_is_detected_whatever_else_is_in_it(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "a_masks.png")
    (tmp_path / "a.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    (tmp_path / "predictions.json").write_text("{}")
    assert sniff(tmp_path).name == "predictions"


def test_ids_keep_the_extension_if_they_would_be_equal_without_it(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "sub/a.png", ".ipynb_checkpoints/a.png"):
        save_image(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    assert [s.id for s in ImageFolder().read(tmp_path, ReadOptions())] == ["a.png", "a.tif", "sub/a"]
    ignored = [entry.path.name for entry in ImageFolder().clutter(tmp_path)]
    assert ignored == [".ipynb_checkpoints", "notes.txt"]


def test_the_root_of_splits_is_read_without_images_that_have_no_masks(tmp_path):
    """As the root of VRDL."""
    save_image(tmp_path / "train" / "one" / "masks" / "m.png")
    save_image(tmp_path / "train" / "one" / "images" / "one.png")
    save_image(tmp_path / "test" / "two.png")
    dataset = read_dataset(tmp_path)
    assert [(sample.id, sample.split) for sample in dataset] == [("one", "train")]
    assert [note.text for note in dataset.notes] == ["1 image without masks skipped, such as test/two.png"]
    assert sniff(tmp_path / "train").name == "mask_folder"

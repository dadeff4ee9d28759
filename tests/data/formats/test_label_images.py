"""Label images in the layouts of Cellpose, StarDist and other tools."""

from __future__ import annotations

import os

import imagecodecs
import numpy as np
import pytest
import tifffile

from cellwright.core.errors import CellwrightError, FormatError, InputError, UsageError
from cellwright.data.formats import ReadOptions, sniff
from cellwright.data.formats.label_images import LabelImages
from cellwright.data.formats.label_io import read_raster
from cellwright.data.formats.label_kinds import looks_annotated
from cellwright.testing.objects import draw_objects, save_dataset

LABELS = draw_objects(1, overlaps=False, scored=False).masks.to_label_map()
WITHOUT_IMAGES = ReadOptions(require_images=False)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(array))
    elif path.suffix == ".npy":
        np.save(path, array)
    else:
        tifffile.imwrite(path, array)
    return path


def save_image(path):
    return save(path, np.random.default_rng(1).integers(0, 255, (*LABELS.shape, 3), dtype=np.uint8))


def seg(labels):
    """What Cellpose's GUI saves next to an image."""
    return {
        "outlines": labels.astype(np.uint16),
        "colors": np.zeros((labels.max(), 3), np.uint8),
        "masks": labels,
        "chan_choose": [0, 0],
        "filename": "/home/somebody/x.tif",
        "flows": [np.zeros((2, 2), np.uint8), [], None],
        "ismanual": np.zeros(labels.max(), bool),
        "manual_changes": [],
        "model_path": 0,
        "diameter": np.nan,
    }


@pytest.mark.parametrize(
    ("image", "labels", "ids"),
    [
        ("x.tif", "x_masks.tif", ["x"]),
        ("x.png", "x_cp_masks.png", ["x"]),
        ("x.png", "x_mask.png", ["x"]),
        ("x.png", "x_label.tif", ["x"]),
        ("x.jpg.png", "x.jpg_labels.tif", ["x.jpg"]),
        ("000_img.png", "000_masks.png", ["000"]),
        ("images/x.tif", "masks/x.tif", ["x"]),
        ("images/x.png", "labels/x.tif", ["x"]),
        ("images/x.png", "masks/x_masks.png", ["x"]),
        ("train/images/x.tif", "train/masks/x.tif", ["x"]),
        ("day 1/x.tif", "day 1/x_masks.tif", ["day 1/x"]),
        ("x.tif", "x_seg.npy", ["x"]),
    ],
)
def test_layouts(image, labels, ids, tmp_path):
    save_image(tmp_path / image)
    save(tmp_path / labels, seg(LABELS.astype(np.uint16)) if labels.endswith("npy") else LABELS.astype(np.uint16))
    assert sniff(tmp_path).name == ("cellpose" if labels == "x_seg.npy" else "label_images")
    dataset = LabelImages().read(tmp_path, ReadOptions())
    assert [sample.id for sample in dataset] == ids
    assert dataset[0].image_path == tmp_path / image
    assert dataset[0].split == ("train" if image.startswith("train/") else None)
    np.testing.assert_array_equal(dataset[0].read_instances().masks.to_label_map(), LABELS)


def test_splits_may_contain_the_same_names(tmp_path):
    for split in ("train", "test"):
        save_image(tmp_path / split / "images" / "x.tif")
        save(tmp_path / split / "masks" / "x.tif", LABELS.astype(np.uint16))
    dataset = LabelImages().read(tmp_path, ReadOptions())
    assert [(sample.id, sample.split) for sample in dataset] == [("test/x", "test"), ("train/x", "train")]


def test_a_label_image_takes_precedence_over_a_seg_file(tmp_path):
    save_image(tmp_path / "x.png")
    save(tmp_path / "x_seg.npy", seg(LABELS.astype(np.uint16)))
    save(tmp_path / "x_cp_masks.png", (LABELS.max() == LABELS).astype(np.uint8))
    dataset = LabelImages().read(tmp_path, ReadOptions())
    assert len(dataset[0].read_instances()) == 1
    assert [note.text for note in dataset.notes] == [
        "some images have several label files: x_cp_masks.png and the like were read, x_seg.npy and the like were not"
    ]


def test_sizes_must_agree(tmp_path):
    save(tmp_path / "x.tif", np.zeros((9, 9), np.uint8))
    save(tmp_path / "x_masks.tif", LABELS)
    with pytest.raises(CellwrightError, match="differ in size"):
        LabelImages().read(tmp_path, ReadOptions())
    save(tmp_path / "images/y.tif", np.zeros((9, 9), np.uint8))
    save(tmp_path / "masks/y.tif", LABELS)
    (tmp_path / "x_masks.tif").unlink()
    with pytest.raises(FormatError, match="differ in size"):
        LabelImages().read(tmp_path, ReadOptions())[0].read_instances()


def test_two_label_images_for_one_image(tmp_path):
    save_image(tmp_path / "x.png")
    save(tmp_path / "x_masks.tif", LABELS)
    save(tmp_path / "x_label.tif", LABELS)
    with pytest.raises(InputError, match="belong to the same image"):
        LabelImages().read(tmp_path, ReadOptions())


def test_a_folder_of_label_images_only(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.tif", LABELS)
    assert sniff(tmp_path).name == "label_folder"
    dataset = LabelImages().read(tmp_path, WITHOUT_IMAGES)
    assert [(sample.id, sample.image_path) for sample in dataset] == [("a", None), ("b", None)]
    with pytest.raises(InputError, match="cannot find the annotated image"):
        LabelImages().read(tmp_path, ReadOptions())
    truth = save_dataset(tmp_path / "in", {name: draw_objects(1, overlaps=False, scored=False) for name in "ab"})
    assert LabelImages().read(tmp_path / "a.tif", ReadOptions(images=truth))[0].image_path == tmp_path / "in" / "a.png"
    assert sniff(tmp_path / "a.tif").name == "label_folder"


def test_photographs_do_not_look_annotated(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, LABELS.shape, dtype=np.uint8)

    def answer(path):
        return looks_annotated(read_raster(path))

    assert answer(save(tmp_path / "labels.tif", LABELS)) is True
    assert answer(save(tmp_path / "binary.png", (LABELS > 0).astype(np.uint8) * 255)) is True
    assert answer(save(tmp_path / "grey.png", grey)) is False
    assert answer(save_image(tmp_path / "colour.png")) is False
    assert answer(save(tmp_path / "empty.png", np.zeros((5, 5), np.uint8))) is None
    assert sniff(tmp_path).name == "image_folder"


class Owned:
    def __reduce__(self):
        return os.mkdir, ("OWNED",)


def test_a_malicious_seg_file_raises_an_error_and_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "x.png")
    np.save(tmp_path / "x_seg.npy", seg(LABELS.astype(np.uint16)) | {"img": Owned()})
    with pytest.raises(FormatError, match="more than data") as caught:
        LabelImages().read(tmp_path, ReadOptions())
    assert "x_seg.npy" in str(caught.value)
    assert "mkdir" in str(caught.value)
    assert not (tmp_path / "OWNED").exists()


@pytest.mark.parametrize("content", [{"no": 1}, {"masks": np.zeros((2, 3, 4), int)}, {"masks": [1]}, [1], 5])
def test_a_seg_file_without_2d_masks(content, tmp_path):
    np.save(tmp_path / "x_seg.npy", content)
    with pytest.raises(FormatError, match="masks"):
        LabelImages().read(tmp_path, WITHOUT_IMAGES)


def test_class_names(tmp_path):
    save(tmp_path / "x_masks.tif", LABELS)
    named = ReadOptions(class_names=("nucleus",), require_images=False)
    assert LabelImages().read(tmp_path, named).class_names == ("nucleus",)
    with pytest.raises(UsageError):
        LabelImages().read(tmp_path, ReadOptions(class_names=(), require_images=False))

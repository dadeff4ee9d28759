"""Raster annotations as users have them (`tests/cases/masks`), through the command line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from drawn import run
from PIL import Image as Pillow
from scipy.io import savemat
from skimage.measure import label

import cellwright as cw
from cellwright.core.errors import InputError
from cellwright.data.check import check_dataset

CASES = Path(__file__).parents[1] / "cases" / "masks"
SPLIT = ("--foreground", "split")


def convert(source: Path, out: Path, *options: str) -> tuple[int, dict]:
    """Exit code, and the dataset written: ``{sample id: objects}``."""
    code = run("data", "convert", source, "--out", out, *options)
    if code:
        return code, {}
    content = json.loads((out / "dataset.json").read_text())
    counts = Counter(annotation["image_id"] for annotation in content["annotations"] if not annotation["iscrowd"])
    return code, {image["sample_id"]: counts[image["id"]] for image in content["images"]}


@pytest.mark.parametrize(
    ("case", "options", "counts"),
    [
        ("40_binary_mask/a", SPLIT, {"x0": 9, "x1": 9}),
        ("40_binary_mask/b", SPLIT, {"x0": 9, "x1": 9}),
        ("40_binary_mask/c", SPLIT, {"x0": 9, "x1": 9}),
        ("40_binary_mask/onebit", SPLIT, {"x": 9}),
        ("41_semantic", SPLIT, {"x": 9}),
        ("42_colour_labels/rgb", (), {"x": 9}),
        ("42_colour_labels/rgba", (), {"x": 9}),
        ("42_colour_labels/rgbtif", (), {"x": 9}),
        ("42_colour_labels/three_equal", (), {"x": 9}),
        ("44_minus_one", (), {"x": 9}),
        ("45_gaps_and_parts/gaps", (), {"x": 8}),
        ("45_gaps_and_parts/parts", (), {"x": 8}),
        ("45_gaps_and_parts/f64", (), {"x": 9}),
        ("45_gaps_and_parts/nobg", (), {"x": 9}),
        ("46_seg_npy/old", (), {"x": 9}),
        ("46_seg_npy/v1", (), {"x": 9}),
        ("46_seg_npy/v4", (), {"x": 9}),
        ("46_seg_npy/u32", (), {"x": 7}),
        *((f"48_mask_folder/{name}", (), {"s1": 9}) for name in ("one", "soft", "jpg", "rgba", "alpha")),
        *(
            (f"49_other_layouts/{name}", (), {"i0": 9, "i1": 9})
            for name in ("biapy", "biapy_xy", "zerocost", "source_gt", "gt_suffix", "instance_suffix")
        ),
        ("49_other_layouts/ctc", (), {"01/t000": 9, "01/t001": 9}),
        ("49_other_layouts/nuinsseg", (), {"human bladder/human_bladder_01": 9}),
        ("49_other_layouts/consep", (), {"train_1": 9}),
        ("09_masks_that_are_no_labels/binary", SPLIT, {"im0": 12, "im1": 12}),
    ],
)
def test_read(case, options, counts, tmp_path):
    assert convert(CASES / case, tmp_path / "out", *options) == (0, counts)


@pytest.mark.parametrize(
    ("case", "options", "words"),
    [
        ("40_binary_mask/a", (), "the value 255 in 18 separate parts in 2 of 2 images"),
        ("40_binary_mask/b", (), "--foreground split"),
        ("40_binary_mask/c", (), "these are foreground masks"),
        ("40_binary_mask/c", ("--foreground", "refuse"), "give label images"),
        ("40_binary_mask/onebit", (), "these are foreground masks"),
        ("41_semantic", (), "these are class masks"),
        ("46_seg_npy/z", (), "each plane of a stack"),
        ("48_mask_folder/white", (), "black on white"),
        ("49_other_layouts/voc", (), "boxes, not outlines"),
        ("49_other_layouts/pannuke", (), "no image of this source has an object"),
        ("09_masks_that_are_no_labels/binary", (), "24 separate parts"),
        ("09_masks_that_are_no_labels/photo", (), "these are pictures"),
        ("09_masks_that_are_no_labels/photo", SPLIT, "these are pictures"),
    ],
)
def test_refused(case, options, words, tmp_path, capsys):
    assert convert(CASES / case, tmp_path / "out", *options)[0] == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("42_colour_labels/rgb", "each colour was taken as one object"),
        ("42_colour_labels/three_equal", "three equal channels"),
        ("44_minus_one", "background is -1"),
        ("45_gaps_and_parts/nobg", "the value 1, which covers the largest area, was taken as background"),
        ("49_other_layouts/nuinsseg", "label masks/ was read"),
    ],
)
def test_what_is_assumed_is_said(case, words, tmp_path, capsys):
    assert convert(CASES / case, tmp_path / "out")[0] == 0
    assert words in capsys.readouterr().err


def test_a_label_in_two_far_parts_is_a_finding():
    findings = check_dataset(cw.read_dataset(CASES / "45_gaps_and_parts/parts"))
    assert [finding.what for finding in findings if "far apart" in finding.what] == [
        "object 2 in separate parts that are far apart"
    ]
    findings = check_dataset(cw.read_dataset(CASES / "45_gaps_and_parts/gaps"))
    assert not [finding for finding in findings if "far apart" in finding.what]


def test_soft_masks_keep_their_areas(tmp_path):
    """Compared with the same objects without antialiasing."""
    areas = {}
    for name in ("one", "soft", "jpg", "rgba", "alpha"):
        instances = cw.read_dataset(CASES / "48_mask_folder" / name)[0].read_instances()
        areas[name] = instances.masks.areas[np.argsort(instances.ids)]
    for name in ("soft", "jpg", "rgba", "alpha"):
        np.testing.assert_allclose(areas[name], areas["one"], rtol=0.03, err_msg=name)


def test_split_masks_equal_scikit_image(tmp_path):
    mask = cv2.imread(str(CASES / "40_binary_mask/a/x0_mask.png"), cv2.IMREAD_UNCHANGED)
    ours = cw.read_instances(CASES / "40_binary_mask/a/x0_mask.png", foreground="split")
    theirs = label(mask > 0, connectivity=2)
    assert sorted(ours.masks.areas.tolist()) == sorted(np.bincount(theirs.ravel())[1:].tolist())
    for path in ("40_binary_mask/a/x0_mask.png", "09_masks_that_are_no_labels/photo/masks/im0.png"):
        with pytest.raises(InputError, match="these are"):
            cw.read_instances(CASES / path)
    for array in (mask, (mask > 0).astype(np.int32), mask.astype(np.uint16) // 128):
        with pytest.raises(InputError, match="foreground masks(.|\n)*skimage.measure.label"):
            cw.evaluate(array, theirs)


def test_classes_of_class_masks(tmp_path):
    dataset = cw.read_dataset(CASES / "41_semantic", foreground="split")
    assert dataset.class_names == ("class1", "class2")
    mask = cv2.imread(str(CASES / "41_semantic/x_mask.png"), cv2.IMREAD_UNCHANGED)
    expected = [label(mask == value, connectivity=2).max() for value in (1, 2)]
    assert np.bincount(dataset[0].read_instances().class_ids).tolist() == expected


@pytest.mark.parametrize("name", ["zeros", "zeros_named"])
def test_nothing_found_is_a_result(name, tmp_path):
    case = CASES / "13_nothing_found_as_label_images"
    assert run("evaluate", case / name, "--data", case / "truth", "--out", tmp_path, "--pictures", "0") == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["values"]["accuracy@0.5"] == 0


# Further cases


def discs(n: int = 12, hw: tuple[int, int] = (96, 128)) -> np.ndarray:
    """A label image of n discs that do not touch."""
    labels = np.zeros(hw, np.uint16)
    for k in range(n):
        cv2.circle(labels, (16 + 30 * (k % 4), 16 + 30 * (k // 4)), 5 + k % 4, k + 1, -1)
    return labels


def save(folder: Path, **arrays: np.ndarray) -> Path:
    """``x.tif`` of noise, and each array as ``x_<name>.tif``."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, next(iter(arrays.values())).shape[:2], np.uint8)
    tifffile.imwrite(folder / "x.tif", noise)
    for name, array in arrays.items():
        tifffile.imwrite(folder / f"x_{name}.tif", array)
    return folder


def test_void_pixels_become_an_ignored_region(tmp_path, capsys):
    labels = discs()
    outlined = labels.copy().astype(np.uint8)
    edges = cv2.dilate(outlined, np.ones((5, 5), np.uint8)) - outlined > 0
    outlined[edges & (labels == 0)] = 255
    folder = save(tmp_path / "in", masks=outlined)
    assert convert(folder, tmp_path / "out")[0] == 2
    assert "--void 255" in capsys.readouterr().err
    assert convert(folder, tmp_path / "out", "--void", "255") == (0, {"x": 12})
    instances = cw.read_dataset(tmp_path / "out")[0].read_instances()
    assert int(instances.masks.areas[instances.ignore].sum()) == int((outlined == 255).sum())
    np.testing.assert_array_equal(instances[~instances.ignore].to_label_map(), labels)


def test_void_in_one_part_is_said(tmp_path, capsys):
    labels = discs().astype(np.uint8)
    labels[90:, :] = 255
    assert convert(save(tmp_path / "in", masks=labels), tmp_path / "out") == (0, {"x": 13})
    assert "--void 255" in capsys.readouterr().err


def test_repeated_numbers_are_refused_or_split(tmp_path, capsys):
    """More objects than an 8-bit file can number."""
    labels = np.kron(np.arange(1, 1601).reshape(40, 40) % 256, np.pad(np.ones((6, 6), int), 1)).astype(np.uint8)
    folder = save(tmp_path / "in", masks=labels)
    assert convert(folder, tmp_path / "out")[0] == 2
    assert "labels occur in several separate parts" in capsys.readouterr().err
    n_parts = label(labels > 0, connectivity=2).max()
    assert convert(folder, tmp_path / "out", *SPLIT) == (0, {"x": n_parts})


def test_masks_among_label_images_are_named(tmp_path, capsys):
    save(tmp_path / "in", masks=discs())
    tifffile.imwrite(tmp_path / "in" / "y.tif", np.zeros((96, 128), np.uint8))
    tifffile.imwrite(tmp_path / "in" / "y_masks.tif", (discs() > 0).astype(np.uint8))
    assert convert(tmp_path / "in", tmp_path / "out")[0] == 2
    assert "y_masks.tif" in capsys.readouterr().err


def test_a_source_without_objects_is_refused(tmp_path, capsys):
    folder = save(tmp_path / "in", masks=np.zeros((96, 128), np.uint16))
    assert convert(folder, tmp_path / "out")[0] == 2
    assert "no image of this source has an object" in capsys.readouterr().err
    assert convert(folder, tmp_path / "out", "--no-objects") == (0, {"x": 0})
    ignored = save(tmp_path / "void", masks=np.pad(np.full((5, 5), 255, np.uint8), 9))
    assert convert(ignored, tmp_path / "out2", "--void", "255")[0] == 2
    assert "1 ignored region" in capsys.readouterr().err


def test_inverted_foreground_is_not_split(tmp_path, capsys):
    folder = save(tmp_path / "in", mask=np.where(discs() > 0, 0, 255).astype(np.uint8))
    assert convert(folder, tmp_path / "out", *SPLIT)[0] == 2
    assert "black on white" in capsys.readouterr().err


def test_smooth_foreground_is_thresholded_at_half(tmp_path):
    mask = cv2.resize((discs() > 0).astype(np.uint8) * 255, (256, 192), interpolation=cv2.INTER_LINEAR)
    folder = save(tmp_path / "in", mask=mask)
    assert convert(folder, tmp_path / "out", *SPLIT) == (0, {"x": 12})
    instances = cw.read_dataset(tmp_path / "out")[0].read_instances()
    assert int(instances.masks.areas.sum()) == int((mask > 127.5).sum())


def test_more_than_65535_objects(tmp_path):
    labels = np.arange(257 * 257, dtype=np.uint32).reshape(257, 257)
    assert convert(save(tmp_path / "in", masks=labels), tmp_path / "out") == (0, {"x": 66_048})
    assert run("export", tmp_path / "out", "--to", "label_images", "--out", tmp_path / "again") == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "again" / "x_masks.tif"), labels)


def test_images_without_labels_are_counted_or_kept(tmp_path, capsys):
    for folder in ("images", "masks"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    for k in range(3):
        tifffile.imwrite(tmp_path / "in" / "images" / f"{k}.tif", np.zeros((96, 128), np.uint8))
    tifffile.imwrite(tmp_path / "in" / "masks" / "0.tif", discs())
    assert convert(tmp_path / "in", tmp_path / "out") == (0, {"0": 12})
    assert "2 images without a label image" in capsys.readouterr().err
    assert convert(tmp_path / "in", tmp_path / "all", "--no-objects") == (0, {"0": 12, "1": 0, "2": 0})


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("img_1.png", "mask_1.png"),
        ("set1/raw.tif", "set1/instances_ids.png"),
        ("imagesTr/1_0000.png", "labelsTr/1.png"),
        ("images/train/1.png", "masks/train/1.png"),
        ("Train/Images/1.PNG", "Train/Label Masks/1-label.png"),
    ],
)
def test_other_habits_of_naming(image, labels, tmp_path):
    for name, array in ((image, np.full((96, 128), 7, np.uint8)), (labels, discs().astype(np.uint8))):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(array).save(tmp_path / "in" / name)
    code, counts = convert(tmp_path / "in", tmp_path / "out")
    assert (code, list(counts.values())) == (0, [12])


@pytest.mark.parametrize("name", ["x.json", "Annotations/x.xml", "x.csv.gz"])
def test_annotations_that_are_not_understood_are_named(name, tmp_path, capsys):
    save(tmp_path / "in", noise=np.zeros((9, 9)))
    (tmp_path / "in" / "x_noise.tif").unlink()
    (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "in" / name).write_bytes(b"{}" if name == "x.json" else b"<a/>")
    assert convert(tmp_path / "in", tmp_path / "out")[0] == 2
    assert Path(name).name in capsys.readouterr().err


def test_ctc_prefers_reference_labels_and_counts_frames(tmp_path, capsys):
    root = tmp_path / "in"
    for folder in ("01", "01_GT/SEG", "01_ST/SEG"):
        (root / folder).mkdir(parents=True)
    for k in range(3):
        tifffile.imwrite(root / "01" / f"t{k:03d}.tif", np.zeros((96, 128), np.uint8))
    tifffile.imwrite(root / "01_GT/SEG/man_seg000.tif", discs())
    for k in range(2):
        tifffile.imwrite(root / f"01_ST/SEG/man_seg{k:03d}.tif", discs(4))
    assert convert(root, tmp_path / "out") == (0, {"01/t000": 12, "01/t001": 4})
    assert "1 frame without a label image" in capsys.readouterr().err


def test_voc_masks_have_classes_and_void(tmp_path):
    root = tmp_path / "in"
    for folder in ("JPEGImages", "SegmentationObject", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    labels = discs().astype(np.uint8)
    classes = np.where(labels == 0, 0, 1 + labels % 2).astype(np.uint8)
    Pillow.fromarray(np.zeros((96, 128), np.uint8)).save(root / "JPEGImages/x.jpg")
    for folder, array in (("SegmentationObject", labels), ("SegmentationClass", classes)):
        array[:3] = 255
        Pillow.fromarray(array).save(root / folder / "x.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("x\n")
    assert convert(root, tmp_path / "out", "--classes", "even", "odd") == (0, {"x": 12})
    sample = cw.read_dataset(tmp_path / "out")[0]
    instances = sample.read_instances()
    kept = instances[~instances.ignore]
    assert sample.split == "val"
    assert int(instances.ignore.sum()) == 1
    assert (kept.class_ids == kept.ids % 2).all()


@pytest.mark.parametrize("layout", ["type_map", "inst_type", "id and class"])
def test_instance_maps_have_types(layout, tmp_path):
    labels = discs()
    types = 1 + np.arange(1, 13) % 3
    content: dict = {"inst_map": labels.astype(np.float64)}
    if layout == "type_map":
        content["type_map"] = np.concatenate([[0], types])[labels]
    elif layout == "inst_type":
        content["inst_type"] = types[:, None]
    else:
        content |= {"id": np.arange(1, 13)[::-1], "class": types[::-1]}
    for folder in ("Images", "Labels"):
        (tmp_path / "in" / "Test" / folder).mkdir(parents=True)
    Pillow.fromarray(np.zeros((96, 128, 3), np.uint8)).save(tmp_path / "in/Test/Images/a.png")
    savemat(tmp_path / "in/Test/Labels/a.mat", content)
    assert convert(tmp_path / "in", tmp_path / "out", "--classes", "a", "b", "c") == (0, {"a": 12})
    sample = cw.read_dataset(tmp_path / "out")[0]
    instances = sample.read_instances()
    assert sample.split == "test"
    assert (instances.class_ids == types[instances.ids - 1] - 1).all()


def test_pannuke_and_conic_stacks(tmp_path):
    labels = discs()
    masks = np.zeros((2, 96, 128, 6))
    masks[0, :, :, 0], masks[0, :, :, 4] = np.where(labels < 5, labels, 0), np.where(labels >= 5, labels, 0)
    masks[1, :, :, 2] = labels
    images = np.random.default_rng(0).integers(0, 255, (2, 96, 128, 3)).astype(float)
    root = tmp_path / "in" / "Fold 1"
    for name, array in (("images", images), ("masks", masks)):
        (root / name / "fold1").mkdir(parents=True)
        np.save(root / name / "fold1" / f"{name}.npy", array)
    code, counts = convert(tmp_path / "in", tmp_path / "out")
    assert (code, list(counts.values())) == (0, [12, 12])
    dataset = cw.read_dataset(tmp_path / "out")
    np.testing.assert_array_equal(cw.read_image(dataset[1].image_path).data, images[1])
    assert dataset.class_names[4] == "Epithelial"
    first = dataset[0].read_instances()
    assert (first.class_ids == np.where(first.ids < 5, 0, 4)).all()

    conic = tmp_path / "conic"
    conic.mkdir()
    np.save(conic / "images.npy", images.astype(np.uint8))
    np.save(conic / "labels.npy", np.stack([np.stack([labels, (labels > 0) * (1 + labels % 6)], -1)] * 2))
    assert convert(conic, tmp_path / "out2") == (0, {"00000": 12, "00001": 12})
    instances = cw.read_dataset(tmp_path / "out2")[0].read_instances()
    assert (instances.class_ids == instances.ids % 6).all()

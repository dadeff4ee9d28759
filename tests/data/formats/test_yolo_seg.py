"""YOLO segmentation labels: layouts, splits, class names, boxes, scores; written labels give the same pixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import read_dataset, sniff
from cellwright.data.formats.contract import ReadOptions, WriteOptions
from cellwright.data.formats.yolo_seg import YoloSeg, one_ring
from cellwright.testing.objects import draw_shapes

HW = (40, 64)
TRIANGLE = "0 .1 .1 .5 .2 .2 .7\n"
DATA = "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: nucleus\n  1: dead\n"


def save(root: Path, labels: dict[str, str], data: str | None = DATA, images: bool = True) -> Path:
    """Label files by their path, the image of each in ``images`` instead of ``labels``, and ``data.yaml``."""
    for name, text in labels.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        image = root / name.replace("labels", "images").replace(".txt", ".png")
        if images:
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(imagecodecs.png_encode(np.zeros(HW, np.uint8)))
    if data is not None:
        (root / "data.yaml").write_text(data)
    return root


ROBOFLOW = "train: ../train/images\nval: ../valid/images\nnames: [n]\n"
FOLDS = "train: images/fold1\nval: images/fold2\nnames: [n]\n"
LAYOUTS = {
    "ultralytics": ("labels/train/a.txt", "labels/val/b.txt", DATA),
    "roboflow": ("train/labels/a.txt", "valid/labels/b.txt", ROBOFLOW),
    "other folders": ("labels/fold1/a.txt", "labels/fold2/b.txt", FOLDS),
    "lists": ("labels/x/a.txt", "labels/x/b.txt", "train: train.txt\nval: val.txt\nnames: [n]\n"),
    "no data file": ("labels/train/a.txt", "labels/val/b.txt", None),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_their_splits(layout, tmp_path):
    first, second, data = LAYOUTS[layout]
    save(tmp_path, {first: TRIANGLE, second: ""}, data)
    if layout == "lists":
        (tmp_path / "train.txt").write_text("./images/x/a.png\n")
        (tmp_path / "val.txt").write_text("/content/data/images/x/b.png\n")
    assert sniff(tmp_path).name == "yolo_seg"
    dataset = read_dataset(tmp_path)
    assert [(Path(sample.id).name, sample.split) for sample in dataset] == [("a", "train"), ("b", "val")]
    assert [len(sample.read_instances()) for sample in dataset] == [1, 0]
    assert all(sample.image_path is not None and sample.image_path.stem == Path(sample.id).name for sample in dataset)


def test_an_outline_is_filled(tmp_path):
    save(tmp_path, {"labels/a.txt": TRIANGLE})
    mask = read_dataset(tmp_path)[0].read_instances().masks.to_dense()[0]
    corners = np.array([[0.1 * 64, 0.1 * 40], [0.5 * 64, 0.2 * 40], [0.2 * 64, 0.7 * 40]])
    fine = np.zeros((40 * 16, 64 * 16), np.uint8)
    cv2.fillPoly(fine, [np.round(corners * 16).astype(np.int32)], 1)
    assert mask.sum() == pytest.approx(fine.sum() / 256, rel=0.03)


def test_class_names_and_their_selection(tmp_path):
    save(tmp_path, {"labels/a.txt": TRIANGLE + TRIANGLE.replace("0 ", "1 ", 1)})
    dataset = YoloSeg().read(tmp_path, ReadOptions())
    assert dataset.class_names == ("nucleus", "dead")
    assert dataset[0].read_instances().class_ids.tolist() == [0, 1]
    chosen = YoloSeg().read(tmp_path, ReadOptions(class_names=("dead",)))
    assert chosen[0].read_instances().class_ids.tolist() == [0]
    with pytest.raises(UsageError, match="did you mean 'dead'"):
        YoloSeg().read(tmp_path, ReadOptions(class_names=("dea",)))


def test_class_names_without_a_data_file(tmp_path):
    save(tmp_path, {"labels/a.txt": TRIANGLE.replace("0 ", "1 ", 1)}, None)
    assert YoloSeg().read(tmp_path, ReadOptions()).class_names == ("class0", "class1")
    named = YoloSeg().read(tmp_path, ReadOptions(class_names=("x", "y")))
    assert (named.class_names, named[0].read_instances().class_ids.tolist()) == (("x", "y"), [1])
    (tmp_path / "classes.txt").write_text("first\nsecond\n")
    assert YoloSeg().read(tmp_path, ReadOptions()).class_names == ("first", "second")
    (tmp_path / "classes.txt").write_text("first\nfirst\n")
    with pytest.raises(FormatError, match="two classes have the same name"):
        YoloSeg().read(tmp_path, ReadOptions())


def test_predictions_have_a_score_at_the_end(tmp_path):
    save(tmp_path, {"labels/a.txt": "0 .1 .1 .5 .2 .2 .7 .25\n"})
    scores = read_dataset(tmp_path)[0].read_instances().scores
    assert scores is not None
    assert scores.tolist() == [0.25]


def test_boxes_are_left_out_with_a_count_and_refused_alone(tmp_path):
    save(tmp_path / "some", {"labels/a.txt": TRIANGLE + "0 .5 .5 .2 .2\n"})
    dataset = read_dataset(tmp_path / "some")
    assert len(dataset[0].read_instances()) == 1
    assert dataset.notes[0].text == "1 of 2 objects have a box but no outline and were skipped"
    save(tmp_path / "all", {"labels/a.txt": "0 .5 .5 .2 .2\n" * 3})
    with pytest.raises(FormatError, match=r"boxes without outlines(.|\n)*got: 3 lines"):
        read_dataset(tmp_path / "all")


def test_only_quadrilaterals_are_noted(tmp_path):
    save(tmp_path, {"labels/a.txt": "0 .1 .1 .3 .1 .3 .4 .1 .4\n" * 6})
    assert "all 6 outlines have 4 vertices" in read_dataset(tmp_path).notes[0].text


BAD = {
    "0 .1 .1 .5\n": "not a YOLO label",
    "0 .1 .1 .5 .2 .2 x\n": "not a YOLO label",
    "0 .1 .1 .5 .2 .2 nan\n": "not a YOLO label",
    "-1 .1 .1 .5 .2 .2 .7\n": "not a YOLO label",
    "0 6 4 32 8 13 28\n": r"not fractions of width and height(.|\n)*got: 32",
    "5 .1 .1 .5 .2 .2 .7\n": r"a class number has no name\n.*a\.txt, line 2\n  got: 5\n  expected: 0 to 1",
    "0 .1 .1 .5 .2 .2 .7 .9\n": r"some objects have a score.*\n.*a\.txt, line 2\n  got: 1 line of 2 with",
}


@pytest.mark.parametrize("line", BAD)
def test_malformed_lines_are_named(line, tmp_path):
    save(tmp_path, {"labels/a.txt": TRIANGLE + line})
    with pytest.raises(FormatError, match=BAD[line]):
        read_dataset(tmp_path, format="yolo_seg")


@pytest.mark.parametrize("data", ["names: [a, a]\n", "names: 7\n", "names: [a\n", "names: [a]\nkpt_shape: [17, 3]\n"])
def test_malformed_data_files_are_refused(data, tmp_path):
    save(tmp_path, {"labels/a.txt": TRIANGLE}, "train: images\n" + data)
    with pytest.raises(FormatError, match=r"data\.yaml"):
        read_dataset(tmp_path, format="yolo_seg")


def test_missing_images_and_images_elsewhere(tmp_path):
    save(tmp_path / "in", {"labels/p/a.txt": TRIANGLE, "labels/q/a.txt": ""}, images=False)
    with pytest.raises(InputError, match="size of the annotated image is unknown"):
        read_dataset(tmp_path / "in")
    save(tmp_path / "elsewhere", {"labels/p/a.txt": "", "labels/q/a.txt": ""})
    dataset = read_dataset(tmp_path / "in", ReadOptions(images=tmp_path / "elsewhere" / "images"))
    assert [sample.image_path for sample in dataset] == [
        tmp_path / "elsewhere" / "images" / folder / "a.png" for folder in "pq"
    ]


@pytest.mark.parametrize("width", [64, 61])
def test_holes_and_parts_are_joined_to_one_outline(width, tmp_path):
    """In a width that is a power of 2, coordinates are exact, so that ties would show."""
    shapes = draw_shapes(np.random.default_rng(1), (40, width), 40)
    masks = MaskSet.from_dense(shapes[shapes.any((1, 2))])
    rings = [one_ring(polygons) for polygons in masks.to_polygons()]
    assert MaskSet.from_polygons([[[ring]] for ring in rings], masks.image_hw) == masks
    image = tmp_path / "a.png"
    image.write_bytes(imagecodecs.png_encode(np.zeros((40, width), np.uint8)))
    samples = [Sample("a", image, (40, width), Loaded(Instances.from_masks(masks)), split="val")]
    YoloSeg().write(Dataset(tuple(samples), ("n",)), tmp_path / "out", WriteOptions(copy_images=True))
    (again,) = read_dataset(tmp_path / "out")
    assert (again.id, again.split) == ("a", "val")
    assert again.read_instances().masks == masks
    assert (tmp_path / "out" / "images" / "val" / "a.png").is_file()
    assert "val: images/val" in (tmp_path / "out" / "data.yaml").read_text()


def test_a_line_that_is_almost_a_label_is_refused_at_once(tmp_path: Path) -> None:
    """Matching it took eight times as long with every number."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 " + "11111111 " * 400 + "x\n")
    assert not YoloSeg().sniff(tmp_path)

"""COCO JSON compared with pycocotools: RLE, polygons, crowds, LIVECell's mapping, and writing and reading datasets."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats.coco import Coco
from cellwright.data.formats.contract import ReadOptions, WriteOptions
from cellwright.data.formats.mask_folder import MaskFolder

# pycocotools was compiled for NumPy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HW = (40, 50)


def random_masks(seed: int, n: int = 6) -> np.ndarray:
    """Overlapping ellipses (n, H, W) bool, some with holes, some in several parts, and one of a single pixel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: HW[0], : HW[1]]
    masks = np.zeros((n, *HW), bool)
    for k in range(n):
        for _ in range(1 + k % 2):
            cy, cx, ry, rx = rng.uniform((0, 0, 3, 3), (*HW, 12, 12))
            distance = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2
            masks[k] |= (distance < 1) & (distance > 0.1 * (k % 3))
    masks[-1], masks[-1, 0, 49] = False, True
    return masks


def encode(mask: np.ndarray) -> dict[str, Any]:
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": runs["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [1 - int(flat[-1])]])))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


POLYGONS = [[10.2, 3.1, 30.7, 5.5, 25.0, 30.25, 8.9, 22.0], [40, 30, 48.5, 30, 44, 38.9]]


def document(segmentations: list[Any], **changes: Any) -> dict[str, Any]:
    annotations = [
        {"id": 10 * (k + 1), "image_id": 7, "category_id": 3, "segmentation": segmentation, "iscrowd": 0}
        for k, segmentation in enumerate(segmentations)
    ]
    images = [{"id": 7, "file_name": "a.png", "width": HW[1], "height": HW[0]}]
    categories = [{"id": 3, "name": "nucleus"}]
    return {"images": images, "annotations": annotations, "categories": categories} | changes


def save(folder: Path, content: Any, name: str = "instances.json") -> Path:
    folder.mkdir(exist_ok=True)
    Pillow.fromarray(np.zeros(HW, np.uint8)).save(folder / "a.png")
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / name


def load_first(path: Path, **options: Any) -> Instances:
    return Coco().read(path, ReadOptions(**options))[0].read_instances()


@pytest.mark.parametrize("seed", range(3))
def test_compressed_and_uncompressed_rle_mixed_with_polygons(tmp_path: Path, seed: int) -> None:
    masks = random_masks(seed)
    segmentations = [encode(masks[0]), POLYGONS, uncompressed(masks[1]), encode(masks[2]), [POLYGONS[1]]]
    path = save(tmp_path, document(segmentations))
    instances = load_first(path)
    reference = COCO(str(path))
    expected = np.stack([reference.annToMask(each) for each in reference.loadAnns([10, 20, 30, 40, 50])]).astype(bool)
    np.testing.assert_array_equal(instances.masks.to_dense(), expected)
    assert instances.ids.tolist() == [10, 20, 30, 40, 50]
    assert instances.scores is None


def test_crowds_become_ignored_and_boxes_come_from_the_file(tmp_path: Path) -> None:
    content = document([uncompressed(mask) for mask in random_masks(0, 3)])
    content["annotations"][1] |= {"iscrowd": 1, "bbox": [1.5, 2.25, 10, 20.5]}
    instances = load_first(save(tmp_path, content))
    assert instances.ignore.tolist() == [False, True, False]
    assert instances.boxes_xyxy[1].tolist() == [1.5, 2.25, 11.5, 22.75]
    np.testing.assert_array_equal(instances.boxes_xyxy[0], instances.masks.boxes[0])


def test_annotations_as_a_mapping_like_livecells(tmp_path: Path) -> None:
    content = document([encode(mask) for mask in random_masks(1)])
    listed = load_first(save(tmp_path / "list", content))
    content["annotations"] = {str(entry["id"]): entry for entry in content["annotations"]}
    assert load_first(save(tmp_path / "mapping", content)).masks == listed.masks


def test_classes_are_in_order_of_category_ids_or_as_selected(tmp_path: Path) -> None:
    masks = random_masks(2, 3)
    names = [{"id": 9, "name": "zebra"}, {"id": 2, "name": "ant"}, {"id": 5, "name": "bee"}]
    content = document([encode(mask) for mask in masks], categories=names)
    for annotation, number in zip(content["annotations"], (9, 2, 5), strict=True):
        annotation["category_id"] = number
    path = save(tmp_path, content)
    dataset = Coco().read(path, ReadOptions())
    assert dataset.class_names == ("ant", "bee", "zebra")
    assert dataset.info["category_ids"] == [2, 5, 9]
    assert dataset[0].read_instances().class_ids.tolist() == [2, 0, 1]
    chosen = Coco().read(path, ReadOptions(class_names=("zebra", "ant")))
    assert chosen[0].read_instances().class_ids.tolist() == [0, 1]
    assert chosen[0].read_instances().ids.tolist() == [10, 20]
    with pytest.raises(UsageError, match="did you mean 'zebra'"):
        Coco().read(path, ReadOptions(class_names=("zebr",)))


@pytest.mark.parametrize("place", ["a.png", "images/a.png", "deep/down/a.png", "../images/a.png", "../train/a.png"])
def test_images_are_found_in_the_usual_places(tmp_path: Path, place: str) -> None:
    path = save(tmp_path / "annotations", document([]), "instances_train.json")
    target = tmp_path / "annotations" / place
    target.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "annotations" / "a.png").rename(target)
    image_path = Coco().read(path, ReadOptions())[0].image_path
    assert image_path is not None
    assert image_path.samefile(target)


def test_missing_images_raise_an_error_unless_allowed(tmp_path: Path) -> None:
    path = save(tmp_path, document([encode(random_masks(0)[0])]))
    (tmp_path / "a.png").unlink()
    with pytest.raises(
        InputError, match=r"1 of 1 images are missing\n  where: .*instances\.json\n  got: a\.png(.|\n)*fix: put"
    ):
        Coco().read(path, ReadOptions())
    dataset = Coco().read(path, ReadOptions(require_images=False))
    assert dataset[0].image_path is None
    assert len(dataset[0].read_instances()) == 1


def test_a_missing_size_is_read_from_the_image(tmp_path: Path) -> None:
    content = document([encode(random_masks(0)[0])])
    del content["images"][0]["width"]
    assert Coco().read(save(tmp_path, content), ReadOptions())[0].image_hw == HW


def test_no_annotations_and_an_empty_polygon(tmp_path: Path) -> None:
    assert len(load_first(save(tmp_path, document([])))) == 0
    content = document([[], encode(np.zeros(HW))])
    assert load_first(save(tmp_path, content)).masks.areas.tolist() == [0]
    for annotation in content["annotations"]:
        annotation["score"] = 0.5
    assert load_first(save(tmp_path, content)).masks.areas.tolist() == [0, 0]  # a prediction counts as one


NAN = float("nan")
BAD = {
    "malformed": ('{"images": [{"id": 7,}]}', r"not valid JSON\n  where: .*instances\.json, line 1, column 2"),
    "cut off": (json.dumps(document([POLYGONS]))[:-40], r"not valid JSON(.|\n)*got: the end of the file|Unterminated"),
    "no images": (document([], images=[]), r"lists no images\n  where: .*instances\.json"),
    "no categories": (document([], categories=[]), r"has no categories(.|\n)*got: \[\]"),
    "nan width": ({"width": NAN}, r"width is not a whole number\n  where: .*image 1 \(a\.png\)\n  got: nan"),
    "half a pixel": ({"height": 40.5}, r"height is not a whole number(.|\n)*got: 40\.5\n  expected: a whole number"),
    "text size": ({"height": "4O"}, r"height is not a whole number(.|\n)*got: '4O'"),
    "negative": ({"width": -50}, r"width is not positive(.|\n)*got: -50"),
    "no file name": ({"file_name": None}, r"an image has no file name\n  where: .*image 1\n  got: None"),
    "unknown category": (
        [{"category_id": 4}],
        r"unknown category\n.*annotation 1\n  got: category_id 4\n  expected: one of 3",
    ),
    "unknown image": ([{"image_id": 8}], r"belongs to no image\n.*annotation 1\n  got: image_id 8"),
    "no image": ([{"image_id": None}], r"image_id is not a whole number\n.*annotation 1\n  got: nothing"),
    "one score only": ([{"score": 0.5}, {}], r"some annotations have a score(.|\n)*got: 1 scores for 2 annotations"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_files_raise_an_error_when_opened(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    if isinstance(content, list):
        changes, content = content, document([POLYGONS for _ in content])
        for annotation, change in zip(content["annotations"], changes, strict=True):
            annotation.update(change)
    elif isinstance(content, dict) and "images" not in content:
        change, content = content, document([])
        content["images"][0].update(change)
    with pytest.raises(FormatError, match=message):
        Coco().read(save(tmp_path, content), ReadOptions())


BAD_OBJECTS = {
    "no segmentation": ({"segmentation": "8 9"}, r"no segmentation(.|\n)*got: str"),
    "other size": ({"segmentation": {"size": [50, 40], "counts": [2000]}}, r"got: \[50, 40\]\n  expected: \[40, 50\]"),
    "short counts": (
        {"segmentation": {"size": [40, 50], "counts": [1999]}},
        r"got: sum 1999\n  expected: 40 x 50 = 2000",
    ),
    "odd polygon": ({"segmentation": [[1, 2, 3, 4, 5]]}, r"invalid polygon(.|\n)*got: \[1, 2, 3, 4, 5\]"),
    "huge polygon": ({"segmentation": [[1, 2, 3, 4, 5, 10**400]]}, "invalid polygon"),
    "nan polygon": ({"segmentation": [[1, 2, 3, 4, 5, NAN]]}, "invalid polygon"),
    "bbox": ({"bbox": [1, 2, -3, 4]}, r"bbox is malformed(.|\n)*got: \[1, 2, -3, 4\]"),
}


@pytest.mark.parametrize("case", BAD_OBJECTS)
def test_malformed_annotations_raise_an_error_when_read(tmp_path: Path, case: str) -> None:
    change, message = BAD_OBJECTS[case]
    content = document([encode(mask) for mask in random_masks(0, 3)])
    content["annotations"][1].update(change)
    with pytest.raises(FormatError, match=message) as caught:
        load_first(save(tmp_path, content))
    assert "instances.json, annotation id 20 of image id 7" in str(caught.value)


def test_score_out_of_range(tmp_path: Path) -> None:
    content = document([POLYGONS])
    content["annotations"][0]["score"] = 87
    with pytest.raises(FormatError, match=r"score is out of range(.|\n)*got: 87\n  expected: a number from 0 to 1"):
        load_first(save(tmp_path, content))


def make_dataset(folder: Path, *, scored: bool) -> Dataset:
    rng = np.random.default_rng(0)
    samples = []
    for k, name in enumerate(["x/a", "x/b", "empty"]):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(np.full(HW, k, np.uint8)).save(path)
        n = 0 if name == "empty" else 6
        instances = Instances.from_masks(
            MaskSet.from_dense(random_masks(k)[:n]),
            class_ids=rng.integers(0, 2, n),
            ids=rng.permutation(np.arange(100, 200))[:n],
            scores=rng.random(n) if scored else None,
            ignore=rng.random(n) < 0.3,
            boxes_xyxy=rng.uniform(0, 40, (n, 4)).cumsum(1),
        )
        samples.append(
            Sample(
                name, path, HW, Loaded(instances), 30 - k, ("train", None, "val")[k], "g" if k else None, (0.5, 0.25)
            )
        )
    return Dataset(tuple(samples), ("żółw", "b"), folder, "CC0", {"scanner": "X", "category_ids": [4, 9]})


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("copy_images", [False, True])
def test_a_dataset_that_is_written_and_read_is_unchanged(tmp_path: Path, scored: bool, copy_images: bool) -> None:
    dataset = make_dataset(tmp_path / "in", scored=scored)
    written = Coco().write(dataset, tmp_path / "out", WriteOptions(copy_images=copy_images))
    assert all(path.is_file() for path in written)
    assert len(written) == (5 if copy_images else 2)
    again = Coco().read(tmp_path / "out", ReadOptions())
    assert (again.class_names, again.licence) == (dataset.class_names, "CC0")
    assert again.info == {"scanner": "X", "format": "coco", "category_ids": [4, 9]}
    for before, after in zip(dataset, again, strict=True):
        for field in ("id", "image_hw", "image_id", "split", "group", "pixel_size_um"):
            assert getattr(before, field) == getattr(after, field)
        assert before.image_path is not None
        assert after.image_path is not None
        assert before.image_path.read_bytes() == after.image_path.read_bytes()
        first, second = before.read_instances(), pickle.loads(pickle.dumps(after)).read_instances()
        assert first.masks == second.masks
        for field in ("ids", "class_ids", "ignore", "boxes_xyxy", "scores"):
            if field == "boxes_xyxy":  # COCO stores width and height, so the far sides may be rounded
                np.testing.assert_allclose(first.boxes_xyxy, second.boxes_xyxy, rtol=1e-6)
            elif getattr(first, field) is None:
                assert getattr(second, field) is None
            else:
                np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
    text = (tmp_path / "out" / "dataset.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["schema_version"] == 1


def test_pycocotools_reads_what_is_written(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "in", scored=False)
    Coco().write(dataset, tmp_path / "out", WriteOptions())
    reference = COCO(str(tmp_path / "out" / "dataset.json"))
    for sample in dataset:
        annotations = reference.loadAnns(reference.getAnnIds([sample.image_id]))
        masks = sample.read_instances().masks
        assert [annotation["area"] for annotation in annotations] == masks.areas.tolist()
        for annotation, dense in zip(annotations, masks.to_dense(), strict=True):
            np.testing.assert_array_equal(reference.annToMask(annotation), dense)


def test_a_dataset_can_be_moved_with_its_images(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "in", scored=False)
    Coco().write(dataset, tmp_path / "out", WriteOptions(copy_images=True))
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    again = Coco().read(tmp_path / "elsewhere", ReadOptions())
    assert all(sample.image_path is not None and sample.image_path.is_file() for sample in again)


def test_a_dataset_can_be_replaced_by_itself(tmp_path: Path) -> None:
    Coco().write(make_dataset(tmp_path / "in", scored=False), tmp_path / "out", WriteOptions(copy_images=True))
    opened = Coco().read(tmp_path / "out", ReadOptions())
    before = [sample.read_instances() for sample in opened]
    renamed = opened.with_samples([dataclasses.replace(s, split="a_longer_name_than_before") for s in opened])
    assert len(Coco().write(renamed, tmp_path / "out", WriteOptions())) == 2
    again = Coco().read(tmp_path / "out", ReadOptions())
    assert again.splits == ("a_longer_name_than_before",)
    assert [s.read_instances().masks for s in again] == [instances.masks for instances in before]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["images"][0]["file_name"] == "images/x/a.png"


def test_predictions_and_ground_truth_cannot_be_mixed(tmp_path: Path) -> None:
    truth, predicted = make_dataset(tmp_path / "in", scored=False), make_dataset(tmp_path / "in", scored=True)
    with pytest.raises(InputError, match=r"cannot contain both predictions and ground truth\n  where: sample x/b"):
        Coco().write(truth.with_samples([truth[0], predicted[1]]), tmp_path / "out", WriteOptions())
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_samples_without_an_image_can_be_written(tmp_path: Path) -> None:
    bare = Dataset((Sample("a", None, HW, Loaded(Instances.empty(HW, scored=True))),), ("cell",))
    assert Coco().write(bare, tmp_path / "predictions.json", WriteOptions()) == [tmp_path / "predictions.json"]
    again = Coco().read(tmp_path, ReadOptions(require_images=False))
    assert (again[0].id, again[0].image_path) == ("a", None)
    scores = again[0].read_instances().scores
    assert scores is not None
    assert len(scores) == 0


def test_real_image_round_trip(tmp_path: Path, vrdl_root: Path) -> None:
    source = MaskFolder().read(vrdl_root / "train", ReadOptions())
    dataset = source.with_samples([source.sample("TCGA-A7-A13F-01Z-00-DX1")])
    Coco().write(dataset, tmp_path, WriteOptions())
    again = Coco().read(tmp_path, ReadOptions())[0].read_instances()
    before = dataset[0].read_instances()
    assert again.masks == before.masks
    assert again.ids.tolist() == before.ids.tolist()


@pytest.mark.slow
def test_all_real_images_round_trip(tmp_path: Path, vrdl_root: Path, dsb_root: Path) -> None:
    for root in (vrdl_root / "train", dsb_root):
        source = MaskFolder().read(root, ReadOptions())
        Coco().write(source, tmp_path / root.name, WriteOptions())
        for before, after in zip(source, Coco().read(tmp_path / root.name, ReadOptions()), strict=True):
            assert before.read_instances().masks == after.read_instances().masks

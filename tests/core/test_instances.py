"""`Instances`: constructors against pycocotools and numpy, conversions, indexing and checks."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask

import cellwright
from cellwright.core.errors import FormatError, InputError
from cellwright.core.instances import Instances, concat
from cellwright.core.masks import MaskSet, SoftMasks

LABELS = np.array([[0, 9, 9, 0], [3, 0, 9, 0], [3, 3, 0, 5]])
SQUARE = {"category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]}
HW = (6, 8)


def some_instances(n: int = 3) -> Instances:
    dense = np.zeros((n, 6, 8), bool)
    for k in range(n):
        dense[k, k, k : k + 2] = True
    return Instances.from_masks(MaskSet.from_dense(dense), scores=np.linspace(0.1, 0.9, n))


def run_length(mask: np.ndarray, *, compressed: bool = True) -> dict[str, object]:
    if compressed:
        return MaskSet.from_dense(mask[None]).to_rle()[0]
    return {"size": list(mask.shape), "counts": MaskSet.from_dense(mask[None]).to_rle_counts()[0]}


# --- from_label_map -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_label_maps_of_any_integer_type(dtype: type) -> None:
    cells = Instances.from_label_map(LABELS.astype(dtype), class_ids=[2, 0, 1], scores=[0.5, 0.25, 1])
    assert cells.ids.tolist() == [3, 5, 9]
    assert cells.class_ids.tolist() == [2, 0, 1]
    assert cells.scores is not None
    assert cells.scores.tolist() == [0.5, 0.25, 1]
    assert cells.image_hw == (3, 4)
    np.testing.assert_array_equal(cells.masks.to_dense(), [k == LABELS for k in (3, 5, 9)])
    assert Instances.from_label_map(LABELS.astype(dtype)).scores is None


def test_a_label_map_round_trip() -> None:
    labels = Instances.from_label_map(LABELS).to_label_map()
    assert labels.dtype == np.uint32
    np.testing.assert_array_equal(labels, LABELS)
    assert len(Instances.from_label_map(np.zeros((3, 4), np.uint16))) == 0
    assert not Instances.empty((3, 4)).to_label_map().any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS > 0, r"bool mask is not a label array(.|\n)*skimage\.measure\.label"),
        (LABELS - 1, r"labels must not be negative(.|\n)*got: -1"),
        (LABELS * 1.0, r"not a label array(.|\n)*float64(.|\n)*integers"),
        (LABELS[None], r"not a label array(.|\n)*shape \(1, 3, 4\)"),
    ],
)
def test_arrays_that_are_not_label_maps(labels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Instances.from_label_map(labels)


def test_overlaps_show_the_first_object_and_by_score_the_highest() -> None:
    masks = MaskSet.from_dense(np.array([[[1, 1, 0]], [[0, 1, 1]]], bool))
    cells = Instances.from_masks(masks, ids=[8, 4], scores=[0.1, 0.9])
    assert cells.to_label_map().tolist() == [[8, 8, 4]]
    assert cells.by_score().to_label_map().tolist() == [[8, 4, 4]]


def test_ids_beyond_uint32_do_not_become_other_labels() -> None:
    cells = Instances.from_label_map(LABELS.astype(np.int64) * 2**30)
    assert cells.ids.tolist() == [3 * 2**30, 5 * 2**30, 9 * 2**30]
    with pytest.raises(InputError, match=r"too large for a label array(.|\n)*got: 9663676416"):
        cells.to_label_map()


# --- from_polygons --------------------------------------------------------------------------------------------------


def test_polygons_fill_the_pixels_whose_centres_they_contain() -> None:
    triangle = np.array([(1.0, 1.0), (7.0, 1.0), (1.0, 5.0)])
    cells = Instances.from_polygons([triangle, [(3, 0), (20, 0), (20, 2), (3, 2)]], HW, class_ids=[0, 4], scores=[1, 0])
    y, x = np.mgrid[:6, :8] + 0.5
    inside = (x > 1) & (y > 1) & ((x - 1) / 6 + (y - 1) / 4 < 1)
    np.testing.assert_array_equal(cells.masks.to_dense()[0], inside)
    assert cells.masks.boxes[1].tolist() == [3, 0, 8, 2]  # clipped to the image
    assert cells.ids.tolist() == [1, 2]
    assert cells.class_ids.tolist() == [0, 4]


def test_outlines_of_masks_give_the_masks_back() -> None:
    cells = Instances.from_label_map(LABELS)
    outlines = [polygons[0][0] for polygons in cells.masks.to_polygons()]
    assert Instances.from_polygons(outlines, cells.image_hw).masks == cells.masks


def test_no_polygons_and_polygons_without_a_pixel() -> None:
    assert len(Instances.from_polygons([], HW)) == 0
    tiny = Instances.from_polygons([[(0.1, 0.1), (0.4, 0.1), (0.1, 0.4)]], HW)
    assert tiny.masks.areas.tolist() == [0]


@pytest.mark.parametrize("ring", [[(0, 0), (1, 1)], [(0, 0), (1, 1), (0, np.nan)], [1, 2, 3], [[(0, 0)] * 3]])
def test_an_invalid_polygon_is_named(ring: object) -> None:
    with pytest.raises(FormatError, match=r"invalid polygon\n  where: object 1"):
        Instances.from_polygons([[(0, 0), (4, 0), (4, 4)], ring], HW)  # type: ignore[list-item]


# --- from_coco ------------------------------------------------------------------------------------------------------


def test_coco_annotations_of_every_kind_equal_pycocotools() -> None:
    rng = np.random.default_rng(0)
    dense = rng.random((2, *HW)) < 0.4
    outline = [[0.5, 0.7, 7.2, 1, 6, 5.5], [0, 0, 2, 0, 2, 2]]
    segmentations = [run_length(dense[0]), outline, run_length(dense[1], compressed=False)]
    annotations = [{"category_id": 1, "segmentation": segmentation} for segmentation in segmentations]
    union = coco_mask.merge(coco_mask.frPyObjects(outline, *HW))
    masks = Instances.from_coco(annotations, HW).masks
    assert masks.to_rle()[1]["counts"].encode() == union["counts"]
    np.testing.assert_array_equal(masks[[0, 2]].to_dense(), dense)


def test_coco_fields() -> None:
    annotations = [
        SQUARE | {"id": 40, "category_id": 7, "bbox": [1, 1, 4.5, 3], "iscrowd": 1, "area": 12.5},
        SQUARE | {"id": 30, "category_id": 2, "area": 11},
    ]
    cells = Instances.from_coco(annotations, HW)
    assert cells.ids.tolist() == [40, 30]
    assert cells.class_ids.tolist() == [1, 0]
    assert cells.ignore.tolist() == [True, False]
    assert cells.boxes_xyxy.tolist() == [[1, 1, 5.5, 4], [1, 1, 5, 4]]
    assert cells.scores is None
    assert cells.columns["area"].tolist() == [12.5, 11]
    numbered = Instances.from_coco([{**annotation, "id": 3} for annotation in annotations], HW)
    assert numbered.ids.tolist() == [1, 2]  # ids that are not distinct are not used


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        (None, [2, 0, 1]),
        ([{"id": 9, "name": "a"}, {"id": 2, "name": "b"}, {"id": 4, "name": "c"}], [0, 1, 2]),
        ([2, 9], [1, 0]),
        ({9: 5, 4: 5}, [5, 5]),
    ],
)
def test_categories_of_coco(categories: object, expected: list[int]) -> None:
    annotations = [SQUARE | {"category_id": category} for category in (9, 2, 4)]
    cells = Instances.from_coco(annotations, HW, categories=categories)  # type: ignore[arg-type]
    assert cells.class_ids.tolist() == expected


def test_scores_make_a_prediction_of_coco_results() -> None:
    results = [SQUARE | {"score": 0.25}, SQUARE | {"score": 0.75, "area": 99}]
    cells = Instances.from_coco(results, HW)
    assert cells.scores is not None
    assert cells.scores.tolist() == [0.25, 0.75]
    assert cells.columns == {}
    assert Instances.from_coco(results, HW, scored=False).scores is None
    empty = Instances.from_coco([], HW, scored=True)
    assert empty.scores is not None
    assert Instances.from_coco([], HW).scores is None
    with pytest.raises(FormatError, match=r"score is missing(.|\n)*every annotation"):
        Instances.from_coco([*results, SQUARE], HW)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": None}, "has no segmentation"),
        ({"segmentation": [[1, 2, 3]]}, r"invalid polygon\n  where: b\.json, annotation id 4 of image id 2"),
        ({"segmentation": {"size": [6, 8], "counts": [7]}}, "add up to the size"),
        ({"bbox": [0, 0, -1, 2]}, "bbox is malformed"),
        ({"score": 1.5}, r"score is out of range(.|\n)*got: 1\.5"),
        (
            {"category_id": "nucleus"},
            r"not a COCO annotation\n  where: b\.json, annotation 1\n  got: category_id 'nucl",
        ),
    ],
)
def test_an_invalid_annotation_is_named(change: dict[str, object], message: str) -> None:
    second = SQUARE | {"id": 4, "image_id": 2} | change
    with pytest.raises(FormatError, match=message):
        Instances.from_coco([SQUARE | {"score": 1}, second], HW, scored="score" in change, source="b.json")


# --- tables and reprs -----------------------------------------------------------------------------------------------


def test_the_table_has_one_row_per_object() -> None:
    cells = replace(Instances.from_label_map(LABELS), columns={"mean DAPI": np.array([1.5, 2.5, 3.5])})
    table = cells.to_dataframe()
    assert table.index.name == "label"
    assert table.index.tolist() == [3, 5, 9]
    assert list(table.columns) == ["class_id", "score", "ignore", "x0", "y0", "x1", "y1", "area_px", "mean DAPI"]
    assert table["score"].isna().all()
    assert table.loc[9, ["x0", "y0", "x1", "y1", "area_px", "mean DAPI"]].tolist() == [1, 0, 3, 2, 3, 3.5]
    assert some_instances().to_dataframe()["score"].tolist() == pytest.approx([0.1, 0.5, 0.9])
    joined = pd.concat([table, Instances.empty((3, 4)).to_dataframe()])
    assert len(joined) == 3
    assert joined["class_id"].dtype == table["class_id"].dtype


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (some_instances(), "Instances(3 objects, 6 x 8 px, class 0, scores 0.1 to 0.9)"),
        (some_instances(1), "Instances(1 object, 6 x 8 px, class 0, score 0.1)"),
        (Instances.from_label_map(LABELS), "Instances(3 objects, 3 x 4 px, class 0, ground truth)"),
        (Instances.empty((3, 4)), "Instances(0 objects, 3 x 4 px)"),
        (
            replace(
                Instances.from_label_map(LABELS, class_ids=[0, 2, 0]),
                ignore=np.array([True, False, False]),
                columns={"area": np.zeros(3)},
            ),
            "Instances(3 objects, 3 x 4 px, classes 0, 2, ground truth, 1 ignored, columns area)",
        ),
        (some_instances().masks, "MaskSet(3 masks, 6 x 8 px)"),
        (SoftMasks((6, 8), np.zeros((0, 4)), np.zeros(1), np.zeros(0)), "SoftMasks(0 masks, 6 x 8 px)"),
    ],
)
def test_reprs_are_one_line(value: object, expected: str) -> None:
    assert repr(value) == expected


def test_many_classes_and_columns_are_summarised() -> None:
    labels = np.arange(300).reshape(15, 20)
    cells = Instances.from_label_map(labels, class_ids=np.arange(299))
    cells = replace(cells, columns={f"measurement {k}": np.zeros(299) for k in range(40)})
    assert "299 classes" in repr(cells)
    assert len(repr(cells)) < 200


# --- records --------------------------------------------------------------------------------------------------------


def test_index_sort_and_concatenate() -> None:
    cells = some_instances()
    assert cells.by_score().ids.tolist() == [3, 2, 1]
    assert cells[np.array([True, False, True])].ids.tolist() == [1, 3]
    assert cells[[2]].masks == cells.masks[2:]
    joined = concat([cells, cells[:1]])
    assert joined.ids.tolist() == [1, 2, 3, 4]
    assert len(Instances.empty((3, 3))) == 0
    assert len(cells[[]]) == 0
    with pytest.raises(InputError, match="predictions and ground truth cannot be concatenated"):
        concat([cells, Instances.empty(cells.image_hw)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.array([1, 1, 2])}, "unique"),
        ({"ids": np.array([0, 1, 2])}, "positive"),
        ({"scores": np.array([0.1, np.nan, 0.2], np.float32)}, r"\[0, 1\]"),
        ({"scores": np.array([0.1, 2, 0.2], np.float32)}, r"\[0, 1\]"),
        ({"boxes_xyxy": np.zeros((2, 4), np.float32)}, "boxes_xyxy"),
        ({"class_ids": np.array([0, -1, 0])}, "negative"),
        ({"image_hw": (5, 5)}, "another image size"),
        ({"columns": {"area": np.zeros(2)}}, "area"),
    ],
)
def test_fields_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(some_instances(), **change)


def test_public_types_survive_pickling_under_their_public_name() -> None:
    cells = some_instances()
    assert Instances.__module__ == "cellwright"
    assert cellwright.Instances is Instances
    again = pickle.loads(pickle.dumps(cells))
    assert type(again) is Instances
    assert again.masks == cells.masks

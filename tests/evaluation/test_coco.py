"""AP compared with the COCO API, on images with crowds, several classes, equal scores, and without objects."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.ignored import pixels_inside, with_regions
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.evaluation.coco import CAPS, RECALL_POINTS, CocoResult, coco_result, size_thirds
from cellwright.evaluation.matching import PairOptions, pair_image

Pair = tuple[Instances, Instances]


def reference(pairs: Sequence[Pair], kind: str, n_classes: int, ours: CocoResult) -> COCOeval:
    """The evaluation of the same objects by the COCO API, in the same size bands."""
    truth, results = COCO(), []
    truth.dataset = {
        "images": [{"id": i + 1, "height": t.image_hw[0], "width": t.image_hw[1]} for i, (t, _) in enumerate(pairs)],
        "categories": [{"id": k + 1, "name": str(k)} for k in range(n_classes)],
        "annotations": [],
    }
    for i, sides in enumerate(pairs):
        for records, side in zip((truth.dataset["annotations"], results), sides, strict=True):
            for k, rle in enumerate(side.masks.to_rle()):
                x0, y0, x1, y1 = map(float, side.boxes_xyxy[k])
                record = {"image_id": i + 1, "category_id": int(side.class_ids[k]) + 1, "id": len(records) + 1}
                record |= {"iscrowd": int(side.ignore[k]), "area": int(side.masks.areas[k])}
                record |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": rle}
                if side.scores is not None:
                    record["score"] = float(side.scores[k])
                    del record["segmentation" if kind == "box" else "bbox"]
                records.append(record)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        predicted = truth.loadRes(results) if results else COCO()
        if not results:
            predicted.dataset = {**truth.dataset, "annotations": []}
            predicted.createIndex()
        evaluation = COCOeval(truth, predicted, "segm" if kind == "mask" else "bbox")
        evaluation.params.maxDets = [100, 10**6]
        evaluation.params.areaRng = [list(limits) for limits in ours.bands.values()]
        evaluation.params.areaRngLbl = list(ours.bands)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def result(pairs: Sequence[Pair], kind: str, n_classes: int) -> CocoResult:
    options = PairOptions(boxes=kind == "box")
    return coco_result([pair_image(t, p, str(i), options) for i, (t, p) in enumerate(pairs)], kind, n_classes)


def assert_equal(pairs: Sequence[Pair], kind: str, n_classes: int) -> None:
    ours = result(pairs, kind, n_classes)
    theirs = reference(pairs, kind, n_classes, ours).eval
    for mine, name in ((ours.precision, "precision"), (ours.recall, "recall")):
        np.testing.assert_allclose(np.nan_to_num(mine, nan=-1), theirs[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", ["mask", "box"])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_coco_api(draw: Callable[..., Pair], kind: str, seed: int) -> None:
    rng = np.random.default_rng([7, seed])
    pairs = [draw(rng, n_truth=int(n)) for n in rng.integers(0, 25, 6)]
    assert_equal(pairs, kind, 4)  # class 3 never occurs


@pytest.mark.parametrize("kind", ["mask", "box"])
def test_equals_the_coco_api_beyond_the_cap(draw: Callable[..., Pair], kind: str) -> None:
    rng = np.random.default_rng(11)
    pairs = [draw(rng, n_truth=130, n_classes=1, size=220) for _ in range(2)]
    assert_equal(pairs, kind, 1)
    ours = result(pairs, kind, 1)
    assert ours.ap(cap="100") < ours.ap(cap="all")


@pytest.mark.parametrize("kind", ["mask", "box"])
@pytest.mark.parametrize("seed", range(3))
def test_beside_regions_of_no_class_all_is_as_in_the_coco_api(draw: Callable[..., Pair], kind: str, seed: int) -> None:
    rng = np.random.default_rng([8, seed])
    pairs, in_part = [], []
    for n in rng.integers(10, 40, 4):
        truth, predicted = draw(rng, n_truth=int(n))
        region = np.ones(truth.image_hw, bool)  # its box is the whole image
        region[20:120, 30:100] = region[60:150, 90:150] = False
        inside = [pixels_inside(side.masks, region) for side in (truth, predicted)]
        pairs.append((truth[inside[0] == 0], predicted[inside[1] == 0]))
        kept = [(n == 0) | (n == side.masks.areas) for n, side in zip(inside, (truth, predicted), strict=True)]
        in_part.append((with_regions(truth[kept[0]], MaskSet.from_dense(region[None])), predicted[kept[1]]))
    ours = result(in_part, kind, 3)
    assert sum(len(truth) for truth, _ in in_part) > sum(len(truth) + 1 for truth, _ in pairs)
    theirs = reference(pairs, kind, 3, ours).eval
    for mine, name in ((ours.precision, "precision"), (ours.recall, "recall")):
        np.testing.assert_allclose(np.nan_to_num(mine, nan=-1), theirs[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", ["mask", "box"])
def test_a_crowd_excuses_predictions_of_its_class_a_region_of_no_class_those_of_all(
    boxes: Callable[..., Instances], kind: str
) -> None:
    predicted = boxes(
        *((40, 40, 50, 50), (5, 5, 15, 15), (40, 0, 50, 10), (16, 5, 26, 15)), scores=np.array([0.8, 0.9, 0.7, 0.9])
    )
    predicted = replace(predicted, class_ids=np.array([0, 0, 1, 1]))
    truth = boxes((40, 40, 50, 50), (40, 0, 50, 10), (0, 0, 30, 30), ignore=np.array([False, False, True]))
    found = {}
    for class_id in (0, 1, NO_CLASS):
        annotated = replace(truth, class_ids=np.array([0, 1, class_id]))
        ours = result([(annotated, predicted)], kind, 2)
        found[class_id] = [round(ours.ap(class_id=k), 9) for k in (0, 1)]
    assert found == {0: [1, 0.5], 1: [0.5, 1], NO_CLASS: [1, 1]}


def test_named_metrics_are_those_of_summarize(draw: Callable[..., Pair]) -> None:
    rng = np.random.default_rng(3)
    pairs = [draw(rng) for _ in range(5)]
    ours = result(pairs, "mask", 3)
    evaluation = reference(pairs, "mask", 3, ours)
    precision = evaluation.eval["precision"]

    def mean(values: np.ndarray) -> float:
        return values[values > -1].mean()

    assert ours.ap(cap="100") == pytest.approx(mean(precision[:, :, :, 0, 0]), abs=1e-12)
    assert ours.ap(threshold=0.75) == pytest.approx(mean(precision[5, :, :, 0, 1]), abs=1e-12)
    assert ours.ap(band="small", threshold=0.5) == pytest.approx(mean(precision[0, :, :, 1, 1]), abs=1e-12)
    assert ours.ap(class_id=2) == pytest.approx(mean(precision[:, :, 2, 0, 1]), abs=1e-12)
    assert ours.ar(cap="100") == pytest.approx(mean(evaluation.eval["recall"][:, :, 0, 0]), abs=1e-12)


def test_fractional_boxes(draw: Callable[..., Pair]) -> None:
    rng = np.random.default_rng(5)
    truth, predicted = draw(rng, n_truth=20)
    moved = predicted.boxes_xyxy + np.round(rng.uniform(-0.4, 0.4, predicted.boxes_xyxy.shape) * 16) / 16
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 0.25)
    assert_equal([(truth, replace(predicted, boxes_xyxy=moved.astype(np.float32)))], "box", 3)


@pytest.mark.parametrize("kind", ["mask", "box"])
def test_without_images_objects_or_predictions(boxes: Callable[..., Instances], kind: str) -> None:
    none = Instances.empty((64, 64), scored=True)
    square = boxes((3, 3, 20, 20), scores=np.array([0.7]))
    truth = replace(square, scores=None)
    assert np.isnan(result([], kind, 1).ap())
    assert np.isnan(result([(truth[:0], none)], kind, 1).ap())  # neither
    assert np.isnan(result([(truth[:0], square)], kind, 1).ap())  # without objects undefined, whatever is predicted
    assert result([(truth, none)], kind, 1).ap() == 0
    assert result([(truth, square)], kind, 1).ap() == pytest.approx(1)
    assert result([(truth, square)], kind, 2).ap() == pytest.approx(1)  # the absent class is not included in the mean
    assert np.isnan(result([(truth, square)], kind, 2).ap(class_id=1))
    assert np.isnan(result([(replace(truth, ignore=np.array([True])), square)], kind, 1).ap())  # all ignored


def test_the_annotated_area_determines_the_size_band(boxes: Callable[..., Instances]) -> None:
    truth = boxes((0, 0, 40, 40))
    predicted = replace(truth, scores=np.ones(1, np.float32))
    assert result([(truth, predicted)], "mask", 1).ap(band="medium") == pytest.approx(1)
    annotated = replace(truth, columns={"area": np.array([900.0])})
    assert result([(annotated, predicted)], "mask", 1).ap(band="small") == pytest.approx(1)
    assert np.isnan(result([(annotated, predicted)], "mask", 1).ap(band="medium"))


def test_the_ceiling_is_reached_by_perfect_predictions() -> None:
    labels = np.kron(np.arange(1, 145).reshape(12, 12), np.ones((4, 4), np.int64))
    labels[::4], labels[:, ::4] = 0, 0
    masks, _ = MaskSet.from_label_map(labels)
    truth = Instances.from_masks(masks)
    few = truth[:30]
    perfect = [(cells, replace(cells, scores=np.ones(len(cells), np.float32))) for cells in (truth, few)]
    ours = result(perfect, "mask", 1)
    assert ours.ceiling() == pytest.approx(ours.ap(cap="100"), abs=1e-12)
    assert ours.ceiling() == pytest.approx(np.mean(RECALL_POINTS <= 130 / 174))
    assert ours.ceiling(CAPS["all"]) == 1
    assert ours.ap() == pytest.approx(1)


def test_size_thirds_have_a_third_of_the_objects_each() -> None:
    sides = np.arange(1, 31)
    flat = Instances.from_masks(
        MaskSet.from_flat(
            (64, 64),
            np.stack([0 * sides, 0 * sides, sides, sides], 1),
            np.concatenate([[0], np.cumsum(sides**2)]),
            np.ones(int((sides**2).sum()), np.uint8),
        )
    )
    bands = size_thirds([pair_image(flat, flat, "a", PairOptions())])
    for low, high in bands.values():
        assert np.count_nonzero((flat.masks.areas >= low) & (flat.masks.areas <= high)) == 10

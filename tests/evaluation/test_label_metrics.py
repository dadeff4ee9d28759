"""Metrics without scores: cases computed by hand, known shifts, direct implementations, and other tools."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.evaluation.label_metrics import THRESHOLDS, Scores, count, score_image
from cellwright.evaluation.matching import PairOptions, pair_image

ALL = PairOptions(foreground=True, boundary_px=2)
FAMILIES = ("overlap", "boundary")


def scores_of(truth: Instances, predicted: Instances) -> Scores:
    return score_image(pair_image(truth, predicted, "a", ALL), FAMILIES)


def values_of(truth: Instances, predicted: Instances) -> dict[str, float]:
    return scores_of(truth, predicted).values()


def from_labels(labels: np.ndarray) -> Instances:
    masks, ids = MaskSet.from_label_map(labels)
    return Instances.from_masks(masks, ids=ids)


def direct_aji(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Algorithm 1 of Kumar et al. 2017, implemented literally on label maps."""
    shared_sum, union_sum, used = 0, 0, set()
    for label in np.unique(truth[truth > 0]):
        of_object = truth == label
        best, best_iou = None, 0.0
        for other in np.unique(predicted[of_object & (predicted > 0)]):
            shape = predicted == other
            iou = (of_object & shape).sum() / (of_object | shape).sum()
            if iou > best_iou:
                best, best_iou = other, iou
        if best is None:
            union_sum += of_object.sum()
            continue
        shape = predicted == best
        shared_sum += (of_object & shape).sum()
        union_sum += (of_object | shape).sum()
        used.add(best)
    union_sum += sum((predicted == other).sum() for other in np.unique(predicted[predicted > 0]) if other not in used)
    return shared_sum / union_sum


label_maps = st.integers(0, 10**6).map(
    lambda seed: np.random.default_rng(seed).integers(0, 6, (8, 9)).repeat(2, 0).repeat(3, 1)
)


@settings(max_examples=50, deadline=None)
@given(label_maps, label_maps)
def test_aji_equals_a_direct_implementation(truth: np.ndarray, predicted: np.ndarray) -> None:
    values = values_of(from_labels(truth), from_labels(predicted))
    assert values["aji"] == pytest.approx(direct_aji(truth, predicted), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(label_maps, label_maps)
def test_bounds_and_order(truth: np.ndarray, predicted: np.ndarray) -> None:
    values = values_of(from_labels(truth), from_labels(predicted))
    assert all(math.isnan(value) or 0 <= value <= 1 for value in values.values())
    accuracies = [values[f"accuracy@{t:g}"] for t in THRESHOLDS]
    assert accuracies == sorted(accuracies, reverse=True)
    assert values["kaggle_score"] <= np.mean(accuracies) + 1e-12
    if not math.isnan(values["sq"]):
        assert values["pq"] == pytest.approx(values["sq"] * values["dq"], abs=1e-12)
    mirrored = values_of(from_labels(predicted), from_labels(truth))
    for symmetric in ("pq", "dice", "accuracy@0.5", "aji_plus", "boundary_iou@2px"):
        assert mirrored[symmetric] == pytest.approx(values[symmetric], abs=1e-12, nan_ok=True)


def test_perfect_predictions(discs: Callable[..., Instances]) -> None:
    truth = discs(((20, 20), 8), ((40, 45), 10))
    assert set(values_of(truth, truth).values()) == {1.0}


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 4, 6, 8])
def test_rectangles_moved_by_a_known_shift(boxes: Callable[..., Instances], shift: int) -> None:
    """A 10 x 12 rectangle moved by s along its side of 12: IoU = (12 - s) / (12 + s)."""
    values = values_of(boxes((10, 10, 20, 22)), boxes((10, 10 + shift, 20, 22 + shift)))
    iou = (12 - shift) / (12 + shift)
    for t in THRESHOLDS:
        assert values[f"accuracy@{t:g}"] == (iou >= t)
    assert values["kaggle_score"] == pytest.approx(np.mean([iou > t for t in THRESHOLDS]))
    assert values["pq"] == pytest.approx(iou if iou >= 0.5 else 0)
    assert values["aji"] == values["aji_plus"] == values["aji_cellpose"] == pytest.approx(iou)
    assert values["dice"] == pytest.approx((12 - shift) / 12)


def test_discs_moved_by_a_known_shift(discs: Callable[..., Instances]) -> None:
    """The overlap of two discs of radius r at distance d is 2 r^2 acos(d / 2r) - d / 2 sqrt(4 r^2 - d^2)."""
    radius, distance = 20, 10
    shared = 2 * radius**2 * math.acos(distance / (2 * radius)) - distance / 2 * math.sqrt(4 * radius**2 - distance**2)
    iou = shared / (2 * math.pi * radius**2 - shared)
    values = values_of(discs(((32, 26), radius)), discs(((32, 36), radius)))
    assert values["pq"] == pytest.approx(iou, abs=0.01)
    assert values["aji"] == pytest.approx(iou, abs=0.01)


def test_aji_by_hand(boxes: Callable[..., Instances]) -> None:
    """Two objects of 100 px under one prediction of 210, a third missed, one spurious prediction of 25.

    Kumar: both objects take the prediction (100 of 210 each), the third adds 100, the spurious prediction 25:
    200 / (210 + 210 + 100 + 25). AJI+: only one takes it, the other adds 100: 100 / (210 + 100 + 100 + 25).
    Cellpose: 100 / |union of all| = 100 / (210 + 100 + 25).
    """
    truth = boxes((0, 0, 10, 10), (0, 11, 10, 21), (30, 30, 40, 40))
    predicted = boxes((0, 0, 10, 21), (50, 50, 55, 55))
    values = values_of(truth, predicted)
    assert values["aji"] == pytest.approx(200 / 545)
    assert values["aji_plus"] == pytest.approx(100 / 435)
    assert values["aji_cellpose"] == pytest.approx(100 / 335)
    assert values["dice"] == pytest.approx(2 * 200 / (300 + 235))
    assert values["accuracy@0.5"] == 0
    assert math.isnan(values["sq"])
    assert values["pq"] == 0


def test_pq_by_hand(boxes: Callable[..., Instances]) -> None:
    """Matched at IoU 0.8 and 0.6, one missed, two spurious: pq = 1.4 / (2 + 0.5 + 1)."""
    truth = boxes((0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10))
    predicted = boxes((0, 0, 10, 8), (20, 0, 30, 6), (0, 30, 5, 35), (20, 30, 25, 35))
    values = values_of(truth, predicted)
    assert values["pq"] == pytest.approx(1.4 / 3.5)
    assert values["sq"] == values["mean_matched_iou@0.5"] == pytest.approx(0.7)
    assert values["dq"] == values["f1@0.5"] == pytest.approx(4 / 7)
    assert values["accuracy@0.5"] == pytest.approx(2 / 5)
    assert values["precision@0.5"] == 0.5
    assert values["recall@0.5"] == pytest.approx(2 / 3)
    assert values["mean_true_iou@0.5"] == pytest.approx(1.4 / 3)
    assert values["accuracy@0.8"] == pytest.approx(1 / 6)


def test_boundary_iou_by_hand(boxes: Callable[..., Instances]) -> None:
    """A 20 x 20 square moved right by 2: the 2 px frames of 144 px share two rows of 18, twice, and nothing else."""
    values = values_of(boxes((10, 10, 30, 30)), boxes((10, 12, 30, 32)))
    # Frames: 400 - 256 = 144 px. Shared: top and bottom, 2 rows of 18 columns each.
    assert values["boundary_iou@2px"] == pytest.approx(72 / (288 - 72))


@pytest.mark.parametrize(
    ("n_truth", "n_predicted", "expected"),
    [
        (0, 0, {"accuracy@0.5": None, "kaggle_score": None, "pq": None, "sq": None, "precision@0.5": None,
                "recall@0.5": None, "aji": None, "aji_cellpose": None, "dice": None, "boundary_iou@2px": None}),
        (1, 0, {"accuracy@0.5": 0, "kaggle_score": 0, "pq": 0, "sq": None, "precision@0.5": None,
                "recall@0.5": 0, "aji": 0, "aji_cellpose": 0, "dice": 0, "boundary_iou@2px": None}),
        (0, 1, {"accuracy@0.5": 0, "kaggle_score": 0, "pq": 0, "sq": None, "precision@0.5": 0,
                "recall@0.5": None, "aji": 0, "aji_cellpose": 0, "dice": 0, "boundary_iou@2px": None}),
    ],
)  # fmt: skip
def test_without_objects_or_predictions(
    boxes: Callable[..., Instances], n_truth: int, n_predicted: int, expected: dict[str, float | None]
) -> None:
    square = boxes((0, 0, 10, 10))
    values = values_of(square[:n_truth], square[:n_predicted])
    assert {name: None if math.isnan(values[name]) else values[name] for name in expected} == expected


def test_ignored_regions_alone_leave_every_metric_undefined(boxes: Callable[..., Instances]) -> None:
    truth = boxes((0, 0, 20, 20), ignore=np.array([True]))
    assert all(math.isnan(value) for value in values_of(truth, boxes((5, 5, 15, 15))).values())


def test_sums_add_up_over_images(boxes: Callable[..., Instances]) -> None:
    truth = boxes((0, 0, 10, 10), (20, 0, 30, 10))
    first, second = boxes((0, 0, 10, 8)), boxes((0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10))
    pooled = (scores_of(truth, first) + scores_of(truth, second)).values()
    assert pooled["accuracy@0.5"] == pytest.approx(3 / 5)
    assert pooled["pq"] == pytest.approx(2.8 / (3 + 0.5 + 0.5))
    assert pooled["aji"] == pytest.approx((80 + 200) / (100 + 100 + 300))


REFERENCES = json.loads(Path(__file__).with_name("references.json").read_text())


@pytest.mark.parametrize("case", REFERENCES["cases"], ids=lambda case: str(case["seed"]))
def test_equals_stardist_and_cellpose(case: dict) -> None:
    from make_references import drawn_label_maps

    truth, predicted = (from_labels(labels) for labels in drawn_label_maps(case["seed"]))
    pairs = pair_image(truth, predicted, "a", ALL)
    for threshold, expected in case["stardist"].items():
        ours = count(pairs, float(threshold))
        assert (ours.tp, ours.fp, ours.fn) == (expected["tp"], expected["fp"], expected["fn"])
        # StarDist reports 0 for undefined values.
        metrics = {"precision": ours.precision, "recall": ours.recall, "accuracy": ours.accuracy, "f1": ours.f1}
        metrics |= {"panoptic_quality": ours.pq, "mean_matched_score": ours.sq, "mean_true_score": ours.mean_true_iou}
        for name, value in metrics.items():
            assert np.nan_to_num(value) == pytest.approx(expected[name], abs=1e-6), name
    values = score_image(pairs, FAMILIES).values()
    for threshold, expected in zip(case["cellpose"]["thresholds"], case["cellpose"]["ap"], strict=True):
        assert count(pairs, threshold).accuracy == pytest.approx(expected, abs=1e-6)
    assert values["aji_cellpose"] == pytest.approx(case["cellpose"]["aji"], abs=1e-6)

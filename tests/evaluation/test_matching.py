"""Sparse overlaps compared with dense counts, and one-to-one matching with the dense assignment problem."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from cellwright.core.errors import InputError, UsageError
from cellwright.core.ignored import resolve_ignored
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.evaluation.matching import (
    ALL_CLASSES,
    ImagePairs,
    PairOptions,
    best_assignment,
    heaviest_matching,
    inner_band,
    one_to_one,
    pair_image,
)

Pair = tuple[Instances, Instances]


def dense_iou(truth: MaskSet, predicted: MaskSet) -> np.ndarray:
    a, b = (masks.to_dense().reshape(len(masks), -1).astype(np.int64) for masks in (truth, predicted))
    shared = a @ b.T
    return shared / np.maximum(a.sum(1)[:, None] + b.sum(1) - shared, 1)


def dense(pairs: ImagePairs, values: np.ndarray) -> np.ndarray:
    table = np.zeros((len(pairs.truth), len(pairs.predicted)))
    table[pairs.shared.truth, pairs.shared.predicted] = values
    return table


@pytest.mark.parametrize("seed", range(4))
def test_pairs_equal_dense_counting(draw: Callable[..., Pair], seed: int) -> None:
    truth, predicted = draw(np.random.default_rng(seed), n_truth=15)
    truth = resolve_ignored(truth)
    pairs = pair_image(truth, predicted, "a", PairOptions(foreground=True))
    np.testing.assert_array_equal(dense(pairs, pairs.iou), dense_iou(truth.masks, predicted.masks))
    for class_id in (ALL_CLASSES, 0, 1, 2):
        crowd = truth.masks.to_dense()[truth.ignore].any(0)
        planes = [
            side.masks[keep & ((side.class_ids == class_id) | (class_id == ALL_CLASSES))].to_dense().any(0) & ~crowd
            for side, keep in ((truth, ~truth.ignore), (predicted, np.ones(len(predicted), bool)))
        ]
        expected = tuple(int(plane.sum()) for plane in (*planes, planes[0] & planes[1]))
        assert pairs.foreground[class_id] == expected


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_one_to_one_is_the_dense_assignment(draw: Callable[..., Pair], seed: int, threshold: float) -> None:
    truth, predicted = draw(np.random.default_rng([2, seed]), n_truth=25)
    truth = resolve_ignored(truth)
    pairs = pair_image(truth, predicted, "a", PairOptions())
    iou = dense_iou(truth.masks, predicted.masks)
    cost = -(iou >= threshold).astype(float) - iou / (2 * min(iou.shape))
    rows, columns = linear_sum_assignment(cost)
    ours = one_to_one(pairs, threshold)
    good = iou[rows, columns] >= threshold
    assert len(ours.iou) == good.sum()
    assert len(set(ours.truth)) == len(set(ours.predicted)) == len(ours.iou)
    chosen = best_assignment(pairs, threshold)
    total = -(pairs.iou[chosen] >= threshold).sum() - pairs.iou[chosen].sum() / (2 * min(iou.shape))
    assert total == pytest.approx(cost[rows, columns].sum(), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.floats(0.01, 1)), max_size=40))
def test_heaviest_matching_is_optimal(edges: list[tuple[int, int, float]]) -> None:
    unique = {(row, column): weight for row, column, weight in edges}
    rows = np.array([row for row, _ in unique], np.int64)
    columns = np.array([column for _, column in unique], np.int64)
    weight = np.array(list(unique.values()))
    table = np.zeros((8, 8))
    table[rows, columns] = weight
    chosen = heaviest_matching(rows, columns, weight)
    assert len(set(rows[chosen])) == len(set(columns[chosen])) == chosen.sum()
    best = table[linear_sum_assignment(-table)].sum()
    assert weight[chosen].sum() == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_heaviest_matching_of_larger_graphs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.random((50, 60)) * (rng.random((50, 60)) < rng.choice([0.03, 0.1, 0.5]))
    rows, columns = np.nonzero(table)
    chosen = heaviest_matching(rows, columns, table[rows, columns])
    assert len(set(rows[chosen])) == len(set(columns[chosen])) == chosen.sum()
    assert table[rows, columns][chosen].sum() == pytest.approx(table[linear_sum_assignment(-table)].sum(), abs=1e-9)


def test_more_pairs_beat_more_overlap(boxes: Callable[..., Instances]) -> None:
    """Two predictions on one object: the better one matches it, unless the other object would then have no match."""
    truth = boxes((0, 0, 10, 10), (0, 10, 10, 30))
    predicted = boxes((0, 0, 10, 16), (0, 0, 10, 9))
    # IoU of object 0: 10/16 and 9/10. Object 1 shares 6 columns with prediction 0 only: 6/30.
    pairs = pair_image(truth, predicted, "a", PairOptions())
    assert one_to_one(pairs, 0.5).predicted.tolist() == [1]
    assert sorted(one_to_one(pairs, 0.2).truth.tolist()) == [0, 1]
    wide = pair_image(truth[:1], predicted, "a", PairOptions())
    assert one_to_one(wide, 0.5).iou.tolist() == [0.9]


def test_at_least_and_strictly_above_the_threshold(boxes: Callable[..., Instances]) -> None:
    pairs = pair_image(boxes((0, 0, 10, 10)), boxes((0, 0, 10, 5)), "a", PairOptions())
    assert len(one_to_one(pairs, 0.5).iou) == 1
    assert len(one_to_one(pairs, 0.5, strict=True).iou) == 0


def test_without_objects_or_predictions(boxes: Callable[..., Instances]) -> None:
    cells, none = boxes((0, 0, 10, 10)), Instances.empty((64, 64))
    for truth, predicted in ((cells, none), (none, cells), (none, none)):
        options = PairOptions(boxes=True, foreground=True, boundary_px=2, repeats=True)
        pairs = pair_image(truth, predicted, "a", options)
        assert len(pairs.shared.value) == 0
        assert len(one_to_one(pairs, 0.5).iou) == 0
        assert pairs.without_ignored().foreground[ALL_CLASSES] == (100 * len(truth), 100 * len(predicted), 0)


def test_ignored_regions_excuse_predictions_inside_them(boxes: Callable[..., Instances]) -> None:
    truth = boxes((0, 0, 20, 20), (0, 40, 10, 50), ignore=np.array([True, False]))
    inside, half_out, on_object = (2, 2, 8, 8), (10, 10, 30, 30), (0, 40, 10, 49)
    pairs = pair_image(truth, boxes(inside, half_out, on_object), "a", PairOptions()).without_ignored()
    assert len(pairs.truth) == 1
    assert pairs.predicted.ids.tolist() == [2, 3]
    assert one_to_one(pairs, 0.5).predicted.tolist() == [1]


def test_an_object_counts_unless_most_of_it_is_in_an_ignored_region(boxes: Callable[..., Instances]) -> None:
    truth = boxes((0, 0, 30, 30), (5, 5, 15, 15), (26, 0, 36, 10), ignore=np.array([True, False, False]))
    pairs = pair_image(truth, boxes((5, 5, 15, 15), (26, 0, 36, 10)), "a", PairOptions()).without_ignored()
    assert (pairs.truth.ids.tolist(), pairs.predicted.ids.tolist()) == ([3], [2])
    assert one_to_one(pairs, 0.5).iou.tolist() == [1.0]


def test_a_score_equal_to_the_threshold_is_kept(boxes: Callable[..., Instances]) -> None:
    truth = boxes((0, 0, 10, 10))
    predicted = boxes((0, 0, 10, 10), (20, 20, 30, 30), scores=np.array([0.7, 0.3]))
    pairs = pair_image(truth, predicted, "a", PairOptions(foreground=True, score_threshold=0.7))
    assert pairs.above(0.7).predicted.ids.tolist() == [1]
    assert pairs.foreground[ALL_CLASSES] == (100, 100, 100)
    assert len(pairs.predicted) == 2


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_the_inner_band_is_the_mask_without_its_erosion(draw: Callable[..., Pair], distance: int) -> None:
    from scipy.ndimage import binary_erosion

    masks = draw(np.random.default_rng(9), n_truth=12)[0].masks
    bands = inner_band(masks, distance).to_dense()
    for mask, band in zip(masks.to_dense(), bands, strict=True):
        eroded = binary_erosion(np.pad(mask, 1), np.ones((3, 3)), iterations=distance)[1:-1, 1:-1]
        np.testing.assert_array_equal(band, mask & ~eroded)


def test_errors_name_both_sizes(boxes: Callable[..., Instances]) -> None:
    with pytest.raises(InputError, match="image 7") as caught:
        pair_image(boxes((0, 0, 5, 5)), Instances.empty((32, 64)), "7", PairOptions())
    assert "32 x 64" in str(caught.value)
    assert "64 x 64" in str(caught.value)
    with pytest.raises(UsageError, match="width"):
        pair_image(boxes((0, 0, 5, 5)), boxes((0, 0, 5, 5)), "7", PairOptions(boundary_px=0))

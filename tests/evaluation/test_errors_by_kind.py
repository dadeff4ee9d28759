"""Every kind of error on hand-drawn objects; every object has exactly one kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cellwright.core.ignored import resolve_ignored
from cellwright.core.instances import Instances
from cellwright.evaluation.errors_by_kind import (
    PREDICTED_KINDS,
    TRUTH_KINDS,
    ErrorKinds,
    classify_objects,
    count_errors,
)
from cellwright.evaluation.matching import PairOptions, pair_image

Boxes = Callable[..., Instances]
OBJECT = (10, 10, 30, 30)


def kinds(truth: Instances, predicted: Instances) -> tuple[list[str], list[str]]:
    sides = classify(truth, predicted)
    return sides[0].kind.tolist(), sides[1].kind.tolist()


def classify(truth: Instances, predicted: Instances) -> tuple[ErrorKinds, ErrorKinds]:
    return classify_objects(pair_image(truth, predicted, "a", PairOptions(repeats=True)))


def test_correct_missed_and_spurious(boxes: Boxes) -> None:
    truth, predicted = boxes(OBJECT, (40, 40, 60, 60)), boxes((10, 10, 30, 28), (0, 50, 8, 60))
    assert kinds(truth, predicted) == (["correct", "missed"], ["correct", "spurious"])
    errors = classify(truth, predicted)
    assert errors[0].partner.tolist() == [0, -1]
    assert errors[0].iou.tolist() == [0.9, 0]


def test_merged(boxes: Boxes) -> None:
    """One prediction over two objects of equal size: neither reaches IoU 0.5, so both are lost."""
    truth, predicted = boxes((10, 10, 30, 20), (10, 21, 30, 31)), boxes((10, 10, 30, 31))
    assert kinds(truth, predicted) == (["merged", "merged"], ["merged"])
    assert classify(truth, predicted)[0].partner.tolist() == [0, 0]


def test_a_small_object_merged_into_a_large_one(boxes: Boxes) -> None:
    truth, predicted = boxes((10, 10, 30, 30), (10, 31, 30, 36)), boxes((10, 10, 30, 36))
    assert kinds(truth, predicted) == (["correct", "merged"], ["correct"])


def test_split(boxes: Boxes) -> None:
    truth, predicted = boxes(OBJECT), boxes((10, 10, 30, 19), (10, 20, 30, 29))
    assert kinds(truth, predicted) == (["split"], ["split", "split"])
    assert classify(truth, predicted)[1].partner.tolist() == [0, 0]


def test_a_fragment_next_to_the_match(boxes: Boxes) -> None:
    truth, predicted = boxes(OBJECT), boxes((10, 10, 30, 24), (10, 25, 30, 30))
    assert kinds(truth, predicted) == (["correct"], ["correct", "split"])


def test_duplicates(boxes: Boxes) -> None:
    truth = boxes(OBJECT)
    first, second, small = (10, 10, 30, 30), (10, 11, 30, 30), (12, 12, 20, 20)
    assert kinds(truth, boxes(first, second, small)) == (["correct"], ["correct", "duplicate", "duplicate"])


def test_poorly_outlined(boxes: Boxes) -> None:
    truth, predicted = boxes(OBJECT), boxes((10, 20, 30, 45))
    assert kinds(truth, predicted) == (["poorly_outlined"], ["poorly_outlined"])
    assert classify(truth, predicted)[0].iou[0] == pytest.approx(10 / 35)
    barely = boxes((10, 28, 30, 60))  # IoU 2 / 50
    assert kinds(truth, barely) == (["missed"], ["spurious"])


def test_wrong_class(boxes: Boxes) -> None:
    truth = boxes(OBJECT, class_ids=np.array([1]))
    assert kinds(truth, boxes(OBJECT)) == (["wrong_class"], ["wrong_class"])
    # The correct class is matched first, although the other prediction has the better outline.
    both = boxes(OBJECT, (10, 10, 30, 25), class_ids=np.array([0, 1]))
    assert kinds(truth, both) == (["correct"], ["duplicate", "correct"])


def test_ignored(boxes: Boxes) -> None:
    truth = boxes((0, 0, 30, 30), (40, 40, 60, 60), ignore=np.array([True, False]))
    errors = classify(truth, boxes((5, 5, 10, 10), (40, 40, 60, 60)))
    assert errors[0].kind.tolist() == ["ignored", "correct"]
    assert errors[1].kind.tolist() == ["ignored", "correct"]
    assert errors[0].partner.tolist() == errors[1].partner.tolist() == [-1, 1]


def test_without_objects_or_predictions(boxes: Boxes) -> None:
    cells, none = boxes(OBJECT), Instances.empty((64, 64))
    assert kinds(cells, none) == (["missed"], [])
    assert kinds(none, cells) == ([], ["spurious"])
    assert kinds(none, none) == ([], [])
    assert set(count_errors(*classify(none, none)).values()) == {0}


@pytest.mark.parametrize("seed", range(5))
def test_every_object_has_one_kind_and_the_counts_add_up(
    draw: Callable[..., tuple[Instances, Instances]], seed: int
) -> None:
    truth, predicted = draw(np.random.default_rng([4, seed]), n_truth=30)
    sides = classify(truth, predicted)
    assert set(sides[0].kind) <= set(TRUTH_KINDS)
    assert set(sides[1].kind) <= set(PREDICTED_KINDS)
    for kind in ("correct", "wrong_class", "poorly_outlined"):  # these occur in pairs
        assert (sides[0].kind == kind).sum() == (sides[1].kind == kind).sum()
    counts = count_errors(*sides)
    lost = sum(counts[kind] for kind in ("missed", "merged", "split", "poorly_outlined", "wrong_class"))
    assert lost + (sides[0].kind == "correct").sum() == (~resolve_ignored(truth).ignore).sum()

"""Causes of lost recall on hand-drawn objects; the counts sum to the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cellwright.core.errors import InputError
from cellwright.core.instances import Instances
from cellwright.evaluation.lost_recall import lost_recall
from cellwright.evaluation.matching import PairOptions, one_to_one, pair_image

Boxes = Callable[..., Instances]
PLACES = [(0, 0, 10, 10), (0, 20, 10, 30), (0, 40, 10, 50), (20, 0, 30, 10), (20, 20, 30, 30), (40, 40, 50, 50)]


def with_steps(candidates: Instances, steps: list[str]) -> Instances:
    return replace(candidates, columns={"dropped_by": np.array(steps)})


def causes(truth: Instances, predicted: Instances, candidates: Instances) -> dict[str, int]:
    return lost_recall(truth, candidates, pair_image(truth, predicted, "a", PairOptions()))


def test_every_cause(boxes: Boxes) -> None:
    truth = boxes(*PLACES)
    predicted = boxes(PLACES[0])
    below_threshold, by_nms, by_cap, too_small = (0, 20, 10, 28), (0, 40, 10, 49), (20, 0, 30, 9), (20, 20, 30, 23)
    candidates = with_steps(
        boxes(PLACES[0], below_threshold, by_nms, by_nms, by_cap, by_cap, too_small),
        ["kept", "threshold", "threshold", "nms", "nms", "cap", "kept"],
    )
    counts = causes(truth, predicted, candidates)
    assert counts == {"never_proposed": 2, "threshold": 1, "nms": 1, "cap": 1, "taken": 0}


def test_one_prediction_for_two_objects(boxes: Boxes) -> None:
    truth = boxes((0, 0, 10, 10), (0, 0, 10, 9))
    predicted = boxes((0, 0, 10, 10))
    counts = causes(truth, predicted, with_steps(predicted, ["kept"]))
    assert counts["taken"] == sum(counts.values()) == 1


@pytest.mark.parametrize("seed", range(4))
def test_causes_sum_to_the_loss(draw: Callable[..., tuple[Instances, Instances]], seed: int) -> None:
    rng = np.random.default_rng([5, seed])
    truth, candidates = draw(rng, n_truth=30)
    steps = rng.choice(["threshold", "nms", "cap", "kept"], len(candidates))
    predicted = candidates[steps == "kept"]
    pairs = pair_image(truth, predicted, "a", PairOptions())
    counts = lost_recall(truth, with_steps(candidates, steps.tolist()), pairs)
    counted = pairs.without_ignored()
    assert sum(counts.values()) == len(counted.truth) - len(one_to_one(counted, 0.5).iou)


def test_without_candidates_and_with_invalid_ones(boxes: Boxes) -> None:
    truth, none = boxes(*PLACES[:2]), Instances.empty((64, 64))
    assert causes(truth, none, with_steps(none, []))["never_proposed"] == 2
    assert sum(causes(none, none, with_steps(none, [])).values()) == 0
    with pytest.raises(InputError, match="dropped_by"):
        causes(truth, none, truth)
    with pytest.raises(InputError, match="lost"):
        causes(truth, none, with_steps(truth, ["kept", "lost"]))

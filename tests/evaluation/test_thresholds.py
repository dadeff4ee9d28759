"""Calibration compared with isotonic regression of SciPy, and tuning compared with the metrics of a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from cellwright.core.errors import InputError, UsageError
from cellwright.core.instances import Instances
from cellwright.evaluation._kernels import pool_adjacent_violators
from cellwright.evaluation.evaluate import evaluate_pairs
from cellwright.evaluation.matching import PairOptions, pair_image
from cellwright.evaluation.ranking import expected_calibration_error
from cellwright.evaluation.thresholds import fit_calibration, tune

Boxes = Callable[..., Instances]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 30)), min_size=1, max_size=30))
def test_pava_equals_scipy(points: list[tuple[float, int]]) -> None:
    values, weights = (np.array(column, np.float64) for column in zip(*points, strict=True))
    expected = isotonic_regression(values, weights=weights).x
    np.testing.assert_allclose(pool_adjacent_violators(values, weights), expected, atol=1e-9)


def test_calibration_is_monotone_and_reduces_the_calibration_error() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(4000)
    ious = np.clip(scores**2 + rng.normal(0, 0.1, 4000), 0, 1)
    calibrate = fit_calibration(scores[:2000], ious[:2000])
    grid = calibrate(np.linspace(0, 1, 500))
    assert (np.diff(grid) >= 0).all()
    assert grid.min() >= 0
    assert grid.max() <= 1
    held_out = scores[2000:], ious[2000:]
    assert expected_calibration_error(held_out[0], held_out[1]) > 0.1
    assert expected_calibration_error(calibrate(held_out[0]), held_out[1]) < 0.02
    knots = calibrate.to_dict()
    expected = np.interp(scores, knots["scores"], knots["expected_iou"]).astype(np.float32)
    np.testing.assert_array_equal(calibrate(scores), expected)


def test_calibration_of_few_and_of_equal_scores() -> None:
    single = fit_calibration(np.array([0.4]), np.array([0.6]))
    assert single(np.array([0.4]))[0] == pytest.approx(0.6)
    equal = fit_calibration(np.full(50, 1.0), np.linspace(0, 1, 50))
    assert equal(np.array([1.0]))[0] == pytest.approx(0.5)
    assert len(equal(np.zeros(0))) == 0
    with pytest.raises(InputError, match="needs predictions"):
        fit_calibration(np.zeros(0), np.zeros(0))


def field(boxes: Boxes) -> tuple[Instances, Instances]:
    """Class 0: correct above 0.5, spurious below. Class 1: spurious predictions of 4 px have high scores, too."""
    truth = boxes((0, 0, 10, 10), (0, 20, 10, 30), (20, 0, 30, 10), (20, 20, 30, 30), class_ids=np.array([0, 0, 1, 1]))
    spurious = [(50, 0, 60, 10), (50, 20, 60, 30), (50, 40, 52, 42), (50, 50, 52, 52)]
    predicted = boxes(
        (0, 0, 10, 10), (0, 20, 10, 30), (20, 0, 30, 10), (20, 20, 30, 30), *spurious,
        class_ids=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        scores=np.array([0.9, 0.6, 0.5, 0.5, 0.4, 0.1, 0.9, 0.5]),
    )  # fmt: skip
    return truth, predicted


@pytest.mark.parametrize("metric", ["kaggle_score", "accuracy@0.5", "f1@0.75"])
def test_tuning_finds_the_thresholds(boxes: Boxes, metric: str) -> None:
    truth, predicted = field(boxes)
    tuning = tune([pair_image(truth, predicted, "a", PairOptions())], ("a", "b", "c"), metric)
    assert tuning.untuned == ("c",)
    assert 0.4 < tuning.classes["a"].score <= 0.6 + 1e-6
    assert tuning.classes["a"].min_area_px == 0
    assert 4 < tuning.classes["b"].min_area_px <= 100
    for tuned in tuning.classes.values():
        assert tuned.before < tuned.after == 1
    assert set(tuning.classes) == {"a", "b"}


def test_tuned_metrics_are_those_of_a_report(draw: Callable[..., tuple[Instances, Instances]]) -> None:
    """Without overlaps, greedy matching is one-to-one matching, so both give the same value."""
    rng = np.random.default_rng(3)
    pairs = [tuple(flat(side) for side in draw(rng, n_truth=15, n_classes=1)) for _ in range(4)]
    tuned = tune([pair_image(t, p, "a", PairOptions()) for t, p in pairs], ("cell",)).classes["cell"]
    kept = [p[(p.scores >= tuned.score) & (p.masks.areas >= tuned.min_area_px)] for _, p in pairs]
    truth = [t for t, _ in pairs]
    assert tuned.after == pytest.approx(evaluate_pairs(kept, truth, metrics=["kaggle_score"])["kaggle_score"])
    before = evaluate_pairs([p for _, p in pairs], truth, metrics=["kaggle_score"])["kaggle_score"]
    assert tuned.before == pytest.approx(before)
    assert tuned.after >= before


def flat(side: Instances) -> Instances:
    """The same objects without overlaps."""
    masks, ids = type(side.masks).from_label_map(side.masks.to_label_map())
    scores = None if side.scores is None else side.scores[ids - 1]
    return Instances.from_masks(masks, scores=scores)


def test_unknown_metric_and_missing_scores(boxes: Boxes) -> None:
    truth, predicted = field(boxes)
    with pytest.raises(UsageError, match="did you mean 'kaggle_score'"):
        tune([pair_image(truth, predicted, "a", PairOptions())], ("a", "b"), "kagle_score")
    with pytest.raises(InputError, match="needs predictions"):
        tune([pair_image(truth, replace(predicted, scores=None), "a", PairOptions())], ("a", "b"))

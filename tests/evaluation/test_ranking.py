"""Ranking metrics compared with SciPy and computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from cellwright.core.instances import Instances
from cellwright.evaluation.matching import PairOptions, pair_image
from cellwright.evaluation.ranking import expected_calibration_error, qualities, reliability, spearman


def test_spearman_equals_scipy_with_ties() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 8, 50).astype(float), rng.integers(0, 8, 50).astype(float)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert spearman(a, 3 * a + 1) == pytest.approx(1)
    assert np.isnan(spearman(a, np.ones(50)))
    assert np.isnan(spearman(a[:1], b[:1]))


def test_calibration_by_hand() -> None:
    scores, ious = np.array([0.05, 0.95, 0.95, 1.0]), np.array([0.25, 0.75, 0.85, 0.7])
    curve = reliability(scores, ious)
    assert curve["n"].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert curve["mean_iou"][9] == pytest.approx(2.3 / 3)
    assert np.isnan(curve["mean_iou"][4])
    expected = (0.2 + 3 * abs(2.9 / 3 - 2.3 / 3)) / 4
    assert expected_calibration_error(scores, ious) == pytest.approx(expected)
    assert np.isnan(expected_calibration_error(scores[:0], ious[:0]))
    assert expected_calibration_error(ious, ious) == 0


def test_quality_is_the_highest_iou(boxes: Callable[..., Instances]) -> None:
    truth = boxes((0, 0, 10, 10), (30, 30, 60, 60), ignore=np.array([False, True]))
    predicted = boxes(
        (0, 0, 10, 8), (0, 0, 10, 4), (40, 0, 50, 10), (40, 40, 50, 50), scores=np.array([0.9, 0.8, 0.7, 1])
    )
    ranking = qualities([pair_image(truth, predicted, "a", PairOptions())])
    assert ranking.ious.tolist() == [0.8, 0.4, 0.0]  # the prediction in the ignored region is not included
    np.testing.assert_allclose(ranking.scores, [0.9, 0.8, 0.7], atol=1e-7)
    unscored = pair_image(truth, replace(predicted, scores=None), "a", PairOptions())
    assert len(qualities([unscored]).scores) == len(qualities([]).scores) == 0

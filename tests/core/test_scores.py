"""Score thresholds and calibration."""

from __future__ import annotations

import numpy as np
import pytest

from cellwright.core.errors import UsageError
from cellwright.core.scores import Calibration, check_threshold, reaches_threshold


def test_one_threshold_per_class() -> None:
    scores, classes = np.array([0.3, 0.3, 0.7]), np.array([0, 1, 1])
    assert reaches_threshold(scores, classes, (0.2, 0.5)).tolist() == [True, False, True]
    assert reaches_threshold(scores, classes, 0.3).tolist() == [True, True, True]
    assert reaches_threshold(None, classes, (0.2, 0.5)).all()
    with pytest.raises(UsageError, match="no score threshold"):
        reaches_threshold(scores, classes, (0.2,))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), (0.5, float("nan")), (0.5, 2), "high", None, [[0.5]]])
def test_invalid_thresholds_are_refused(threshold: object) -> None:
    with pytest.raises(UsageError, match="invalid `score`") as caught:
        check_threshold(threshold, "score")  # type: ignore[arg-type]
    assert "from 0 to 1" in str(caught.value)


def test_valid_thresholds_are_numbers_of_python() -> None:
    assert check_threshold(np.float32(0.5)) == 0.5
    assert check_threshold(np.array([0.25, 1])) == (0.25, 1.0)
    assert check_threshold(0) == 0.0


@pytest.mark.parametrize(
    ("scores", "values"), [((), ()), ((0.0, 1.0), (0.0,)), ((0.5, 0.5), (0.1, 0.2)), ((0.0, 1.0), (0.5, 0.1))]
)
def test_invalid_calibrations_are_refused(scores: tuple[float, ...], values: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="invalid calibration"):
        Calibration(scores, values)

"""Score thresholds (one for all classes, or one per class) and the calibration of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellwright.core.class_ids import values_of_class
from cellwright.core.errors import UsageError

ScoreThreshold = float | tuple[float, ...]


def check_threshold(threshold: float | Sequence[float], name: str = "score_threshold") -> ScoreThreshold:
    """``threshold`` as a float or a tuple of floats. `UsageError` if a value is NaN or outside [0, 1].

    >>> check_threshold(0.5), check_threshold([0.5, 0.7])
    (0.5, (0.5, 0.7))
    """
    try:
        values = np.asarray(threshold, np.float64)
    except (TypeError, ValueError):
        values = np.full(1, np.nan)
    if values.ndim > 1 or not ((values >= 0) & (values <= 1)).all():
        expected = "a number from 0 to 1, or one per class"
        raise UsageError(f"invalid `{name}`", got=threshold, expected=expected)
    return tuple(values.tolist()) if values.ndim else float(values)


def shown_score(score: float) -> str:
    """A score as messages and tables show it, the same everywhere.

    >>> shown_score(0.310597), shown_score(0.3)
    ('0.311', '0.3')
    """
    return f"{score:.3g}"


def recorded_threshold(info: Mapping[str, Any]) -> ScoreThreshold:
    """The score threshold in the ``info`` of predictions: one number, or one per class; 0 if there is none.

    >>> recorded_threshold({"score_threshold": [0.5, 0.7]}), recorded_threshold({})
    ((0.5, 0.7), 0.0)
    """
    recorded = info.get("score_threshold", 0.0)
    return tuple(map(float, recorded)) if isinstance(recorded, list | tuple) else float(recorded)


def reaches_threshold(scores: np.ndarray | None, class_ids: np.ndarray, threshold: ScoreThreshold) -> np.ndarray:
    """Which objects (N,) bool have a score of at least the threshold of their class; all of them if scores is None.

    Compared in float32, the type of scores, so that a score equal to the threshold reaches it. Regions of no class
    always reach it. `UsageError` if a class has no threshold.

    >>> reaches_threshold(np.array([0.3, 0.3, 0.7]), np.array([0, 1, 1]), (0.2, 0.5))
    array([ True, False,  True])
    """
    limits = np.asarray(threshold, np.float32)
    if limits.ndim and class_ids.max(initial=-1) >= len(limits):
        got = f"class id {class_ids.max()} with {len(limits)} thresholds"
        raise UsageError("a class has no score threshold", got=got, expected="one threshold, or one per class")
    if scores is None:
        return np.ones(len(class_ids), bool)
    return scores.astype(np.float32) >= (values_of_class(class_ids, limits, 0) if limits.ndim else limits)


@dataclass(frozen=True)
class Calibration:
    """A map from the score of a model to the expected IoU: linear between knots (`cellwright tune` fits it).

    scores: (K,) in [0, 1], increasing. expected_iou: (K,) in [0, 1], not decreasing. `UsageError` otherwise.

    >>> calibration = Calibration((0.0, 0.5, 1.0), (0.0, 0.2, 0.8))
    >>> calibration(np.array([0.25, 0.75]))
    array([0.1, 0.5], dtype=float32)
    """

    scores: tuple[float, ...]
    expected_iou: tuple[float, ...]

    def __post_init__(self) -> None:
        x, y = np.array(self.scores), np.array(self.expected_iou)
        fits = x.ndim == 1 and len(x) > 0 and x.shape == y.shape
        fits = fits and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
        if not fits or min(*x, *y) < 0 or max(*x, *y) > 1:
            got = f"{len(self.scores)} scores, {len(self.expected_iou)} values"
            expected = "as many values as scores, all in [0, 1]; increasing scores, values that do not decrease"
            raise UsageError("invalid calibration of scores", got=got, expected=expected)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Expected IoU (N,) float32 in [0, 1] for scores (N,) in [0, 1]; N may be 0."""
        return np.interp(scores, self.scores, self.expected_iou).astype(np.float32)

    def to_dict(self) -> dict[str, list[float]]:
        """The knots for ``model.json``."""
        return {"scores": list(self.scores), "expected_iou": list(self.expected_iou)}

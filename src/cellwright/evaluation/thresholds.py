"""What a validation split can set: score thresholds and smallest areas for each class, and honest scores.

A model's scores are calibrated to the IoU to expect, by isotonic regression, so that models of different families can
be ranked together. Never report figures on the split that was tuned on: `cellwright evaluate` warns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellwright.core.errors import InputError, UsageError, did_you_mean
from cellwright.evaluation._kernels import TRUE_POSITIVE, greedy_codes, pool_adjacent_violators
from cellwright.evaluation.label_metrics import THRESHOLDS
from cellwright.evaluation.match import ImagePairs
from cellwright.evaluation.ranking import qualities

GROUP = 20  # predictions averaged before the regression, so that no knot rests on a handful
SCORE_STEPS = 64
AREA_QUANTILES = (0.0, 0.01, 0.02, 0.05, 0.1)
METRICS = ("kaggle_score", *(f"{name}@{t:g}" for name in ("accuracy", "f1") for t in THRESHOLDS))


@dataclass(frozen=True)
class Calibration:
    """A non-decreasing map from score to expected IoU: straight lines between knots from score 0 to score 1."""

    scores: tuple[float, ...]
    expected_iou: tuple[float, ...]

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Expected IoU (N,) float64 in [0, 1] of scores (N,) in [0, 1]; N = 0 is legal."""
        return np.interp(scores, self.scores, self.expected_iou)

    def to_dict(self) -> dict[str, list[float]]:
        """For ``model.json``: ``np.interp(score, scores, expected_iou)`` applies it."""
        return {"scores": list(self.scores), "expected_iou": list(self.expected_iou)}


@dataclass(frozen=True)
class ClassTuning:
    """score, min_area_px: keep predictions of at least both (raw score, before calibration). before, after: the metric
    on the split with nothing cut and with both."""

    score: float
    min_area_px: int
    before: float
    after: float


@dataclass(frozen=True)
class Tuning:
    """classes: by name; classes without an object on the split stand in ``untuned``. metric: what was maximised."""

    classes: dict[str, ClassTuning]
    untuned: tuple[str, ...]
    metric: str
    calibration: Calibration

    def to_dict(self) -> dict[str, Any]:
        """For ``model.json``."""
        return {
            "metric": self.metric,
            "score_thresholds": {name: tuned.score for name, tuned in self.classes.items()},
            "min_areas_px": {name: tuned.min_area_px for name, tuned in self.classes.items()},
            "calibration": self.calibration.to_dict(),
        }


def tune(images: Sequence[ImagePairs], class_names: Sequence[str], metric: str = "kaggle_score") -> Tuning:
    """Choose thresholds by their mean over images of ``metric``, class by class, and fit the calibration.

    images: pairs of a validation split, predictions with scores and as little cut as possible. metric: one of
    `METRICS`. Raises `UsageError` for another metric and `InputError` where there is no prediction with a score.
    """
    if metric not in METRICS:
        raise UsageError("this metric cannot be tuned for", got=repr(metric), remedy=did_you_mean(metric, METRICS))
    found = qualities(images)
    calibration = fit_calibration(found.scores, found.ious)
    classes: dict[str, ClassTuning] = {}
    for k, name in enumerate(class_names):
        of_class = [pairs.of_class(k).judged() for pairs in images]
        if any(len(pairs.truth) for pairs in of_class):
            classes[name] = _tune_class(of_class, metric)
    return Tuning(classes, tuple(name for name in class_names if name not in classes), metric, calibration)


def fit_calibration(scores: np.ndarray, ious: np.ndarray) -> Calibration:
    """Isotonic regression of IoU (N,) on score (N,), both in [0, 1] (pool adjacent violators, Zadrozny & Elkan 2002).

    Predictions are averaged in groups of `GROUP` neighbours by score (equal scores never part), the regression runs on
    the groups, and each level becomes one knot at its mean score. Lines between knots, to (0, 0) and on to score 1 at
    the last slope, keep the order of most scores, where steps would tie them. Raises `InputError` for N = 0.
    """
    if not len(scores):
        raise InputError(
            "a calibration needs predictions with scores",
            got="none on this split",
            remedy="predict with a lower --score, or choose another --split",
        )
    _, place, n = np.unique(scores, return_inverse=True, return_counts=True)
    group = ((np.cumsum(n) - n) // GROUP)[place]
    _, group = np.unique(group, return_inverse=True)
    weight = np.bincount(group).astype(np.float64)
    level = pool_adjacent_violators(np.bincount(group, ious) / weight, weight)
    _, block = np.unique(level, return_inverse=True)
    mass = np.bincount(block, weight)
    x = np.bincount(block, np.bincount(group, scores)) / mass
    y = np.bincount(block, level * weight) / mass
    if x[0] > 0:
        x, y = np.append(0.0, x), np.append(0.0, y)
    if x[-1] < 1:
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2]) if len(x) > 1 else 0.0
        x, y = np.append(x, 1.0), np.append(y, y[-1] + slope * (1 - x[-1]))
    return Calibration(tuple(x.tolist()), tuple(y.clip(0, 1).tolist()))


def _tune_class(images: Sequence[ImagePairs], metric: str) -> ClassTuning:
    """The best of a grid of scores and areas; of equal ones the least that is cut."""
    scores = np.concatenate([pairs.predicted.scores for pairs in images if pairs.predicted.scores is not None])
    steps = np.unique(np.append(0.0, np.quantile(scores, np.linspace(0, 1, SCORE_STEPS), method="lower")))
    areas = np.concatenate([pairs.truth.areas for pairs in images])
    smallest = np.unique([0, *(np.quantile(areas, AREA_QUANTILES) * [0.5, 1, 1, 1, 1]).astype(np.int64)])
    grid = np.array([_mean_over_images(images, int(area), steps, metric) for area in smallest])
    a, s = np.unravel_index(np.nanargmax(grid), grid.shape)
    return ClassTuning(float(steps[s]), int(smallest[a]), float(grid[0, 0]), float(grid[a, s]))


def _mean_over_images(images: Sequence[ImagePairs], min_area: int, steps: np.ndarray, metric: str) -> np.ndarray:
    """The metric (S,) at every score threshold, averaged over the images for which it is defined."""
    total, defined = np.zeros(len(steps)), np.zeros(len(steps))
    for pairs in images:
        values = _image_values(pairs, min_area, steps, metric)
        defined += ~np.isnan(values)
        total += np.nan_to_num(values)
    return np.divide(total, defined, out=np.full(len(steps), np.nan), where=defined > 0)


def _image_values(pairs: ImagePairs, min_area: int, steps: np.ndarray, metric: str) -> np.ndarray:
    """One image's metric (S,): greedy by score, so that one matching serves every threshold."""
    pairs = pairs.select(np.ones(len(pairs.truth), bool), pairs.predicted.areas >= min_area)
    scores, n_truth = pairs.predicted.scores, len(pairs.truth)
    assert scores is not None, "tune() has found scores"
    order = np.argsort(-scores, kind="stable")
    by_prediction = np.argsort(pairs.pairs.predicted, kind="stable")
    n_pairs = np.bincount(pairs.pairs.predicted, minlength=len(scores))
    # The Kaggle score asks for IoU above the threshold, the others for at least that.
    limits = np.nextafter(THRESHOLDS, 1) if metric == "kaggle_score" else np.array(THRESHOLDS)
    no_crowd, inside = np.zeros(n_truth, bool), np.zeros((1, len(scores)), bool)
    codes = greedy_codes(
        order,
        np.concatenate([[0], np.cumsum(n_pairs)]).astype(np.int64),
        pairs.pairs.truth[by_prediction],
        pairs.iou[by_prediction],
        no_crowd[None],
        no_crowd,
        inside,
        limits,
    )[0]
    found = np.concatenate([np.zeros((len(THRESHOLDS), 1)), np.cumsum(codes[:, order] == TRUE_POSITIVE, axis=1)], 1)
    n_kept = np.searchsorted(-scores[order], -steps, side="right")
    tp = found[:, n_kept]
    over, under = (2 * tp, n_kept + n_truth) if metric.startswith("f1") else (tp, n_kept + n_truth - tp)
    values = np.divide(over, under, out=np.full(tp.shape, np.nan), where=np.broadcast_to(under > 0, tp.shape))
    if metric == "kaggle_score":
        return values.mean(0)
    return values[THRESHOLDS.index(float(metric.split("@")[1]))]

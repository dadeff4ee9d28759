"""Tuning on a validation split: score thresholds and minimum areas per class, and calibration of scores.

Scores are calibrated to the expected IoU by isotonic regression, so that the predictions of different kinds of models
can be ranked together. Do not report results on the split that was used for tuning; `cellwright evaluate` warns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellwright.core.errors import InputError, UsageError, did_you_mean
from cellwright.core.scores import Calibration
from cellwright.evaluation._kernels import TRUE_POSITIVE, greedy_codes, pool_adjacent_violators
from cellwright.evaluation.label_metrics import THRESHOLDS
from cellwright.evaluation.matching import ImagePairs
from cellwright.evaluation.ranking import qualities

GROUP = 20  # predictions averaged before the regression, so that each knot is supported by enough of them
SCORE_STEPS = 64
AREA_QUANTILES = (0.0, 0.01, 0.02, 0.05, 0.1)
METRICS = ("kaggle_score", *(f"{name}@{t:g}" for name in ("accuracy", "f1") for t in THRESHOLDS))


@dataclass(frozen=True)
class ClassTuning:
    """The thresholds of one class, and what they gain.

    score, min_area_px: predictions below either are removed; score is that of the model, before calibration.
    before, after: the metric on the split without and with these thresholds.
    """

    score: float
    min_area_px: int
    before: float
    after: float


@dataclass(frozen=True)
class Tuning:
    """The result of tuning.

    classes: by name. untuned: classes without annotated objects on the split. metric: what was maximised.
    """

    classes: dict[str, ClassTuning]
    untuned: tuple[str, ...]
    metric: str
    calibration: Calibration


def tune(images: Sequence[ImagePairs], class_names: Sequence[str], metric: str = "kaggle_score") -> Tuning:
    """Choose the thresholds of each class that maximise ``metric`` as a mean over images, and fit the calibration.

    images: pairs of a validation split; predictions need scores, and should include low ones. metric: one of `METRICS`.
    Raises `UsageError` for another metric, `InputError` if no prediction has a score.
    """
    check_metric(metric)
    ranking = qualities(images)
    calibration = fit_calibration(ranking.scores, ranking.ious)
    classes: dict[str, ClassTuning] = {}
    for k, name in enumerate(class_names):
        of_class = [pairs.of_class(k).without_ignored() for pairs in images]
        if any(len(pairs.truth) for pairs in of_class):
            classes[name] = _tune_class(of_class, metric)
    return Tuning(classes, tuple(name for name in class_names if name not in classes), metric, calibration)


def check_metric(metric: str) -> None:
    """Raise `UsageError` for a metric that thresholds cannot be tuned for."""
    if metric not in METRICS:
        raise UsageError(
            "thresholds cannot be tuned for this metric", got=repr(metric), remedy=did_you_mean(metric, METRICS)
        )


def fit_calibration(scores: np.ndarray, ious: np.ndarray) -> Calibration:
    """Isotonic regression of IoU (N,) on score (N,), both in [0, 1] (pool adjacent violators, Zadrozny & Elkan 2002).

    Predictions are averaged in groups of `GROUP` neighbours by score (equal scores stay together). The regression runs
    on the groups, and each of its levels becomes a knot at the mean score of that level. The map is linear between
    knots, from (0, 0), and up to score 1 with the last slope: unlike steps, this keeps most scores distinct. Raises
    `InputError` for N = 0.
    """
    if not len(scores):
        raise InputError(
            "a calibration needs predictions with scores",
            got="none on this split",
            remedy="lower the `score` threshold of the predictions, or choose another `split`",
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
    """The best pair of thresholds on a grid of scores and areas; the lowest of equally good ones."""
    scores = np.concatenate([pairs.predicted.scores for pairs in images if pairs.predicted.scores is not None])
    steps = np.unique(np.append(0.0, np.quantile(scores, np.linspace(0, 1, SCORE_STEPS), method="lower")))
    areas = np.concatenate([pairs.truth.areas for pairs in images])
    smallest = np.unique([0, *(np.quantile(areas, AREA_QUANTILES) * [0.5, 1, 1, 1, 1]).astype(np.int64)])
    grid = np.array([_mean_over_images(images, int(area), steps, metric) for area in smallest])
    a, s = np.unravel_index(np.nanargmax(grid), grid.shape)
    return ClassTuning(float(steps[s]), int(smallest[a]), float(grid[0, 0]), float(grid[a, s]))


def _mean_over_images(images: Sequence[ImagePairs], min_area: int, steps: np.ndarray, metric: str) -> np.ndarray:
    """The metric (S,) at every score threshold, averaged over the images where it is defined."""
    total, defined = np.zeros(len(steps)), np.zeros(len(steps))
    for pairs in images:
        values = _image_values(pairs, min_area, steps, metric)
        defined += ~np.isnan(values)
        total += np.nan_to_num(values)
    return np.divide(total, defined, out=np.full(len(steps), np.nan), where=defined > 0)


def _image_values(pairs: ImagePairs, min_area: int, steps: np.ndarray, metric: str) -> np.ndarray:
    """The metric (S,) of one image; matching is greedy by score, so one matching serves all score thresholds."""
    pairs = pairs.select(np.ones(len(pairs.truth), bool), pairs.predicted.areas >= min_area)
    scores, n_truth = pairs.predicted.scores, len(pairs.truth)
    assert scores is not None, "tune() checks that there are scores"
    order = np.argsort(-scores, kind="stable")
    by_prediction = np.argsort(pairs.shared.predicted, kind="stable")
    n_pairs = np.bincount(pairs.shared.predicted, minlength=len(scores))
    # The Kaggle score needs an IoU above the threshold, the others at least the threshold.
    limits = np.nextafter(THRESHOLDS, 1) if metric == "kaggle_score" else np.array(THRESHOLDS)
    no_crowd, inside = np.zeros(n_truth, bool), np.zeros((1, len(scores)), bool)
    codes = greedy_codes(
        order,
        np.concatenate([[0], np.cumsum(n_pairs)]).astype(np.int64),
        pairs.shared.truth[by_prediction],
        pairs.iou[by_prediction],
        no_crowd[None],
        no_crowd,
        inside,
        limits,
    )[0]
    is_tp = codes[:, order] == TRUE_POSITIVE
    tp_of_first = np.concatenate([np.zeros((len(THRESHOLDS), 1)), np.cumsum(is_tp, axis=1)], 1)
    n_kept = np.searchsorted(-scores[order], -steps, side="right")
    tp = tp_of_first[:, n_kept]
    numerator, denominator = (2 * tp, n_kept + n_truth) if metric.startswith("f1") else (tp, n_kept + n_truth - tp)
    defined = np.broadcast_to(denominator > 0, tp.shape)
    values = np.divide(numerator, denominator, out=np.full(tp.shape, np.nan), where=defined)
    if metric == "kaggle_score":
        return values.mean(0)
    return values[THRESHOLDS.index(float(metric.split("@")[1]))]

"""How well scores predict quality: rank correlation (Spearman), expected calibration error, reliability curve.

The quality of a prediction is its highest IoU with any object that counts, or 0 if it touches none. Predictions in
ignored regions are not included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellwright.evaluation.matching import ImagePairs

BINS = 10


@dataclass(frozen=True, eq=False)
class Qualities:
    """The N predictions of a dataset that count: scores and ious (N,) float64, class_ids (N,) int64."""

    scores: np.ndarray
    ious: np.ndarray
    class_ids: np.ndarray


def qualities(images: Sequence[ImagePairs]) -> Qualities:
    """Score and highest IoU of every prediction; images whose predictions have no scores are skipped."""
    scores, ious, classes = [np.zeros(0)], [np.zeros(0)], [np.zeros(0, np.int64)]
    for pairs in images:
        counted = pairs.without_ignored()
        if counted.predicted.scores is None:
            continue
        best = np.zeros(len(counted.predicted))
        np.maximum.at(best, counted.shared.predicted, counted.iou)
        scores.append(counted.predicted.scores)
        ious.append(best)
        classes.append(counted.predicted.class_ids)
    return Qualities(np.concatenate(scores), np.concatenate(ious), np.concatenate(classes))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two samples (N,); ties get their mean rank. NaN if N < 2 or if either sample is constant."""
    if len(a) < 2 or (a == a[0]).all() or (b == b[0]).all():
        return float("nan")
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def reliability(scores: np.ndarray, ious: np.ndarray, bins: int = BINS) -> dict[str, np.ndarray]:
    """The reliability curve: bins of equal width over [0, 1], including empty ones (their means are NaN).

    Columns, each (bins,): low, high, n, mean_score, mean_iou. A score of 1 is in the last bin.
    """
    place = np.minimum((scores * bins).astype(np.int64), bins - 1)
    n = np.bincount(place, minlength=bins)
    means = [
        np.divide(np.bincount(place, values, minlength=bins), n, out=np.full(bins, np.nan), where=n > 0)
        for values in (scores, ious)
    ]
    edges = np.linspace(0, 1, bins + 1)
    return {"low": edges[:-1], "high": edges[1:], "n": n, "mean_score": means[0], "mean_iou": means[1]}


def expected_calibration_error(scores: np.ndarray, ious: np.ndarray, bins: int = BINS) -> float:
    """Mean over predictions of |mean score - mean IoU| in their bin (Guo et al. 2017); NaN without predictions."""
    if not len(scores):
        return float("nan")
    curve = reliability(scores, ious, bins)
    gaps = np.abs(curve["mean_score"] - curve["mean_iou"])
    return float(np.nansum(gaps * curve["n"]) / len(scores))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, n = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(n) - (n - 1) / 2)[place]

"""Confidence intervals by the percentile bootstrap over images (Efron 1979), and paired comparison of two predictions.

Images are resampled, not objects, since the objects of one image are not independent. A comparison uses the same
resamples for both predictions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cellwright.core.errors import InputError, UsageError
from cellwright.core.text import count
from cellwright.evaluation.coco import CAPS, IOU_THRESHOLDS, RECALL_POINTS, CocoResult, ranked
from cellwright.evaluation.data import HEADLINE
from cellwright.evaluation.label_metrics import Counts, Ratio, Scores
from cellwright.evaluation.report import Report

SAMPLES = 1000
# With fewer images, even a difference with the same sign in every image is no evidence: 2 ** -5 * 2 is above 0.05.
MIN_IMAGES = 6
_AP = re.compile(r"(box_)?AP(50|75)?@(\w+)")


def intervals(
    report: Report, names: Sequence[str] | None = None, *, samples: int = SAMPLES, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Confidence intervals of metrics: a table with the columns metric, value, low, high.

    names: None for the headline metrics. Intervals exist for AP@, AP50@ and AP75@ (of masks and boxes), for means over
    images, and for pooled metrics; `UsageError` for another name. samples: number of resamples. level: of confidence.
    Limits are NaN with fewer than two images or if the metric is undefined.
    """
    names = _names(names, report)
    weights = _draw(report, samples, seed)
    rows = [(name, report[name], *_limits(_resampled(report, name, weights), level)) for name in names]
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high"])


def compare(
    first: Report,
    second: Report,
    names: Sequence[str] | None = None,
    *,
    samples: int = SAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare two predictions of the same images.

    The table has the columns metric, first, second, difference (second - first), low, high (the interval of the
    difference), and p: two-sided, twice the share of resamples with the opposite sign, at least 1 / samples; NaN with
    fewer than `MIN_IMAGES` images. Other arguments as for `intervals`. Raises `InputError` if the images differ.
    """
    if first.data.image_ids != second.data.image_ids:
        unpaired = sorted(set(first.data.image_ids) ^ set(second.data.image_ids))
        raise InputError(
            "a paired comparison needs the same images in the same order",
            got=f"{count(len(unpaired), 'image')} in one of them only" + (f", e.g. {unpaired[0]}" if unpaired else ""),
            remedy="predict on the same images with both",
        )
    names = [name for name in _names(names, first) if name in second.values]
    weights = _draw(first, samples, seed)
    rows = []
    for name in names:
        difference = _resampled(second, name, weights) - _resampled(first, name, weights)
        defined = difference[~np.isnan(difference)]
        p = 2 * min((defined <= 0).mean(), (defined >= 0).mean()) if len(defined) else np.nan
        limits = _limits(difference, level)
        has_p = len(first.data.pairs) >= MIN_IMAGES and not np.isnan(limits[0])
        p = float(np.clip(p, 1 / samples, 1)) if has_p else np.nan
        rows.append((name, first[name], second[name], second[name] - first[name], *limits, p))
    return pd.DataFrame(rows, columns=["metric", "first", "second", "difference", "low", "high", "p"])


def _names(names: Sequence[str] | None, report: Report) -> list[str]:
    if names is None:
        return [name for name in HEADLINE if name in report.values]
    means = report.data.scores[0].values() if report.data.scores else {}
    for name in names:
        if not _AP.fullmatch(name) and name.removeprefix("pooled_") not in means:
            raise UsageError(
                "no confidence interval for this metric",
                got=repr(name),
                expected=f"AP@, AP50@ or AP75@ followed by {' or '.join(CAPS)} (with box_ before it for boxes), a mean "
                "over images such as accuracy@0.5 or pq, or a pooled value such as pooled_pq",
            )
    return list(names)


def _draw(report: Report, samples: int, seed: int) -> np.ndarray:
    """How often each of I images is in each of B resamples, (B, I) int64; the same for every metric."""
    n = len(report.data.image_ids)
    if n == 0:
        return np.zeros((samples, 0), np.int64)
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples).astype(np.int64)


def _limits(values: np.ndarray, level: float) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(report: Report, name: str, weights: np.ndarray) -> np.ndarray:
    """The metric (B,) in each resample; all NaN with fewer than two images."""
    undefined = np.full(len(weights), np.nan)
    if weights.shape[1] < 2:
        return undefined
    parts = _AP.fullmatch(name)
    if parts:
        result = report.data.boxes if parts[1] else report.data.masks
        threshold = int(parts[2]) / 100 if parts[2] else None
        return undefined if result is None else _resampled_ap(result, parts[3], threshold, weights)
    if name.startswith("pooled_"):
        return _resampled_pooled(report.data.scores, name.removeprefix("pooled_"), weights)
    values = np.array([scores.values()[name] for scores in report.data.scores])
    defined = ~np.isnan(values)
    n = weights @ defined.astype(np.int64)
    return np.divide(weights @ np.nan_to_num(values), n, out=undefined, where=n > 0)


def _resampled_ap(result: CocoResult, cap: str, threshold: float | None, weights: np.ndarray) -> np.ndarray:
    chosen = np.ones(len(IOU_THRESHOLDS), bool) if threshold is None else np.isclose(IOU_THRESHOLDS, threshold)
    predictions, classes = result.predictions, []
    for k in range(result.n_truth.shape[1]):
        index = ranked(predictions, k)
        index = index[predictions.rank[index] < CAPS[cap]]
        classes.append(
            _kernels().resampled_ap(
                np.ascontiguousarray(predictions.codes[0][chosen][:, index]),
                predictions.image[index],
                weights,
                np.ascontiguousarray(result.n_truth[:, k, 0]),
                RECALL_POINTS,
            )
        )
    table = np.array(classes)
    n = (~np.isnan(table)).sum(0)
    return np.divide(np.nansum(table, 0), n, out=np.full(table.shape[1], np.nan), where=n > 0)


def _resampled_pooled(scores: Sequence[Scores], name: str, weights: np.ndarray) -> np.ndarray:
    tables = [
        np.array([[(c.tp, c.fp, c.fn, c.iou_sum) for c in getattr(image, kind)] for image in scores], np.float64)
        for kind in ("counts", "strict")
    ]
    ratios = np.array([[(r.numerator, r.denominator) for r in image.ratios.values()] for image in scores], np.float64)
    counts, strict = (np.tensordot(weights, table, 1) for table in tables)
    pooled = np.tensordot(weights, ratios.reshape(len(scores), -1, 2), 1)
    names = list(scores[0].ratios)
    return np.array(
        [
            Scores(
                tuple(Counts(*row) for row in counts[b].tolist()),
                tuple(Counts(*row) for row in strict[b].tolist()),
                {n: Ratio(*row) for n, row in zip(names, pooled[b].tolist(), strict=True)},
            ).values()[name]
            for b in range(len(weights))
        ]
    )


def _kernels() -> Any:
    from cellwright.evaluation import _kernels

    return _kernels

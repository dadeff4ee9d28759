"""How sure a figure is: percentile bootstrap over images (Efron 1979), and the paired comparison of two predictions.

Images, not objects, are drawn: the objects of one image are not independent. A comparison draws the same images for
both sides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cellwright.core.errors import InputError, UsageError
from cellwright.evaluation.coco import CAPS, IOU_THRESHOLDS, RECALL_POINTS, CocoResult, ranked
from cellwright.evaluation.label_metrics import Counts, Ratio, Scores
from cellwright.evaluation.report import HEADLINE, Report

SAMPLES = 1000
_AP = re.compile(r"(box_)?AP(50|75)?@(\w+)")


def intervals(
    report: Report, names: Sequence[str] | None = None, *, samples: int = SAMPLES, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Columns metric, value, low, high: the ``level`` interval of each figure (None: of the headline).

    Possible are AP@, AP50@ and AP75@ (of boxes too), every mean over images and every pooled figure. Limits are NaN
    with fewer than two images, or where the figure is undefined. `UsageError` for another name.
    """
    names = _names(names, report)
    drawn = _draw(report, samples, seed)
    rows = [(name, report[name], *_limits(_resampled(report, name, drawn), level)) for name in names]
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
    """Two predictions of the same images: columns metric, first, second, difference (second - first), low, high, p.

    p: two-sided, the share of resamples in which the sign turns, doubled, at least 1 / samples. Raises `InputError`
    where the images differ.
    """
    if first.judged.image_ids != second.judged.image_ids:
        apart = sorted(set(first.judged.image_ids) ^ set(second.judged.image_ids))
        raise InputError(
            "a paired comparison needs the same images in the same order",
            got=f"{len(apart)} images on one side only" + (f", such as {apart[0]}" if apart else ""),
            remedy="predict on the same images with both",
        )
    names = [name for name in _names(names, first) if name in second.values]
    drawn = _draw(first, samples, seed)
    rows = []
    for name in names:
        difference = _resampled(second, name, drawn) - _resampled(first, name, drawn)
        known = difference[~np.isnan(difference)]
        p = 2 * min((known <= 0).mean(), (known >= 0).mean()) if len(known) else np.nan
        limits = _limits(difference, level)
        p = np.nan if np.isnan(limits[0]) else float(np.clip(p, 1 / samples, 1))
        rows.append((name, first[name], second[name], second[name] - first[name], *limits, p))
    return pd.DataFrame(rows, columns=["metric", "first", "second", "difference", "low", "high", "p"])


def _names(names: Sequence[str] | None, report: Report) -> list[str]:
    if names is None:
        return [name for name in HEADLINE if name in report.values]
    means = report.judged.scores[0].values() if report.judged.scores else {}
    for name in names:
        if not _AP.fullmatch(name) and name.removeprefix("pooled_") not in means:
            raise UsageError(
                "no interval for this figure",
                got=repr(name),
                expected=f"AP@, AP50@, AP75@ with {' or '.join(CAPS)} (box_ in front for boxes), {', '.join(means)}, "
                "or pooled_ in front of these",
            )
    return list(names)


def _draw(report: Report, samples: int, seed: int) -> np.ndarray:
    """How often each image is drawn, (B, I) int64; the same for every figure."""
    n = len(report.judged.image_ids)
    if n == 0:
        return np.zeros((samples, 0), np.int64)
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples).astype(np.int64)


def _limits(values: np.ndarray, level: float) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(report: Report, name: str, drawn: np.ndarray) -> np.ndarray:
    """The figure (B,) in each resample; all NaN with fewer than two images."""
    if drawn.shape[1] < 2:
        return np.full(len(drawn), np.nan)
    parts = _AP.fullmatch(name)
    if parts:
        result = report.judged.boxes if parts[1] else report.judged.masks
        threshold = int(parts[2]) / 100 if parts[2] else None
        return np.full(len(drawn), np.nan) if result is None else _resampled_ap(result, parts[3], threshold, drawn)
    if name.startswith("pooled_"):
        return _resampled_pooled(report.judged.scores, name.removeprefix("pooled_"), drawn)
    values = np.array([scores.values()[name] for scores in report.judged.scores])
    defined = ~np.isnan(values)
    n = drawn @ defined.astype(np.int64)
    return np.divide(drawn @ np.nan_to_num(values), n, out=np.full(len(drawn), np.nan), where=n > 0)


def _resampled_ap(result: CocoResult, cap: str, threshold: float | None, drawn: np.ndarray) -> np.ndarray:
    chosen = np.ones(len(IOU_THRESHOLDS), bool) if threshold is None else np.isclose(IOU_THRESHOLDS, threshold)
    found, classes = result.detections, []
    for k in range(result.n_truth.shape[1]):
        index = ranked(found, k)
        index = index[found.rank[index] < CAPS[cap]]
        classes.append(
            _kernels().resampled_ap(
                np.ascontiguousarray(found.codes[0][chosen][:, index]),
                found.image[index],
                drawn,
                np.ascontiguousarray(result.n_truth[:, k, 0]),
                RECALL_POINTS,
            )
        )
    table = np.array(classes)
    n = (~np.isnan(table)).sum(0)
    return np.divide(np.nansum(table, 0), n, out=np.full(table.shape[1], np.nan), where=n > 0)


def _resampled_pooled(scores: Sequence[Scores], name: str, drawn: np.ndarray) -> np.ndarray:
    tables = [
        np.array([[(c.tp, c.fp, c.fn, c.iou_sum) for c in getattr(one, kind)] for one in scores], np.float64)
        for kind in ("counts", "strict")
    ]
    ratios = np.array([[(r.over, r.under) for r in one.ratios.values()] for one in scores], np.float64)
    counts, strict = (np.tensordot(drawn, table, 1) for table in tables)
    pooled = np.tensordot(drawn, ratios.reshape(len(scores), -1, 2), 1)
    names = list(scores[0].ratios)
    return np.array(
        [
            Scores(
                tuple(Counts(*row) for row in counts[b].tolist()),
                tuple(Counts(*row) for row in strict[b].tolist()),
                {n: Ratio(*row) for n, row in zip(names, pooled[b].tolist(), strict=True)},
            ).values()[name]
            for b in range(len(drawn))
        ]
    )


def _kernels() -> Any:
    from cellwright.evaluation import _kernels

    return _kernels

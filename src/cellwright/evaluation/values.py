"""The metric values of a dataset by name, the reasons why some are undefined, and notes on how to read them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np

from cellwright.core.scores import ScoreThreshold
from cellwright.core.text import count
from cellwright.evaluation.coco import CAP, CAPS, COCO_BANDS, THIRDS, CocoResult
from cellwright.evaluation.data import HEADLINE, EvaluationData
from cellwright.evaluation.errors_by_kind import count_errors
from cellwright.evaluation.label_metrics import Scores, score_image
from cellwright.evaluation.lost_recall import CAUSES
from cellwright.evaluation.ranking import expected_calibration_error, qualities, spearman

CLASS_MEANS = ("accuracy@0.5", "f1@0.5", "pq", "aji")
CEILING = f"AP_ceiling@{CAP}"
NO_SCORES = "the predictions have no scores"


def all_values(data: EvaluationData) -> tuple[dict[str, float], dict[str, str]]:
    """The value of every metric, and a reason for each that is NaN."""
    values: dict[str, float] = {
        "n_images": len(data.pairs),
        "n_truth": sum(int((~pairs.truth.ignore).sum()) for pairs in data.pairs),
        "n_predicted": sum(len(pairs.without_ignored().predicted) for pairs in data.pairs),
    }
    if "coco" in data.groups:
        for prefix, result in (("", data.masks), ("box_", data.boxes)):
            values |= {prefix + name: value for name, value in ap_values(result).items()}
    values |= means(data.scores, data.zero)
    values |= pooled(data.scores, data.zero)
    if len(data.class_names) > 1:
        values |= _class_means(data)
    if "errors" in data.groups and data.pairs:
        counts = [count_errors(*kinds) for kinds in data.errors]
        values |= {f"errors_{kind}": sum(of_image[kind] for of_image in counts) for kind in counts[0]}
    if "ranking" in data.groups:
        ranking = qualities(data.all_pairs)
        values["score_iou_spearman"] = spearman(ranking.scores, ranking.ious)
        values["score_calibration_error"] = expected_calibration_error(ranking.scores, ranking.ious)
    if data.lost is not None:
        n_truth = values["n_truth"]
        values |= {f"lost_recall_{cause}": data.lost[cause] / n_truth if n_truth else np.nan for cause in CAUSES}
    values = {name: float(value) for name, value in values.items()}
    reasons = {name: _reason(name, data) for name, value in values.items() if np.isnan(value)}
    return values, reasons


def notes(data: EvaluationData, values: dict[str, float], reasons: dict[str, str]) -> tuple[str, ...]:
    """What a reader should know before quoting a value; the reasons for undefined and zero values come first."""
    texts = [*_undefined(values, reasons), *_nothing_found(data, values)]
    ceiling = values.get(CEILING, np.nan)
    if ceiling < 1:
        crowded = int((data.masks.n_truth[:, :, 0] > CAP).any(1).sum()) if data.masks else 0
        texts.append(
            f"more than {CAP} objects of a class in {crowded} of {count(len(data.pairs), 'image')}: no prediction can "
            f"exceed AP@{CAP} = {ceiling:.4f} here; AP@all has no such limit"
        )
    n_all, n_kept = (sum(len(pairs.predicted) for pairs in side) for side in (data.all_pairs, data.pairs))
    if 0 < n_kept < n_all:
        below = count(n_all - n_kept, "prediction")
        texts.append(f"{below} below the score threshold, used for AP and ranking only")
    if data.masks is not None and values["n_truth"]:
        limits = [data.masks.bands[name][1] for name in THIRDS[:2]]
        sizes = f"up to {limits[0]:.0f} px, up to {limits[1]:.0f} px, and larger"
        texts.append(f"AP of small, medium and large objects: thirds of the annotated ones by area, {sizes}")
    n_ignored = sum(int(pairs.truth.ignore.sum()) for pairs in data.pairs)
    if n_ignored:
        texts.append(f"{count(n_ignored, 'ignored region')}, neither rewarded nor penalised")
    empty = [name for k, name in enumerate(data.class_names) if not _has_truth(data, k)]
    if 0 < len(empty) < len(data.class_names):
        texts.append(f"classes without annotated objects, not included in class means: {', '.join(empty)}")
    return tuple(texts)


def _undefined(values: dict[str, float], reasons: dict[str, str]) -> list[str]:
    """Which of the headline metrics are undefined: one line per reason."""
    by_reason: dict[str, list[str]] = {}
    for name in HEADLINE:
        if name in values and name in reasons:
            by_reason.setdefault(reasons[name], []).append(name)
    return [f"undefined: {', '.join(names)} ({reason})" for reason, names in by_reason.items()]


def _nothing_found(data: EvaluationData, values: dict[str, float]) -> list[str]:
    """Why metrics are 0 if no prediction matches any object."""
    n_all = sum(len(pairs.predicted) for pairs in data.all_pairs)
    if not data.pairs:
        return []
    if not n_all:
        return ["there are no predictions at all"]
    if not values["n_truth"]:
        return [f"there are no annotated objects, so {_all_of(n_all, 'prediction')} wrong"]
    if not values["n_predicted"]:
        return [f"{_all_of(n_all, 'prediction')} below the score threshold {_shown(data.score_threshold)}"]
    if any(counts.tp for counts in (scores.counts[0] for scores in data.scores)):
        if values.get("AP50@all") == 0 and len(data.class_names) > 1:
            return ["AP50@all is 0 because predictions match objects of other classes only"]
        return []
    if all(len(pairs.shared.value) == 0 for pairs in data.pairs):
        return ["no prediction touches an annotated object: check that both belong to the same images, unrotated"]
    best = max(float(pairs.iou.max(initial=0)) for pairs in data.pairs)
    return [f"no prediction reaches IoU 0.5 with an annotated object; the highest IoU is {best:.2f}"]


def _all_of(n: int, noun: str) -> str:
    return f"the only {noun} is" if n == 1 else f"all {count(n, noun)} are"


def _shown(threshold: ScoreThreshold) -> str:
    return " / ".join(f"{value:g}" for value in (threshold if isinstance(threshold, tuple) else (threshold,)))


def ap_values(result: CocoResult | None, class_id: int | None = None) -> dict[str, float]:
    """Average precision and recall at both caps, by their names without "box_"; all NaN without a result."""
    values = {}
    for cap in CAPS:
        names = {f"AP@{cap}": ("any", None), f"AP50@{cap}": ("any", 0.5), f"AP75@{cap}": ("any", 0.75)}
        names |= {f"AP_{band}@{cap}": (band, None) for band in (*COCO_BANDS, *THIRDS)}
        for name, (band, threshold) in names.items():
            arguments = {"cap": cap, "band": band, "threshold": threshold, "class_id": class_id}
            values[name] = np.nan if result is None else result.ap(**arguments)
        values[f"AR@{cap}"] = np.nan if result is None else result.ar(cap=cap, class_id=class_id)
    values[CEILING] = np.nan if result is None else result.ceiling(class_id=class_id)
    return values


def means(scores: Sequence[Scores], zero: Scores) -> dict[str, float]:
    """Mean of every metric over the images where it is defined; ``zero`` is used if there are no images."""
    if not scores:
        return zero.values()
    rows = [image.values() for image in scores]
    table = np.array([list(row.values()) for row in rows])
    defined = ~np.isnan(table)
    sums = np.where(defined, table, 0).sum(0)
    means = np.divide(sums, defined.sum(0), out=np.full(len(sums), np.nan), where=defined.any(0))
    return dict(zip(rows[0], means.tolist(), strict=True))


def pooled(scores: Sequence[Scores], zero: Scores) -> dict[str, float]:
    """Every metric computed from the sums over all images."""
    return {f"pooled_{name}": value for name, value in reduce(add, scores, zero).values().items()}


def class_scores(data: EvaluationData, class_id: int) -> tuple[Scores, ...]:
    """The sums of every image for the annotated and predicted objects of one class."""
    if len(data.class_names) == 1:
        return data.scores
    return tuple(score_image(pairs.of_class(class_id), data.groups) for pairs in data.pairs)


def _class_means(data: EvaluationData) -> dict[str, float]:
    """Pooled metrics of each class, averaged over the classes where they are defined (as in Kirillov's mean PQ)."""
    rows = [pooled(class_scores(data, k), data.zero) for k in range(len(data.class_names))]
    names = [name for name in CLASS_MEANS if f"pooled_{name}" in rows[0]]
    columns = {name: np.array([row[f"pooled_{name}"] for row in rows]) for name in names}
    return {
        f"class_mean_{name}": float(np.nanmean(column)) if (~np.isnan(column)).any() else np.nan
        for name, column in columns.items()
    }


def _has_truth(data: EvaluationData, class_id: int) -> bool:
    return any(((pairs.truth.class_ids == class_id) & ~pairs.truth.ignore).any() for pairs in data.pairs)


def _reason(name: str, data: EvaluationData) -> str:
    """Why a metric is undefined."""
    base = name.removeprefix("pooled_").removeprefix("class_mean_").removeprefix("box_")
    if not data.pairs:
        return "no images"
    if base.startswith(("AP", "AR")):
        if data.masks is None:
            return NO_SCORES
        return "no annotated objects of this size" if "_" in base else "no annotated objects"
    if base.startswith("score_"):
        return "needs at least two predictions with different scores" if "spearman" in base else NO_SCORES
    if base.startswith(("recall", "mean_true_iou", "lost_recall")):
        return "no annotated objects"
    if base.startswith("precision"):
        return "no predictions"
    if base.startswith(("sq", "mean_matched_iou", "boundary_iou")):
        return "no pair reaches IoU 0.5"
    return "no annotated objects and no predictions"

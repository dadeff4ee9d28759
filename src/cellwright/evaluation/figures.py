"""The figures of a `Report` by name, why some are undefined, and what to know before quoting them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np

from cellwright.evaluation.coco import CAP, CAPS, COCO_BANDS, THIRDS, CocoResult
from cellwright.evaluation.errors_by_kind import count_kinds
from cellwright.evaluation.label_metrics import Scores, score_image
from cellwright.evaluation.lost_recall import CAUSES
from cellwright.evaluation.ranking import expected_calibration_error, qualities, spearman
from cellwright.evaluation.report import Judged

CLASS_MEANS = ("accuracy@0.5", "f1@0.5", "pq", "aji")
CEILING = f"AP_ceiling@{CAP}"
NO_SCORES = "the predictions carry no scores"


def all_values(judged: Judged) -> tuple[dict[str, float], dict[str, str]]:
    """Every figure of the data set, and why those are undefined that are."""
    values: dict[str, float] = {
        "n_images": len(judged.images),
        "n_truth": sum(int((~pairs.truth.ignore).sum()) for pairs in judged.images),
        "n_predicted": sum(len(pairs.predicted) for pairs in judged.images),
    }
    if "coco" in judged.groups:
        for prefix, result in (("", judged.masks), ("box_", judged.boxes)):
            values |= {prefix + name: value for name, value in ap_values(result).items()}
    values |= means(judged.scores, judged.nothing)
    values |= pooled(judged.scores, judged.nothing)
    if len(judged.class_names) > 1:
        values |= _class_means(judged)
    if judged.verdicts:
        counted = [count_kinds(*verdicts) for verdicts in judged.verdicts]
        values |= {f"errors_{kind}": sum(counts[kind] for counts in counted) for kind in counted[0]}
    if "ranking" in judged.groups:
        found = qualities(judged.found)
        values["score_iou_spearman"] = spearman(found.scores, found.ious)
        values["score_calibration_error"] = expected_calibration_error(found.scores, found.ious)
    if judged.lost is not None:
        n_truth = values["n_truth"]
        values |= {f"lost_recall_{c}": judged.lost[c] / n_truth if n_truth else np.nan for c in CAUSES}
    values = {name: float(value) for name, value in values.items()}
    reasons = {name: _reason(name, judged) for name, value in values.items() if np.isnan(value)}
    return values, reasons


def notes(judged: Judged, values: dict[str, float]) -> tuple[str, ...]:
    """What to know before quoting a figure."""
    found = []
    ceiling = values.get(CEILING, np.nan)
    if ceiling < 1:
        crowded = int((judged.masks.n_truth[:, :, 0] > CAP).any(1).sum()) if judged.masks else 0
        found.append(
            f"{crowded} of {len(judged.images)} images hold more than {CAP} objects of a class: "
            f"no prediction can exceed AP@{CAP} = {ceiling:.4f} here; AP@all has no such ceiling"
        )
    n_below = sum(len(a.predicted) - len(b.predicted) for a, b in zip(judged.found, judged.images, strict=True))
    if n_below:
        found.append(f"{n_below} predictions below the score threshold count for AP and ranking only")
    if "coco" in judged.groups and judged.masks is None:
        found.append(f"no AP: {NO_SCORES}")
    if judged.masks is not None:
        edges = [judged.masks.bands[name][1] for name in THIRDS[:2]]
        found.append(f"thirds of the objects by area: up to {edges[0]:.0f} px, up to {edges[1]:.0f} px, and above")
    ignored = sum(int(pairs.truth.ignore.sum()) for pairs in judged.images)
    if ignored:
        found.append(f"{ignored} ignored regions neither reward nor punish")
    empty = [name for k, name in enumerate(judged.class_names) if not _any_truth(judged, k)]
    if empty and len(judged.class_names) > 1:
        found.append(f"classes without an object, left out of class means: {', '.join(empty)}")
    return tuple(found)


def ap_values(result: CocoResult | None, class_id: int | None = None) -> dict[str, float]:
    """Average precision and recall at both caps, by their names without "box_"; all NaN without a result."""
    values = {}
    for cap in CAPS:
        wanted = {f"AP@{cap}": ("any", None), f"AP50@{cap}": ("any", 0.5), f"AP75@{cap}": ("any", 0.75)}
        wanted |= {f"AP_{band}@{cap}": (band, None) for band in (*COCO_BANDS, *THIRDS)}
        for name, (band, threshold) in wanted.items():
            arguments = {"cap": cap, "band": band, "threshold": threshold, "class_id": class_id}
            values[name] = np.nan if result is None else result.ap(**arguments)
        values[f"AR@{cap}"] = np.nan if result is None else result.ar(cap=cap, class_id=class_id)
    values[CEILING] = np.nan if result is None else result.ceiling(class_id=class_id)
    return values


def means(scores: Sequence[Scores], nothing: Scores) -> dict[str, float]:
    """Mean over the images for which a figure is defined."""
    if not scores:
        return nothing.values()
    rows = [one.values() for one in scores]
    table = np.array([list(row.values()) for row in rows])
    defined = ~np.isnan(table)
    sums = np.where(defined, table, 0).sum(0)
    means = np.divide(sums, defined.sum(0), out=np.full(len(sums), np.nan), where=defined.any(0))
    return dict(zip(rows[0], means.tolist(), strict=True))


def pooled(scores: Sequence[Scores], nothing: Scores) -> dict[str, float]:
    """The figures of all images' sums taken together."""
    return {f"pooled_{name}": value for name, value in reduce(add, scores, nothing).values().items()}


def class_scores(judged: Judged, class_id: int) -> tuple[Scores, ...]:
    """The sums of every image, of the objects of one class on both sides."""
    if len(judged.class_names) == 1:
        return judged.scores
    return tuple(score_image(pairs.of_class(class_id), judged.groups) for pairs in judged.images)


def _class_means(judged: Judged) -> dict[str, float]:
    """Pooled figures of each class, averaged over the classes for which they are defined (the mean PQ of Kirillov)."""
    rows = [pooled(class_scores(judged, k), judged.nothing) for k in range(len(judged.class_names))]
    names = [name for name in CLASS_MEANS if f"pooled_{name}" in rows[0]]
    columns = {name: np.array([row[f"pooled_{name}"] for row in rows]) for name in names}
    return {
        f"class_mean_{name}": float(np.nanmean(column)) if (~np.isnan(column)).any() else np.nan
        for name, column in columns.items()
    }


def _any_truth(judged: Judged, class_id: int) -> bool:
    return any(((pairs.truth.class_ids == class_id) & ~pairs.truth.ignore).any() for pairs in judged.images)


def _reason(name: str, judged: Judged) -> str:
    """Why a figure is undefined."""
    base = name.removeprefix("pooled_").removeprefix("class_mean_").removeprefix("box_")
    if not judged.images:
        return "no images"
    if base.startswith(("AP", "AR")):
        if judged.masks is None:
            return NO_SCORES
        return "no annotated object of this size" if "_" in base else "no annotated object"
    if base.startswith("score_"):
        return "it needs at least two predictions with differing scores" if "spearman" in base else NO_SCORES
    if base.startswith(("recall", "mean_true_iou", "lost_recall")):
        return "no annotated object"
    if base.startswith("precision"):
        return "nothing was predicted"
    if base.startswith(("sq", "mean_matched_iou", "boundary_iou")):
        return "no pair reaches IoU .5"
    return "neither an annotated object nor a prediction in any image"

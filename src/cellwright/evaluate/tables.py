"""The figures and tables of a `Report`, from what was gathered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np
import pandas as pd

from cellwright.evaluate.coco import CAP, CAPS, COCO_BANDS, THIRDS, CocoResult
from cellwright.evaluate.errors_by_kind import PREDICTED_KINDS, TRUTH_KINDS, Verdicts, count_kinds
from cellwright.evaluate.label_metrics import Scores, score_image
from cellwright.evaluate.lost_recall import CAUSES
from cellwright.evaluate.match import ImagePairs, Side
from cellwright.evaluate.ranking import expected_calibration_error, qualities, reliability, spearman
from cellwright.evaluate.report import Judged

OBJECT_COLUMNS = (
    "image",
    "side",
    "id",
    "class",
    "score",
    "kind",
    "partner_id",
    "iou",
    "area_px",
    "x0",
    "y0",
    "x1",
    "y1",
)
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
            values |= {prefix + name: value for name, value in _ap_values(result).items()}
    values |= _means(judged.scores, judged.nothing)
    values |= _pooled(judged.scores, judged.nothing)
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


def per_image(judged: Judged) -> pd.DataFrame:
    """A row an image: numbers of objects, every one-to-one and overlap figure, errors by kind."""
    rows = []
    for k, (pairs, scores) in enumerate(zip(judged.images, judged.scores, strict=True)):
        half = scores.counts[0]
        row: dict[str, object] = {"image": pairs.image_id, "n_truth": half.tp + half.fn}
        row |= {"n_predicted": len(pairs.predicted), "n_ignored": int(pairs.truth.ignore.sum())}
        row |= {"tp@0.5": half.tp, "fp@0.5": half.fp, "fn@0.5": half.fn, **scores.values()}
        if judged.verdicts:
            row |= {f"errors_{kind}": n for kind, n in count_kinds(*judged.verdicts[k]).items()}
        rows.append(row)
    columns = None if rows else ["image", "n_truth", "n_predicted", "n_ignored", "accuracy@0.5"]
    return pd.DataFrame(rows, columns=columns)


def per_class(judged: Judged) -> pd.DataFrame:
    """A row a class: objects, AP, and the figures of that class alone, as mean over images and pooled."""
    rows = []
    for k, name in enumerate(judged.class_names):
        counted = [pairs.truth.class_ids[~pairs.truth.ignore] for pairs in judged.images]
        row: dict[str, object] = {"class": name, "n_truth": sum(int((ids == k).sum()) for ids in counted)}
        row["n_predicted"] = sum(int((pairs.predicted.class_ids == k).sum()) for pairs in judged.images)
        if "coco" in judged.groups:
            for prefix, result in (("", judged.masks), ("box_", judged.boxes)):
                row |= {prefix + name: value for name, value in _ap_values(result, class_id=k).items()}
        of_class = _class_scores(judged, k)
        rows.append(row | _means(of_class, judged.nothing) | _pooled(of_class, judged.nothing))
    return pd.DataFrame(rows)


def objects(judged: Judged) -> pd.DataFrame:
    """A row an object: truth first, then predictions, image by image. No rows unless errors were asked for."""
    frames = []
    for pairs, (truth, predicted) in zip(judged.images, judged.verdicts, strict=bool(judged.verdicts)):
        frames.append(_object_rows(pairs, "truth", (pairs.truth, pairs.predicted), truth, judged.class_names))
        frames.append(_object_rows(pairs, "prediction", (pairs.predicted, pairs.truth), predicted, judged.class_names))
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(OBJECT_COLUMNS))


def extra_tables(judged: Judged) -> dict[str, pd.DataFrame]:
    """Errors by kind, the reliability curve and the causes of lost recall, as far as they were asked for."""
    tables = {}
    if judged.verdicts:
        sides = [np.concatenate([verdicts[side].kind for verdicts in judged.verdicts]) for side in (0, 1)]
        kinds = list(dict.fromkeys((*TRUTH_KINDS, *PREDICTED_KINDS)))
        counts = [[int((side == kind).sum()) for kind in kinds] for side in sides]
        tables["errors"] = pd.DataFrame({"kind": kinds, "truth": counts[0], "predictions": counts[1]})
    if "ranking" in judged.groups:
        found = qualities(judged.found)
        tables["reliability"] = pd.DataFrame(reliability(found.scores, found.ious))
    if judged.lost is not None:
        rows = [(cause, judged.lost[cause], meaning) for cause, meaning in CAUSES.items()]
        tables["lost_recall"] = pd.DataFrame(rows, columns=["cause", "objects", "meaning"])
    return tables


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


def _ap_values(result: CocoResult | None, class_id: int | None = None) -> dict[str, float]:
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


def _means(scores: Sequence[Scores], nothing: Scores) -> dict[str, float]:
    """Mean over the images for which a figure is defined."""
    if not scores:
        return nothing.values()
    rows = [one.values() for one in scores]
    table = np.array([list(row.values()) for row in rows])
    defined = ~np.isnan(table)
    sums = np.where(defined, table, 0).sum(0)
    means = np.divide(sums, defined.sum(0), out=np.full(len(sums), np.nan), where=defined.any(0))
    return dict(zip(rows[0], means.tolist(), strict=True))


def _pooled(scores: Sequence[Scores], nothing: Scores) -> dict[str, float]:
    """The figures of all images' sums taken together."""
    return {f"pooled_{name}": value for name, value in reduce(add, scores, nothing).values().items()}


def _class_means(judged: Judged) -> dict[str, float]:
    """Pooled figures of each class, averaged over the classes for which they are defined (the mean PQ of Kirillov)."""
    rows = [_pooled(_class_scores(judged, k), judged.nothing) for k in range(len(judged.class_names))]
    names = [name for name in CLASS_MEANS if f"pooled_{name}" in rows[0]]
    columns = {name: np.array([row[f"pooled_{name}"] for row in rows]) for name in names}
    return {
        f"class_mean_{name}": float(np.nanmean(column)) if (~np.isnan(column)).any() else np.nan
        for name, column in columns.items()
    }


def _class_scores(judged: Judged, class_id: int) -> tuple[Scores, ...]:
    if len(judged.class_names) == 1:
        return judged.scores
    return tuple(score_image(pairs.of_class(class_id), judged.groups) for pairs in judged.images)


def _object_rows(
    pairs: ImagePairs, side_name: str, sides: tuple[Side, Side], verdicts: Verdicts, class_names: tuple[str, ...]
) -> pd.DataFrame:
    side, other = sides
    partner = np.where(verdicts.partner >= 0, np.append(other.ids, 0)[verdicts.partner], 0)
    columns = {
        "image": pairs.image_id,
        "side": side_name,
        "id": side.ids,
        "class": np.array(class_names, dtype=object)[side.class_ids],
        "score": np.full(len(side), np.nan) if side.scores is None else side.scores,
        "kind": verdicts.kind.astype(object),
        "partner_id": partner,
        "iou": verdicts.iou,
        "area_px": side.areas,
    }
    columns |= {name: side.boxes[:, k] for k, name in enumerate(("x0", "y0", "x1", "y1"))}
    return pd.DataFrame(columns, columns=list(OBJECT_COLUMNS), index=range(len(side)))


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

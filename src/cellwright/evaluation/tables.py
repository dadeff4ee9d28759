"""The tables of a `Report`. They need pandas, so they are made on first use."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cellwright.core.class_ids import values_of_class
from cellwright.evaluation.data import EvaluationData
from cellwright.evaluation.errors_by_kind import PREDICTED_KINDS, TRUTH_KINDS, ErrorKinds, count_errors
from cellwright.evaluation.lost_recall import CAUSES
from cellwright.evaluation.matching import ImagePairs, ObjectFacts
from cellwright.evaluation.ranking import qualities, reliability
from cellwright.evaluation.values import ap_values, class_scores, means, pooled

UNMATCHED = "(no match)"
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


def per_image(data: EvaluationData) -> pd.DataFrame:
    """One row per image: object counts, every one-to-one and overlap metric, errors by kind."""
    rows = []
    for k, (pairs, scores) in enumerate(zip(data.pairs, data.scores, strict=True)):
        half = scores.counts[0]
        row: dict[str, object] = {"image": pairs.image_id, "n_truth": half.tp + half.fn}
        row |= {"n_predicted": half.tp + half.fp, "n_ignored": int(pairs.truth.ignore.sum())}
        row |= {"tp@0.5": half.tp, "fp@0.5": half.fp, "fn@0.5": half.fn, **scores.values()}
        if "errors" in data.groups and data.pairs:
            row |= {f"errors_{kind}": n for kind, n in count_errors(*data.errors[k]).items()}
        rows.append(row)
    columns = None if rows else ["image", "n_truth", "n_predicted", "n_ignored", "accuracy@0.5"]
    return pd.DataFrame(rows, columns=columns)


def per_class(data: EvaluationData) -> pd.DataFrame:
    """One row per class: object counts, AP, and the metrics of that class alone, as mean over images and pooled."""
    rows = []
    for k, name in enumerate(data.class_names):
        counted = [pairs.truth.class_ids[~pairs.truth.ignore] for pairs in data.pairs]
        row: dict[str, object] = {"class": name, "n_truth": sum(int((ids == k).sum()) for ids in counted)}
        row["n_predicted"] = sum(int((pairs.without_ignored().predicted.class_ids == k).sum()) for pairs in data.pairs)
        if "coco" in data.groups:
            for prefix, result in (("", data.masks), ("box_", data.boxes)):
                row |= {prefix + name: value for name, value in ap_values(result, class_id=k).items()}
        of_class = class_scores(data, k)
        rows.append(row | means(of_class, data.zero) | pooled(of_class, data.zero))
    return pd.DataFrame(rows)


def objects(data: EvaluationData) -> pd.DataFrame:
    """One row per object, annotated objects before predictions, image by image."""
    frames = []
    for pairs, (truth, predicted) in zip(data.pairs, data.errors, strict=True):
        frames.append(_object_rows(pairs, "truth", (pairs.truth, pairs.predicted), truth, data.class_names))
        frames.append(_object_rows(pairs, "prediction", (pairs.predicted, pairs.truth), predicted, data.class_names))
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(OBJECT_COLUMNS))


def extra_tables(data: EvaluationData) -> dict[str, pd.DataFrame]:
    """Errors by kind, confusion of classes, reliability and causes of lost recall, those that were requested."""
    tables = {}
    if "errors" in data.groups and data.pairs:
        sides = [np.concatenate([kinds[side].kind for kinds in data.errors]) for side in (0, 1)]
        names = list(dict.fromkeys((*TRUTH_KINDS, *PREDICTED_KINDS)))
        counts = [[int((side == name).sum()) for name in names] for side in sides]
        tables["errors"] = pd.DataFrame({"kind": names, "truth": counts[0], "predictions": counts[1]})
        if len(data.class_names) > 1:
            tables["confusion"] = confusion(data).reset_index()
    if "ranking" in data.groups:
        ranking = qualities(data.all_pairs)
        tables["reliability"] = pd.DataFrame(reliability(ranking.scores, ranking.ious))
    if data.lost is not None:
        rows = [(cause, data.lost[cause], meaning) for cause, meaning in CAUSES.items()]
        tables["lost_recall"] = pd.DataFrame(rows, columns=["cause", "objects", "meaning"])
    return tables


def confusion(data: EvaluationData) -> pd.DataFrame:
    """Annotated objects by class (rows) and by the class of the prediction matched at IoU 0.5 (columns).

    The last column counts annotated objects, and the last row predictions, without a match. Ignored objects are left
    out.
    """
    n = len(data.class_names)
    counts = np.zeros((n + 1, n + 1), np.int64)
    for pairs, (truth, predicted) in zip(data.pairs, data.errors, strict=True):
        matched = np.isin(truth.kind, ("correct", "wrong_class"))
        found_as = np.append(pairs.predicted.class_ids, n)[np.where(matched, truth.partner, -1)]
        counted = truth.kind != "ignored"
        np.add.at(counts, (pairs.truth.class_ids[counted], found_as[counted]), 1)
        extra = ~np.isin(predicted.kind, ("correct", "wrong_class", "ignored"))
        counts[n] += np.bincount(pairs.predicted.class_ids[extra], minlength=n + 1)
    index = pd.Index([*data.class_names, UNMATCHED], name="annotation")
    return pd.DataFrame(counts, index=index, columns=[*data.class_names, UNMATCHED])


def _object_rows(
    pairs: ImagePairs,
    side: str,
    facts: tuple[ObjectFacts, ObjectFacts],
    kinds: ErrorKinds,
    class_names: tuple[str, ...],
) -> pd.DataFrame:
    """The rows of the annotated or of the predicted objects of an image; facts: of these, and of the other side."""
    own, other = facts
    partner = np.where(kinds.partner >= 0, np.append(other.ids, 0)[kinds.partner], 0)
    columns = {
        "image": pairs.image_id,
        "side": side,
        "id": own.ids,
        "class": values_of_class(own.class_ids, class_names, ""),
        "score": np.full(len(own), np.nan) if own.scores is None else own.scores,
        "kind": kinds.kind.astype(object),
        "partner_id": partner,
        "iou": kinds.iou,
        "area_px": own.areas,
    }
    columns |= {name: own.boxes[:, k] for k, name in enumerate(("x0", "y0", "x1", "y1"))}
    return pd.DataFrame(columns, columns=list(OBJECT_COLUMNS), index=range(len(own)))

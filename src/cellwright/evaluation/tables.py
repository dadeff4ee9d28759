"""The tables of a `Report`; they load pandas, so they are made when they are asked for."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cellwright.evaluation.errors_by_kind import PREDICTED_KINDS, TRUTH_KINDS, Verdicts, count_kinds
from cellwright.evaluation.figures import ap_values, class_scores, means, pooled
from cellwright.evaluation.lost_recall import CAUSES
from cellwright.evaluation.match import ImagePairs, Side
from cellwright.evaluation.ranking import qualities, reliability
from cellwright.evaluation.report import Judged

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
                row |= {prefix + name: value for name, value in ap_values(result, class_id=k).items()}
        of_class = class_scores(judged, k)
        rows.append(row | means(of_class, judged.nothing) | pooled(of_class, judged.nothing))
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

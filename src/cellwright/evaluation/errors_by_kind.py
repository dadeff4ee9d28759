"""Errors by kind: every annotated object and every prediction gets exactly one kind."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cellwright.evaluation.matching import MATCHED_IOU, ImagePairs, Overlaps, heaviest_matching, one_to_one

RELATED_IOU = 0.1  # minimum IoU at which a prediction is taken to be meant for an object (TIDE, Bolya et al. 2020)
MOSTLY = 0.5  # minimum share of its pixels for an object to be inside another

TRUTH_KINDS = ("correct", "wrong_class", "merged", "split", "poorly_outlined", "missed", "ignored")
PREDICTED_KINDS = ("correct", "wrong_class", "merged", "duplicate", "split", "poorly_outlined", "spurious", "ignored")
# Some kinds of error are counted in annotated objects, the others in predictions.
COUNTED_ON_TRUTH = ("missed", "merged", "split", "poorly_outlined", "wrong_class")
COUNTED_ON_PREDICTIONS = ("spurious", "duplicate")


@dataclass(frozen=True, eq=False)
class ErrorKinds:
    """The kind of error of each of N objects, annotated or predicted.

    kind: (N,) str. partner: (N,) int64, index of the related object on the other side, or -1. iou: (N,) with the
    partner, or the highest with any object.
    """

    kind: np.ndarray
    partner: np.ndarray
    iou: np.ndarray


def classify_objects(pairs: ImagePairs) -> tuple[ErrorKinds, ErrorKinds]:
    """The kinds of the annotated and of the predicted objects of an image.

    Pairs with ``repeats`` distinguish duplicates from fragments. Ignored regions and the predictions they excuse are
    *ignored*. Every other object gets the first kind that applies.

    Annotated objects:
        correct: matched one to one at IoU >= 0.5 with a prediction of its class.
        wrong_class: matched in the same way among the predictions of other classes that remain.
        merged: at least half of it is in a prediction that also contains half of another object.
        split: at least two predictions are mostly inside it and together cover half of it.
        poorly_outlined: IoU >= 0.1 with a prediction of no other kind.
        missed: none of these.

    Predictions:
        correct, wrong_class: as above.
        merged: contains at least half of two objects.
        duplicate: IoU >= 0.5 with an object that another prediction matches, or mostly on a matched prediction.
        split: mostly inside an object that is split or matched.
        poorly_outlined: as above.
        spurious: none of these.
    """
    counted = pairs.counted()
    kinds = _classify_counted(pairs.select(*counted))
    results = []
    for keep, other_keep, counted_kinds in ((*counted, kinds[0]), (*counted[::-1], kinds[1])):
        kind = np.full(len(keep), "ignored", dtype=f"U{max(map(len, TRUTH_KINDS))}")
        partner, iou = np.full(len(keep), -1), np.zeros(len(keep))
        original_index = np.append(np.flatnonzero(other_keep), -1)  # index -1 stays -1
        kind[keep], iou[keep] = counted_kinds.kind, counted_kinds.iou
        partner[keep] = original_index[counted_kinds.partner]
        results.append(ErrorKinds(kind, partner, iou))
    return results[0], results[1]


def count_errors(truth: ErrorKinds, predicted: ErrorKinds) -> dict[str, int]:
    """Number of errors by kind: lost annotated objects, and superfluous predictions."""
    counts = {kind: int(np.count_nonzero(truth.kind == kind)) for kind in COUNTED_ON_TRUTH}
    return counts | {kind: int(np.count_nonzero(predicted.kind == kind)) for kind in COUNTED_ON_PREDICTIONS}


def _classify_counted(pairs: ImagePairs) -> tuple[ErrorKinds, ErrorKinds]:
    """As `classify_objects`, without ignored objects."""
    g, p, shared, iou = pairs.shared.truth, pairs.shared.predicted, pairs.shared.value, pairs.iou
    truth = _blank(len(pairs.truth), "missed", g, iou)
    predicted = _blank(len(pairs.predicted), "spurious", p, iou)
    _set_matched(pairs, truth, predicted)
    matched_truth, matched_predicted = truth.partner >= 0, predicted.partner >= 0
    truth_inside = shared >= MOSTLY * pairs.truth.areas[g]  # the object is mostly inside the prediction
    predicted_inside = shared >= MOSTLY * pairs.predicted.areas[p]  # the prediction is mostly inside the object
    is_merging = np.bincount(p[truth_inside], minlength=len(pairs.predicted)) >= 2
    has_fragments = np.bincount(g[predicted_inside], minlength=len(pairs.truth)) >= 2
    covered_px = np.bincount(g[predicted_inside], shared[predicted_inside], minlength=len(pairs.truth))
    is_split = has_fragments & (covered_px >= MOSTLY * pairs.truth.areas)

    _set(truth, "missed", "merged", g, p, iou, truth_inside & is_merging[p])
    _set(truth, "missed", "split", g, p, iou, predicted_inside & is_split[g])
    _set(predicted, "spurious", "merged", p, g, iou, truth_inside & is_merging[p])
    is_duplicate = (iou >= MATCHED_IOU) & matched_truth[g]
    is_duplicate |= _on_a_match(pairs, matched_predicted)[p]
    _set(predicted, "spurious", "duplicate", p, g, iou, is_duplicate)
    _set(predicted, "spurious", "split", p, g, iou, predicted_inside & (matched_truth | (truth.kind == "split"))[g])
    poor = np.flatnonzero((iou >= RELATED_IOU) & (truth.kind[g] == "missed") & (predicted.kind[p] == "spurious"))
    poor = poor[heaviest_matching(g[poor], p[poor], iou[poor])]
    for kinds, own, other in ((truth, g, p), (predicted, p, g)):
        kinds.kind[own[poor]], kinds.partner[own[poor]], kinds.iou[own[poor]] = (
            "poorly_outlined",
            other[poor],
            iou[poor],
        )
    return truth, predicted


def _blank(n: int, kind: str, own: np.ndarray, iou: np.ndarray) -> ErrorKinds:
    best = np.zeros(n)
    np.maximum.at(best, own, iou)
    return ErrorKinds(np.full(n, kind, dtype="U15"), np.full(n, -1), best)


def _set_matched(pairs: ImagePairs, truth: ErrorKinds, predicted: ErrorKinds) -> None:
    """Match within classes first, so that a prediction of another class never takes the place of the correct one."""
    shared = pairs.shared
    same_class = pairs.truth.class_ids[shared.truth] == pairs.predicted.class_ids[shared.predicted]
    for kind, allowed in (("correct", same_class), ("wrong_class", ~same_class)):
        free = allowed & (truth.partner[shared.truth] < 0) & (predicted.partner[shared.predicted] < 0)
        overlaps = Overlaps(shared.truth[free], shared.predicted[free], shared.value[free])
        match = one_to_one(replace(pairs, shared=overlaps), MATCHED_IOU)
        truth.kind[match.truth], truth.partner[match.truth], truth.iou[match.truth] = kind, match.predicted, match.iou
        predicted.kind[match.predicted], predicted.iou[match.predicted] = kind, match.iou
        predicted.partner[match.predicted] = match.truth


def _set(
    kinds: ErrorKinds, old: str, new: str, own: np.ndarray, other: np.ndarray, iou: np.ndarray, applies: np.ndarray
) -> None:
    """Set ``new`` for objects that are still ``old`` and in a pair that applies; the partner has the highest IoU."""
    rows = np.flatnonzero(applies & (kinds.kind[own] == old))
    rows = rows[np.argsort(iou[rows], kind="stable")]  # the highest IoU is written last
    kinds.kind[own[rows]], kinds.partner[own[rows]], kinds.iou[own[rows]] = new, other[rows], iou[rows]


def _on_a_match(pairs: ImagePairs, matched: np.ndarray) -> np.ndarray:
    """Predictions (N,) bool that are at least half on another prediction that is matched."""
    result = np.zeros(len(matched), bool)
    if pairs.repeats is not None:
        i, j, shared = pairs.repeats.truth, pairs.repeats.predicted, pairs.repeats.value
        result[i[(i != j) & matched[j] & (shared >= MOSTLY * pairs.predicted.areas[i])]] = True
    return result

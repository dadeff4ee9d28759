"""What went wrong, object by object: every object and every prediction gets exactly one kind."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cellwright.evaluation.match import ImagePairs, heaviest_matching, one_to_one

FOUND = 0.5  # IoU from which an object counts as found
NEAR = 0.1  # IoU from which a prediction was meant for an object (TIDE, Bolya et al. 2020)
MOSTLY = 0.5  # share of an object's pixels from which it lies in another

TRUTH_KINDS = ("correct", "wrong_class", "merged", "split", "poorly_outlined", "missed", "ignored")
PREDICTED_KINDS = ("correct", "wrong_class", "merged", "duplicate", "split", "poorly_outlined", "spurious", "ignored")
# Which side each kind of error is counted on.
COUNTED_ON_TRUTH = ("missed", "merged", "split", "poorly_outlined", "wrong_class")
COUNTED_ON_PREDICTIONS = ("spurious", "duplicate")


@dataclass(frozen=True, eq=False)
class Verdicts:
    """One side's kinds (N,) str; partner (N,) int64, the index on the other side or -1; iou (N,) with the partner, or
    the best with anything."""

    kind: np.ndarray
    partner: np.ndarray
    iou: np.ndarray


def judge_objects(pairs: ImagePairs) -> tuple[Verdicts, Verdicts]:
    """Verdicts on the truth and on the predictions of an image. Pairs with ``repeats`` tell duplicates from fragments.

    Truth, the first that fits: *correct* (matched one to one at IoU >= .5 within its class), *wrong_class* (matched so
    with what other classes have left), *merged* (at least half of it lies in a prediction that holds half of another
    object too), *split* (at least two predictions lie mostly in it and cover half of it), *poorly_outlined* (IoU >= .1
    with a prediction that is nothing else), *missed*.
    Predictions: *correct*, *wrong_class*, *merged* (holds at least half of two objects), *duplicate* (IoU >= .5 with an
    object that another one matched, or lies mostly on a matched prediction), *split* (lies mostly in an object that is
    split or matched), *poorly_outlined*, *spurious*. Ignored regions and what they excuse are *ignored*.
    """
    counted = pairs.counted()
    sides = _judge(pairs.select(*counted))
    results = []
    for keep, other_keep, found in ((*counted, sides[0]), (*counted[::-1], sides[1])):
        kind = np.full(len(keep), "ignored", dtype=f"U{max(map(len, TRUTH_KINDS))}")
        partner, iou = np.full(len(keep), -1), np.zeros(len(keep))
        back = np.append(np.flatnonzero(other_keep), -1)  # index -1 stays -1
        kind[keep], partner[keep], iou[keep] = found.kind, back[found.partner], found.iou
        results.append(Verdicts(kind, partner, iou))
    return results[0], results[1]


def count_kinds(truth: Verdicts, predicted: Verdicts) -> dict[str, int]:
    """Number of each error: truth that was lost, predictions that are too many."""
    counts = {kind: int(np.count_nonzero(truth.kind == kind)) for kind in COUNTED_ON_TRUTH}
    return counts | {kind: int(np.count_nonzero(predicted.kind == kind)) for kind in COUNTED_ON_PREDICTIONS}


def _judge(pairs: ImagePairs) -> tuple[Verdicts, Verdicts]:
    g, p, shared, iou = pairs.pairs.truth, pairs.pairs.predicted, pairs.pairs.value, pairs.iou
    truth = _blank(len(pairs.truth), "missed", g, iou)
    predicted = _blank(len(pairs.predicted), "spurious", p, iou)
    _set_matched(pairs, truth, predicted)
    matched_truth, matched_predicted = truth.partner >= 0, predicted.partner >= 0
    held = shared >= MOSTLY * pairs.truth.areas[g]  # the object lies mostly in the prediction
    inside = shared >= MOSTLY * pairs.predicted.areas[p]  # the prediction lies mostly in the object
    merging = np.bincount(p[held], minlength=len(pairs.predicted)) >= 2
    fragments = np.bincount(g[inside], minlength=len(pairs.truth)) >= 2
    covered = np.bincount(g[inside], shared[inside], minlength=len(pairs.truth)) >= MOSTLY * pairs.truth.areas

    _set(truth, "missed", "merged", g, p, iou, held & merging[p])
    _set(truth, "missed", "split", g, p, iou, inside & (fragments & covered)[g])
    _set(predicted, "spurious", "merged", p, g, iou, held & merging[p])
    again = (iou >= FOUND) & matched_truth[g]
    again |= _on_a_match(pairs, matched_predicted)[p]
    _set(predicted, "spurious", "duplicate", p, g, iou, again)
    _set(predicted, "spurious", "split", p, g, iou, inside & (matched_truth | (truth.kind == "split"))[g])
    near = np.flatnonzero((iou >= NEAR) & (truth.kind[g] == "missed") & (predicted.kind[p] == "spurious"))
    near = near[heaviest_matching(g[near], p[near], iou[near])]
    for side, own, other in ((truth, g, p), (predicted, p, g)):
        side.kind[own[near]], side.partner[own[near]], side.iou[own[near]] = "poorly_outlined", other[near], iou[near]
    return truth, predicted


def _blank(n: int, kind: str, own: np.ndarray, iou: np.ndarray) -> Verdicts:
    best = np.zeros(n)
    np.maximum.at(best, own, iou)
    return Verdicts(np.full(n, kind, dtype="U15"), np.full(n, -1), best)


def _set_matched(pairs: ImagePairs, truth: Verdicts, predicted: Verdicts) -> None:
    """Match within classes first, so that a second prediction of another class never hides the right one."""
    same = pairs.truth.class_ids[pairs.pairs.truth] == pairs.predicted.class_ids[pairs.pairs.predicted]
    for kind, allowed in (("correct", same), ("wrong_class", ~same)):
        free = allowed & (truth.partner[pairs.pairs.truth] < 0) & (predicted.partner[pairs.pairs.predicted] < 0)
        overlaps = replace(pairs.pairs, **{n: getattr(pairs.pairs, n)[free] for n in ("truth", "predicted", "value")})
        found = one_to_one(replace(pairs, pairs=overlaps), FOUND)
        truth.kind[found.truth], truth.partner[found.truth], truth.iou[found.truth] = kind, found.predicted, found.iou
        predicted.kind[found.predicted], predicted.iou[found.predicted] = kind, found.iou
        predicted.partner[found.predicted] = found.truth


def _set(
    side: Verdicts, was: str, kind: str, own: np.ndarray, other: np.ndarray, iou: np.ndarray, fits: np.ndarray
) -> None:
    """Give ``kind`` to the objects that are still ``was`` and in a fitting pair; the partner is of the highest IoU."""
    rows = np.flatnonzero(fits & (side.kind[own] == was))
    rows = rows[np.argsort(iou[rows], kind="stable")]  # the best is written last
    side.kind[own[rows]], side.partner[own[rows]], side.iou[own[rows]] = kind, other[rows], iou[rows]


def _on_a_match(pairs: ImagePairs, matched: np.ndarray) -> np.ndarray:
    """Predictions (N,) bool of which at least half lies on another prediction that is matched."""
    result = np.zeros(len(matched), bool)
    if pairs.repeats is not None:
        i, j, shared = pairs.repeats.truth, pairs.repeats.predicted, pairs.repeats.value
        result[i[(i != j) & matched[j] & (shared >= MOSTLY * pairs.predicted.areas[i])]] = True
    return result

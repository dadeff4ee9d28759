"""Where lost recall went: what became of the candidates that would have found the missed objects."""

from __future__ import annotations

import numpy as np

from cellwright.core.errors import InputError
from cellwright.core.instances import Instances
from cellwright.evaluation.match import ImagePairs, Overlaps, Side, one_to_one

FOUND = 0.5
COLUMN = "dropped_by"
# The steps of a predictor in order; a candidate that came furthest names the cause.
STEPS = ("threshold", "nms", "cap", "kept")
CAUSES = {
    "never_proposed": "no candidate reaches IoU .5 with the object",
    "threshold": "the best one was cut by the score threshold",
    "nms": "it was suppressed as a repeat of another prediction",
    "cap": "it was beyond the largest number of detections",
    "taken": "it was kept, but was matched to another object (one prediction for two objects)",
}


def lost_recall(truth: Instances, candidates: Instances, pairs: ImagePairs) -> dict[str, int]:
    """Objects of an image that `pairs` leaves unmatched at IoU .5, by cause; the counts sum to the objects lost.

    candidates: all that the model proposed, before threshold, suppression and cap, with a text column ``dropped_by``:
    "threshold", "nms", "cap", or "kept". An object whose candidates met several fates is booked on the step that came
    last: had that step kept it, the object would have been found. Classes do not matter here.
    """
    fate = _fates(candidates, pairs.image_id)
    keep, _ = pairs.counted()
    judged = pairs.judged()
    lost = np.ones(len(judged.truth), bool)
    lost[one_to_one(judged, FOUND).truth] = False
    lost_index = np.flatnonzero(keep)[lost]
    overlaps = Overlaps(*truth.masks[lost_index].intersections(candidates.masks))
    areas = Side.of(truth).areas[lost_index], candidates.masks.areas
    iou = overlaps.value / (areas[0][overlaps.truth] + areas[1][overlaps.predicted] - overlaps.value)
    good = iou >= FOUND
    furthest = np.full(len(lost_index), -1)
    np.maximum.at(furthest, overlaps.truth[good], fate[overlaps.predicted[good]])
    causes = ["never_proposed", "threshold", "nms", "cap", "taken"]
    return {cause: int(np.count_nonzero(furthest == place - 1)) for place, cause in enumerate(causes)}


def _fates(candidates: Instances, image_id: str) -> np.ndarray:
    """Position in `STEPS` (N,) of the step that each candidate reached."""
    where = f"candidates of image {image_id}"
    if COLUMN not in candidates.columns:
        raise InputError(
            f"candidates lack the column {COLUMN!r}", where=where, got=sorted(candidates.columns), expected=STEPS
        )
    names = np.asarray(candidates.columns[COLUMN]).astype(str)
    unknown = sorted(set(names.tolist()) - set(STEPS))
    if unknown:
        raise InputError(f"unknown value in column {COLUMN!r}", where=where, got=unknown, expected=STEPS)
    return np.array([STEPS.index(name) for name in names], np.int64)

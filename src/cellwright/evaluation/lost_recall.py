"""Why recall was lost: what happened to the candidates that match the missed objects."""

from __future__ import annotations

import numpy as np

from cellwright.core.candidates import step_indices
from cellwright.core.instances import Instances
from cellwright.evaluation.matching import MATCHED_IOU, ImagePairs, ObjectFacts, Overlaps, one_to_one

# In the order of the detector's steps: the last step that a matching candidate reached is the cause.
CAUSES = {
    "never_proposed": "no prediction of the model covers the object (IoU of at least 0.5)",
    "threshold": "a prediction that covers it was removed by the score threshold or the smallest area",
    "nms": "a prediction that covers it was removed as a duplicate of another one",
    "cap": "a prediction that covers it was beyond the maximum number of objects",
    "taken": "the prediction that covers it counts for another object (one prediction for two objects)",
}


def lost_recall(truth: Instances, candidates: Instances, pairs: ImagePairs) -> dict[str, int]:
    """Number of objects of an image that are unmatched in ``pairs`` at IoU 0.5, by cause.

    candidates: everything the model proposed before score threshold, suppression and cap, with the text column
    ``dropped_by`` (see `core.candidates`). If several candidates match an object, the one that passed the most steps
    determines the cause: had that step kept it, the object would have been found. Classes are ignored.
    """
    steps = step_indices(candidates, pairs.image_id)
    lost_index = unmatched(pairs)
    overlaps = Overlaps(*truth.masks[lost_index].intersections(candidates.masks))
    truth_areas, candidate_areas = ObjectFacts.of(truth).areas[lost_index], candidates.masks.areas
    union = truth_areas[overlaps.truth] + candidate_areas[overlaps.predicted] - overlaps.value
    good = overlaps.value / union >= MATCHED_IOU
    furthest = np.full(len(lost_index), -1)
    np.maximum.at(furthest, overlaps.truth[good], steps[overlaps.predicted[good]])
    return {cause: int(np.count_nonzero(furthest == place - 1)) for place, cause in enumerate(CAUSES)}


def unmatched(pairs: ImagePairs) -> np.ndarray:
    """Indices (L,) of the annotated objects that no prediction matches at IoU 0.5; ignored regions do not count."""
    is_counted, _ = pairs.counted()
    counted = pairs.without_ignored()
    is_lost = np.ones(len(counted.truth), bool)
    is_lost[one_to_one(counted, MATCHED_IOU).truth] = False
    return np.flatnonzero(is_counted)[is_lost]

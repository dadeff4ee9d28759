"""What is kept of what a model finds, on hand-made objects."""

from __future__ import annotations

import numpy as np
import pytest

from cellwright.core.errors import UsageError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.predict.options import PredictOptions, select


def three() -> Instances:
    """Areas 16, 36 and 4; the second lies over a quarter of the first; scores not in order."""
    dense = np.zeros((3, 20, 20), bool)
    dense[0, 2:6, 2:6] = True
    dense[1, 4:10, 4:10] = True
    dense[2, 15:17, 15:17] = True
    return Instances.from_masks(MaskSet.from_dense(dense), scores=np.array([0.5, 0.9, 0.7], np.float32))


def test_nothing_is_left_out_unless_asked_and_ids_follow_the_scores():
    outcome = select(three(), PredictOptions())
    assert outcome.instances.scores.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert outcome.instances.ids.tolist() == [1, 2, 3]
    assert outcome.instances.masks.areas.tolist() == [36, 4, 16]
    assert (outcome.n_low_score, outcome.n_small, outcome.n_over_cap, outcome.model_cap) == (0, 0, 0, None)


def test_each_filter_counts_what_it_leaves_out():
    outcome = select(three(), PredictOptions(score_threshold=0.7, min_area_px=5))
    assert (len(outcome.instances), outcome.n_low_score, outcome.n_small) == (1, 1, 1)
    capped = select(three(), PredictOptions(max_objects=2))
    assert capped.n_over_cap == 1
    assert capped.instances.scores.min() == pytest.approx(0.7)


def test_candidates_go_on_below_the_threshold_under_the_same_ids():
    outcome = select(three(), PredictOptions(score_threshold=0.7))
    assert outcome.instances.ids.tolist() == [1, 2]
    assert outcome.candidates.ids.tolist() == [1, 2, 3]
    assert outcome.candidates[:2].masks == outcome.instances.masks
    assert len(select(three(), PredictOptions(score_threshold=0.7, max_objects=1)).candidates) == 1


def test_a_score_at_the_threshold_is_kept():
    assert len(select(three(), PredictOptions(score_threshold=float(np.float32(0.7)))).instances) == 2
    assert len(select(three(), PredictOptions(score_threshold=0.9)).instances) == 1


def test_overlaps_go_to_the_higher_score():
    outcome = select(three(), PredictOptions(resolve_overlaps=True))
    assert outcome.instances.masks.areas.tolist() == [36, 4, 12]
    assert outcome.pixels_resolved == 4
    assert outcome.instances.masks.to_dense().sum(0).max() == 1
    assert np.array_equal(outcome.instances.boxes_xyxy, outcome.instances.masks.boxes)


def test_an_object_wholly_under_another_is_gone_and_counted():
    dense = np.zeros((2, 9, 9), bool)
    dense[:, 2:5, 2:5] = True
    both = Instances.from_masks(MaskSet.from_dense(dense), scores=np.array([0.2, 0.8], np.float32))
    outcome = select(both, PredictOptions(resolve_overlaps=True))
    assert (len(outcome.instances), outcome.n_small, outcome.pixels_resolved) == (1, 1, 9)


def test_a_models_own_cap_is_noticed_when_it_is_reached():
    assert select(three(), PredictOptions(), model_cap=3).model_cap == 3
    assert select(three(), PredictOptions(), model_cap=4).model_cap is None


def test_no_objects_and_truth():
    assert len(select(Instances.empty((5, 5), scored=True), PredictOptions(resolve_overlaps=True)).instances) == 0
    with pytest.raises(UsageError, match="without scores"):
        select(Instances.empty((5, 5)), PredictOptions())


@pytest.mark.parametrize(
    "wrong", [{"score_threshold": 1.5}, {"score_threshold": float("nan")}, {"min_area_px": -1}, {"max_objects": 0}]
)
def test_options_out_of_range_are_named(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        PredictOptions(**wrong)

"""What is kept of what a model finds, on hand-made objects."""

from __future__ import annotations

import numpy as np
import pytest

from cellwright.core.errors import UsageError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.scores import Calibration
from cellwright.prediction.options import PredictOptions, select


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


def classes() -> Instances:
    """Three squares of 4, 9 and 16 px; classes 0, 1, 1; scores .9, .6, .5."""
    dense = np.zeros((3, 20, 20), bool)
    for k in range(3):
        dense[k, 5 * k : 5 * k + k + 2, : k + 2] = True
    scores = np.array([0.9, 0.6, 0.5], np.float32)
    return Instances.from_masks(MaskSet.from_dense(dense), class_ids=np.array([0, 1, 1]), scores=scores)


def test_a_threshold_for_each_class():
    outcome = select(classes(), PredictOptions(score_threshold=(0.95, 0.55)))
    assert outcome.instances.scores.tolist() == pytest.approx([0.6])
    # What is left out stands behind, although one of it scores more.
    assert outcome.candidates.scores.tolist() == pytest.approx([0.6, 0.9, 0.5])
    assert outcome.candidates.ids.tolist() == [1, 2, 3]
    assert outcome.n_low_score == 2
    capped = select(classes(), PredictOptions(score_threshold=(0.95, 0.5), max_objects=1))
    assert capped.instances.scores.tolist() == pytest.approx([0.6])
    assert capped.n_over_cap == 1


def test_a_smallest_area_for_each_class():
    outcome = select(classes(), PredictOptions(min_area_px=(0, 10)))
    assert outcome.instances.masks.areas.tolist() == [4, 16]
    assert outcome.n_small == 1


def test_calibrated_scores_are_shown_and_thresholded():
    calibration = Calibration((0.0, 0.5, 1.0), (0.0, 0.1, 0.6))
    outcome = select(classes(), PredictOptions(calibration=calibration))
    np.testing.assert_allclose(outcome.instances.scores, [0.5, 0.2, 0.1], atol=1e-6)
    outcome = select(classes(), PredictOptions(score_threshold=0.15, calibration=calibration))
    assert len(outcome.instances) == 2
    # Scores that a calibration ties keep the order of the model.
    flat = select(classes()[::-1], PredictOptions(calibration=Calibration((0.0, 1.0), (0.3, 0.3))))
    assert flat.instances.masks.areas.tolist() == [4, 9, 16]


@pytest.mark.parametrize(
    ("scores", "values"),
    [((), ()), ((0.0,), (0.1, 0.2)), ((0.5, 0.5), (0.1, 0.2)), ((0.1, 0.5), (0.2, 0.1)), ((0.0, 1.5), (0.0, 1.0))],
)
def test_what_is_no_calibration(scores, values):
    with pytest.raises(UsageError, match="invalid calibration"):
        Calibration(scores, values)

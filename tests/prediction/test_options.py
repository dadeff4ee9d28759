"""Which objects are kept, on hand-made objects."""

from __future__ import annotations

import numpy as np
import pytest

from cellwright.core.errors import UsageError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.scores import Calibration
from cellwright.data.views import PLAIN
from cellwright.prediction.diameter import Diameter
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.options import select as select_prediction
from cellwright.prediction.record import Prediction


def select(instances: Instances, options: PredictOptions) -> Prediction:
    return select_prediction(Prediction.of(instances), options)


def three() -> Instances:
    """Areas 16, 36 and 4; the second covers a quarter of the first; scores not sorted."""
    dense = np.zeros((3, 20, 20), bool)
    dense[0, 2:6, 2:6] = True
    dense[1, 4:10, 4:10] = True
    dense[2, 15:17, 15:17] = True
    return Instances.from_masks(MaskSet.from_dense(dense), scores=np.array([0.5, 0.9, 0.7], np.float32))


def test_nothing_is_omitted_by_default_and_ids_follow_the_scores():
    prediction = select(three(), PredictOptions())
    assert prediction.instances.scores.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert prediction.instances.ids.tolist() == [1, 2, 3]
    assert prediction.instances.masks.areas.tolist() == [36, 4, 16]
    assert (prediction.n_low_score, prediction.n_small, prediction.n_over_cap, prediction.model_cap) == (0, 0, 0, None)


def test_each_filter_counts_the_objects_it_omits():
    prediction = select(three(), PredictOptions(score_threshold=0.7, min_area_px=5))
    assert (len(prediction.instances), prediction.n_low_score, prediction.n_small) == (1, 1, 1)
    capped = select(three(), PredictOptions(max_objects=2))
    assert capped.n_over_cap == 1
    assert capped.instances.scores.min() == pytest.approx(0.7)


def test_candidates_continue_below_the_threshold_with_the_same_ids():
    prediction = select(three(), PredictOptions(score_threshold=0.7))
    assert prediction.instances.ids.tolist() == [1, 2]
    assert prediction.candidates.ids.tolist() == [1, 2, 3]
    assert prediction.candidates[:2].masks == prediction.instances.masks
    assert len(select(three(), PredictOptions(score_threshold=0.7, max_objects=1)).candidates) == 1


def test_a_score_at_the_threshold_is_kept():
    assert len(select(three(), PredictOptions(score_threshold=float(np.float32(0.7)))).instances) == 2
    assert len(select(three(), PredictOptions(score_threshold=0.9)).instances) == 1


def test_overlaps_go_to_the_higher_score():
    prediction = select(three(), PredictOptions(resolve_overlaps=True))
    assert prediction.instances.masks.areas.tolist() == [36, 4, 12]
    assert prediction.pixels_resolved == 4
    assert prediction.instances.masks.to_dense().sum(0).max() == 1
    assert np.array_equal(prediction.instances.boxes_xyxy, prediction.instances.masks.boxes)


def test_a_completely_covered_object_is_removed_and_counted():
    dense = np.zeros((2, 9, 9), bool)
    dense[:, 2:5, 2:5] = True
    both = Instances.from_masks(MaskSet.from_dense(dense), scores=np.array([0.2, 0.8], np.float32))
    prediction = select(both, PredictOptions(resolve_overlaps=True))
    assert (len(prediction.instances), prediction.n_small, prediction.pixels_resolved) == (1, 1, 9)


def test_facts_about_the_prediction_are_kept():
    diameter = Diameter(12.0, estimated=True)
    prediction = Prediction.of(three(), model_cap=3, diameter=diameter, views=PLAIN)
    selected = select_prediction(prediction, PredictOptions(score_threshold=0.6))
    assert (selected.model_cap, selected.diameter, selected.views) == (3, diameter, PLAIN)
    assert (len(prediction.instances), len(selected.instances)) == (3, 2)


def test_no_objects_and_ground_truth():
    assert len(select(Instances.empty((5, 5), scored=True), PredictOptions(resolve_overlaps=True)).instances) == 0
    with pytest.raises(UsageError, match="without scores"):
        select(Instances.empty((5, 5)), PredictOptions())


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("score", {"score_threshold": 1.5}),
        ("score", {"score_threshold": float("nan")}),
        ("min_area", {"min_area_px": -1}),
        ("max_objects", {"max_objects": 0}),
    ],
)
def test_options_out_of_range_are_named(name, wrong):
    with pytest.raises(UsageError, match=f"`{name}` is out of range"):
        PredictOptions(**wrong)


def classes() -> Instances:
    """Three squares of 4, 9 and 16 px; classes 0, 1, 1; scores .9, .6, .5."""
    dense = np.zeros((3, 20, 20), bool)
    for k in range(3):
        dense[k, 5 * k : 5 * k + k + 2, : k + 2] = True
    scores = np.array([0.9, 0.6, 0.5], np.float32)
    return Instances.from_masks(MaskSet.from_dense(dense), class_ids=np.array([0, 1, 1]), scores=scores)


def test_one_threshold_per_class():
    prediction = select(classes(), PredictOptions(score_threshold=(0.95, 0.55)))
    assert prediction.instances.scores.tolist() == pytest.approx([0.6])
    # Omitted objects come last, although one of them has a higher score.
    assert prediction.candidates.scores.tolist() == pytest.approx([0.6, 0.9, 0.5])
    assert prediction.candidates.ids.tolist() == [1, 2, 3]
    assert prediction.n_low_score == 2
    capped = select(classes(), PredictOptions(score_threshold=(0.95, 0.5), max_objects=1))
    assert capped.instances.scores.tolist() == pytest.approx([0.6])
    assert capped.n_over_cap == 1


def test_one_smallest_area_per_class():
    prediction = select(classes(), PredictOptions(min_area_px=(0, 10)))
    assert prediction.instances.masks.areas.tolist() == [4, 16]
    assert prediction.n_small == 1


def test_calibrated_scores_are_shown_and_thresholded():
    calibration = Calibration((0.0, 0.5, 1.0), (0.0, 0.1, 0.6))
    prediction = select(classes(), PredictOptions(calibration=calibration))
    np.testing.assert_allclose(prediction.instances.scores, [0.5, 0.2, 0.1], atol=1e-6)
    prediction = select(classes(), PredictOptions(score_threshold=0.15, calibration=calibration))
    assert len(prediction.instances) == 2
    # Scores that a calibration ties keep the order of the model.
    flat = select(classes()[::-1], PredictOptions(calibration=Calibration((0.0, 1.0), (0.3, 0.3))))
    assert flat.instances.masks.areas.tolist() == [4, 9, 16]


@pytest.mark.parametrize(
    ("scores", "values"),
    [((), ()), ((0.0,), (0.1, 0.2)), ((0.5, 0.5), (0.1, 0.2)), ((0.1, 0.5), (0.2, 0.1)), ((0.0, 1.5), (0.0, 1.0))],
)
def test_invalid_calibrations(scores, values):
    with pytest.raises(UsageError, match="invalid calibration"):
        Calibration(scores, values)


def test_cells_do_not_grow_where_nuclei_were_omitted_but_where_their_score_is_low_they_do():
    labels = np.zeros((9, 31), int)
    labels[4, 0:2], labels[4, 8:10], labels[4, 18:20], labels[4, 26:28] = 1, 2, 3, 4
    nuclei = Instances.from_label_map(labels, scores=[0.9, 0.8, 0.7, 0.2])
    options = PredictOptions(score_threshold=0.5, remove_border=True, max_objects=1, expand="20")
    prediction = select(nuclei, options)
    assert prediction.cells is not None
    np.testing.assert_array_equal(prediction.cells.ids, prediction.instances.ids)
    # From half way to the nucleus at the border to half way to the one over the limit; a tie goes to the higher score.
    assert prediction.cells.boxes_xyxy[:, [0, 2]].tolist() == [[5, 14]]
    alone = select(nuclei[[2, 3]], PredictOptions(score_threshold=0.5, expand="20")).cells
    assert alone is not None
    assert alone.boxes_xyxy.tolist() == [[0, 0, 31, 9]]
    assert select(nuclei, PredictOptions()).cells is None
    with pytest.raises(UsageError, match="invalid `expand`"):
        PredictOptions(expand="far")


def test_holes_are_filled_and_outlines_smoothed_before_small_objects_are_omitted():
    dense = np.zeros((2, 24, 40), bool)
    dense[0, 4:20, 4:20], dense[0, 9:15, 9:15], dense[0, 12, 20:24] = True, False, True
    dense[1, 4:8, 30:34] = True
    objects = Instances.from_masks(MaskSet.from_dense(dense), scores=[0.9, 0.8])
    filled = select(objects, PredictOptions(min_area_px=257, fill_holes=True))
    assert filled.instances.masks.areas.tolist() == [260]
    both = select(objects, PredictOptions(fill_holes=True, smooth=True)).instances
    assert both.masks.areas.tolist() == [255, 16]  # without its corners and most of the spike
    np.testing.assert_array_equal(both.boxes_xyxy, both.masks.boxes)
    # What identifies a job is as in earlier versions unless the options are used.
    assert not {"smooth", "fill_holes", "expand"} & PredictOptions().as_values().keys()

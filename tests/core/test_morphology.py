"""Expanded masks against scikit-image, and what must hold whatever the masks; smooth outlines; holes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.segmentation import expand_labels

from cellwright.core import morphology
from cellwright.core.distance import Distance
from cellwright.core.errors import InputError, UsageError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.synthetic import draw_field


def nuclei(seed: int) -> np.ndarray:
    """Labels with objects that touch each other and the border, in several parts, with holes, and single pixels."""
    rng = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(rng.random((90, 110)), 2.5) > 0.52
    labels = ndimage.label(blobs)[0]
    labels[rng.random(labels.shape) < 0.003] = labels.max() + 1
    return rng.permutation(labels.max() + 1)[labels] * (labels > 0)


def disc(radius: float, centre: tuple[float, float] = (40, 40), hw: tuple[int, int] = (81, 81)) -> np.ndarray:
    y, x = np.mgrid[: hw[0], : hw[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 0.25)])
@pytest.mark.parametrize("distance", [1, 2.5, 6, 40])
def test_expanded_masks_are_those_of_scikit_image_but_for_ties(distance, spacing, monkeypatch):
    labels = nuclei(int(distance * 10))
    masks, ids = MaskSet.from_label_map(labels)
    expanded = morphology.expand(masks, distance, spacing)
    mine, theirs = expanded.to_label_map(ids), expand_labels(labels, distance, spacing=spacing)
    np.testing.assert_array_equal(mine > 0, theirs > 0)
    assert expanded.areas.sum() == np.count_nonzero(mine)  # no pixel is in two
    for y, x in np.argwhere(mine != theirs):
        away = [
            min(np.hypot(*((np.argwhere(labels == one) - (y, x)) * spacing).T)) for one in (mine[y, x], theirs[y, x])
        ]
        assert away[0] == pytest.approx(away[1])
        assert mine[y, x] < theirs[y, x]
    monkeypatch.setattr(morphology, "_PART_PX", 32)
    assert morphology.expand(masks, distance, spacing) == expanded


@pytest.mark.parametrize("seed", range(3))
def test_expanded_objects_keep_ids_and_pixels_never_merge_and_grow_with_the_distance(seed):
    labels = nuclei(seed)
    start = Instances.from_label_map(labels)
    start = start[np.random.default_rng(seed).permutation(len(start))]
    assert start.expand(0).masks == start.masks
    before = start
    for distance in (1, 1.5, 3, 7):
        cells = start.expand(distance)
        np.testing.assert_array_equal(cells.ids, start.ids)
        shown = cells.to_label_map()
        np.testing.assert_array_equal(shown[labels > 0], labels[labels > 0])
        assert cells.masks.areas.sum() == np.count_nonzero(shown)
        _, _, shared = before.masks.intersections(cells.masks)
        np.testing.assert_array_equal(np.sort(shared), np.sort(before.masks.areas))
        before = cells


def test_the_order_of_objects_makes_no_difference_and_ignored_regions_stay():
    labels = np.zeros((5, 21), int)
    labels[2, [4, 12]] = 9, 2
    cells = Instances.from_label_map(labels)
    np.testing.assert_array_equal(cells.expand(5).to_label_map(), cells[[1, 0]].expand(5).to_label_map())
    assert cells.expand(5).to_label_map()[2, 8] == 2  # as near to both: the lowest id
    ignored = Instances.from_masks(cells.masks, ids=cells.ids, ignore=[True, False]).expand(5)
    assert ignored.masks.areas.tolist()[0] == 1
    assert ignored.to_label_map()[2, 8] == 9


def test_overlapping_and_empty_masks_stay_as_they_were_inside():
    masks = MaskSet.from_dense(np.stack([disc(6, (20, 20)), disc(6, (20, 26)), np.zeros((81, 81), bool)]))
    expanded = morphology.expand(masks, 3)
    assert expanded.areas[2] == 0
    _, _, before = masks.intersections(masks)
    _, _, after = expanded.intersections(expanded)
    assert before[1] == after[1] > 0  # what two masks share


def test_round_objects_keep_their_size_when_smoothed():
    rng = np.random.default_rng(0)
    for radius in (3, 5, 8, 15, 30):
        masks = [MaskSet.from_dense(disc(radius, 40 + rng.random(2))[None]) for _ in range(20)]
        change = np.array([morphology.smooth(one).areas[0] / one.areas[0] - 1 for one in masks])
        assert abs(change.mean()) < 0.01
        assert np.abs(change).max() < (0.05 if radius < 5 else 0.02)
    truth = disc(20)
    rough = truth ^ (ndimage.binary_dilation(truth) & ~ndimage.binary_erosion(truth) & (rng.random((81, 81)) < 0.3))
    rough = ndimage.label(rough)[0] == ndimage.label(rough)[0][40, 40]
    smooth = morphology.smooth(MaskSet.from_dense(rough[None])).to_dense()[0]
    assert np.count_nonzero(smooth ^ truth) < 0.5 * np.count_nonzero(rough ^ truth)


def test_a_thin_neck_stays_and_a_smoothed_object_has_no_more_parts():
    dumbbell = disc(9, (40, 20)) | disc(9, (40, 60))
    dumbbell[40, 20:60] = True
    assert ndimage.label(morphology.smooth(MaskSet.from_dense(dumbbell[None])).to_dense()[0])[1] == 1
    for seed in range(3):
        masks, _ = MaskSet.from_label_map(nuclei(seed))
        smooth = morphology.smooth(masks)
        assert (smooth.areas > 0).all()
        for k in range(len(masks)):
            assert ndimage.label(smooth.crop(k))[1] <= ndimage.label(masks.crop(k))[1]
        assert smooth.areas.sum() == np.count_nonzero(smooth.foreground())  # no pixel of a neighbour was taken


def test_filling_holes_twice_is_filling_them_once_and_takes_no_pixel_of_others():
    labels = nuclei(1)
    labels[10:21, 10:21], labels[12:19, 12:19], labels[14:16, 14:16] = 900, 0, 901
    cells = Instances.from_label_map(labels)
    filled = cells.fill_holes()
    assert filled.fill_holes().masks == filled.masks
    inside = filled.to_label_map()[10:21, 10:21]
    assert np.count_nonzero(inside == 900) == 121 - 4
    assert np.count_nonzero(inside == 901) == 4
    assert filled.masks.areas.sum() == np.count_nonzero(filled.masks.foreground())


def test_distances_are_pixels_or_microns():
    assert [str(Distance.of(text)) for text in (4, "4", "4.50 px", "5um", "0.5 µm", "2 microns")] == [
        "4px",
        "4px",
        "4.5px",
        "5um",
        "0.5um",
        "2um",
    ]
    for wrong in ("far", "-1", "", "5mm", "1e9", True, float("nan")):
        with pytest.raises(UsageError, match="invalid `distance`"):
            Instances.empty((3, 3)).expand(wrong)
    cells = Instances.from_label_map(disc(5).astype(int))
    assert cells.expand("1um", pixel_size=(0.5, 0.25)).boxes_xyxy.tolist() == [[31.0, 33.0, 50.0, 48.0]]
    with pytest.raises(InputError, match="needs the pixel size"):
        cells.expand("1um")


def test_soft_masks_and_columns_that_no_longer_fit_are_dropped():
    _, truth = draw_field(0, (64, 64), 6)
    measured = Instances.from_masks(truth.masks)
    measured.columns["area_px"] = truth.masks.areas
    assert not measured.expand(2).columns
    assert measured.remove_border().columns.keys() == {"area_px"}

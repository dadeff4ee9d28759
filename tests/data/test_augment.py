"""Augmented samples: image and labels stay aligned, and objects equal a slow computation per object."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwright.config.input import AugmentConfig, InputConfig
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.augment import Frame, augment, draw_geometry
from cellwright.data.labels import Labels
from cellwright.data.warp import Geometry, warp_image, warp_labels


def overlapping_discs(rng: np.random.Generator, hw: tuple[int, int], n: int) -> Labels:
    """``n`` discs that may overlap; some extend beyond the border."""
    ys, xs = np.mgrid[: hw[0], : hw[1]]
    centres, radii = rng.uniform(0, hw, (n, 2)), rng.uniform(2, 9, n)
    dense = [(ys - y) ** 2 + (xs - x) ** 2 <= r * r for (y, x), r in zip(centres, radii, strict=True)]
    masks = MaskSet.from_dense(np.array(dense, bool).reshape(n, *hw))
    return Labels.from_instances(Instances.from_masks(masks, class_ids=np.arange(n) % 3))


def dense(labels: Labels) -> np.ndarray:
    """Dense masks (N, H, W) bool, for comparison."""
    return np.array([labels.layers[layer] == k + 1 for k, layer in enumerate(labels.layer_of)], bool).reshape(
        len(labels), *labels.layers.shape[1:]
    )


def transformed(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A mask (H, W) transformed with numpy; for a ``geometry`` without resizing."""
    y0, x0, y1, x1 = geometry.window
    mask = mask[y0:y1, x0:x1]
    if geometry.horizontal_flip:
        mask = np.fliplr(mask)
    if geometry.vertical_flip:
        mask = np.flipud(mask)
    return np.rot90(mask, geometry.quarter_turns)


def check_records(labels: Labels) -> None:
    """Boxes, areas and numbers equal those computed from the mask of each object."""
    assert set(np.unique(labels.layers)) <= set(range(len(labels) + 1))
    for k, mask in enumerate(dense(labels)):
        ys, xs = np.nonzero(mask)
        assert labels.areas[k] == len(ys) > 0
        assert labels.boxes[k].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert np.count_nonzero(labels.layers == k + 1) == len(ys)  # not in another layer


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    hw=st.tuples(st.integers(8, 48), st.integers(8, 48)),
    n=st.integers(0, 12),
    crop=st.integers(16, 40),
    min_visible=st.floats(0, 1),
)
def test_objects_equal_a_slow_computation_without_scaling(
    seed: int, hw: tuple[int, int], n: int, crop: int, min_visible: float
) -> None:
    rng = np.random.default_rng(seed)
    labels = overlapping_discs(rng, hw, n)
    config = AugmentConfig(
        crop_px=crop, horizontal_flip=0.5, vertical_flip=0.5, quarter_turns=True, min_visible=min_visible
    )
    geometry = draw_geometry(hw, config, rng)
    out = warp_labels(labels, geometry, min_visible)
    expected, classes = [], []
    for mask, class_id in zip(dense(labels), labels.class_ids, strict=True):
        visible = transformed(mask, geometry)
        if visible.any() and visible.sum() >= min_visible * mask.sum():
            expected.append(visible)
            classes.append(class_id)
    assert np.array_equal(dense(out), np.array(expected, bool).reshape(len(expected), *out.layers.shape[1:]))
    assert out.class_ids.tolist() == classes
    check_records(out)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    low=st.floats(0.5, 1.5),
    span=st.floats(1, 1.6),
    base_scale=st.sampled_from([1.0, 0.75, 2.0]),
    crop=st.sampled_from([None, 32, 60]),
)
def test_image_and_labels_stay_aligned_under_scaling(
    seed: int, low: float, span: float, base_scale: float, crop: int | None
) -> None:
    rng = np.random.default_rng(seed)
    labels = overlapping_discs(rng, (50, 64), 6)
    image = np.stack([(labels.layers > 0).any(axis=0) * 200.0 + 20], axis=2).astype(np.float32)
    config = AugmentConfig(
        crop_px=crop,
        scale_min=low,
        scale_max=low * span,
        vertical_flip=0.5,
        quarter_turns=True,
        min_visible=0,
    )
    out_image, out = augment(image, labels, config, rng, Frame(InputConfig(scale=base_scale)))
    check_records(out)
    # Nearest-neighbour labels and linear intensities may differ only halfway between two pixels.
    bright = out_image[:, :, 0] > 120
    assert out_image.shape[:2] == out.layers.shape[1:]
    clear = np.abs(out_image[:, :, 0] - 120) > 55
    assert np.array_equal(bright[clear], (out.layers > 0).any(axis=0)[clear])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_flips_and_rotations_have_exact_inverses(dtype: type, turns: int, flips: tuple[bool, bool]) -> None:
    rng = np.random.default_rng(3)
    image = (rng.random((13, 21, 4)) * 60000).astype(dtype)
    labels = overlapping_discs(rng, (13, 21), 4)
    forward = Geometry((0, 0, 13, 21), (13, 21), *flips, turns)
    turned, turned_labels = warp_image(image, forward), warp_labels(labels, forward, 0.25)
    hw = turned.shape[:2]
    back_turn = Geometry((0, 0, *hw), hw, quarter_turns=-turns % 4)
    back_flip = Geometry((0, 0, 13, 21), (13, 21), *flips)
    assert np.array_equal(warp_image(warp_image(turned, back_turn), back_flip), image)
    back = warp_labels(warp_labels(turned_labels, back_turn, 0.25), back_flip, 0.25)
    assert np.array_equal(back.layers, labels.layers)
    assert np.array_equal(back.boxes, labels.boxes)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_resizing_agrees_with_slicing(turns: int, flips: tuple[bool, bool]) -> None:
    """Enlarging twofold repeats each pixel of the map without resizing."""
    image = np.arange(9 * 14, dtype=np.int16).reshape(9, 14, 1)
    window = (2, 3, 8, 12)
    doubled = Geometry(window, (12, 18), *flips, turns)
    plain = Geometry(window, (6, 9), *flips, turns)
    layer = Labels(
        image[None, :, :, 0].astype(np.int32) + 1,
        np.zeros(126, np.int64),
        np.zeros((126, 4), np.float32),
        np.zeros(126, np.int64),
        np.zeros(126, bool),
        np.ones(126, np.int64),
    )
    big, small = warp_labels(layer, doubled, 0), warp_labels(layer, plain, 0)
    assert np.array_equal(big.layers, small.layers.repeat(2, axis=1).repeat(2, axis=2))


def test_objects_below_the_visible_share_are_dropped_and_ignored_regions_are_kept() -> None:
    labels_map = np.zeros((10, 20), np.int32)
    labels_map[0:2, 8:12] = 1  # half of it is inside the left window
    labels_map[4:6, 9:17] = 2  # an eighth is inside
    labels_map[7:9, 9:17] = 3  # an eighth is inside, but it is ignored
    masks, _ = MaskSet.from_label_map(labels_map)
    instances = Instances.from_masks(masks, class_ids=np.array([0, 1, 2]), ignore=np.array([False, False, True]))
    out = warp_labels(Labels.from_instances(instances), Geometry((0, 0, 10, 10), (10, 10)), 0.25)
    assert out.class_ids.tolist() == [0, 0]
    assert out.ignore.tolist() == [False, True]
    assert out.boxes.tolist() == [[8, 0, 10, 2], [9, 7, 10, 9]]
    assert np.count_nonzero(out.layers[0, 4:6]) == 0
    check_records(out)


def test_overlapping_objects_use_two_layers_while_needed() -> None:
    masks = MaskSet.from_crops(np.array([[0, 0, 6, 6], [4, 4, 10, 10]]), [np.ones((6, 6), bool)] * 2, (10, 10))
    labels = Labels.from_instances(Instances.from_masks(masks))
    assert labels.layers.shape[0] == 2
    both = warp_labels(labels, Geometry((0, 0, 10, 10), (20, 20)), 0.25)
    assert both.areas.tolist() == [144, 144]
    check_records(both)
    single = warp_labels(labels, Geometry((5, 5, 10, 10), (5, 5)), 0.25)
    assert single.layers.shape == (1, 5, 5)
    assert single.layer_of.tolist() == [0]
    assert single.boxes.tolist() == [[0, 0, 5, 5]]


def test_an_image_without_objects() -> None:
    labels = Labels.from_instances(Instances.empty((30, 40)))
    config = AugmentConfig(crop_px=16, scale_min=0.5, scale_max=2)
    image, out = augment(np.zeros((30, 40, 3), np.uint8), labels, config, np.random.default_rng(0))
    assert image.shape == (16, 16, 3)
    assert out.layers.shape == (1, 16, 16)
    assert len(out) == 0
    assert out.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("hw", "crop", "scale", "expected"),
    [
        ((100, 80), 64, 1.0, (64, 64)),
        ((100, 80), 64, 0.5, (50, 40)),
        ((100, 80), 64, 2.0, (64, 64)),
        ((40, 300), 64, 1.0, (40, 64)),
        ((100, 80), None, 1.5, (150, 120)),
        ((1, 1), None, 0.1, (1, 1)),
    ],
)
def test_output_sizes(hw: tuple[int, int], crop: int | None, scale: float, expected: tuple[int, int]) -> None:
    config = AugmentConfig(crop_px=crop, scale_min=scale, scale_max=scale)
    assert draw_geometry(hw, config, np.random.default_rng(0)).out_hw == expected


def test_windows_cover_the_image_and_scales_are_log_uniform() -> None:
    config = AugmentConfig(crop_px=16, scale_min=0.5, scale_max=2)
    rng = np.random.default_rng(0)
    geometries = [draw_geometry((48, 48), config, rng) for _ in range(3000)]
    y0, x0, y1, x1 = np.array([geometry.window for geometry in geometries]).T
    assert min(y0.min(), x0.min()) == 0
    assert y1.max() == x1.max() == 48
    scales = np.log2(16 / (y1 - y0))
    assert np.abs(np.quantile(scales, [0.25, 0.5, 0.75]) - [-0.5, 0, 0.5]).max() < 0.08


def test_the_same_generator_gives_the_same_sample() -> None:
    labels = overlapping_discs(np.random.default_rng(1), (40, 40), 5)
    image = np.random.default_rng(2).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    config = AugmentConfig(crop_px=24, scale_min=0.7, scale_max=1.4, brightness=0.2, contrast=0.2, hue=0.1)
    first = augment(image, labels, config, np.random.default_rng([1, 2]))
    again = augment(image, labels, config, np.random.default_rng([1, 2]))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1].layers, again[1].layers)


def test_inputs_are_not_changed() -> None:
    labels = overlapping_discs(np.random.default_rng(1), (40, 40), 5)
    image = np.full((40, 40, 3), 100, np.uint8)
    kept_image, kept_layers = image.copy(), labels.layers.copy()
    out, _ = augment(image, labels, AugmentConfig(horizontal_flip=0), np.random.default_rng(0))
    out[:] = 0
    assert np.array_equal(image, kept_image)
    assert np.array_equal(labels.layers, kept_layers)

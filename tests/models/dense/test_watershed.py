"""Watershed targets by their definitions, the flood against scikit-image, round trips, and difficult cases."""

from __future__ import annotations

import doctest
import heapq
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import watershed as skimage_watershed

from cellwright.core.errors import InputError
from cellwright.core.masks import MaskSet
from cellwright.data.formats.mask_folder import MaskFolderLoader
from cellwright.data.images.read import image_hw_of
from cellwright.data.synthetic import FieldLook, draw_field
from cellwright.models.dense import watershed
from cellwright.models.dense.labels import connected_components, to_instances
from cellwright.models.dense.watershed import CHANNELS, decode, encode, flood

seeds_of_draws = st.integers(0, 2**32 - 1)


def ious(labels: np.ndarray) -> np.ndarray:
    """For each object, the IoU with its best match after the round trip; 0 if there is none."""
    truth = MaskSet.from_label_map(labels)[0]
    i, _, iou = truth.iou(MaskSet.from_label_map(decode(encode(labels))[0])[0])
    best = np.zeros(len(truth))
    np.maximum.at(best, i, iou)
    return best


def cells(seed: int, spacing: float, hw: tuple[int, int] = (96, 96)) -> np.ndarray:
    """Rounded cells on a jittered grid, about ``spacing`` px wide; most touch their neighbours along straight lines."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(spacing / 2, side, spacing) for side in hw), indexing="ij"), -1)
    points = grid.reshape(-1, 2) + rng.uniform(-spacing / 5, spacing / 5, (grid[..., 0].size, 2))
    radius = spacing * rng.uniform(0.4, 0.65, len(points))
    pixels = np.stack(np.meshgrid(*map(np.arange, hw), indexing="ij"), -1)
    distance = np.hypot(*(pixels[None] - points[:, None, None]).transpose(3, 0, 1, 2))
    nearest = distance.argmin(0)
    return np.where(distance.min(0) < radius[nearest], nearest + 1, 0)


# --- the flood ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seeds_of_draws, st.integers(1, 50), st.integers(1, 50), st.booleans())
def test_flood_equals_scikit_image_without_ties(seed: int, height: int, width: int, smooth: bool) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.permutation(height * width).reshape(height, width) - height * width / 2
    if smooth:
        cost = ndimage.gaussian_filter(rng.normal(size=(height, width)), 2)
        cost = cost.ravel().argsort().argsort().reshape(height, width) / cost.size - 0.5
    cost = cost.astype(np.float32)
    seeds = np.where(rng.random((height, width)) < 0.03, rng.integers(1, 99, (height, width)), 0).astype(np.int32)
    mask = rng.random((height, width)) < 0.8
    expected = skimage_watershed(cost, seeds, mask=mask, connectivity=2)
    assert np.array_equal(flood(cost, seeds, mask), expected)


def plain_flood(cost: np.ndarray, seeds: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The algorithm with a single queue: lowest cost first, among equals the one that entered first."""
    labels, (height, width) = np.where(mask, seeds, 0), seeds.shape
    entries = [(cost[y, x], age, y, x) for age, (y, x) in enumerate(np.argwhere(labels))]
    heapq.heapify(entries)
    age = len(entries)
    while entries:
        _, _, y, x = heapq.heappop(entries)
        for dy, dx in ((-1, 0), (0, -1), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)):
            v, u = y + dy, x + dx
            if 0 <= v < height and 0 <= u < width and mask[v, u] and labels[v, u] == 0:
                labels[v, u] = labels[y, x]
                heapq.heappush(entries, (cost[v, u], age, v, u))
                age += 1
    return labels


@settings(max_examples=60, deadline=None)
@given(seeds_of_draws, st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 5, 300]), st.booleans())
def test_flood_with_ties_keeps_the_order_of_entry(seed: int, height: int, width: int, levels: int, far: bool) -> None:
    rng = np.random.default_rng(seed)
    cost = (rng.integers(0, levels, (height, width)) / levels - 0.5).astype(np.float32)
    if far:
        cost.flat[rng.integers(cost.size)] = 3e38  # puts all others into one bucket
    seeds = np.where(rng.random((height, width)) < 0.05, rng.integers(1, 99, (height, width)), 0).astype(np.int32)
    mask = rng.random((height, width)) < 0.9
    assert np.array_equal(flood(cost, seeds, mask), plain_flood(cost, seeds, mask))


def test_flood_of_equal_costs_spreads_evenly() -> None:
    seeds = np.array([[5, 0, 0, 0, 0, 0, 7]], np.int32)
    free = np.ones((1, 7), bool)
    assert flood(np.zeros((1, 7), np.float32), seeds, free).tolist() == [[5, 5, 5, 5, 7, 7, 7]]
    assert flood(np.array([[0, -0.0] * 3 + [0]], np.float32), seeds, free).tolist() == [[5, 5, 5, 5, 7, 7, 7]]
    wall = np.array([[0, 0.9, 0.1, 0.2, 0.3, 0.4, 0]], np.float32)
    assert flood(wall, seeds, free).tolist() == [[5, 5, 7, 7, 7, 7, 7]]


def test_flood_stays_in_the_mask_and_skips_pixels_that_no_seed_reaches() -> None:
    seeds = np.array([[3, 0, 0, 0, 0], [0, 0, 0, 0, 4]], np.int32)
    mask = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
    assert flood(np.zeros((2, 5), np.float32), seeds, mask).tolist() == [[3, 3, 0, 0, 0], [0, 0, 0, 0, 0]]


# --- the maps -------------------------------------------------------------------------------------------------------


def test_maps_of_two_touching_squares_by_hand() -> None:
    labels = np.zeros((5, 9), int)
    labels[1:4, 1:4], labels[1:4, 4:7] = 4, 9
    body, border, distance = encode(labels)
    assert np.array_equal(body, labels > 0)
    columns = np.zeros((5, 9), bool)
    columns[:, 3:5] = True  # the two columns of the contact, and the background at both ends of it
    assert np.array_equal(border, columns)
    square = np.array([[0.5, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 0.5]])
    assert np.array_equal(distance[1:4, 1:7], np.tile(square, 2))
    assert distance.dtype == border.dtype == body.dtype == np.float32


def test_a_gap_of_one_pixel_is_border_and_a_gap_of_two_is_not() -> None:
    narrow, wide = encode(np.array([[1, 1, 0, 2, 2]])), encode(np.array([[1, 1, 0, 0, 2, 2]]))
    assert narrow[1].tolist() == [[0, 0, 1, 0, 0]]
    assert wide[1].max() == 0


@settings(max_examples=25, deadline=None)
@given(seeds_of_draws, st.sampled_from([5, 9, 26, 48]))
def test_distance_and_border_follow_their_definitions(seed: int, spacing: int) -> None:
    labels = cells(seed, spacing, (40, 60))
    components, n = connected_components(labels)
    _, border, distance = encode(labels)
    reach = np.zeros(n + 1, int)
    for k in range(1, n + 1):
        depth = np.asarray(ndimage.distance_transform_edt(components == k))
        reach[k] = np.clip(depth.max() // 6, 1, 3)
        assert distance[components == k] == pytest.approx(depth[components == k] / depth.max(), abs=1e-5)
    assert (distance[components == 0] == 0).all()
    expected = np.zeros(components.shape, bool)
    for r in (1, 2, 3):
        shown = np.where(reach[components] >= r, components, 0)
        for y, x in np.ndindex(*components.shape):
            square = shown[max(y - r, 0) : y + r + 1, max(x - r, 0) : x + r + 1]
            expected[y, x] |= np.unique(square[square > 0]).size > 1
    assert np.array_equal(border, expected)


# --- round trips ----------------------------------------------------------------------------------------------------


def real_ious(folders: list[Path]) -> np.ndarray:
    per_image = []
    for folder in folders:
        hw = image_hw_of(next((folder / "images").glob("*.png")))
        per_image.append(ious(MaskFolderLoader(folder / "masks", hw)().masks.to_label_map().astype(np.int32)))
    return np.concatenate(per_image)


def test_round_trip_on_vrdl(vrdl_root: Path) -> None:
    assert real_ious(sorted((vrdl_root / "train").iterdir())[:3]).mean() > 0.99


def test_round_trip_on_dsb2018(dsb_root: Path) -> None:
    assert real_ious(sorted(dsb_root.iterdir())[::60]).mean() > 0.99


@settings(max_examples=25, deadline=None)
@given(seeds_of_draws, st.floats(9, 40))
def test_round_trip_of_touching_cells(seed: int, spacing: float) -> None:
    assert ious(cells(seed, spacing)).mean() > 0.98


def test_round_trip_of_drawn_fields() -> None:
    for seed, diameter in ((0, 12.0), (1, 22.0), (2, 40.0)):
        look = FieldLook(diameter_px=diameter, touching=1.0)
        truth = draw_field(seed, (256, 256), 80, look)[1]
        assert ious(truth.masks.to_label_map().astype(np.int32)).mean() > 0.98


def test_round_trip_of_nuclei_seven_pixels_wide() -> None:
    y, x = np.mgrid[-3:4, -3:4]
    nuclei = {"discs": y**2 + x**2 <= 11, "squares": np.ones((7, 7), bool), "rhombi": abs(y) + abs(x) <= 3}
    for name, shape in nuclei.items():
        packed = np.kron(np.arange(1, 82).reshape(9, 9), shape)  # each touches its four neighbours
        assert (packed > 0).sum() == 81 * shape.sum()
        assert ious(packed).mean() > 0.95, name
    for seed in range(5):
        assert ious(cells(seed, 7)).mean() > 0.95


def test_round_trip_of_shapes_that_are_not_round() -> None:
    ring = np.zeros((20, 20), int)
    ring[2:18, 2:18] = 1
    ring[5:15, 5:15] = 0
    nested = ring.copy()
    nested[8:12, 8:12] = 2
    filled = ring.copy()
    filled[5:15, 5:15] = 2  # another object fills the hole and touches the ring all around
    hook = np.zeros((24, 24), int)
    hook[2:22, 2:7] = hook[17:22, 2:20] = hook[2:22, 15:20] = 1
    cut = np.zeros((9, 9), int)
    cut[:4, :5], cut[:4, 5:] = 1, 2  # at the edge of the image
    for labels in (ring, nested, filled, hook, cut):
        assert np.array_equal(decode(encode(labels))[0], labels)


def test_components_of_one_label_are_separate_objects() -> None:
    labels = np.array([[6, 6, 0, 0, 6], [6, 6, 0, 0, 6]])
    assert decode(encode(labels))[0].tolist() == [[1, 1, 0, 0, 2], [1, 1, 0, 0, 2]]
    corner = np.array([[6, 0], [0, 6]])
    assert decode(encode(corner))[0].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("hw", [(1, 1), (1, 9), (9, 1), (5, 6)])
def test_no_objects_a_single_pixel_and_a_full_image(hw: tuple[int, int]) -> None:
    maps = encode(np.zeros(hw, np.uint16))
    assert not maps.any()
    labels, scores = decode(maps)
    assert labels.shape == hw
    assert labels.dtype == np.int32
    assert scores.shape == (0,)
    assert len(to_instances(labels, scores)) == 0
    assert encode(np.full(hw, 3)).tolist() == np.stack([np.ones(hw), np.zeros(hw), np.ones(hw)]).tolist()
    assert decode(encode(np.full(hw, 3)))[0].tolist() == np.ones(hw, int).tolist()
    pixel = np.zeros(hw, int)
    pixel[-1, -1] = 77
    assert np.array_equal(decode(encode(pixel))[0], pixel > 0)


# --- decoding -------------------------------------------------------------------------------------------------------


def two_discs() -> np.ndarray:
    y, x = np.mgrid[:30, :50]
    left, right = (y - 15) ** 2 + (x - 14) ** 2 <= 110, (y - 15) ** 2 + (x - 33) ** 2 <= 110
    return np.where(left & (x < 24), 1, np.where(right, 2, 0))


def test_distance_and_border_each_separate_objects_that_the_other_misses() -> None:
    labels = two_discs()
    maps = encode(labels)
    without_border = maps * np.array([1, 0, 1], np.float32)[:, None, None]
    assert decode(without_border)[0].max() == 2
    assert decode(without_border, core_distance=0)[0].max() == 1
    flat = np.stack([maps[0], maps[1], maps[0] * 0.6])
    assert np.array_equal(decode(flat)[0], labels)


def test_a_component_without_a_seed_is_an_object() -> None:
    maps = encode(two_discs())
    maps[2] = 0
    labels, scores = decode(maps)
    assert np.array_equal(labels, maps[0])
    assert scores.tolist() == [1.0]


def test_the_distance_gives_a_small_object_beside_a_large_one_a_seed() -> None:
    labels = np.ones((21, 21), int)
    labels[9:11, 19:] = 2
    assert decode(encode(labels))[0].max() == 2
    assert decode(encode(labels), peak_distance=2)[0].max() == 1


def test_scores_small_objects_and_holes() -> None:
    maps = encode(two_discs())
    maps[0, :, :24] *= 0.8
    maps[0, 15, 14] = 0.1
    labels, scores = decode(maps)
    inside = two_discs() == 1
    assert scores == pytest.approx([maps[0][inside].mean(), 1])
    assert labels[15, 14] == 1  # filled
    assert decode(maps, max_hole_share=0)[0][15, 14] == 0
    maps[0, :, :8] = 0  # the left disc loses a slice
    few, scores = decode(maps, min_area_px=int(inside.sum()))
    assert np.array_equal(few, two_discs() == 2)
    assert scores.tolist() == [1.0]


def test_instances_are_sorted_by_score_and_have_classes() -> None:
    truth = MaskSet.from_label_map(two_discs())[0]
    maps = encode(two_discs())
    maps[0, :, :24] *= 0.9
    class_probs = np.stack([two_discs() == 2, two_discs() == 1]).astype(np.float32)
    decoded = to_instances(*decode(maps), class_probs)
    assert decoded.masks == truth[[1, 0]]
    assert decoded.class_ids.tolist() == [0, 1]
    assert decoded.scores == pytest.approx([1, 0.9])
    assert decoded.ids.tolist() == [1, 2]


def test_invalid_labels_and_maps_are_rejected() -> None:
    assert CHANNELS == ("body", "border", "distance")
    with pytest.raises(InputError, match="2-D array of integers"):
        encode(np.zeros((3, 4)))
    with pytest.raises(InputError, match="body, border, distance"):
        decode(np.zeros((1, 3, 4), np.float32))
    for channel, name in enumerate(CHANNELS):
        maps = np.zeros((3, 3, 4), np.float32)
        maps[channel, 1, 2] = np.nan
        with pytest.raises(InputError, match=name):
            decode(maps)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(watershed).failed == 0


def test_arguments_are_not_modified() -> None:
    maps = encode(two_discs())
    before = maps.copy()
    decode(maps)
    assert np.array_equal(maps, before)

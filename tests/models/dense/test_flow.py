"""Flow targets against a plain diffusion, following against torch, and round trips of drawn and real labels."""

from __future__ import annotations

import doctest
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cellwright.core.errors import InputError
from cellwright.core.masks import MaskSet
from cellwright.models.dense import flow
from cellwright.models.dense.flow import CHANNELS, decode, encode, follow


def best_ious(truth: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """For each object of a label map, the highest IoU with an object of another."""
    masks, _ = MaskSet.from_label_map(truth)
    i, _, iou = masks.iou(MaskSet.from_label_map(decoded)[0])
    best = np.zeros(len(masks))
    np.maximum.at(best, i, iou)
    return best


def touching(seed: int, side: int, pitch: float) -> np.ndarray:
    """Cells (side, side): discs around jittered grid points, split between the nearest points, so that most touch."""
    rng = np.random.default_rng(seed)
    across = max(int(side / pitch), 1)
    places = (np.indices((across, across)).reshape(2, -1).T + 0.5 + rng.uniform(-0.28, 0.28, (across**2, 2))) * pitch
    radii = pitch * rng.uniform(0.42, 0.62, len(places))
    centres = np.indices((side, side)).reshape(2, -1).T + 0.5
    distances = np.linalg.norm(centres[:, None] - places[None], axis=2)
    nearest = distances.argmin(1)
    inside = distances[np.arange(side**2), nearest] < radii[nearest]
    return np.where(inside, nearest + 1, 0).reshape(side, side).astype(np.int32)


def noisy(maps: np.ndarray, seed: int, amount: float) -> np.ndarray:
    """Blurred maps with smooth noise, as from an uncertain network."""
    noise = np.stack([ndimage.gaussian_filter(c, 1.5) for c in np.random.default_rng(seed).normal(size=maps.shape)])
    blurred = np.stack([ndimage.gaussian_filter(c, 1.0) for c in maps])
    out = blurred + amount * noise / noise.std() * np.array([1, 1, 0.5])[:, None, None]
    out[2] = out[2].clip(0, 1)
    return out.astype(np.float32)


# --- targets --------------------------------------------------------------------------------------------------------


def plain_flow(mask: np.ndarray) -> np.ndarray:
    """The diffusion of the paper in a bool crop (h, w), step by step on the whole crop."""
    padded = np.pad(mask, 1)
    y, x = np.nonzero(padded)
    nearest = np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2)
    heat = np.zeros(padded.shape)
    for _ in range(2 * sum(padded.shape)):
        heat[y[nearest], x[nearest]] += 1
        heat = ndimage.convolve(heat, np.full((3, 3), 1 / 9), mode="constant") * padded
    flow = np.stack([np.roll(heat, -1, axis) - np.roll(heat, 1, axis) for axis in (0, 1)])
    flow = flow / np.maximum(np.linalg.norm(flow, axis=0), 1e-300) * padded
    return flow[:, 1:-1, 1:-1]


def test_targets_equal_a_plain_diffusion_per_object() -> None:
    labels = touching(1, 64, 15.0)
    maps = encode(labels)
    assert maps.dtype == np.float32
    assert maps.shape == (len(CHANNELS), 64, 64)
    masks, ids = MaskSet.from_label_map(labels)
    for k, (x0, y0, x1, y1) in enumerate(masks.boxes):
        inside = masks.crop(k) != 0
        expected = plain_flow(inside)
        assert np.abs(maps[:2, y0:y1, x0:x1] - expected)[:, inside].max() < 1e-4, ids[k]
    assert np.array_equal(maps[2] != 0, labels != 0)
    lengths = np.linalg.norm(maps[:2], axis=0)
    assert np.allclose(lengths[labels != 0], 1, atol=1e-6)
    assert not lengths[labels == 0].any()


def test_the_flow_of_a_disc_points_to_its_centre() -> None:
    y, x = np.indices((41, 41)) - 20
    disc = np.hypot(y, x) < 16
    flow_y, flow_x, _ = encode(disc.astype(np.int32))
    far = disc & (np.hypot(y, x) > 2)
    cosine = -(flow_y * y + flow_x * x)[far] / np.hypot(y, x)[far]
    assert cosine.min() > 0.95


def test_targets_depend_only_on_equality_of_labels() -> None:
    labels = touching(2, 48, 12.0)
    renamed = np.where(labels > 0, 10**12 - 7 * labels.astype(np.int64), 0)
    assert np.array_equal(encode(labels), encode(renamed))
    assert np.array_equal(encode(labels), encode(labels.astype(np.uint32)[:, ::1].copy("F")))


# --- following ------------------------------------------------------------------------------------------------------


def follow_in_torch(maps: np.ndarray, steps: int) -> np.ndarray:
    """Ends (P, 2) of the body pixels by torch's bilinear sampling, without stopping early."""
    y, x = np.nonzero(maps[2] >= 0.5)
    height, width = maps.shape[1:]
    field = torch.from_numpy(maps[:2] * (maps[2] >= 0.5)).double()[None]
    places = torch.from_numpy(np.stack([y, x], 1)).double()
    far = torch.tensor([height - 1, width - 1]).double()
    for _ in range(steps):
        grid = (2 * places / far - 1).flip(1)[None, None]
        step = torch.nn.functional.grid_sample(field, grid, mode="bilinear", padding_mode="border", align_corners=True)
        places = (places + step[0, :, 0].T).clamp(min=torch.zeros(2), max=far)
    return places.numpy()


@pytest.mark.parametrize("amount", [0.0, 0.3])
def test_following_agrees_with_torch(amount: float) -> None:
    maps = encode(touching(3, 72, 18.0))
    maps = noisy(maps, 0, amount) if amount else maps
    expected = follow_in_torch(maps, 60)
    ends, pixels = follow(maps, steps=60, tolerance_px=-1)
    assert np.array_equal(pixels, np.flatnonzero(maps[2] >= 0.5))
    far = np.abs(ends - expected).max(1)
    assert (far < 0.01).mean() > 0.995  # rounding may send a pixel on a watershed to either side
    early, _ = follow(maps, steps=60)
    assert (np.abs(early - ends).max(1) < 0.02).mean() > 0.999


def test_stopping_early_changes_no_object() -> None:
    maps = noisy(encode(touching(4, 96, 16.0)), 1, 0.2)
    labels, scores = decode(maps)
    expected, expected_scores = decode(maps, tolerance_px=-1)
    assert np.array_equal(labels, expected)
    assert np.array_equal(scores, expected_scores)


# --- round trips ----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), pitch=st.floats(8, 40))
def test_round_trip_of_touching_cells(seed: int, pitch: float) -> None:
    labels = touching(seed, 80, pitch)
    decoded, scores = decode(encode(labels))
    assert best_ious(labels, decoded).mean() > 0.98
    assert decoded.dtype == np.int32
    assert scores.dtype == np.float32
    assert np.array_equal(np.unique(decoded[decoded > 0]), np.arange(1, len(scores) + 1))
    assert ((scores > 0.8) & (scores <= 1)).all()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_round_trip_of_irregular_shapes(seed: int) -> None:
    """Adjacent level sets of smooth noise: lobes, necks one pixel wide, and bays with sinks close to each other."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(96, 96)), 5.0)
    labels = np.digitize(field / field.std(), [-1, 0, 1])
    parts = np.zeros(labels.shape, np.int32)
    for level in (1, 2, 3):
        named, _ = ndimage.label(labels == level, np.ones((3, 3)))
        parts[named > 0] = named[named > 0] + parts.max()
    decoded, _ = decode(encode(parts))
    areas = MaskSet.from_label_map(parts)[0].areas
    assert best_ious(parts, decoded)[areas >= 20].mean() > 0.75


def test_round_trip_of_nuclei_seven_pixels_wide() -> None:
    labels = np.zeros((120, 120), np.int32)
    y, x = np.indices((7, 7)) - 3
    disc = y**2 + x**2 <= 11
    for row in range(17):
        for column in range(16):
            window = labels[7 * row : 7 * row + 7, 7 * column + 3 * (row % 2) : 7 * column + 3 * (row % 2) + 7]
            window[disc] = 16 * row + column + 1
    decoded, _ = decode(encode(labels))
    assert best_ious(labels, decoded).mean() > 0.98


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (30, 20)])
def test_no_body_gives_no_objects(shape: tuple[int, int]) -> None:
    maps = encode(np.zeros(shape, np.int32))
    assert not maps.any()
    labels, scores = decode(maps)
    assert labels.shape == shape
    assert not labels.any()
    assert scores.shape == (0,)


@pytest.mark.parametrize("transpose", [False, True])
def test_images_of_one_row(transpose: bool) -> None:
    labels = np.array([[1, 0, 2, 2, 2, 3, 3, 3, 3, 3, 0, 0, 4, 4, 4, 4]], np.int32)
    labels = labels.T if transpose else labels
    decoded, _ = decode(encode(labels))
    assert np.array_equal(decoded, labels)


def test_round_trip_of_single_pixels_and_objects_at_the_image_border() -> None:
    labels = np.zeros((40, 40), np.int32)
    for k, (y, x) in enumerate([(0, 0), (0, 39), (39, 0), (39, 39), (20, 20), (20, 24)]):
        labels[y, x] = k + 1
    labels[0:6, 10:20], labels[30:40, 15:30], labels[8:30, 0:5] = 7, 8, 9
    decoded, scores = decode(encode(labels))
    assert (best_ious(labels, decoded) == 1).all()
    assert len(scores) == 9


def test_small_objects_are_dropped() -> None:
    labels = np.zeros((20, 20), np.int32)
    labels[2, 2], labels[5:9, 5:9] = 1, 2
    decoded, scores = decode(encode(labels), min_area_px=10)
    assert np.array_equal(decoded > 0, labels == 2)
    assert len(scores) == 1


def bent(kind: str) -> np.ndarray:
    """A non-convex mask (64, 64) bool."""
    y, x = np.indices((64, 64)) - 31.5
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    match kind:
        case "ring":
            return (radius > 14) & (radius < 22)
        case "thin ring":
            return (radius > 9) & (radius < 12)
        case "horseshoe":
            return (radius > 12) & (radius < 22) & (np.abs(angle) > 0.6)
        case "cross":
            return ((np.abs(y) < 3) | (np.abs(x) < 3)) & (radius < 25)
        case "spiral":
            return (radius < 28) & (np.mod(radius - 8 * angle / (2 * np.pi), 8) < 5)
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["ring", "thin ring", "horseshoe", "cross", "spiral"])
def test_round_trip_of_non_convex_objects(kind: str) -> None:
    labels = ndimage.label(bent(kind), np.ones((3, 3)))[0].astype(np.int32)
    decoded, _ = decode(encode(labels), steps=500)  # the path out of the spiral is longer than 200 px
    assert best_ious(labels, decoded)[0] > 0.98


def test_components_of_one_label_are_separate_objects() -> None:
    labels = np.zeros((30, 60), np.int32)
    labels[5:25, 5:25], labels[5:15, 40:50] = 4, 4
    decoded, scores = decode(encode(labels))
    assert len(scores) == 2
    assert np.array_equal(decoded[5:25, 5:25], np.ones((20, 20)))
    assert np.array_equal(decoded[5:15, 40:50], np.full((10, 10), 2))


def real_labels(folder: Path) -> np.ndarray:
    """Labels from the mask files of one image; where masks overlap, the first wins."""
    masks = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted((folder / "masks").glob("*.png"))]
    labels = np.zeros(masks[0].shape, np.int32)
    for k, mask in enumerate(masks):
        labels[(mask > 0) & (labels == 0)] = k + 1
    return labels


def check_real(folders: list[Path]) -> None:
    best = np.concatenate([best_ious(labels, decode(encode(labels))[0]) for labels in map(real_labels, folders)])
    assert best.mean() > 0.999
    assert (best > 0.9).mean() > 0.998  # a label with several components is decoded as several objects


def test_round_trip_of_real_labels(dsb_root: Path) -> None:
    check_real(sorted(path for path in dsb_root.iterdir() if path.is_dir())[::60])


@pytest.mark.slow
def test_round_trip_of_all_real_labels(vrdl_root: Path, dsb_root: Path) -> None:
    check_real(sorted((vrdl_root / "train").iterdir()))
    check_real(sorted(path for path in dsb_root.iterdir() if path.is_dir()))


# --- holes, errors, scores ------------------------------------------------------------------------------------------


def test_small_holes_are_filled_and_large_ones_kept() -> None:
    labels = np.zeros((60, 30), np.int32)
    labels[2:27, 2:27], labels[32:57, 2:27] = 1, 2
    labels[10:13, 16:19] = 0  # 9 px, 1.5 % of the object
    labels[36:46, 8:18] = 0  # 19 %
    decoded, _ = decode(encode(labels))
    assert np.array_equal(decoded[2:27, 2:27], np.ones((25, 25)))
    assert not decoded[36:46, 8:18].any()
    kept, _ = decode(encode(labels), max_hole_share=0)
    assert np.array_equal(kept, labels)


def test_a_gap_in_the_body_at_the_sink_is_filled() -> None:
    labels = np.zeros((30, 30), np.int32)
    labels[2:27, 2:27] = 1
    maps = encode(labels)
    maps[2, 13:16, 13:16] = 0.1
    assert np.array_equal(decode(maps)[0], labels)


def test_adjacent_sinks_are_separated_by_the_flow() -> None:
    """One object is in a bay of the other: the sinks are 2 px apart, and the first pass merges them."""
    labels = np.zeros((24, 24), np.int32)
    labels[4:20, 4:14] = 1
    labels[10:14, 6:15] = 2
    maps = encode(labels)
    merged, _ = decode(maps, max_error=None)
    assert merged.max() == 1
    assert np.array_equal(np.sort(best_ious(labels, decode(maps)[0])), [1, 1])


def test_objects_with_inconsistent_flow_are_dropped_and_scores_follow_agreement() -> None:
    labels = np.zeros((40, 120), np.int32)
    labels[8:32, 8:32], labels[8:32, 48:72], labels[8:32, 88:112] = 1, 2, 3
    maps = encode(labels)
    turn = np.deg2rad(30)
    flow_y, flow_x = maps[0].copy(), maps[1].copy()
    second = labels == 2
    maps[0, second] = (np.cos(turn) * flow_y - np.sin(turn) * flow_x)[second]
    maps[1, second] = (np.sin(turn) * flow_y + np.cos(turn) * flow_x)[second]
    maps[:2, labels == 3] *= 0.05  # too short to count as consistent
    decoded, scores = decode(maps)
    assert not decoded[labels == 3].any()
    assert len(scores) == 2
    assert scores[0] == pytest.approx(1, abs=1e-5)
    assert scores[1] == pytest.approx(np.cos(turn), abs=0.02)  # 1 - |a - b|^2 / 2 of unit vectors
    everything, _ = decode(maps, max_error=None)
    assert everything[labels == 3].all()


def test_the_outline_is_at_a_share_of_the_maximum_of_each_object() -> None:
    """Two discs whose body fades towards the rim, one less than half as bright: both give the same pixels."""
    ys, xs = np.mgrid[:40, :80] + 0.5
    labels = np.zeros((40, 80), np.int32)
    distances = [np.hypot(ys - 20, xs - x) for x in (20, 60)]
    for k, distance in enumerate(distances):
        labels[distance <= 15.8] = k + 1
    maps = encode(labels)
    fading = [np.clip(1.2 - distance / 15, 0, 1) for distance in distances]
    maps[2] = np.maximum(fading[0], 0.4 * fading[1]).astype(np.float32)
    decoded, _ = decode(maps, body_threshold=0.15, outline_share=0.61, max_error=None)
    assert np.array_equal(decoded[:, :40] > 0, fading[0][:, :40] >= 0.61)
    assert np.array_equal(decoded[:, 40:] > 0, decoded[:, :40] > 0)
    # With a higher threshold the share has no effect.
    plain, shared = (decode(maps, outline_share=share, max_error=None) for share in (0, 0.5))
    assert np.array_equal(plain[0], shared[0])
    assert len(plain[1]) == 1  # the dim disc is below one half everywhere


def test_with_perfect_flow_the_score_is_the_mean_body() -> None:
    labels = touching(5, 60, 20.0)
    maps = encode(labels)
    maps[2] *= 0.75
    decoded, scores = decode(maps)
    assert np.allclose(scores, 0.75, atol=0.01)
    maps[2] *= 0.5
    assert not decode(maps)[0].any()
    assert np.array_equal(decode(maps, body_threshold=0.3)[0], decoded)


# --- invalid input --------------------------------------------------------------------------------------------


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(flow).failed == 0


def test_invalid_input_is_rejected() -> None:
    with pytest.raises(InputError, match="2-D array"):
        encode(np.zeros((2, 3, 4), np.int32))
    with pytest.raises(InputError, match="2-D array"):
        encode(np.zeros((3, 4), np.float32))
    with pytest.raises(InputError, match="do not fit the decoder"):
        decode(np.zeros((2, 5, 5), np.float32))
    with pytest.raises(InputError, match="not finite"):
        decode(np.full((3, 5, 5), np.nan, np.float32))


def test_arguments_are_not_modified() -> None:
    labels = touching(6, 40, 12.0)
    maps = encode(labels)
    kept = maps.copy()
    decode(maps)
    assert np.array_equal(maps, kept)

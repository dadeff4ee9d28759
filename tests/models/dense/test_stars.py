"""Star-convex targets by their definitions, the decoder against a slow one and StarDist's, round trips, bad input."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy import ndimage
from skimage.draw import polygon2mask

from cellwright.config.model_dense import StarsTarget, UNetConfig
from cellwright.core.errors import InputError
from cellwright.core.masks import MaskSet
from cellwright.data.synthetic import draw_field
from cellwright.models.dense import stars, watershed
from cellwright.models.dense.stars import decode, directions, encode


def noisy_maps(seed: int, noise: float, n_rays: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Labels of 8 drawn nuclei, and their maps with smooth noise; no two probabilities are equal."""
    labels = draw_field(seed, (70, 90), 8)[1].masks.to_label_map().astype(np.int32)
    maps, rng = encode(labels, n_rays=n_rays), np.random.default_rng(seed)
    maps[1:, labels == 0] = 3
    smooth = ndimage.gaussian_filter(rng.normal(size=maps.shape), (0, 2, 2))
    smooth *= noise / smooth.std()
    maps[0] += smooth[0] + rng.uniform(0, 1e-3, labels.shape)
    maps[1:] *= 1 + smooth[1:]
    return labels, maps


def test_rays_end_at_the_sides_of_a_rectangle() -> None:
    """Also at those of the image, and of another object that touches."""
    labels = np.zeros((12, 20), np.int32)
    labels[2:9, :11], labels[2:9, 11:15] = 3, 1
    maps = encode(labels, n_rays=64)
    assert (maps[1:, labels == 0] == 0).all()
    for label, (x0, x1) in ((3, (0, 11)), (1, (11, 15))):
        for y, x in zip(*np.nonzero(labels == label), strict=True):
            dy, dx = directions(64).T
            with np.errstate(divide="ignore"):
                to_row = np.where(dy > 0, 8.5 - y, y - 1.5) / np.abs(dy)
                to_column = np.where(dx > 0, x1 - 0.5 - x, x - x0 + 0.5) / np.abs(dx)
            np.testing.assert_allclose(maps[1:, y, x], np.minimum(to_row, to_column), rtol=1e-6)


def test_rays_of_any_shape_equal_those_measured_in_small_steps() -> None:
    rng = np.random.default_rng(4)
    labels = (ndimage.gaussian_filter(rng.normal(size=(40, 50)), 2.5) > 0.02).astype(np.int32)
    maps = encode(labels, n_rays=20)  # without diagonals, which pass corners
    t = np.arange(0, 64, 0.002)
    padded = np.pad(labels, 70)
    for y, x in rng.permutation(np.argwhere(labels))[:40]:
        for k, (dy, dx) in enumerate(directions(20)):
            inside = padded[np.floor(y + 70.5 + t * dy).astype(int), np.floor(x + 70.5 + t * dx).astype(int)] == 1
            assert maps[1 + k, y, x] == pytest.approx(t[np.argmin(inside)], abs=0.003)


def test_the_probability_is_the_relative_depth() -> None:
    labels, _ = noisy_maps(0, 0.1)
    assert np.array_equal(encode(labels)[0], watershed.encode(labels)[2])


def slowly_decoded(maps: np.ndarray, threshold: float, max_overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """As `decode`, with a whole mask of every candidate, drawn by scikit-image on a larger canvas."""
    margin, hw = 20, maps.shape[1:]
    candidates = sorted(np.argwhere(maps[0] > threshold), key=lambda yx: -maps[0, yx[0], yx[1]])
    kept, labels, scores = [], np.zeros(hw, np.int32), []
    for y, x in candidates:
        vertices = np.maximum(maps[1:, y, x, None].astype(float), 0) * directions(len(maps) - 1) + (y, x)
        mask = polygon2mask((hw[0] + 2 * margin, hw[1] + 2 * margin), vertices + margin)
        if all((mask & other).sum() <= max_overlap * min(mask.sum(), other.sum()) for other in kept):
            kept.append(mask)
            inside = mask[margin:-margin, margin:-margin]
            labels[inside & (labels == 0)] = len(kept)
            scores.append(maps[0, y, x])
    return labels, np.array(scores)


@pytest.mark.parametrize(("seed", "noise", "n_rays"), [(0, 0.1, 32), (1, 0.2, 16)])
def test_decoding_equals_a_slow_decoder(seed: int, noise: float, n_rays: int) -> None:
    """Also where polygons are far from round, overlap each other and reach beyond the image."""
    _, maps = noisy_maps(seed, noise, n_rays)
    labels, scores = decode(maps, max_overlap=0.3, probability_threshold=0.6)
    expected, expected_scores = slowly_decoded(maps, 0.6, 0.3)
    assert len(scores) >= 8
    assert np.array_equal(labels, expected)
    assert np.array_equal(scores, expected_scores.clip(0, 1))


def test_finds_the_polygons_that_stardist_finds() -> None:
    """The centres that ``non_maximum_suppression`` of StarDist 0.9.2 keeps for these maps (b=None, nms_thresh=0.4)."""
    discs = ((10, 10, 8), (10.4, 20, 7), (11, 40, 9), (13, 46, 8), (30, 9, 9), (34, 20.2, 6), (30.5, 38, 12))
    discs += ((36, 41, 5), (44, 60, 7), (25, 55, 8), (28, 60, 7))
    maps, angles = np.zeros((33, 48, 64), np.float32), 2 * np.pi / 32 * np.arange(32)[:, None, None]
    for n, (cy, cx, r) in enumerate(discs):
        dy, dx = np.mgrid[:48, :64] - np.array([cy, cx])[:, None, None]
        probability = (0.99 - 0.03 * n) * (1 - np.hypot(dy, dx) / r) + 1e-4 * dy + 1.3e-5 * dx
        along = dy * np.sin(angles) + dx * np.cos(angles)
        rays = np.sqrt(np.maximum(r**2 - dy**2 - dx**2 + along**2, 0)) - along
        better = probability > maps[0]
        maps[1:] = np.where(better, rays * (1 + 0.1 * np.cos(n * angles)), maps[1:])
        maps[0] = np.where(better, probability, maps[0])
    _, scores = decode(maps, probability_threshold=0.4)
    centres = [tuple(np.argwhere(maps[0] == score)[0].tolist()) for score in scores]
    assert centres == [(10, 10), (11, 40), (10, 20), (30, 9), (34, 20), (36, 41), (44, 60), (25, 55)]


@pytest.mark.parametrize("n_rays", [32, 64])
def test_decoding_the_targets_gives_the_objects(n_rays: int) -> None:
    labels = draw_field(3, (200, 240), 40)[1].masks.to_label_map()
    found, scores = decode(encode(labels, n_rays=n_rays))
    truth = MaskSet.from_label_map(labels)[0]
    i, _, iou = truth.iou(MaskSet.from_label_map(found)[0])
    best = np.zeros(len(truth))
    np.maximum.at(best, i, iou)
    assert len(scores) == len(truth) == 40
    assert best.min() > 0.9
    assert (scores == 1).all()


def two_polygons(apart_px: int) -> np.ndarray:
    """Two discs of radius 6 px."""
    maps = np.zeros((33, 30, 40), np.float32)
    maps[0, 15, 12], maps[0, 15, 12 + apart_px] = 0.9, 0.7
    maps[1:] = 6
    return maps


def test_the_options_of_the_decoder() -> None:
    shared = (decode(two_polygons(6), max_overlap=1.0)[0] == 2).sum()
    disc = (decode(two_polygons(6), max_overlap=0.0)[0] == 1).sum()
    overlap = 1 - shared / disc
    assert decode(two_polygons(6), max_overlap=overlap + 1e-6)[1].tolist() == pytest.approx([0.9, 0.7])
    assert decode(two_polygons(6), max_overlap=overlap - 1e-6)[1].tolist() == pytest.approx([0.9])
    assert decode(two_polygons(14), probability_threshold=0.8)[1].tolist() == pytest.approx([0.9])
    assert len(decode(two_polygons(6), max_overlap=1.0, min_area_px=int(shared))[1]) == 2
    labels, scores = decode(two_polygons(6), max_overlap=1.0, min_area_px=int(shared) + 1)
    assert (labels.max(), len(scores)) == (1, 1)


def test_images_without_objects_and_polygons_without_pixels() -> None:
    for hw in ((0, 0), (1, 1), (20, 30)):
        labels, scores = decode(np.zeros((33, *hw), np.float32))
        assert (labels.shape, labels.dtype, len(scores)) == (hw, np.int32, 0)
        assert encode(np.zeros(hw, np.int32)).shape == (33, *hw)
    inverted, endless = two_polygons(14), two_polygons(14)
    inverted[1:] *= -1
    assert decode(inverted)[0].max() == 0
    endless[1:] = 1e9
    assert (decode(endless)[0] == 1).all()
    one = encode(np.ones((3, 4), np.uint8))
    assert np.array_equal(decode(one)[0], np.ones((3, 4), np.int32))


def test_bad_input_is_rejected() -> None:
    with pytest.raises(InputError, match="integers"):
        encode(np.zeros((3, 4)))
    with pytest.raises(InputError, match="at least 4 rays"):
        decode(np.zeros((3, 3, 4), np.float32))
    maps = np.zeros((9, 3, 4), np.float32)
    maps[3, 1, 1] = np.nan
    with pytest.raises(InputError, match="ray_2"):
        decode(maps)
    with pytest.raises(ValueError, match="multiple of 4"):
        StarsTarget(n_rays=30)
    with pytest.raises(ValueError, match="no effect with target stars"):
        UNetConfig(target=StarsTarget(), body_loss="focal")
    with pytest.raises(ValueError, match="no effect without target stars"):
        UNetConfig(ray_weight=1.0)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(stars).failed == 0


def test_arguments_are_not_modified() -> None:
    _, maps = noisy_maps(0, 0.1)
    before = maps.copy()
    decode(maps)
    assert np.array_equal(maps, before)

"""Geometric changes against scipy, skimage and slow loops; image and labels stay aligned; elastic deformations."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.interpolate import BSpline
from skimage import transform

from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.labels import Labels
from cellwright.data.warp import Affine, Elastic, Geometry, warp_image, warp_labels

geometries = st.builds(
    Geometry,
    window=st.sampled_from([(0, 0, 60, 80), (5, 10, 55, 70), (20, 30, 21, 31)]),
    out_hw=st.sampled_from([(60, 80), (50, 60), (90, 110), (31, 27)]),
    horizontal_flip=st.booleans(),
    vertical_flip=st.booleans(),
    quarter_turns=st.integers(0, 3),
    affine=st.none()
    | st.builds(
        Affine,
        rotation_deg=st.floats(-180, 180),
        shear_deg=st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
        shift_px=st.tuples(st.floats(-9, 9), st.floats(-9, 9)),
    ),
    elastic=st.none() | st.builds(Elastic, st.floats(1, 5), st.floats(21, 60), st.integers(0, 99)),
    canvas_hw=st.none() | st.just((128, 128)),
)


def labels_of(label_map: np.ndarray, ignore: np.ndarray | None = None) -> Labels:
    masks, _ = MaskSet.from_label_map(label_map)
    return Labels.from_instances(Instances.from_masks(masks, ignore=ignore))


def disc_map(hw: tuple[int, int] = (60, 80), spacing: int = 20, radius: float = 7) -> np.ndarray:
    """Label array (H, W) int32 of discs on a grid, all inside the image."""
    ys, xs = np.mgrid[: hw[0], : hw[1]]
    centres = [(y, x) for y in range(10, hw[0] - 8, spacing) for x in range(10, hw[1] - 8, spacing)]
    label_map = np.zeros(hw, np.int32)
    for k, (y, x) in enumerate(centres):
        label_map[(ys - y) ** 2 + (xs - x) ** 2 <= radius**2] = k + 1
    return label_map


@settings(max_examples=150, deadline=None)
@given(geometry=geometries, rule=st.sampled_from(["torchvision", "detectron2"]))
def test_image_and_labels_show_the_same_objects(geometry: Geometry, rule: str) -> None:
    """Pixels have the number of their object: where labels are constant around a pixel, the image equals the label."""
    label_map = disc_map()
    image = np.repeat(label_map[:, :, None], 2, axis=2).astype(np.uint16) * 1000
    labels = labels_of(label_map)
    labels = dataclasses.replace(labels, class_ids=np.arange(1, len(labels) + 1))
    out = warp_labels(labels, geometry, 0)
    pixels = warp_image(image, geometry, rule=rule)  # type: ignore[arg-type]
    assert pixels.dtype == np.uint16
    assert pixels.shape == (*out.layers.shape[1:], 2) == (*geometry.output_hw, 2)
    named = np.concatenate([[0], out.class_ids])[out.layers[0]]
    # Enlarging: the next source pixel is several output pixels away. Shrinking: a pixel averages several source pixels.
    linear = geometry.output_from_source()[:2, :2]
    shrinking = np.linalg.norm(np.linalg.inv(linear), 2) if rule == "detectron2" else 1
    reach = 3 + 2 * int(np.ceil(max(np.linalg.norm(linear, 2), shrinking)))
    # Outside the image the label is unknown: -1 differs from all labels.
    same = ndimage.minimum_filter(named, reach, mode="constant", cval=-1) == ndimage.maximum_filter(named, reach)
    assert np.abs(pixels[same].astype(int) - 1000 * named[same][:, None]).max(initial=0) <= 1
    for k in range(len(out)):
        ys, xs = np.nonzero(out.layers[0] == k + 1)
        assert out.boxes[k].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert out.areas[k] == len(ys)


@settings(max_examples=60, deadline=None)
@given(geometry=geometries.filter(lambda geometry: geometry.deforms))
def test_a_deformed_image_equals_the_interpolation_of_scipy(geometry: Geometry) -> None:
    """scipy interpolates the whole source, at float64 coordinates: cropping the source first loses nothing."""
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.random((60, 80, 6)), (2, 2, 0)).astype(np.float32)
    height, width = geometry.output_hw
    xy = np.moveaxis(np.mgrid[:height, :width].astype(float)[::-1], 0, 2)
    if geometry.elastic is not None:
        xy = xy + np.moveaxis(geometry.elastic.displacement((height, width), np.eye(2)), 0, 2)
    matrix = np.linalg.inv(geometry.output_from_source())
    sx, sy = np.moveaxis(xy @ matrix[:2, :2].T + matrix[:2, 2], 2, 0)
    fill = np.linspace(0.2, 0.7, 6)
    expected = np.stack(
        [ndimage.map_coordinates(image[:, :, c] - fill[c], [sy, sx], order=1) + fill[c] for c in range(6)], axis=2
    )
    pixels = warp_image(image, geometry, fill=tuple(fill))
    # cv2 rounds coordinates to 1/32 px; at the border scipy and cv2 blend with the fill slightly differently.
    inside = (sx > 1) & (sx < 78) & (sy > 1) & (sy < 58)
    outside = (sx < -1.1) | (sx > 80.1) | (sy < -1.1) | (sy > 60.1)
    assert np.abs(pixels - expected)[inside].max(initial=0) < 0.01
    assert np.abs(pixels - fill)[outside].max(initial=0) < 1e-6
    # Labels are those of the nearest pixel, unless two are equally near.
    label_map = disc_map()
    out = warp_labels(labels_of(label_map), geometry, 0)
    nearest = ndimage.map_coordinates(label_map, [sy, sx], order=0)
    tie = (np.abs(sy % 1 - 0.5) < 0.03) | (np.abs(sx % 1 - 0.5) < 0.03)
    assert np.array_equal((nearest > 0)[~tie & inside], (out.layers[0] > 0)[~tie & inside])


def test_a_rotation_equals_that_of_skimage() -> None:
    image = ndimage.gaussian_filter(np.random.default_rng(1).random((70, 90)), 3)[:, :, None]
    geometry = Geometry((0, 0, 70, 90), (70, 90), affine=Affine(rotation_deg=25))
    expected = transform.rotate(image[:, :, 0], 25, order=1)
    got = warp_image(image, geometry)[:, :, 0]
    assert got.dtype == np.float64
    assert np.abs(got - expected)[20:50, 20:70].max() < 0.005


def test_shear_shift_and_rotation_of_single_pixels() -> None:
    image = np.zeros((41, 41, 1), np.uint8)
    image[20, 20], image[10, 20], image[20, 30] = 200, 150, 100
    whole = (0, 0, 41, 41)

    def position(value: int, **affine: object) -> list[int]:
        pixels = warp_image(image, Geometry(whole, (41, 41), affine=Affine(**affine)))[:, :, 0]  # type: ignore[arg-type]
        return np.argwhere(pixels == value)[0].tolist()

    assert position(150, shift_px=(3, -2)) == [8, 23]
    assert position(150, shear_deg=(45, 0)) == [10, 10]  # x by y: 10 above the centre moves 10 to the left
    assert position(100, shear_deg=(0, 45)) == [30, 30]  # y by x: 10 right of the centre moves 10 down
    assert position(100, rotation_deg=90) == [10, 20]  # counter-clockwise: right of the centre moves above it
    assert position(200, rotation_deg=90, shear_deg=(10, 20)) == [20, 20]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_a_neutral_affine_map_changes_nothing(turns: int, dtype: type) -> None:
    image = (np.random.default_rng(0).random((30, 44, 3)) * 30000).astype(dtype)
    layer = labels_of(np.random.default_rng(1).integers(0, 9, (30, 44)))
    plain = Geometry((3, 4, 23, 40), (20, 36), horizontal_flip=True, quarter_turns=turns, canvas_hw=(48, 50))
    neutral = dataclasses.replace(plain, affine=Affine())
    a, b = warp_image(image, plain, fill=(7, 8, 9)), warp_image(image, neutral, fill=(7, 8, 9))
    height, width = plain.rotated_hw
    assert np.array_equal(a[:height, :width], b[:height, :width])
    assert a.dtype == b.dtype == dtype
    assert np.array_equal(np.unique(a[height:].reshape(-1, 3), axis=0), [[7, 8, 9]])
    first, second = warp_labels(layer, plain, 0), warp_labels(layer, neutral, 0)
    assert np.array_equal(first.layers[:, :height, :width], second.layers[:, :height, :width])
    assert first.layers[:, height:].max() == 0


def test_rotating_back_restores_the_objects() -> None:
    label_map = disc_map((120, 120), 20, 8)
    labels, whole = labels_of(label_map), (0, 0, 120, 120)
    rotated = warp_labels(labels, Geometry(whole, (120, 120), affine=Affine(rotation_deg=33)), 0.99)
    back = warp_labels(rotated, Geometry(whole, (120, 120), affine=Affine(rotation_deg=-33)), 0)
    ys, xs = np.mgrid[:120, :120] - 59.5
    middle = ys**2 + xs**2 < 45**2
    assert (((back.layers[0] > 0) == (label_map > 0))[middle]).mean() > 0.96


@settings(max_examples=40, deadline=None)
@given(
    angle=st.floats(-180, 180) | st.just(1e-308),
    shear=st.tuples(st.floats(-25, 25), st.floats(-25, 25)),
    scale=st.floats(0.8, 2),
    seed=st.integers(0, 999),
)
def test_numbers_and_areas_of_objects(angle: float, shear: tuple[float, float], scale: float, seed: int) -> None:
    """On a canvas that contains everything, no object is lost or torn, and areas scale with the determinant."""
    canvas = np.zeros((260, 260), np.int32)
    # A radius without single-pixel tips, which nearest-neighbour sampling may separate from their disc.
    canvas[100:160, 90:170] = disc_map((60, 80), 20, 8.3)
    labels, side = labels_of(canvas), round(260 * scale)
    geometry = Geometry((0, 0, 260, 260), (side, side), affine=Affine(angle, shear), elastic=Elastic(3, 40, seed))
    out = warp_labels(labels, geometry, 0)
    assert len(out) == len(labels)
    determinant = abs(np.linalg.det(geometry.output_from_source()[:2, :2]))
    ratio = out.areas / (labels.areas * determinant)
    # The slopes along x and y are at most 2 a / s, so areas change by at most the square of 1 / (1 - 4 a / s).
    assert ratio.max() < 1 / (1 - 4 * 3 / 40) ** 2
    assert abs(np.median(ratio) - 1) < 0.15
    for k in range(len(out)):
        n_parts = cv2.connectedComponents((out.layers[0] == k + 1).astype(np.uint8))[0] - 1
        assert n_parts == 1


@settings(max_examples=60, deadline=None)
@given(
    angle=st.floats(-180, 180),
    shift=st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
    window=st.sampled_from([(0, 0, 60, 80), (11, 20, 51, 60)]),
    min_visible=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_the_visible_share_is_counted_in_source_pixels(
    angle: float, shift: tuple[float, float], window: tuple[int, int, int, int], min_visible: float
) -> None:
    label_map = disc_map(spacing=17)
    labels = labels_of(label_map)
    hw = (window[2] - window[0], window[3] - window[1])
    geometry = Geometry(window, (2 * hw[0], 2 * hw[1]), affine=Affine(angle, (5, -5), shift))
    ys, xs = np.mgrid[:60, :80]
    x, y, _ = np.tensordot(geometry.output_from_source(), np.stack([xs, ys, np.ones_like(xs)]), 1)
    shown = (x >= -0.5) & (x < 2 * hw[1] - 0.5) & (y >= -0.5) & (y < 2 * hw[0] - 0.5)
    visible = np.bincount(label_map[shown], minlength=len(labels) + 1)[1:]
    close = np.isclose(visible, min_visible * labels.areas, atol=1)
    expected = np.flatnonzero(visible >= min_visible * labels.areas)
    got = warp_labels(dataclasses.replace(labels, class_ids=np.arange(len(labels))), geometry, min_visible).class_ids
    assert set(got) ^ set(expected) <= set(np.flatnonzero(close))


def test_ignored_regions_are_kept_and_dropped_objects_are_removed() -> None:
    label_map = np.zeros((40, 40), np.int32)
    label_map[18:22, 36:40] = 1  # the middle of an edge moves to a corner of the output
    label_map[0:4, 0:4] = 2  # a corner moves outside
    label_map[0:4, 4:14] = 3  # partly visible, and ignored
    label_map[36:40, 4:14] = 4  # partly visible, and not ignored
    labels = labels_of(label_map, np.array([False, False, True, False]))
    labels = dataclasses.replace(labels, class_ids=np.array([5, 6, 8, 7]))
    out = warp_labels(labels, Geometry((0, 0, 40, 40), (40, 40), affine=Affine(rotation_deg=45)), 0.9)
    assert out.class_ids.tolist() == [5, 7]
    assert out.ignore.tolist() == [False, True]
    assert set(np.unique(out.layers)) == {0, 1, 2}


def test_an_output_beyond_the_image_is_empty() -> None:
    geometry = Geometry((0, 0, 30, 30), (30, 30), affine=Affine(shift_px=(200, -300)))
    image = np.full((30, 30, 3), 9, np.uint8)
    assert np.array_equal(np.unique(warp_image(image, geometry, fill=(1, 2, 3)).reshape(-1, 3), axis=0), [[1, 2, 3]])
    assert len(warp_labels(labels_of(np.ones((30, 30), np.int32)), geometry, 0)) == 0


def test_the_rule_of_detectron2_averages_when_shrinking() -> None:
    """A chequerboard shrunk fourfold is grey; without averaging it is black or white, depending on the sampling."""
    image = (np.indices((128, 128)).sum(axis=0) % 2 * 200).astype(np.uint8)[:, :, None]
    geometry = Geometry((0, 0, 128, 128), (32, 32), affine=Affine(rotation_deg=10))
    smooth = warp_image(image, geometry, rule="detectron2")[8:24, 8:24]
    assert np.abs(smooth.astype(int) - 100).max() <= 12
    assert np.abs(warp_image(image, geometry)[8:24, 8:24].astype(int) - 100).max() > 40


def test_16_bit_values_are_kept() -> None:
    image = np.linspace(0, 65535, 64 * 64).reshape(64, 64, 1).astype(np.uint16)
    geometry = Geometry((0, 0, 64, 64), (64, 64), affine=Affine(rotation_deg=5), elastic=Elastic(2, 16, 0))
    inside = warp_image(image, geometry)[16:48, 16:48]
    assert len(np.unique(inside)) > 900
    assert warp_image(image, Geometry((0, 0, 64, 64), (128, 128)), rule="detectron2").max() == 65535


@settings(max_examples=50, deadline=None)
@given(
    spacing=st.floats(4, 80),
    share=st.floats(0.01, 0.2499),
    hw=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 2**63 - 1),
)
def test_displacements_are_bounded_and_nothing_folds(
    spacing: float, share: float, hw: tuple[int, int], seed: int
) -> None:
    amplitude = share * spacing
    displacement = Elastic(amplitude, spacing, seed).displacement(hw, np.eye(2))
    assert displacement.shape == (2, *hw)
    assert displacement.dtype == np.float32
    assert np.abs(displacement).max() <= amplitude * (1 + 1e-5)
    for axis in (1, 2):
        assert np.abs(np.diff(displacement, axis=axis)).max(initial=0) <= 2 * amplitude / spacing + 1e-4
    if min(hw) > 1:
        dy, dx = np.diff(displacement, axis=1)[:, :, :-1], np.diff(displacement, axis=2)[:, :-1]
        jacobian = (1 + dx[0]) * (1 + dy[1]) - dx[1] * dy[0]
        assert jacobian.min() > 0


def test_the_displacement_is_the_cubic_spline_of_the_grid_points() -> None:
    elastic = Elastic(5, 32, 7)
    hw = (64, 96)
    points = np.random.default_rng(7).uniform(-1, 1, (int((64 - 2.5) // 32) + 4, int((96 - 2.5) // 32) + 4, 2))
    ys, xs = (np.arange(side) / 32 for side in hw)
    basis = [
        BSpline.design_matrix(v, np.arange(-3, n + 1, dtype=float), 3).toarray()
        for v, n in ((ys, points.shape[0]), (xs, points.shape[1]))
    ]
    expected = 5 * np.einsum("yi,xj,ijc->cyx", *basis, points)
    # The displacement is linear between every fourth pixel.
    assert np.abs(elastic.displacement(hw, np.eye(2)) - expected)[:, 2:-2, 2:-2].max() < 0.03


def test_the_displacement_depends_on_the_seed_and_the_linear_part() -> None:
    first = Elastic(3, 20, 1).displacement((40, 50), np.eye(2))
    assert np.array_equal(first, Elastic(3, 20, 1).displacement((40, 50), np.eye(2)))
    assert np.abs(first - Elastic(3, 20, 2).displacement((40, 50), np.eye(2))).max() > 0.5
    linear = np.array([[0.0, 2.0], [-1.0, 0.5]])
    turned = Elastic(3, 20, 1).displacement((40, 50), linear)
    assert np.abs(turned - np.tensordot(linear, first, 1)).max() < 1e-5
    # The whole range of the amplitude is used, symmetrically.
    big = Elastic(10, 41, 3).displacement((900, 900), np.eye(2))
    assert np.abs(big).max() > 7
    assert np.abs(big.mean(axis=(1, 2))) == pytest.approx(0, abs=0.6)

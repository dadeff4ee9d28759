"""The one warp against scipy, skimage and slow loops; what an image shows and what its labels say stay together."""

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
    """(H, W) int32 label map of discs in a grid, none cut by the border."""
    ys, xs = np.mgrid[: hw[0], : hw[1]]
    centres = [(y, x) for y in range(10, hw[0] - 8, spacing) for x in range(10, hw[1] - 8, spacing)]
    label_map = np.zeros(hw, np.int32)
    for k, (y, x) in enumerate(centres):
        label_map[(ys - y) ** 2 + (xs - x) ** 2 <= radius**2] = k + 1
    return label_map


@settings(max_examples=150, deadline=None)
@given(geometry=geometries, rule=st.sampled_from(["torchvision", "detectron2"]))
def test_the_image_shows_the_object_that_the_labels_name(geometry: Geometry, rule: str) -> None:
    """Pixels hold their object's number: where an output pixel and its surroundings are one object, so is the image."""
    label_map = disc_map()
    image = np.repeat(label_map[:, :, None], 2, axis=2).astype(np.uint16) * 1000
    labels = labels_of(label_map)
    labels = dataclasses.replace(labels, class_ids=np.arange(1, len(labels) + 1))
    out = warp_labels(labels, geometry, 0)
    pixels = warp_image(image, geometry, rule=rule)  # type: ignore[arg-type]
    assert pixels.dtype == np.uint16
    assert pixels.shape == (*out.layers.shape[1:], 2) == (*geometry.output_hw, 2)
    named = np.concatenate([[0], out.class_ids])[out.layers[0]]
    # Enlarged, the next source pixel is several output pixels away; shrunk, a pixel means over several of the source.
    linear = geometry.output_from_source()[:2, :2]
    shrinking = np.linalg.norm(np.linalg.inv(linear), 2) if rule == "detectron2" else 1
    reach = 3 + 2 * int(np.ceil(max(np.linalg.norm(linear, 2), shrinking)))
    # At the frame's edge the surroundings are not known: -1 differs from all.
    same = ndimage.minimum_filter(named, reach, mode="constant", cval=-1) == ndimage.maximum_filter(named, reach)
    assert np.abs(pixels[same].astype(int) - 1000 * named[same][:, None]).max(initial=0) <= 1
    for k in range(len(out)):
        ys, xs = np.nonzero(out.layers[0] == k + 1)
        assert out.boxes[k].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert out.areas[k] == len(ys)


@settings(max_examples=60, deadline=None)
@given(geometry=geometries.filter(lambda one: one.bends))
def test_a_bent_image_equals_scipys_interpolation(geometry: Geometry) -> None:
    """Of the whole source, by coordinates from the matrix in float64: so nothing is lost by cutting first."""
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
    # cv2 rounds coordinates to 1/32 px; scipy fades to the fill at the border, cv2 too, a fraction apart.
    inside = (sx > 1) & (sx < 78) & (sy > 1) & (sy < 58)
    outside = (sx < -1.1) | (sx > 80.1) | (sy < -1.1) | (sy > 60.1)
    assert np.abs(pixels - expected)[inside].max(initial=0) < 0.01
    assert np.abs(pixels - fill)[outside].max(initial=0) < 1e-6
    # Labels: the nearest pixel's, unless two are equally near.
    label_map = disc_map()
    out = warp_labels(labels_of(label_map), geometry, 0)
    nearest = ndimage.map_coordinates(label_map, [sy, sx], order=0)
    tie = (np.abs(sy % 1 - 0.5) < 0.03) | (np.abs(sx % 1 - 0.5) < 0.03)
    assert np.array_equal((nearest > 0)[~tie & inside], (out.layers[0] > 0)[~tie & inside])


def test_a_rotation_equals_skimages() -> None:
    image = ndimage.gaussian_filter(np.random.default_rng(1).random((70, 90)), 3)[:, :, None]
    geometry = Geometry((0, 0, 70, 90), (70, 90), affine=Affine(rotation_deg=25))
    expected = transform.rotate(image[:, :, 0], 25, order=1)
    got = warp_image(image, geometry)[:, :, 0]
    assert got.dtype == np.float64
    assert np.abs(got - expected)[20:50, 20:70].max() < 0.005


def test_shear_shift_and_quarter_turn_by_hand() -> None:
    image = np.zeros((41, 41, 1), np.uint8)
    image[20, 20], image[10, 20], image[20, 30] = 200, 150, 100
    whole = (0, 0, 41, 41)

    def place(value: int, **affine: object) -> list[int]:
        pixels = warp_image(image, Geometry(whole, (41, 41), affine=Affine(**affine)))[:, :, 0]  # type: ignore[arg-type]
        return np.argwhere(pixels == value)[0].tolist()

    assert place(150, shift_px=(3, -2)) == [8, 23]
    assert place(150, shear_deg=(45, 0)) == [10, 10]  # x by y: what lies 10 above the centre goes 10 left
    assert place(100, shear_deg=(0, 45)) == [30, 30]  # y by x: what lies 10 right of the centre goes 10 down
    assert place(100, rotation_deg=90) == [10, 20]  # counter-clockwise: what lies right of the centre goes above it
    assert place(200, rotation_deg=90, shear_deg=(10, 20)) == [20, 20]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_an_affine_map_of_nothing_is_the_plain_path(turns: int, dtype: type) -> None:
    image = (np.random.default_rng(0).random((30, 44, 3)) * 30000).astype(dtype)
    layer = labels_of(np.random.default_rng(1).integers(0, 9, (30, 44)))
    plain = Geometry((3, 4, 23, 40), (20, 36), horizontal_flip=True, quarter_turns=turns, canvas_hw=(48, 50))
    bent = dataclasses.replace(plain, affine=Affine())
    a, b = warp_image(image, plain, fill=(7, 8, 9)), warp_image(image, bent, fill=(7, 8, 9))
    height, width = plain.turned_hw
    assert np.array_equal(a[:height, :width], b[:height, :width])
    assert a.dtype == b.dtype == dtype
    assert np.array_equal(np.unique(a[height:].reshape(-1, 3), axis=0), [[7, 8, 9]])
    one, other = warp_labels(layer, plain, 0), warp_labels(layer, bent, 0)
    assert np.array_equal(one.layers[:, :height, :width], other.layers[:, :height, :width])
    assert one.layers[:, height:].max() == 0


def test_turning_back_brings_back_what_stayed_inside() -> None:
    label_map = disc_map((120, 120), 20, 8)
    labels, whole = labels_of(label_map), (0, 0, 120, 120)
    forth = warp_labels(labels, Geometry(whole, (120, 120), affine=Affine(rotation_deg=33)), 0.99)
    back = warp_labels(forth, Geometry(whole, (120, 120), affine=Affine(rotation_deg=-33)), 0)
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
def test_counts_and_areas(angle: float, shear: tuple[float, float], scale: float, seed: int) -> None:
    """On a canvas that holds everything no object is lost or torn, and areas grow as the map says."""
    room = np.zeros((260, 260), np.int32)
    # No tip of a single pixel: nearest sampling may part that from its disc.
    room[100:160, 90:170] = disc_map((60, 80), 20, 8.3)
    labels, side = labels_of(room), round(260 * scale)
    geometry = Geometry((0, 0, 260, 260), (side, side), affine=Affine(angle, shear), elastic=Elastic(3, 40, seed))
    out = warp_labels(labels, geometry, 0)
    assert len(out) == len(labels)
    determinant = abs(np.linalg.det(geometry.output_from_source()[:2, :2]))
    ratio = out.areas / (labels.areas * determinant)
    # Slopes of at most 2 a / s along x and y: areas change by at most the square of 1 / (1 - 4 a / s).
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
def test_the_visible_share_is_that_of_source_pixels_in_the_frame(
    angle: float, shift: tuple[float, float], window: tuple[int, int, int, int], min_visible: float
) -> None:
    label_map = disc_map(spacing=17)
    labels = labels_of(label_map)
    hw = (window[2] - window[0], window[3] - window[1])
    geometry = Geometry(window, (2 * hw[0], 2 * hw[1]), affine=Affine(angle, (5, -5), shift))
    ys, xs = np.mgrid[:60, :80]
    x, y, _ = np.tensordot(geometry.output_from_source(), np.stack([xs, ys, np.ones_like(xs)]), 1)
    held = (x >= -0.5) & (x < 2 * hw[1] - 0.5) & (y >= -0.5) & (y < 2 * hw[0] - 0.5)
    visible = np.bincount(label_map[held], minlength=len(labels) + 1)[1:]
    close = np.isclose(visible, min_visible * labels.areas, atol=1)
    expected = np.flatnonzero(visible >= min_visible * labels.areas)
    got = warp_labels(dataclasses.replace(labels, class_ids=np.arange(len(labels))), geometry, min_visible).class_ids
    assert set(got) ^ set(expected) <= set(np.flatnonzero(close))


def test_ignored_regions_stay_and_dropped_objects_are_gone() -> None:
    label_map = np.zeros((40, 40), np.int32)
    label_map[18:22, 36:40] = 1  # the middle of an edge comes to lie in a corner of the frame
    label_map[0:4, 0:4] = 2  # a corner leaves it
    label_map[0:4, 4:14] = 3  # a part of this stays, and it is ignored
    label_map[36:40, 4:14] = 4  # as much of this, which is not
    labels = labels_of(label_map, np.array([False, False, True, False]))
    labels = dataclasses.replace(labels, class_ids=np.array([5, 6, 7, 8]))
    out = warp_labels(labels, Geometry((0, 0, 40, 40), (40, 40), affine=Affine(rotation_deg=45)), 0.9)
    assert out.class_ids.tolist() == [5, 7]
    assert out.ignore.tolist() == [False, True]
    assert set(np.unique(out.layers)) == {0, 1, 2}


def test_a_frame_beyond_the_image_is_empty() -> None:
    geometry = Geometry((0, 0, 30, 30), (30, 30), affine=Affine(shift_px=(200, -300)))
    image = np.full((30, 30, 3), 9, np.uint8)
    assert np.array_equal(np.unique(warp_image(image, geometry, fill=(1, 2, 3)).reshape(-1, 3), axis=0), [[1, 2, 3]])
    assert len(warp_labels(labels_of(np.ones((30, 30), np.int32)), geometry, 0)) == 0


def test_detectron2s_rule_takes_means_where_a_bent_image_shrinks() -> None:
    """A chequerboard shrunk fourfold is grey; without means it is black or white by chance of the sampling."""
    image = (np.indices((128, 128)).sum(axis=0) % 2 * 200).astype(np.uint8)[:, :, None]
    geometry = Geometry((0, 0, 128, 128), (32, 32), affine=Affine(rotation_deg=10))
    smooth = warp_image(image, geometry, rule="detectron2")[8:24, 8:24]
    assert np.abs(smooth.astype(int) - 100).max() <= 12
    assert np.abs(warp_image(image, geometry)[8:24, 8:24].astype(int) - 100).max() > 40


def test_sixteen_bits_stay() -> None:
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
def test_no_pixel_moves_too_far_and_nothing_folds(spacing: float, share: float, hw: tuple[int, int], seed: int) -> None:
    amplitude = share * spacing
    moved = Elastic(amplitude, spacing, seed).displacement(hw, np.eye(2))
    assert moved.shape == (2, *hw)
    assert moved.dtype == np.float32
    assert np.abs(moved).max() <= amplitude * (1 + 1e-5)
    for axis in (1, 2):
        assert np.abs(np.diff(moved, axis=axis)).max(initial=0) <= 2 * amplitude / spacing + 1e-4
    if min(hw) > 1:
        dy, dx = np.diff(moved, axis=1)[:, :, :-1], np.diff(moved, axis=2)[:, :-1]
        jacobian = (1 + dx[0]) * (1 + dy[1]) - dx[1] * dy[0]
        assert jacobian.min() > 0


def test_the_field_is_the_cubic_spline_of_its_grid_points() -> None:
    elastic = Elastic(5, 32, 7)
    hw = (64, 96)
    points = np.random.default_rng(7).uniform(-1, 1, (int((64 - 2.5) // 32) + 4, int((96 - 2.5) // 32) + 4, 2))
    ys, xs = (np.arange(side) / 32 for side in hw)
    basis = [
        BSpline.design_matrix(v, np.arange(-3, n + 1, dtype=float), 3).toarray()
        for v, n in ((ys, points.shape[0]), (xs, points.shape[1]))
    ]
    expected = 5 * np.einsum("yi,xj,ijc->cyx", *basis, points)
    # Between every fourth pixel the field is linear.
    assert np.abs(elastic.displacement(hw, np.eye(2)) - expected)[:, 2:-2, 2:-2].max() < 0.03


def test_seed_and_linear_part() -> None:
    one = Elastic(3, 20, 1).displacement((40, 50), np.eye(2))
    assert np.array_equal(one, Elastic(3, 20, 1).displacement((40, 50), np.eye(2)))
    assert np.abs(one - Elastic(3, 20, 2).displacement((40, 50), np.eye(2))).max() > 0.5
    linear = np.array([[0.0, 2.0], [-1.0, 0.5]])
    turned = Elastic(3, 20, 1).displacement((40, 50), linear)
    assert np.abs(turned - np.tensordot(linear, one, 1)).max() < 1e-5
    # All of the amplitude's range is used, evenly in both directions.
    big = Elastic(10, 41, 3).displacement((900, 900), np.eye(2))
    assert np.abs(big).max() > 7
    assert np.abs(big.mean(axis=(1, 2))) == pytest.approx(0, abs=0.6)

"""Evidence on shapes drawn by hand, where the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from cellwright.core.image import Image
from cellwright.core.masks import MaskSet
from cellwright.data.suspect_signals import hull_area, measure_sample, nuclear_direction, robust_z

HW = (80, 120)


def disc(y: float, x: float, radius: float, image_hw: tuple[int, int] = HW) -> np.ndarray:
    grid = np.mgrid[: image_hw[0], : image_hw[1]]
    return np.hypot(grid[0] - y, grid[1] - x) < radius


def painted(nuclei: np.ndarray) -> Image:
    """Dark nuclei on a light ground, with a little noise."""
    pixels = np.where(nuclei, 90, 200) + np.random.default_rng(0).normal(0, 8, nuclei.shape)
    return Image.from_array(pixels.clip(0, 255).astype(np.uint8))


def masks_of(*masks: np.ndarray) -> MaskSet:
    return MaskSet.from_dense(np.stack(masks))


def test_a_disc_is_full_thick_and_has_no_neck() -> None:
    objects, pairs = measure_sample(masks_of(disc(40, 40, 12)), None)
    assert objects.fill[0] > 0.93
    assert objects.thickness[0] == pytest.approx(1, abs=0.1)
    assert (objects.neck[0], objects.lobe[0], objects.loose_part[0], objects.overlap[0]) == (0, 0, 0, 0)
    assert (objects.contrast[0], objects.better_place[0]) == (0, 0)
    assert len(pairs.i) == 0


def test_two_discs_in_one_mask_have_a_neck_of_the_width_of_their_contact() -> None:
    one = disc(40, 40, 12) | disc(40, 62, 10)
    objects, _ = measure_sample(masks_of(one, disc(20, 100, 10)), None)
    half_contact = np.sqrt(12**2 - 11.9**2 + (11.9 - (22**2 + 12**2 - 10**2) / 44) ** 2)  # about 2 of 10 px
    assert objects.neck[0] > 0.5 > half_contact / 10
    assert objects.lobe[0] == pytest.approx(10**2 / (10**2 + 12**2), abs=0.05)
    assert objects.neck[1] == 0


def test_loose_parts_are_the_deepest_neck() -> None:
    objects, _ = measure_sample(masks_of(disc(40, 30, 12) | disc(40, 80, 12)), None)
    assert objects.neck[0] == 1
    assert objects.loose_part[0] == pytest.approx(0.5)
    assert objects.lobe[0] == pytest.approx(0.5, abs=0.01)


def test_rings_are_thin_and_hollow() -> None:
    ring = disc(40, 40, 15) & ~disc(40, 40, 13)
    grid = np.mgrid[:80, :120]
    broken = ring & ~((grid[1] > 40) & (np.abs(grid[0] - 40) < 8))
    objects, _ = measure_sample(masks_of(ring, broken), None)
    assert (objects.thickness < 0.2).all()
    assert (objects.fill < 0.4).all()


def test_a_cut_disc_has_a_long_straight_border_and_a_full_union() -> None:
    whole = disc(40, 40, 14)
    left = whole & (np.mgrid[:80, :120][1] < 40)
    _, pairs = measure_sample(masks_of(left, whole & ~left), painted(whole))
    assert (pairs.i.tolist(), pairs.j.tolist()) == ([0], [1])
    assert pairs.border[0] == pytest.approx(28 / (28 / np.sqrt(2)), abs=0.1)  # a diameter over a half disc's diameter
    assert pairs.bend[0] == 0
    assert pairs.fill[0] > 0.93
    assert pairs.fill_gain[0] > -0.01
    assert pairs.balance[0] > 0.9
    assert abs(pairs.gap[0]) < 0.6
    assert pairs.difference[0] < 0.3


def test_two_touching_discs_are_no_cut_disc() -> None:
    a = disc(40, 40, 12)
    _, pairs = measure_sample(masks_of(a, disc(40, 61, 12) & ~a), None)
    assert pairs.border[0] < 0.8
    assert pairs.fill_gain[0] < -0.02


def test_a_diagonal_border_is_straight_too() -> None:
    whole = disc(40, 40, 14)
    grid = np.mgrid[:80, :120]
    side = whole & (grid[0] - 40 + 0.6 * (grid[1] - 40) > 0)
    _, pairs = measure_sample(masks_of(side, whole & ~side), None)
    assert pairs.bend[0] < 0.4
    assert pairs.border[0] > 1.3


@pytest.mark.parametrize("light_nuclei", [False, True])
def test_a_displaced_mask_has_little_contrast_and_a_better_place(light_nuclei: bool) -> None:
    centres = [(20, 20), (20, 60), (20, 100), (60, 20), (60, 60), (60, 100)]
    truth = [disc(y, x, 9) for y, x in centres]
    image = painted(np.any(truth, axis=0))
    if light_nuclei:
        image = Image.from_array(255 - image.data)
    moved = [disc(60, 74, 9) if k == 4 else mask for k, mask in enumerate(truth)]
    objects, _ = measure_sample(masks_of(*moved), image)
    assert objects.contrast_z[4] == objects.contrast_z.min() < -3
    assert objects.better_place.argmax() == 4
    assert objects.better_place[4] > 2
    assert (np.delete(objects.better_place, 4) < 0).all()


def test_an_occupied_place_is_no_better_place() -> None:
    nucleus = disc(40, 40, 10)
    masks = masks_of(nucleus, disc(40, 58, 8) & ~nucleus, disc(15, 100, 10))
    objects, _ = measure_sample(masks, painted(nucleus | disc(15, 100, 10)))
    assert objects.better_place[1] < 0.5


def test_overlap_is_a_share_of_each_object() -> None:
    objects, _ = measure_sample(masks_of(disc(40, 40, 12), disc(40, 40, 6), disc(40, 100, 6)), None)
    assert objects.overlap[1] == 1
    assert objects.overlap[0] == pytest.approx(0.25, abs=0.03)
    assert objects.overlap[2] == 0


def test_objects_at_the_border_large_and_small_ones() -> None:
    masks = masks_of(np.ones(HW, bool), disc(0, 0, 9), disc(79, 119, 2), disc(40, 40, 1))
    objects, _ = measure_sample(masks, painted(disc(30, 30, 20)))
    assert objects.at_border.tolist() == [1, 1, 1, 0]
    assert all(np.isfinite(getattr(objects, name)).all() for name in ("contrast", "better_place", "thickness", "fill"))


def test_no_objects_and_flat_images_say_nothing() -> None:
    objects, pairs = measure_sample(MaskSet.empty(HW), painted(disc(30, 30, 20)))
    assert len(objects.area) == len(pairs.i) == 0
    flat = Image.from_array(np.zeros(HW, np.uint16))
    assert nuclear_direction(flat, disc(30, 30, 20)) is None
    objects, _ = measure_sample(masks_of(disc(30, 30, 9)), flat)
    assert objects.contrast_z.tolist() == [0]


def test_the_direction_separates_colours_of_the_same_brightness() -> None:
    inside = disc(40, 40, 20)
    pixels = np.where(inside[..., None], (120, 60, 180, 255), (180, 120, 60, 255)).astype(np.uint8)
    pixels[..., :3] += np.random.default_rng(0).integers(0, 9, (*HW, 3), np.uint8)
    signal = nuclear_direction(Image.from_array(pixels), inside)
    assert signal is not None
    assert signal.shape == HW
    assert signal[inside].mean() > 2 > -2 > signal[~inside].mean()


def test_robust_z_and_hull_area() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 1000.0])
    assert robust_z(values, values)[[2, 4]].tolist() == [0, 8]
    assert robust_z(np.zeros(0), np.zeros(0)).size == 0
    assert hull_area(np.ones((7, 11), np.uint8)) == 77
    assert hull_area(np.zeros((3, 3), np.uint8)) == 0

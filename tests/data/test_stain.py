"""Stain changes against skimage's colour deconvolution."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import color

from cellwright.data.colour import Colour, change_colour
from cellwright.data.stain import STAIN_RGB, change_stains


def tissue(dtype: type, full: float) -> tuple[np.ndarray, np.ndarray]:
    """An image (20, 30, 3) and the amounts (20, 30, 3) of haematoxylin, eosin and DAB that made it."""
    amounts = np.random.default_rng(0).uniform(0.1, 0.9, (20, 30, 3))
    through = np.exp(-amounts @ STAIN_RGB) * full
    return (through if np.issubdtype(dtype, np.floating) else np.rint(through)).astype(dtype), amounts


def test_the_matrix_is_the_published_one() -> None:
    assert np.array_equal(STAIN_RGB, color.rgb_from_hed)


@pytest.mark.parametrize(("dtype", "full"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0)])
def test_amounts_change_as_asked(dtype: type, full: float) -> None:
    image, amounts = tissue(dtype, full)
    factors, shifts = (1.2, 0.8, 0.9), (0.05, 0.0, -0.04)
    out = change_colour(image, Colour(stain_factors=factors, stain_shifts=shifts))
    assert out.dtype == dtype
    expected = np.exp(-(amounts * factors + shifts) @ STAIN_RGB)
    # Half a grey level of the input is much in the dark, where the map is steep.
    assert np.abs(out / full - expected).max() < (0.012 if dtype == np.uint8 else 1e-4)


def test_skimage_separates_the_changed_amounts() -> None:
    image, _ = tissue(np.float64, 1.0)
    before = color.rgb2hed(image)
    after = color.rgb2hed(change_colour(image, Colour(stain_factors=(1.3, 0.7, 1.0))))
    assert np.abs(after - before * (1.3, 0.7, 1.0)).max() < 1e-4


def test_neutral_amounts_and_the_way_back() -> None:
    image = np.random.default_rng(1).uniform(0.05, 0.95, (9, 9, 3)).astype(np.float32)
    one, none = np.ones(3), np.zeros(3)
    assert np.abs(change_stains(image, one, none, 1.0) - image).max() < 1e-5
    factors = np.array([1.02, 0.98, 1.01])
    there = change_stains(image, factors, none, 1.0)
    inside = (there < 1).all(axis=2)
    back = change_stains(there, 1 / factors, none, 1.0)
    assert np.abs(back - image)[inside].max() < 1e-4
    # Glass stays glass, and black is no infinity.
    assert np.abs(change_stains(np.ones((1, 1, 3), np.float32), factors * 1.4, none, 1.0) - 1).max() < 1e-6
    assert np.isfinite(change_stains(np.zeros((1, 1, 3), np.float32), factors * 2, none, 1.0)).all()


def test_the_recipes_full_range_is_the_glass() -> None:
    image, amounts = tissue(np.uint16, 4095)
    out = change_colour(image, Colour(stain_factors=(1.5, 1.0, 1.0)), full_range=4095)
    assert np.abs(out / 4095 - np.exp(-(amounts * (1.5, 1, 1)) @ STAIN_RGB)).max() < 2e-3


def test_grey_images_have_no_stains() -> None:
    image = np.full((4, 4, 1), 90, np.uint8)
    assert change_colour(image, Colour(stain_factors=(1.5, 1.0, 1.0))) is image

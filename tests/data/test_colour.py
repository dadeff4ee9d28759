"""Changes of intensity, colour and stain against their formulas, OpenCV, scipy, torchvision and skimage."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import color
from torchvision.transforms.v2 import functional as tv

from cellwright.config.input import AugmentConfig
from cellwright.data.augment import draw_colour
from cellwright.data.colour import STAIN_RGB, Colour, change_colour, change_stains

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
colours = st.builds(
    Colour,
    gamma=st.floats(0.3, 3),
    stain_factors=st.tuples(*[st.floats(0.5, 1.5)] * 3),
    stain_shifts=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    brightness=st.floats(0.3, 1.7),
    contrast=st.floats(0.3, 1.7),
    saturation=st.floats(0, 1.7),
    hue_turns=st.floats(-0.5, 0.5),
    invert=st.booleans(),
    blur_px=st.just(0.0) | st.floats(0.2, 4),
    noise=st.floats(0, 0.5),
    noise_seed=st.integers(0, 2**63 - 1),
)


def test_a_neutral_configuration_returns_the_image_itself() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    assert change_colour(image, draw_colour(AugmentConfig(), np.random.default_rng(0))) is image
    assert change_colour(image[:, :, :1], Colour(stain_factors=(2, 1, 1))).base is image


@settings(max_examples=80, deadline=None)
@given(
    colour=colours,
    dtype=st.sampled_from([np.uint8, np.int16, np.uint16, np.float32, np.float64]),
    shape=st.sampled_from([(1, 1, 3), (7, 9, 1), (8, 5, 3), (6, 6, 7)]),
)
def test_every_change_keeps_shape_dtype_and_the_input(colour: Colour, dtype: type, shape: tuple[int, int, int]) -> None:
    image = (np.random.default_rng(0).random(shape) * (1 if np.issubdtype(dtype, np.floating) else 200)).astype(dtype)
    kept = image.copy()
    out = change_colour(image, colour)
    again = change_colour(image, colour)
    assert np.array_equal(image, kept)
    assert (out.shape, out.dtype) == (shape, dtype)
    assert np.isfinite(out).all()
    assert np.array_equal(out, again)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_brightness_and_contrast_by_their_formula(channels: int) -> None:
    image = np.random.default_rng(0).integers(20, 100, (8, 9, channels)).astype(np.uint16)
    out = change_colour(image, Colour(brightness=1.5, contrast=0.6))
    mean = image.mean()
    expected = 1.5 * (0.6 * (image - mean) + mean)
    assert out.dtype == np.uint16
    assert np.abs(out - expected).max() <= 0.5 + 1e-3


def test_brightness_equals_that_of_opencv() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    assert (
        np.abs(change_colour(image, Colour(brightness=1.3)).astype(int) - cv2.convertScaleAbs(image, alpha=1.3)).max()
        <= 1
    )


def test_integers_are_clipped_not_wrapped() -> None:
    image = np.array([[[0], [255]]], np.uint8)
    assert change_colour(image, Colour(brightness=1.9)).ravel().tolist() == [0, 255]
    assert change_colour(image, Colour(contrast=1.9)).ravel().tolist() == [0, 255]
    assert change_colour(image, Colour(noise=0.9)).dtype == np.uint8


def test_saturation_0_equals_the_greyscale_of_opencv() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    out = change_colour(image, Colour(saturation=0))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    assert np.abs(out.astype(int) - grey[:, :, None]).max() <= 1


def test_hue_is_rotated_on_the_colour_circle() -> None:
    """A third of a turn moves red towards green: the hue of colorsys changes by about a third, luma stays."""
    image = np.array([[[0.55, 0.45, 0.45]]], np.float32)
    out = change_colour(image, Colour(hue_turns=1 / 3))
    assert abs(float((out[0, 0] - image[0, 0]) @ LUMA)) < 1e-3
    turned = (colorsys.rgb_to_hsv(*out[0, 0].tolist())[0] - colorsys.rgb_to_hsv(*image[0, 0].tolist())[0]) % 1
    assert min(abs(turned - 1 / 3), abs(turned - 2 / 3)) < 0.09


@pytest.mark.parametrize("gamma", [0.5, 1.7])
def test_gamma_equals_that_of_torchvision_for_the_full_range(gamma: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    image[0, 0], image[0, 1] = 0, 255
    expected = tv.adjust_gamma(torch.from_numpy(image.transpose(2, 0, 1)), gamma).numpy().transpose(1, 2, 0)
    assert np.abs(change_colour(image, Colour(gamma=gamma)).astype(int) - expected).max() <= 1


def test_gamma_and_inversion_keep_the_range_of_the_image() -> None:
    """The brightest pixel of a 12-bit camera stays at 4095 of 65535."""
    image = np.random.default_rng(0).integers(100, 4096, (20, 20, 1)).astype(np.uint16)
    image[0, 0], image[0, 1] = 100, 4095
    shares = (image.astype(float) - 100) / 3995
    bent = change_colour(image, Colour(gamma=2))
    assert np.abs(bent - (3995 * shares**2 + 100)).max() <= 0.51
    assert (bent.min(), bent.max()) == (100, 4095)
    turned = change_colour(image, Colour(invert=True))
    assert np.array_equal(turned, 4195 - image)
    assert np.array_equal(change_colour(turned, Colour(invert=True)), image)
    for kind in (np.float32, np.int16):
        other = change_colour(image.astype(kind), Colour(gamma=2))
        assert np.abs(other - bent.astype(float)).max() <= 0.51


def test_inversion_is_applied_after_brightness() -> None:
    image = np.array([[[10, 20, 30], [40, 60, 110]]], np.float32)
    out = change_colour(image, Colour(brightness=1.5, invert=True))
    assert np.abs(out - (120 - 1.5 * image)).max() < 1e-4


@pytest.mark.parametrize("sigma", [0.8, 3.0])
def test_blur_equals_that_of_scipy(sigma: float) -> None:
    image = np.random.default_rng(0).random((40, 50, 3)).astype(np.float32)
    expected = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="mirror", truncate=4)
    assert np.abs(change_colour(image, Colour(blur_px=sigma)) - expected).max() < 1e-3


def test_noise_has_the_requested_standard_deviation() -> None:
    image = np.full((200, 200, 1), 2000, np.uint16)
    image[0, 0], image[0, 1] = 0, 4000
    out = change_colour(image, Colour(noise=0.05, noise_seed=3))[1:].astype(float) - 2000
    assert out.std() == pytest.approx(0.05 * 4000, rel=0.02)
    assert out.mean() == pytest.approx(0, abs=5)
    other = change_colour(image, Colour(noise=0.05, noise_seed=4))
    assert (other != change_colour(image, Colour(noise=0.05, noise_seed=3))).mean() > 0.9


def tissue(dtype: type, full: float) -> tuple[np.ndarray, np.ndarray]:
    """An image (20, 30, 3), and its amounts (20, 30, 3) of haematoxylin, eosin and DAB."""
    amounts = np.random.default_rng(0).uniform(0.1, 0.9, (20, 30, 3))
    light = np.exp(-amounts @ STAIN_RGB) * full
    return (light if np.issubdtype(dtype, np.floating) else np.rint(light)).astype(dtype), amounts


def test_the_stain_matrix_is_the_published_one() -> None:
    assert np.array_equal(STAIN_RGB, color.rgb_from_hed)


@pytest.mark.parametrize(("dtype", "full"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0)])
def test_amounts_of_stain_change_as_requested(dtype: type, full: float) -> None:
    image, amounts = tissue(dtype, full)
    factors, shifts = (1.2, 0.8, 0.9), (0.05, 0.0, -0.04)
    out = change_colour(image, Colour(stain_factors=factors, stain_shifts=shifts))
    assert out.dtype == dtype
    expected = np.exp(-(amounts * factors + shifts) @ STAIN_RGB)
    # Rounding to 8 bits matters for dark pixels, where the map is steep.
    assert np.abs(out / full - expected).max() < (0.012 if dtype == np.uint8 else 1e-4)


def test_skimage_separates_the_changed_amounts() -> None:
    image, _ = tissue(np.float64, 1.0)
    before = color.rgb2hed(image)
    after = color.rgb2hed(change_colour(image, Colour(stain_factors=(1.3, 0.7, 1.0))))
    assert np.abs(after - before * (1.3, 0.7, 1.0)).max() < 1e-4


def test_neutral_factors_and_inverse_factors() -> None:
    image = np.random.default_rng(1).uniform(0.05, 0.95, (9, 9, 3)).astype(np.float32)
    none = np.zeros(3)
    assert np.abs(change_stains(image, np.ones(3), none, 1.0) - image).max() < 1e-5
    factors = np.array([1.02, 0.98, 1.01])
    changed = change_stains(image, factors, none, 1.0)
    inside = (changed < 1).all(axis=2)
    restored = change_stains(changed, 1 / factors, none, 1.0)
    assert np.abs(restored - image)[inside].max() < 1e-4
    # Unstained glass stays white, and black stays finite.
    assert np.abs(change_stains(np.ones((1, 1, 3), np.float32), factors * 1.4, none, 1.0) - 1).max() < 1e-6
    assert np.isfinite(change_stains(np.zeros((1, 1, 3), np.float32), factors * 2, none, 1.0)).all()


def test_full_range_is_the_intensity_of_unstained_glass() -> None:
    image, amounts = tissue(np.uint16, 4095)
    out = change_colour(image, Colour(stain_factors=(1.5, 1.0, 1.0)), full_range=4095)
    assert np.abs(out / 4095 - np.exp(-(amounts * (1.5, 1, 1)) @ STAIN_RGB)).max() < 2e-3


def test_grey_images_have_no_stains() -> None:
    image = np.full((4, 4, 1), 90, np.uint8)
    assert change_colour(image, Colour(stain_factors=(1.5, 1.0, 1.0))) is image

"""Colour changes against formulas written out pixel by pixel, OpenCV, scipy, torchvision and nothing of our own."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torchvision.transforms.v2 import functional as tv

from cellwright.config.input import AugmentConfig
from cellwright.data.colour import Colour, change_colour, draw_colour

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


def test_neutral_configuration_returns_the_image_itself() -> None:
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
def test_brightness_and_contrast_by_hand(channels: int) -> None:
    image = np.random.default_rng(0).integers(20, 100, (8, 9, channels)).astype(np.uint16)
    out = change_colour(image, Colour(brightness=1.5, contrast=0.6))
    mean = image.mean()
    expected = 1.5 * (0.6 * (image - mean) + mean)
    assert out.dtype == np.uint16
    assert np.abs(out - expected).max() <= 0.5 + 1e-3


def test_brightness_equals_opencvs() -> None:
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


def test_saturation_to_nothing_is_opencvs_grey() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    out = change_colour(image, Colour(saturation=0))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    assert np.abs(out.astype(int) - grey[:, :, None]).max() <= 1


def test_hue_turns_as_the_colour_circle_does() -> None:
    """A third of a turn takes red towards green: hue by colorsys moves by about that much, luma stays."""
    image = np.array([[[0.55, 0.45, 0.45]]], np.float32)
    out = change_colour(image, Colour(hue_turns=1 / 3))
    assert abs(float((out[0, 0] - image[0, 0]) @ LUMA)) < 1e-3
    turned = (colorsys.rgb_to_hsv(*out[0, 0].tolist())[0] - colorsys.rgb_to_hsv(*image[0, 0].tolist())[0]) % 1
    assert min(abs(turned - 1 / 3), abs(turned - 2 / 3)) < 0.09


@pytest.mark.parametrize("gamma", [0.5, 1.7])
def test_gamma_equals_torchvisions_where_the_range_is_full(gamma: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    image[0, 0], image[0, 1] = 0, 255
    expected = tv.adjust_gamma(torch.from_numpy(image.transpose(2, 0, 1)), gamma).numpy().transpose(1, 2, 0)
    assert np.abs(change_colour(image, Colour(gamma=gamma)).astype(int) - expected).max() <= 1


def test_gamma_and_inversion_stay_in_the_images_own_range() -> None:
    """A 12-bit camera's file stays one: its brightest pixel stays at 4095 of 65535."""
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


def test_inversion_comes_after_brightness() -> None:
    image = np.array([[[10, 20, 30], [40, 60, 110]]], np.float32)
    out = change_colour(image, Colour(brightness=1.5, invert=True))
    assert np.abs(out - (120 - 1.5 * image)).max() < 1e-4


@pytest.mark.parametrize("sigma", [0.8, 3.0])
def test_blur_equals_scipys(sigma: float) -> None:
    image = np.random.default_rng(0).random((40, 50, 3)).astype(np.float32)
    expected = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="mirror", truncate=4)
    assert np.abs(change_colour(image, Colour(blur_px=sigma)) - expected).max() < 1e-3


def test_noise_has_the_spread_that_was_asked_for() -> None:
    image = np.full((200, 200, 1), 2000, np.uint16)
    image[0, 0], image[0, 1] = 0, 4000
    out = change_colour(image, Colour(noise=0.05, noise_seed=3))[1:].astype(float) - 2000
    assert out.std() == pytest.approx(0.05 * 4000, rel=0.02)
    assert out.mean() == pytest.approx(0, abs=5)
    other = change_colour(image, Colour(noise=0.05, noise_seed=4))
    assert (other != change_colour(image, Colour(noise=0.05, noise_seed=3))).mean() > 0.9


def test_draws_follow_their_half_widths() -> None:
    config = AugmentConfig(
        brightness=0.3,
        contrast=0.2,
        gamma=1,
        saturation=0.4,
        hue=0.1,
        stain=0.2,
        stain_shift=0.05,
        blur_px=2,
        noise=0.1,
        greyscale=0.25,
        invert=0.5,
    )
    rng = np.random.default_rng(0)
    drawn = [draw_colour(config, rng) for _ in range(2000)]
    spans = {
        "brightness": (0.7, 1.3),
        "contrast": (0.8, 1.2),
        "gamma": (0.5, 2),
        "hue_turns": (-0.1, 0.1),
        "blur_px": (0, 2),
        "noise": (0, 0.1),
    }
    for name, (low, high) in spans.items():
        values = np.array([getattr(one, name) for one in drawn])
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high >= values.max() > high - 0.02 * (high - low)
    factors = np.array([one.stain_factors for one in drawn])
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.1
    assert factors.min(axis=0) == pytest.approx([0.8] * 3, abs=0.01)
    assert np.abs([one.stain_shifts for one in drawn]).max() == pytest.approx(0.05, abs=0.001)
    assert np.median([one.gamma for one in drawn]) == pytest.approx(1, abs=0.05)
    assert np.mean([one.saturation == 0 for one in drawn]) == pytest.approx(0.25, abs=0.03)
    assert np.mean([one.invert for one in drawn]) == pytest.approx(0.5, abs=0.04)
    assert len({one.noise_seed for one in drawn}) == 2000

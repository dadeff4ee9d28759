"""Colour jitter against formulas written out pixel by pixel."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from cellwright.config.sample_schema import AugmentConfig
from cellwright.data.colour import jitter_colour


class Draws:
    """A generator whose four uniform draws are given."""

    def __init__(self, *values: float) -> None:
        self.values = np.array(values)

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        assert (low, high, size) == (-1, 1, 4)
        return self.values


def jitter(image: np.ndarray, config: AugmentConfig, *draws: float) -> np.ndarray:
    return jitter_colour(image, config, Draws(*draws))  # type: ignore[arg-type]


def test_neutral_configuration_returns_the_image_itself() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    assert jitter_colour(image, AugmentConfig(), np.random.default_rng(0)) is image


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_brightness_and_contrast_by_hand(channels: int) -> None:
    image = np.random.default_rng(0).integers(20, 100, (8, 9, channels)).astype(np.uint16)
    out = jitter(image, AugmentConfig(brightness=0.5, contrast=0.4), 1, -1, 0, 0)
    mean = image.mean()
    expected = 1.5 * (0.6 * (image - mean) + mean)
    assert out.dtype == np.uint16
    assert np.abs(out - expected).max() <= 0.5 + 1e-3


def test_integers_are_clipped_not_wrapped() -> None:
    image = np.array([[[0], [255]]], np.uint8)
    assert jitter(image, AugmentConfig(brightness=0.9), 1, 0, 0, 0).ravel().tolist() == [0, 255]
    assert jitter(image, AugmentConfig(contrast=0.9), 0, 1, 0, 0).ravel().tolist() == [0, 255]


def test_saturation_to_nothing_leaves_the_luma() -> None:
    image = np.random.default_rng(0).random((5, 5, 3)).astype(np.float32)
    out = jitter(image, AugmentConfig(saturation=0.999), 0, 0, -1, 0)
    luma = image @ np.array([0.299, 0.587, 0.114], np.float32)
    assert np.abs(out - luma[:, :, None]).max() < 5e-3


def test_hue_turns_as_the_colour_circle_does() -> None:
    """A third of a turn takes red towards green: hue by colorsys moves by about that much, luma stays."""
    image = np.array([[[0.55, 0.45, 0.45]]], np.float32)
    out = jitter(image, AugmentConfig(hue=0.5), 0, 0, 0, 2 / 3)
    luma = np.array([0.299, 0.587, 0.114])
    assert abs(float((out[0, 0] - image[0, 0]) @ luma)) < 1e-3
    turned = (colorsys.rgb_to_hsv(*out[0, 0].tolist())[0] - colorsys.rgb_to_hsv(*image[0, 0].tolist())[0]) % 1
    assert min(abs(turned - 1 / 3), abs(turned - 2 / 3)) < 0.09


def test_switching_one_change_off_leaves_the_others() -> None:
    image = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    with_hue = jitter_colour(image, AugmentConfig(brightness=0.3, hue=1e-9), np.random.default_rng(5))
    without = jitter_colour(image, AugmentConfig(brightness=0.3), np.random.default_rng(5))
    assert np.abs(with_hue.astype(int) - without).max() <= 1

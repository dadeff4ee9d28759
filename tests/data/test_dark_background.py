"""``input.background: dark``: bright backgrounds are inverted, and dim objects lifted above one without noise."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cellwright.config.input import InputConfig
from cellwright.core.image import Image
from cellwright.data.colour import Colour, change_colour
from cellwright.data.images.source import open_image
from cellwright.data.network_input import limit_percents, limits_from, percentile_limits, to_network
from cellwright.models.export.standalone import decode as program
from cellwright.prediction.tiling.facts import find_facts

DARK = InputConfig(background="dark", percentiles_of="channel")
ANY = InputConfig(percentiles_of="channel")


def fluorescence(seed: int, hw: tuple[int, int] = (150, 170), n: int = 12) -> np.ndarray:
    """Bright discs on a dark background with noise, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    pixels = np.full(hw, 14.0)
    for _ in range(n):
        centre = (int(rng.integers(hw[1])), int(rng.integers(hw[0])))
        cv2.circle(pixels, centre, int(rng.integers(5, 9)), float(rng.uniform(30, 220)), -1)
    pixels = cv2.GaussianBlur(pixels, (0, 0), 1.5) + rng.normal(0, 1.5, hw)
    return np.repeat(pixels.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


FIELD = fluorescence(2)


def seen(pixels: np.ndarray, config: InputConfig = DARK) -> np.ndarray:
    return to_network(Image.from_array(pixels), config)


def test_ordinary_images_and_images_of_one_value_are_left_alone() -> None:
    np.testing.assert_array_equal(seen(FIELD), seen(FIELD, ANY))
    assert not seen(np.full((9, 9, 3), 200, np.uint8)).any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), dtype=st.sampled_from([np.uint8, np.uint16, np.float32]), flat=st.booleans())
def test_an_inverted_image_is_seen_as_the_image(seed: int, dtype: type, flat: bool) -> None:
    pixels = fluorescence(seed, (90, 80), 6).astype(np.float32)
    if flat:
        pixels = np.maximum(pixels - np.percentile(pixels, 60), 0).round()
    pixels = pixels.astype(dtype)
    np.testing.assert_allclose(seen(255 - pixels), seen(pixels), atol=2e-6)


def test_an_inverted_image_with_hardly_any_object_is_seen_as_the_image() -> None:
    """Its object covers less than the 1 % of the pixels that are below the lower percentile."""
    pixels = np.random.default_rng(0).normal(20, 1, (100, 100, 1)).round().astype(np.uint8)
    pixels[40:46, 40:46] = 150
    np.testing.assert_allclose(seen(255 - pixels), seen(pixels), atol=2e-6)


def test_dim_objects_show_above_a_background_without_noise() -> None:
    dark = change_colour(FIELD, Colour(gamma=2.5))
    before, after = seen(dark, ANY), seen(dark)
    raised = (before > 0.02) & (before < 0.5)
    assert raised.any()
    assert (after[raised] > before[raised]).all()
    base, low, high = (float(np.percentile(dark[:, :, 0], p)) for p in (0, 1, 99.8))
    expected = (np.sqrt(dark[:, :, 0] - base) - np.sqrt(low - base)) / (np.sqrt(high - base) - np.sqrt(low - base))
    np.testing.assert_allclose(after[0], expected, atol=1e-5)


def test_a_crop_that_an_object_fills_is_not_inverted() -> None:
    y, x = np.mgrid[:60, :60]
    distance = np.hypot(y - 30, x - 30)
    noise = np.random.default_rng(0).normal(0, 3, (60, 60))
    pixels = (np.where(distance < 27, 170 - distance * 3, 15) + noise).clip(0).astype(np.uint8)[:, :, None]
    assert (distance < 27).mean() > 0.6
    np.testing.assert_array_equal(seen(pixels), seen(pixels, ANY))


def test_channels_are_inverted_together_and_blank_ones_do_not_count() -> None:
    grey = 255 - FIELD[:, :, :1]
    with_blank = np.concatenate([grey, np.zeros_like(grey), grey], axis=2)
    got = seen(with_blank)
    np.testing.assert_allclose(got[0], seen(FIELD[:, :, :1])[0], atol=2e-6)
    assert not got[1].any()


@pytest.mark.parametrize("together", ["channel", "image"])
@pytest.mark.parametrize("change", [Colour(), Colour(invert=True), Colour(gamma=2.5), Colour(gamma=2.5, invert=True)])
def test_tiles_and_exported_programs_see_the_same(change: Colour, together: str) -> None:
    config = InputConfig(background="dark", percentiles_of=together)
    pixels = change_colour(FIELD, Colour(gamma=change.gamma))
    pixels = change_colour(pixels, Colour(invert=change.invert))
    whole = seen(pixels, config)
    assert (change == Colour()) == np.array_equal(whole, seen(pixels, config.model_copy(update={"background": "any"})))
    np.testing.assert_allclose(program.normalised(pixels, config.model_dump(mode="json")), whole, atol=1e-6)
    image = Image.from_array(pixels)
    facts = find_facts(open_image(image), config, "torchvision", lambda _: (_ for _ in ()).throw(AssertionError))
    np.testing.assert_allclose(facts.normalised(image, config), whole, atol=1e-6)
    assert not facts.notes


def test_limits_of_percentiles() -> None:
    pixels = FIELD.transpose(2, 0, 1).astype(np.float32)
    table = np.percentile(pixels.reshape(3, -1), limit_percents(DARK), axis=1).T
    np.testing.assert_allclose(limits_from(table, DARK), percentile_limits(pixels, DARK))
    assert len(limit_percents(ANY)) == 2


def test_fixed_normalisation_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"input.background dark needs input.normalise percentile"):
        InputConfig(normalise="fixed", background="dark")

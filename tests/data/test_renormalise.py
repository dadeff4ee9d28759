"""``augment.renormalise``: a sample is changed before its normalisation, as an image is that the predictor sees."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cellwright.config.input import AugmentConfig, InputConfig
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.data.augment import Frame, WholeImage, augment, renormalised
from cellwright.data.colour import Colour, change_colour
from cellwright.data.labels import Labels
from cellwright.data.network_input import to_network


@pytest.mark.parametrize("percentiles_of", ["channel", "image"])
@pytest.mark.parametrize("background", ["any", "dark"])
@pytest.mark.parametrize(
    "colour",
    [
        Colour(),
        Colour(gamma=2.2),
        Colour(invert=True),
        Colour(saturation=0.5, hue_turns=0.1),
        Colour(noise=0.05, noise_seed=2),
    ],
)
def test_renormalised_samples_are_what_the_predictor_sees(colour: Colour, background: str, percentiles_of: str) -> None:
    """A change of the normalised image, normalised again, against the changed image that is normalised once."""
    config = InputConfig.model_validate({"background": background, "percentiles_of": percentiles_of})
    rng = np.random.default_rng(0)
    pixels = np.full((128, 120, 3), 60.0)
    for _ in range(25):
        cv2.circle(pixels, (int(rng.integers(120)), int(rng.integers(128))), 6, rng.uniform(70, 190, 3).tolist(), -1)
    # The range of all channels is the same, so that those of the file and of the normalised image are.
    pixels = (cv2.GaussianBlur(pixels, (0, 0), 1) + rng.normal(0, 2, pixels.shape)).clip(50, 200).astype(np.uint8)
    pixels[0, 0], pixels[0, 1] = 50, 200
    expected = to_network(Image.from_array(change_colour(pixels, colour)), config)
    plain = config.model_copy(update={"background": "any", "percentiles_of": "image"})
    normal = np.ascontiguousarray(to_network(Image.from_array(pixels), plain).transpose(1, 2, 0))
    whole = WholeImage.of(normal, pixels)
    assert whole.sample.shape == normal.shape
    got = renormalised(normal[:, :70], colour, whole, config)
    off = got.transpose(2, 0, 1) - expected[:, :, :70]
    if colour.noise:  # other random numbers
        assert abs(off.mean()) < 0.01
        assert 0.05 < off.std() < 0.15
    else:
        assert np.abs(off).max() < 0.03
    worst = change_colour(normal[:, :70], colour).transpose(2, 0, 1) - expected[:, :, :70]
    assert (colour.gamma == 1 and not colour.invert) or np.abs(worst).max() > 0.1


def test_brightness_and_contrast_change_what_is_normalised() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (60, 60, 1)).astype(np.uint8)
    config = InputConfig(channels=1, percentiles_of="channel")
    normal = np.ascontiguousarray(to_network(Image.from_array(pixels), config).transpose(1, 2, 0))
    got = renormalised(normal, Colour(brightness=1.5), WholeImage.of(normal, pixels), config)
    np.testing.assert_allclose(got, normal * 1.5, atol=1e-5)
    dim = renormalised(normal, Colour(brightness=0.05), WholeImage.of(normal, pixels), config)
    assert len(np.unique(dim)) <= 11  # ten levels are left of 199


def test_augment_renormalises_where_the_recipe_says_so() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (60, 60, 1)).astype(np.uint8)
    config = InputConfig(channels=1, percentiles_of="channel")
    normal = np.ascontiguousarray(to_network(Image.from_array(pixels), config).transpose(1, 2, 0))
    labels = Labels.from_instances(Instances.empty((60, 60)))
    frame = Frame(config, whole=WholeImage.of(normal, pixels))
    seen = {}
    for flag in (False, True):
        changes = AugmentConfig(horizontal_flip=0, invert=1, renormalise=flag)
        seen[flag], _ = augment(normal, labels, changes, np.random.default_rng(0), frame)
    inverted = to_network(Image.from_array(199 - pixels), config).transpose(1, 2, 0)
    np.testing.assert_allclose(seen[True], inverted, atol=0.02)
    np.testing.assert_allclose(seen[False], normal.max() + normal.min() - normal, atol=1e-5)

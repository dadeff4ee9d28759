"""Which value of an image is full scale for a network with fixed normalisation, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest

from cellwright.config.input import InputConfig
from cellwright.core.errors import InputError
from cellwright.core.image import Image
from cellwright.data.network_input import to_network
from cellwright.data.value_range import (
    ASSUMED_RANGE,
    OUTSIDE_RANGE,
    ImageValues,
    TrainingValues,
    depth_of,
    input_for,
)

FIXED = InputConfig(channels=1, mean=(0.4,), std=(0.2,))
DETECTRON2 = InputConfig(channels=1, full_range=1.0, mean=(110.0,), std=(1.0,))
PIXELS = np.linspace(10, 180, 400).reshape(20, 20)
EIGHT_BITS = TrainingValues("uint8", 255.0, 0.03, (0.5, 0.8))


def image_of(factor: float, dtype: str) -> Image:
    return Image.from_array((PIXELS * factor).astype(dtype))


@pytest.mark.parametrize("config", [FIXED, DETECTRON2])
@pytest.mark.parametrize("training", [None, EIGHT_BITS])
@pytest.mark.parametrize(
    ("factor", "dtype"),
    [(1, "uint8"), (1, "uint16"), (4, "uint16"), (16, "uint16"), (257, "uint16"), (1, "float32"), (16, "float32")],
)
def test_the_same_picture_gives_the_same_input(
    config: InputConfig, training: TrainingValues | None, factor: float, dtype: str
) -> None:
    """Within the steps of 8 bits, since 255 of 8 bits is 4095 of 12, not 4080."""
    expected = to_network(image_of(1, "uint8"), config)
    image = image_of(factor, dtype)
    got = to_network(image, input_for(image, config, training)[0])
    step = 1.5 / 255 / 0.2 if config is FIXED else 1.5
    assert np.abs(got - expected).max() < step


def test_what_the_recipe_says_already_is_not_changed_and_not_mentioned() -> None:
    for image in (image_of(1, "uint8"), image_of(257, "uint16"), image_of(1 / 255, "float32")):
        config, notes = input_for(image, FIXED, None)
        assert config is FIXED
        assert notes == ()
    percentile = InputConfig()
    assert input_for(image_of(16, "uint16"), percentile, EIGHT_BITS) == (percentile, ())


def test_a_model_of_the_same_type_keeps_its_range() -> None:
    """A dark image of a 16-bit training is no 12-bit image."""
    training = TrainingValues("uint16", 65535.0, 0.0, (0.05, 0.6))
    config, notes = input_for(image_of(16, "uint16"), FIXED, training)
    assert config is FIXED
    assert notes == ()
    (note,) = input_for(image_of(16, "uint16"), FIXED, None)[1]
    assert note.kind == ASSUMED_RANGE
    assert "read as 0 to 4095" in note.text


def test_images_unlike_the_training_are_named() -> None:
    (note,) = input_for(image_of(0.1, "uint8"), FIXED, EIGHT_BITS)[1]
    assert note.kind == OUTSIDE_RANGE
    assert "darker" in note.text
    dark = TrainingValues("uint8", 255.0, 0.0, (0.1, 0.2))
    assert "brighter" in input_for(image_of(1, "uint8"), FIXED, dark)[1][0].text
    assert input_for(image_of(1, "uint8"), FIXED, EIGHT_BITS)[1] == ()


def test_values_beyond_any_depth_are_divided_by_their_maximum() -> None:
    image = Image.from_array((PIXELS * 1e5).astype(np.float32))
    config, (note,) = input_for(image, FIXED, EIGHT_BITS)
    assert config.full_range == pytest.approx(180e5)
    assert "1.8e+07" in note.text


def test_depths() -> None:
    def values(dtype: str, highest: float) -> ImageValues:
        return ImageValues(dtype, highest, 0.0, highest)

    cases = [
        ("uint8", 3, 255),
        ("uint16", 3, 255),
        ("uint16", 256, 1023),
        ("uint16", 4095, 4095),
        ("uint16", 4096, 16383),
    ]
    cases += [("float32", 1.02, 1), ("float32", 1.2, 255), ("float32", 260, 255), ("float32", 5000, 16383)]
    for dtype, highest, expected in cases:
        assert depth_of([values(dtype, highest)]) == expected, (dtype, highest)
    assert depth_of([values("uint16", 300), values("uint16", 3000)]) == 4095
    assert depth_of([values("float32", 1e6)]) is None


def test_values_ignore_what_is_not_finite() -> None:
    pixels = PIXELS.astype(np.float32)
    pixels[0, :3] = np.nan, np.inf, -np.inf
    assert ImageValues.of(Image.from_array(pixels)).highest == 180
    assert ImageValues.of(Image.from_array(np.full((3, 3), np.nan))).highest == 0


def test_training_values_survive_json_and_damage_is_an_error() -> None:
    training = TrainingValues.of([ImageValues.of(image_of(1, "uint8")), ImageValues.of(image_of(0.5, "uint8"))], FIXED)
    assert training.full_scale == 255
    assert training.bright == pytest.approx((0.35, 0.7), abs=0.01)
    assert TrainingValues.from_dict(training.to_dict()) == training
    mixed = TrainingValues.of([ImageValues.of(image_of(1, "uint8")), ImageValues.of(image_of(1, "uint16"))], FIXED)
    assert (mixed.dtype, mixed.full_scale) == ("mixed", 0)
    for damaged in ({}, {**training.to_dict(), "bright": [1]}, {**training.to_dict(), "dark": "x"}):
        with pytest.raises(InputError, match="damaged"):
            TrainingValues.from_dict(damaged)


def test_mean_and_std_mean_fixed_and_percentile_is_the_default() -> None:
    assert InputConfig().normalise == "percentile"
    assert FIXED.normalise == DETECTRON2.normalise == "fixed"
    assert InputConfig(channels=2).normalise == "percentile", "which needs no mean"
    named = InputConfig.model_validate({"channels": ["DAPI", "actin"]})
    assert (named.channels, named.channel) == (2, ("DAPI", "actin"))
    with pytest.raises(ValueError, match=r"input.channel names 2 \(a, b\)"):
        InputConfig(channel=("a", "b"))

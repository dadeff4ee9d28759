"""The sections ``augment`` and ``data``: descriptions, neutral defaults, and errors that name the fields concerned."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from cellwright.config.input import AugmentConfig, DataConfig
from cellwright.config.recipe import Recipe


@pytest.mark.parametrize("schema", [AugmentConfig, DataConfig])
def test_every_field_has_a_one_line_description_and_a_default(schema: type[BaseModel]) -> None:
    schema()
    for name, field in schema.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize(
    ("schema", "values", "words"),
    [
        (AugmentConfig, {"scale_min": 2}, ["scale_min (2.0)", "scale_max (1.0)"]),
        (AugmentConfig, {"crop_relative": 0.9, "crop_source_px": 64}, ["crop_relative (0.9)", "crop_source_px (64)"]),
        (AugmentConfig, {"short_sides_px": (640, 8)}, ["short_sides_px", "(640, 8)", "16..16384"]),
        (AugmentConfig, {"short_sides_px": (640, 800), "max_side_px": 700}, ["max_side_px (700)", "(640, 800)"]),
        (AugmentConfig, {"max_side_px": 700}, ["max_side_px (700)", "short_sides_px"]),
        (AugmentConfig, {"pad_to_crop": True}, ["augment.pad_to_crop (true)", "augment.crop_px"]),
        (
            AugmentConfig,
            {"elastic_amplitude_px": 8, "elastic_smoothness_px": 32},
            ["elastic_amplitude_px (8.0)", "elastic_smoothness_px (32.0)", "fold"],
        ),
        (AugmentConfig, {"rotation": 3}, ["rotation"]),
        (DataConfig, {"min_area_px": 9, "max_area_px": 3}, ["min_area_px (9)", "max_area_px (3)"]),
        (DataConfig, {"repeat_factor_threshold": 0}, ["repeat_factor_threshold"]),
    ],
)
def test_errors_name_the_fields_and_values(
    schema: type[BaseModel], values: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ValidationError) as caught:
        schema(**values)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "name",
    [
        "rotation_deg",
        "shear_deg",
        "translation",
        "elastic_amplitude_px",
        "brightness",
        "contrast",
        "gamma",
        "saturation",
        "hue",
        "stain",
        "stain_shift",
        "blur_px",
        "noise",
        "greyscale",
        "invert",
        "vertical_flip",
    ],
)
def test_augmentations_are_off_by_default_and_not_negative(name: str) -> None:
    assert getattr(AugmentConfig(), name) == 0
    with pytest.raises(ValidationError, match=name):
        AugmentConfig.model_validate({name: -0.01})
    with pytest.raises(ValidationError, match=name):
        AugmentConfig.model_validate({name: 1e4})


def test_stain_augmentation_needs_light_intensities() -> None:
    values = {"name": "x", "model": {"kind": "classical"}, "augment": {"stain": 0.1}, "input": {"normalise": "fixed"}}
    assert Recipe.model_validate(values).augment.stain == 0.1
    with pytest.raises(ValidationError, match=r"augment.stain \(0.1\).*input.normalise"):
        Recipe.model_validate(values | {"input": {"normalise": "percentile"}})
    together = {"normalise": "percentile", "percentiles_of": "image"}
    assert Recipe.model_validate(values | {"input": together}).augment.stain == 0.1

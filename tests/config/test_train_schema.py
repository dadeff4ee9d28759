"""Cross-field checks name both fields; every field says what it is."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from cellwright.config.sample_schema import AugmentConfig, DataConfig
from cellwright.config.train_schema import TrainConfig


@pytest.mark.parametrize("schema", [TrainConfig, AugmentConfig, DataConfig])
def test_every_field_has_a_one_line_description_and_a_default(schema: type[BaseModel]) -> None:
    schema()
    for name, field in schema.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description, name


@pytest.mark.parametrize(
    ("schema", "values", "words"),
    [
        (TrainConfig, {"epochs": 3}, ["steps (2000)", "epochs (3.0)"]),
        (TrainConfig, {"steps": None}, ["steps (None)", "epochs (None)"]),
        (TrainConfig, {"steps": 50, "warmup_steps": 50}, ["warmup_steps (50)", "steps (50)"]),
        (TrainConfig, {"milestones": (0.9, 0.5)}, ["milestones"]),
        (TrainConfig, {"learning_rate": 1}, ["learning_rate"]),
        (TrainConfig, {"lr": float("nan")}, ["lr"]),
        (AugmentConfig, {"scale_min": 2}, ["scale_min (2.0)", "scale_max (1.0)"]),
        (DataConfig, {"min_area_px": 9, "max_area_px": 3}, ["min_area_px (9)", "max_area_px (3)"]),
    ],
)
def test_fields_that_do_not_fit(schema: type[BaseModel], values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        schema(**values)
    assert all(word in str(caught.value) for word in words)


def test_epochs_become_steps() -> None:
    config = TrainConfig(steps=None, epochs=2.5, batch_size=4)
    assert config.total_steps(10) == 7  # 25 images in sevens of 4, rounded up
    assert TrainConfig(steps=9, warmup_steps=1).total_steps(10) == 9

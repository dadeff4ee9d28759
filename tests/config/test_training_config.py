"""The section ``train``: errors name the fields concerned; every field has a description."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from cellwright.config import recipe as recipes
from cellwright.config.training import (
    ConstantSchedule,
    CosineSchedule,
    MultiStepSchedule,
    Span,
    StepSchedule,
    TrainConfig,
)
from cellwright.core.errors import RecipeError

SCHEDULES = [ConstantSchedule, MultiStepSchedule, StepSchedule, CosineSchedule]


@pytest.mark.parametrize("schema", [TrainConfig, *SCHEDULES])
def test_every_field_has_a_one_line_description_and_a_default(schema: type[BaseModel]) -> None:
    schema()
    for name, field in schema.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description, name


@pytest.mark.parametrize(
    ("schema", "values", "words"),
    [
        (TrainConfig, {"length": "50%"}, ["length (50%)", "steps or epochs"]),
        (TrainConfig, {"length": 50}, ["length", "50 steps, 2.5 epochs or 5%"]),
        (TrainConfig, {"schedule": {"kind": "multi_step", "milestones": ["9 steps", "5 steps"]}}, ["must increase"]),
        (TrainConfig, {"schedule": {"kind": "multi_step", "milestones": ["9 steps", "50%"]}}, ["9 steps, 50%"]),
        (TrainConfig, {"schedule": {"kind": "cosine", "milestones": ["50%"]}}, ["schedule.cosine.milestones"]),
        (TrainConfig, {"learning_rate": 1}, ["learning_rate"]),
        (TrainConfig, {"lr": float("nan")}, ["lr"]),
    ],
)
def test_errors_name_the_fields_and_values(
    schema: type[BaseModel], values: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ValidationError) as caught:
        schema(**values)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2000 steps", "2000 steps"),
        ("1steps", "1 step"),
        ("1.0 epochs", "1 epoch"),
        (" 2.50 epochs ", "2.5 epochs"),
        ("100%", "100%"),
        ("5.25 %", "5.25%"),
    ],
)
def test_spans_are_parsed_and_formatted(text: str, shown: str) -> None:
    assert str(Span.parse(text)) == shown
    assert Span.parse(shown) == Span.parse(text)


@pytest.mark.parametrize("text", ["", "0 steps", "2.5 steps", "-1 epochs", "101%", "3 days", "1e3 steps", 20, None])
def test_invalid_spans_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"not a length of training|whole number of steps"):
        Span.parse(text)


def test_spans_survive_a_dump_and_another_schedule_replaces_the_section() -> None:
    changes = ["train.length=2.5 epochs", "train.schedule.kind=multi_step", "train.schedule.milestones=[70%, 95%]"]
    recipe = recipes.load("synthetic/demo", changes)
    again = recipes.from_dict(recipe.to_dict(), "again")
    assert again.train == recipe.train
    assert (str(again.train.length), again.train.schedule.kind) == ("2.5 epochs", "multi_step")
    assert recipe.to_dict()["train"]["schedule"]["milestones"] == ["70%", "95%"]
    back = recipes.load("synthetic/demo", [*changes, "train.schedule.kind=cosine"])
    assert back.train.schedule == CosineSchedule()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.length=2000", "train.length.*write 2000 steps"),
        ("train.schedule.kind=cosin", "train.schedule"),
        ("train.schedule.final_facto=1", "final_factor"),
        ("train.steps=5", "train.steps"),
    ],
)
def test_errors_name_the_key(override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipes.load("synthetic/demo", [override])

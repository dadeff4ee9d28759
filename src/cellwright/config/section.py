"""What all sections of a recipe share: the pydantic base class and common field types."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

Positive = Annotated[int, Field(ge=1, le=1 << 20)]
Cells = Annotated[int, Field(ge=1, le=512)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Pixels = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    """A section of a recipe: frozen; unknown keys, infinity and NaN are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def decided(value: T | None) -> T:
    """A field of a resolved section, where None is no longer possible."""
    assert value is not None, "resolve the section first: `section.resolved(conventions)`"
    return value

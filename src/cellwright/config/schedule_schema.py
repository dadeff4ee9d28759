"""How far training goes, and how its learning rate falls: `Span` and the schedules. Every default stands here once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

Unit = Literal["steps", "epochs", "%"]
_TEXT = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ?(steps?|epochs?|%)")


@dataclass(frozen=True)
class Span:
    """A stretch of training, above 0: optimiser steps, passes over the training images, or a share of the run.

    Written ``2000 steps``, ``2.5 epochs``, ``5%``. The amount is exact: a share of .7 of 10 steps is 7 steps.
    """

    amount: Decimal
    unit: Unit

    @staticmethod
    def parse(value: object) -> Span:
        """The span that ``value`` (a text, or a span) names; `ValueError` says how one is written."""
        if isinstance(value, Span):
            return value
        match = _TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"{value!r} is no stretch of training; write it as 2000 steps, 2.5 epochs or 5%")
        amount, unit = Decimal(match[1]).normalize(), match[2]
        unit = "%" if unit == "%" else "steps" if unit.startswith("step") else "epochs"
        if amount == 0 or (unit == "steps" and amount % 1) or (unit == "%" and amount > 100):
            raise ValueError(f"{value!r}: steps are whole numbers from 1, epochs are above 0, shares at most 100%")
        return Span(amount, unit)

    def __str__(self) -> str:
        amount = f"{self.amount:f}"
        return f"{amount}%" if self.unit == "%" else f"{amount} {self.unit[:-1] if amount == '1' else self.unit}"


SpanField = Annotated[Span, PlainValidator(Span.parse), PlainSerializer(str, return_type=str)]


class _Schedule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ConstantSchedule(_Schedule):
    """The learning rate stays."""

    kind: Literal["constant"] = Field(default="constant", description="The learning rate stays after warm-up.")


class MultiStepSchedule(_Schedule):
    """The learning rate falls at chosen moments."""

    kind: Literal["multi_step"] = Field(default="multi_step", description="The learning rate falls at milestones.")
    milestones: tuple[SpanField, ...] = Field(
        default=(Span.parse("70%"), Span.parse("90%")),
        description="When it falls, counted from the start of the run: rising, all in steps, in epochs or in %.",
    )
    factor: float = Field(default=0.1, gt=0, le=1, description="The learning rate is multiplied by this each time.")

    @model_validator(mode="after")
    def _milestones_rise(self) -> Self:
        shown = ", ".join(map(str, self.milestones))
        if len({span.unit for span in self.milestones}) > 1:
            raise ValueError(f"milestones ({shown}) must be all in steps, all in epochs or all in %")
        amounts = [span.amount for span in self.milestones]
        if amounts != sorted(set(amounts)):
            raise ValueError(f"milestones ({shown}) must rise")
        return self


class StepSchedule(_Schedule):
    """The learning rate falls again and again."""

    kind: Literal["step"] = Field(default="step", description="The learning rate falls at equal distances.")
    every: SpanField = Field(
        default=Span.parse("3 epochs"), description="Distance of two falls, counted from the start of the run."
    )
    factor: float = Field(default=0.1, gt=0, le=1, description="The learning rate is multiplied by this each time.")


class CosineSchedule(_Schedule):
    """The learning rate falls as half a cosine from the end of warm-up to the end of the run."""

    kind: Literal["cosine"] = Field(default="cosine", description="The learning rate falls as half a cosine.")
    final_factor: float = Field(
        default=0.0, ge=0, le=1, description="Learning rate at the end of the run, as a share of lr."
    )


Schedule = Annotated[ConstantSchedule | MultiStepSchedule | StepSchedule | CosineSchedule, Field(discriminator="kind")]

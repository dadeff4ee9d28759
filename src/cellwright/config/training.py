"""How far training goes, how its learning rate falls and how the weights move: the recipe's ``train`` section."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from cellwright.config.section import Section

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


class ConstantSchedule(Section):
    """The learning rate stays."""

    kind: Literal["constant"] = Field(default="constant", description="The learning rate stays after warm-up.")


class MultiStepSchedule(Section):
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


class StepSchedule(Section):
    """The learning rate falls again and again."""

    kind: Literal["step"] = Field(default="step", description="The learning rate falls at equal distances.")
    every: SpanField = Field(
        default=Span.parse("3 epochs"), description="Distance of two falls, counted from the start of the run."
    )
    factor: float = Field(default=0.1, gt=0, le=1, description="The learning rate is multiplied by this each time.")


class CosineSchedule(Section):
    """The learning rate falls as half a cosine from the end of warm-up to the end of the run."""

    kind: Literal["cosine"] = Field(default="cosine", description="The learning rate falls as half a cosine.")
    final_factor: float = Field(
        default=0.0, ge=0, le=1, description="Learning rate at the end of the run, as a share of lr."
    )


Schedule = Annotated[ConstantSchedule | MultiStepSchedule | StepSchedule | CosineSchedule, Field(discriminator="kind")]


class TrainConfig(Section):
    """The optimiser, its schedule, when to stop, and what is kept on the way."""

    length: SpanField = Field(
        default=Span.parse("2000 steps"), description="The whole run, in steps or epochs (passes over the images)."
    )
    batch_size: int = Field(default=2, ge=1, le=4096, description="Images a batch.")
    accumulate: int = Field(
        default=1, ge=1, le=4096, description="Batches whose gradients are averaged into one step; norms see one each."
    )
    optimiser: Literal["sgd", "adam", "adamw"] = Field(
        default="sgd", description="SGD with momentum, Adam (weight decay as L2), or AdamW (weight decay on its own)."
    )
    lr: float = Field(default=0.01, gt=0, le=10, description="Learning rate after warm-up.")
    backbone_lr_factor: float = Field(
        default=1.0, gt=0, le=100, description="The backbone's learning rate is multiplied by this."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD's momentum; first beta of Adam and AdamW.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Second beta of Adam and AdamW; SGD has none.")
    weight_decay: float = Field(default=1e-4, ge=0, le=1, description="Pull of the weights towards zero.")
    decay_norms_and_biases: bool = Field(
        default=False, description="Whether weight decay also pulls biases and normalisation layers."
    )
    warmup: SpanField | None = Field(
        default=Span.parse("100 steps"), description="While the learning rate rises linearly; none: from the start."
    )
    warmup_start_factor: float = Field(
        default=0.001, gt=0, le=1, description="Learning rate of the first warm-up step, as a share of lr."
    )
    schedule: Schedule = Field(default=MultiStepSchedule(), description="How the learning rate falls after warm-up.")
    clip_norm: float | None = Field(
        default=10.0, gt=0, description="Gradients are scaled down to this L2 norm; none: no clipping."
    )
    max_gradient_norm: float = Field(
        default=1e6, gt=0, description="A gradient norm (before clipping) above this ends training as diverged."
    )
    precision: Literal["float32", "bf16", "fp16"] = Field(
        default="float32",
        description="Arithmetic of the forward pass (autocast); fp16, with scaled losses, needs CUDA.",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile the backbone: 40 s at start, no gain on our CPU; a resumed run may round otherwise.",
    )
    ema_decay: float | None = Field(
        default=None, gt=0, lt=1, description="Decay a step of averaged weights, which are then evaluated and saved."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of every random draw.")
    checkpoint_every: SpanField = Field(
        default=Span.parse("500 steps"), description="Distance of two checkpoints; the end always leaves one."
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="How many of the newest checkpoints stay on disk.")
    evaluate_every: SpanField = Field(
        default=Span.parse("500 steps"), description="Distance of two evaluations; the end is always evaluated."
    )
    best_metric: str = Field(
        default="AP50@all",
        min_length=1,
        description="Metric by which the best model is kept: the highest, or the lowest of a loss or an error.",
    )
    patience: int | None = Field(
        default=None, ge=1, description="Evaluations in a row without a better best_metric that end the run; none: off."
    )
    tensorboard: bool = Field(
        default=False, description="Also write what log.csv holds for TensorBoard; needs the extra tensorboard."
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads of the training process; none: torch's choice, recorded."
    )
    deterministic: bool = Field(
        default=True, description="On the CPU, use only algorithms that give the same bits in every run."
    )

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.length.unit == "%":
            raise ValueError(f"length ({self.length}) must be in steps or epochs, of which others are shares")
        return self

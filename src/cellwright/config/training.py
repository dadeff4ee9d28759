"""The recipe's ``train`` section: how long, with which learning rate and optimiser, and what is kept."""

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
    """A positive length of training: optimiser steps, epochs (passes over the training images), or % of the run.

    Written ``2000 steps``, ``2.5 epochs`` or ``5%``. The amount is exact: 70% of 10 steps is 7 steps.

    >>> str(Span.parse("1 epoch")), Span.parse("5%").amount
    ('1 epoch', Decimal('5'))
    """

    amount: Decimal
    unit: Unit

    @staticmethod
    def parse(value: object) -> Span:
        """The span that a string describes; a `Span` is returned as it is. Raises `ValueError` with the valid forms."""
        if isinstance(value, Span):
            return value
        match = _TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            number = value if type(value) is int and value > 0 else 2000
            raise ValueError(f"{value!r} is not a length of training; write {number} steps, 2.5 epochs or 5%")
        amount, unit = Decimal(match[1]).normalize(), match[2]
        unit = "%" if unit == "%" else "steps" if unit.startswith("step") else "epochs"
        if amount == 0 or (unit == "steps" and amount % 1) or (unit == "%" and amount > 100):
            raise ValueError(f"{value!r}: use a whole number of steps from 1, epochs above 0, or at most 100%")
        return Span(amount, unit)

    def __str__(self) -> str:
        amount = f"{self.amount:f}"
        return f"{amount}%" if self.unit == "%" else f"{amount} {self.unit[:-1] if amount == '1' else self.unit}"


SpanField = Annotated[Span, PlainValidator(Span.parse), PlainSerializer(str, return_type=str)]


# --- learning rate schedules --------------------------------------------------------------------------------------


class ConstantSchedule(Section):
    """The learning rate stays constant."""

    kind: Literal["constant"] = Field(default="constant", description="The learning rate stays constant after warm-up.")


class MultiStepSchedule(Section):
    """The learning rate drops at given milestones."""

    kind: Literal["multi_step"] = Field(default="multi_step", description="The learning rate drops at milestones.")
    milestones: tuple[SpanField, ...] = Field(
        default=(Span.parse("70%"), Span.parse("90%")),
        description="When it drops, from the start of the run, in increasing order; all in steps, in epochs or in %.",
    )
    factor: float = Field(default=0.1, gt=0, le=1, description="Factor on the learning rate at each drop.")

    @model_validator(mode="after")
    def _milestones_rise(self) -> Self:
        shown = ", ".join(map(str, self.milestones))
        if len({span.unit for span in self.milestones}) > 1:
            raise ValueError(f"milestones ({shown}) must be all in steps, all in epochs or all in %")
        amounts = [span.amount for span in self.milestones]
        if amounts != sorted(set(amounts)):
            raise ValueError(f"milestones ({shown}) must increase")
        return self


class StepSchedule(Section):
    """The learning rate drops at regular intervals."""

    kind: Literal["step"] = Field(default="step", description="The learning rate drops at regular intervals.")
    every: SpanField = Field(
        default=Span.parse("3 epochs"), description="Interval between two drops, from the start of the run."
    )
    factor: float = Field(default=0.1, gt=0, le=1, description="Factor on the learning rate at each drop.")


class CosineSchedule(Section):
    """The learning rate follows half a cosine from the end of warm-up to the end of the run."""

    kind: Literal["cosine"] = Field(default="cosine", description="The learning rate follows half a cosine.")
    final_factor: float = Field(
        default=0.0, ge=0, le=1, description="Learning rate at the end of the run, as a share of lr."
    )


Schedule = Annotated[ConstantSchedule | MultiStepSchedule | StepSchedule | CosineSchedule, Field(discriminator="kind")]


# --- the section --------------------------------------------------------------------------------------------------


class TrainConfig(Section):
    """The length of training, the optimiser and its schedule, when to stop, and what is kept."""

    length: SpanField = Field(
        default=Span.parse("2000 steps"), description="The whole run, in steps or epochs (passes over the images)."
    )
    batch_size: int = Field(default=2, ge=1, le=4096, description="Images per batch, over all devices together.")
    accumulate: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Batches whose gradients are averaged into one step; batch norm sees each batch separately.",
    )
    optimiser: Literal["sgd", "adam", "adamw"] = Field(
        default="sgd", description="SGD with momentum, Adam (weight decay as L2), or AdamW (decoupled weight decay)."
    )
    lr: float = Field(default=0.01, gt=0, le=10, description="Learning rate after warm-up.")
    backbone_lr_factor: float = Field(
        default=1.0, gt=0, le=100, description="Factor on the learning rate of the backbone."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD; first beta of Adam and AdamW.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Second beta of Adam and AdamW; not used by SGD.")
    weight_decay: float = Field(default=1e-4, ge=0, le=1, description="Weight decay.")
    decay_norms_and_biases: bool = Field(
        default=False, description="Apply weight decay to biases and normalisation layers too."
    )
    warmup: SpanField | None = Field(
        default=Span.parse("100 steps"), description="Length of the linear warm-up. null: no warm-up."
    )
    warmup_start_factor: float = Field(
        default=0.001, gt=0, le=1, description="Learning rate of the first warm-up step, as a share of lr."
    )
    schedule: Schedule = Field(default=MultiStepSchedule(), description="The learning rate after warm-up.")
    clip_norm: float | None = Field(
        default=10.0, gt=0, description="Gradients are scaled down to this L2 norm. null: no clipping."
    )
    max_gradient_norm: float = Field(
        default=1e6, gt=0, description="A larger gradient norm (before clipping) ends training as diverged."
    )
    precision: Literal["auto", "float32", "bf16", "fp16"] = Field(
        default="auto",
        description="Precision of the forward pass (autocast). auto: bf16 for U-Nets where it is fast, else float32. "
        "fp16 scales the losses and needs CUDA.",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile the backbone: takes 40 s at the start, not faster on our CPU; resuming may round "
        "differently.",
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Decay per step of the averaged weights (EMA), which are then evaluated and saved. null: none.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of all random draws.")
    checkpoint_every: SpanField = Field(
        default=Span.parse("500 steps"), description="Interval between checkpoints; one is always written at the end."
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="Number of checkpoints kept on disk, newest first.")
    evaluate_every: SpanField = Field(
        default=Span.parse("500 steps"), description="Interval between evaluations; the last step is always evaluated."
    )
    best_metric: str = Field(
        default="AP50@all",
        min_length=1,
        description="Metric that selects the best model: the highest value, or the lowest of a loss or an error.",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many evaluations without a better best_metric. null: do not stop early.",
    )
    tensorboard: bool = Field(
        default=False, description="Also write log.csv's values for TensorBoard; needs the extra tensorboard."
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="CPU threads of the training process; recorded. null: torch's default.",
    )
    deterministic: bool = Field(
        default=True, description="On the CPU, use only algorithms whose results are bit-identical in every run."
    )

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.length.unit == "%":
            raise ValueError(
                f"length ({self.length}) must be in steps or epochs; only other spans can be a share of it"
            )
        return self

"""How the weights move: `TrainConfig`. Every default stands here once."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TrainConfig(BaseModel):
    """The optimiser, its schedule, and what is kept on the way."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int | None = Field(default=2000, ge=1, description="Optimiser steps of the whole run; none: epochs decide.")
    epochs: float | None = Field(
        default=None, gt=0, description="Passes over the training images, instead of steps; none: steps decide."
    )
    batch_size: int = Field(default=2, ge=1, le=4096, description="Images a step.")
    optimiser: Literal["sgd", "adamw"] = Field(default="sgd", description="SGD with momentum, or AdamW.")
    lr: float = Field(default=0.01, gt=0, le=10, description="Learning rate after warm-up.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD's momentum; AdamW's first beta.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's second beta; SGD has none.")
    weight_decay: float = Field(default=1e-4, ge=0, le=1, description="Pull of the weights towards zero.")
    decay_norms_and_biases: bool = Field(
        default=False, description="Whether weight decay also pulls biases and normalisation layers."
    )
    warmup_steps: int = Field(default=100, ge=0, description="Steps over which the learning rate rises linearly.")
    warmup_start_factor: float = Field(
        default=0.001, gt=0, le=1, description="Learning rate of the first warm-up step, as a share of lr."
    )
    schedule: Literal["multi_step", "cosine", "constant"] = Field(
        default="multi_step", description="How the learning rate falls after warm-up."
    )
    milestones: tuple[float, ...] = Field(
        default=(0.7, 0.9), description="multi_step: shares of all steps (0..1, rising) at which lr falls."
    )
    decay_factor: float = Field(default=0.1, gt=0, le=1, description="multi_step: lr times this at each milestone.")
    final_factor: float = Field(default=0.0, ge=0, le=1, description="cosine: lr at the end, as a share of lr.")
    clip_norm: float | None = Field(
        default=10.0, gt=0, description="Gradients are scaled down to this L2 norm; none: no clipping."
    )
    max_gradient_norm: float = Field(
        default=1e6, gt=0, description="A gradient norm (before clipping) above this ends training as diverged."
    )
    ema_decay: float | None = Field(
        default=None, gt=0, lt=1, description="Decay a step of averaged weights, which are then evaluated and saved."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of every random draw.")
    checkpoint_every_steps: int = Field(default=500, ge=1, description="Steps between two checkpoints.")
    keep_checkpoints: int = Field(default=2, ge=1, description="How many of the newest checkpoints stay on disk.")
    evaluate_every_steps: int = Field(
        default=500, ge=1, description="Steps between two evaluations; the end is always evaluated."
    )
    best_metric: str = Field(
        default="AP50@all", min_length=1, description="Metric (higher is better) by which the best model is kept."
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads of the training process; none: torch's choice, recorded."
    )
    deterministic: bool = Field(
        default=True, description="On the CPU, use only algorithms that give the same bits in every run."
    )

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"exactly one of steps ({self.steps}) and epochs ({self.epochs}) must be set; set the other to null"
            )
        if list(self.milestones) != sorted(set(self.milestones)) or any(not 0 < m < 1 for m in self.milestones):
            raise ValueError(f"milestones {self.milestones} must rise and lie between 0 and 1 (shares of all steps)")
        if self.steps is not None and self.warmup_steps >= self.steps and self.schedule != "constant":
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps}), or the schedule never starts"
            )
        return self

    def total_steps(self, n_samples: int) -> int:
        """Optimiser steps of the whole run over ``n_samples`` (>= 1) training images."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None  # the validator sees to it
        return max(1, math.ceil(self.epochs * n_samples / self.batch_size))

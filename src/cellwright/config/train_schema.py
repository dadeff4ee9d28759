"""How a model is trained: what is drawn (`DataConfig`, `AugmentConfig`) and how the weights move (`TrainConfig`).

Every default stands here once. All classes are frozen and refuse unknown keys.
"""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DataConfig(BaseModel):
    """Which objects are trained on and how samples reach the loop; workers and cache never change a result."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    workers: int = Field(default=0, ge=0, le=256, description="Loading processes; 0 loads in the training process.")
    start_method: Literal["fork", "forkserver", "spawn"] | None = Field(
        default=None, description="How loading processes are started; none: as the platform does."
    )
    prefetch_batches: int = Field(default=2, ge=1, le=64, description="Batches that a loading process keeps ready.")
    cache_mb: int = Field(
        default=2048, ge=0, description="Memory for decoded images and labels, MiB over all workers; 0: no cache."
    )
    min_area_px: int = Field(
        default=1, ge=1, description="Smallest object trained on, pixels of the source image; smaller are left out."
    )
    max_area_px: int | None = Field(
        default=None, ge=1, description="Largest object trained on, pixels of the source image; none: no limit."
    )

    @model_validator(mode="after")
    def _areas_are_ordered(self) -> Self:
        if self.max_area_px is not None and self.max_area_px < self.min_area_px:
            raise ValueError(f"min_area_px ({self.min_area_px}) is above max_area_px ({self.max_area_px})")
        return self


class AugmentConfig(BaseModel):
    """Random changes of a training sample. Geometry first (one warp), then colour; each is off at its neutral value."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    crop_px: int | None = Field(
        default=None, ge=16, le=16384, description="Side of the square crop, pixels after scaling; none: whole image."
    )
    horizontal_flip: float = Field(default=0.5, ge=0, le=1, description="Probability of mirroring left and right.")
    vertical_flip: float = Field(default=0.0, ge=0, le=1, description="Probability of mirroring top and bottom.")
    quarter_turns: bool = Field(default=False, description="Turn by 0, 90, 180 or 270 degrees, equally likely.")
    scale_min: float = Field(default=1.0, ge=0.1, le=10, description="Smallest scale, a factor; drawn log-uniformly.")
    scale_max: float = Field(default=1.0, ge=0.1, le=10, description="Largest scale, a factor; drawn log-uniformly.")
    min_visible: float = Field(
        default=0.25, ge=0, le=1, description="Objects that keep a smaller share of their area in the crop are dropped."
    )
    brightness: float = Field(default=0.0, ge=0, lt=1, description="Intensities times 1 +- this, 0..1.")
    contrast: float = Field(default=0.0, ge=0, lt=1, description="Distance from the mean times 1 +- this, 0..1.")
    saturation: float = Field(default=0.0, ge=0, lt=1, description="Distance from grey times 1 +- this; RGB only.")
    hue: float = Field(default=0.0, ge=0, le=0.5, description="Colours turned by +- this, in turns; RGB only.")

    @model_validator(mode="after")
    def _scales_are_ordered(self) -> Self:
        if self.scale_max < self.scale_min:
            raise ValueError(f"scale_min ({self.scale_min}) is above scale_max ({self.scale_max})")
        return self


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

"""How the weights move: `TrainConfig`. Every default stands here once."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cellwright.config.schedule_schema import MultiStepSchedule, Schedule, Span, SpanField


class TrainConfig(BaseModel):
    """The optimiser, its schedule, when to stop, and what is kept on the way."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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

"""What a training sample is: which objects, how they reach the loop, and the random changes they go through.

Every default stands here once. All classes are frozen and refuse unknown keys.
"""

from __future__ import annotations

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

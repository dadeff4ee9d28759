"""The recipe's ``input:`` section: how an image as it was read becomes network input."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class InputConfig(BaseModel):
    """Channels, normalisation and size of what the network sees. It travels with the model."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    channels: int = Field(
        default=3, ge=1, le=64, description="Network channels; a grey image is repeated, alpha is dropped."
    )
    colour_order: Literal["rgb", "bgr"] = Field(default="rgb", description="Order of three colour channels.")
    normalise: Literal["fixed", "percentile"] = Field(
        default="fixed",
        description="fixed: (x / full range - mean) / std; percentile: each channel's range, once an image.",
    )
    full_range: float | None = Field(
        default=None, gt=0, description="fixed: the value that means 1.0; none: 255 or 65535 by dtype, 1 for float."
    )
    mean: tuple[float, ...] = Field(default=(0.485, 0.456, 0.406), description="Subtracted, per channel, 0..1 units.")
    std: tuple[float, ...] = Field(default=(0.229, 0.224, 0.225), description="Divided by, per channel, 0..1 units.")
    percentiles: tuple[float, float] = Field(default=(1.0, 99.8), description="percentile: these become 0 and 1, in %.")
    short_side: int | None = Field(
        default=None, ge=16, description="Short side is resized to this, px; none: scale alone."
    )
    max_side: int | None = Field(default=None, ge=16, description="Long side never exceeds this after short_side, px.")
    scale: float = Field(default=1.0, ge=0.1, le=8, description="Factor on the size where short_side is none.")
    diameter_px: float | None = Field(
        default=None,
        ge=4,
        le=512,
        description="Resized until an image's objects have this median diameter, px; none: whatever their size.",
    )

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(
                    f"input.{name} has {len(getattr(self, name))} values, input.channels is {self.channels}"
                )
        if min(self.std) <= 0:
            raise ValueError(f"input.std must be above 0, got {self.std}")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"input.percentiles must rise within 0..100, got {self.percentiles}")
        if self.max_side is not None and (self.short_side is None or self.max_side < self.short_side):
            raise ValueError(
                f"input.max_side ({self.max_side}) needs an input.short_side not above it ({self.short_side})"
            )
        if self.diameter_px is not None and (self.short_side is not None or self.scale != 1):
            raise ValueError(
                f"input.diameter_px ({self.diameter_px:g}) sets the size: leave out input.short_side "
                f"({self.short_side}) and input.scale ({self.scale:g})"
            )
        if self.colour_order == "bgr" and self.channels != 3:
            raise ValueError(f"input.colour_order bgr needs input.channels 3, got {self.channels}")
        return self

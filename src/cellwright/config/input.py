"""Network input and training samples: the recipe's sections ``input``, ``augment`` and ``data``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cellwright.config.section import Section


class InputConfig(Section):
    """Channels, normalisation and size of what the network sees. It travels with the model."""

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


class DataConfig(Section):
    """Which objects are trained on and how samples reach the loop; workers and cache never change a result."""

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
    repeat_factor_threshold: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Images with a class that a smaller share of the images holds come more often (LVIS); none: never.",
    )

    @model_validator(mode="after")
    def _areas_are_ordered(self) -> Self:
        if self.max_area_px is not None and self.max_area_px < self.min_area_px:
            raise ValueError(f"min_area_px ({self.min_area_px}) is above max_area_px ({self.max_area_px})")
        return self


class AugmentConfig(Section):
    """Random changes of a training sample. Geometry first (one warp), then colour; each is off at its neutral value.

    The order: cut from the source, resize, scale, crop, mirror, turn, affine map, elastic map, padding; gamma, stain,
    brightness and contrast and colour, inversion, blur, noise.
    """

    crop_relative: float | None = Field(
        default=None, gt=0, le=1, description="Share of each side cut out before resizing, 0..1; none: whole image."
    )
    crop_source_px: int | None = Field(
        default=None, ge=16, le=16384, description="Side of the square cut out before resizing, px; none: whole image."
    )
    short_sides_px: tuple[int, ...] = Field(
        default=(), description="Short side becomes one of these, px, equally likely; empty: as input says."
    )
    max_side_px: int | None = Field(
        default=None, ge=16, le=16384, description="Long side never exceeds this after short_sides_px, px; none: any."
    )
    scale_min: float = Field(default=1.0, ge=0.1, le=10, description="Smallest scale, a factor on the resized image.")
    scale_max: float = Field(default=1.0, ge=0.1, le=10, description="Largest scale, a factor on the resized image.")
    scale_draw: Literal["log_uniform", "uniform"] = Field(
        default="log_uniform", description="How the scale is drawn; large-scale jitter was published with uniform."
    )
    crop_px: int | None = Field(
        default=None, ge=16, le=16384, description="Side of the square crop, pixels after scaling; none: whole image."
    )
    pad_to_crop: bool = Field(
        default=False,
        description="Pad what is smaller than crop_px, right and below, so that all samples are that size.",
    )
    horizontal_flip: float = Field(default=0.5, ge=0, le=1, description="Probability of mirroring left and right.")
    vertical_flip: float = Field(default=0.0, ge=0, le=1, description="Probability of mirroring top and bottom.")
    quarter_turns: bool = Field(default=False, description="Turn by 0, 90, 180 or 270 degrees, equally likely.")
    rotation_deg: float = Field(default=0.0, ge=0, le=180, description="Turn about the centre by +- this, degrees.")
    shear_deg: float = Field(default=0.0, ge=0, le=45, description="Slant along x and along y by +- this, degrees.")
    translation: float = Field(default=0.0, ge=0, le=0.5, description="Shift along x and y by +- this share of a side.")
    elastic_amplitude_px: float = Field(
        default=0.0,
        ge=0,
        le=512,
        description="Elastic map: points move by up to +- this along x and y, px of the sample.",
    )
    elastic_smoothness_px: float = Field(
        default=64.0, ge=4, le=4096, description="Elastic map: distance of the grid points that move on their own, px."
    )
    min_visible: float = Field(
        default=0.25, ge=0, le=1, description="Objects that keep a smaller share of their area in the crop are dropped."
    )
    brightness: float = Field(default=0.0, ge=0, lt=1, description="Intensities times 1 +- this, 0..1.")
    contrast: float = Field(default=0.0, ge=0, lt=1, description="Distance from the mean times 1 +- this, 0..1.")
    gamma: float = Field(
        default=0.0, ge=0, le=4, description="Exponent from 1 / (1 + this) to 1 + this, over the image's own range."
    )
    saturation: float = Field(default=0.0, ge=0, lt=1, description="Distance from grey times 1 +- this; RGB only.")
    hue: float = Field(default=0.0, ge=0, le=0.5, description="Colours turned by +- this, in turns; RGB only.")
    stain: float = Field(
        default=0.0, ge=0, lt=1, description="Densities of haematoxylin, eosin and DAB times 1 +- this; RGB only."
    )
    stain_shift: float = Field(
        default=0.0, ge=0, le=1, description="Densities of the three stains (natural log) plus +- this; RGB only."
    )
    blur_px: float = Field(
        default=0.0, ge=0, le=32, description="Standard deviation of a Gaussian blur, 0 to this, px."
    )
    noise: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Standard deviation of Gaussian noise, 0 to this share of the image's range.",
    )
    greyscale: float = Field(default=0.0, ge=0, le=1, description="Probability of losing the colour; RGB only.")
    invert: float = Field(
        default=0.0, ge=0, le=1, description="Probability of turning dark and bright round in the image's own range."
    )

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.scale_max < self.scale_min:
            raise ValueError(f"scale_min ({self.scale_min}) is above scale_max ({self.scale_max})")
        if self.crop_relative is not None and self.crop_source_px is not None:
            raise ValueError(
                f"crop_relative ({self.crop_relative}) and crop_source_px ({self.crop_source_px}) cannot both be set"
            )
        if any(not 16 <= side <= 16384 for side in self.short_sides_px):
            raise ValueError(f"short_sides_px {self.short_sides_px} must lie in 16..16384")
        if self.max_side_px is not None and self.max_side_px < max(self.short_sides_px, default=self.max_side_px + 1):
            raise ValueError(
                f"max_side_px ({self.max_side_px}) needs short_sides_px that do not exceed it ({self.short_sides_px})"
            )
        if self.pad_to_crop and self.crop_px is None:
            raise ValueError("pad_to_crop (True) needs a crop_px (None)")
        if 4 * self.elastic_amplitude_px >= self.elastic_smoothness_px:
            raise ValueError(
                f"elastic_amplitude_px ({self.elastic_amplitude_px}) must be below a quarter of elastic_smoothness_px "
                f"({self.elastic_smoothness_px}), or the image would fold"
            )
        return self

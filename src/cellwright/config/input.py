"""Network input and training samples: the recipe's sections ``input``, ``data`` and ``augment``."""

from __future__ import annotations

from typing import Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from cellwright.config.section import Section

Resampling: TypeAlias = Literal["antialiased", "linear"]


class InputConfig(Section):
    """How an image becomes network input: channels, normalisation and size. Stored with the model."""

    channels: int = Field(
        default=3,
        ge=1,
        le=64,
        description="Channels of the network's input, their number or names; grey is repeated, alpha is dropped.",
    )
    channel: tuple[str | int, ...] = Field(
        default=(),
        description="Names or numbers of the channels to train on, as `channel` of train; empty: what leaves no doubt.",
    )
    colour_order: Literal["rgb", "bgr"] = Field(default="rgb", description="Order of three colour channels.")
    normalise: Literal["fixed", "percentile"] = Field(
        default="percentile",
        description="percentile: the range of each image or of its channels; fixed: (x / full_range - mean) / std, the "
        "default where one of these is given.",
    )
    full_range: float | None = Field(
        default=None,
        gt=0,
        description="fixed: the value that means 1.0. null: by data type and the values of the training images.",
    )
    mean: tuple[float, ...] = Field(
        default=(0.485, 0.456, 0.406), description="fixed: subtracted per channel, in units of full_range."
    )
    std: tuple[float, ...] = Field(
        default=(0.229, 0.224, 0.225), description="fixed: divided by per channel, in units of full_range."
    )
    percentiles: tuple[float, float] = Field(
        default=(1.0, 99.8), description="percentile: the percentiles that become 0 and 1, %."
    )
    percentiles_of: Literal["channel", "image"] | None = Field(
        default=None,
        description="percentile: channel takes those of each channel, for images of several signals; image takes those "
        "of all channels together, which keeps the colours of a stain. null: as the initial weights, else channel.",
    )
    background: Literal["any", "dark"] | None = Field(
        default=None,
        description="percentile: dark inverts images with a bright background, and lifts dim objects by a square root "
        "where the background has no noise, as after a gamma or a threshold. null: as the initial weights, else any.",
    )
    short_side: int | None = Field(
        default=None, ge=16, le=16384, description="Resize the short side to this, px. null: use scale instead."
    )
    max_side: int | None = Field(
        default=None, ge=16, le=65536, description="Upper limit of the long side after short_side, px."
    )
    scale: float = Field(default=1.0, ge=0.1, le=8, description="Factor on the image size if short_side is null.")
    diameter_px: float | None = Field(
        default=None,
        ge=4,
        le=512,
        description="Resize each image until its objects have this median diameter, px. null: do not.",
    )

    default_diameter_px: float | None = Field(
        default=None,
        gt=0,
        description="Median diameter of the objects, px of the image, where none is given. null: it is estimated.",
    )
    resampling: Resampling = Field(
        default="antialiased",
        description="How images are resized to diameter_px. linear: without antialiasing, rounded down (Cellpose).",
    )
    missing_channels: Literal["refused", "zeros"] = Field(
        default="refused",
        description="zeros: channels that an image lacks are 0, as Cellpose's second one; two see the mean of RGB.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """``channels: [DAPI, actin]`` is two channels with these names; mean, std and full_range mean fixed."""
        if not isinstance(values, dict):
            return values
        if isinstance(values.get("channel"), str | int):
            values = values | {"channel": (values["channel"],)}
        if isinstance(values.get("channels"), list | tuple):
            values = values | {"channels": len(values["channels"]), "channel": tuple(values["channels"])}
        if "normalise" not in values and {"mean", "std", "full_range"} & set(values):
            values = values | {"normalise": "fixed"}
        return values

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        for name in ("mean", "std") if self.normalise == "fixed" else ():
            if len(getattr(self, name)) != self.channels:
                raise ValueError(
                    f"input.{name} must have one value per channel, {self.channels} (input.channels), got "
                    f"{len(getattr(self, name))}; input.normalise percentile needs none"
                )
        # One channel is repeated for a network of three.
        if self.channel and len(self.channel) != self.channels and (len(self.channel), self.channels) != (1, 3):
            raise ValueError(
                f"input.channel names {len(self.channel)} ({', '.join(map(str, self.channel))}), but input.channels is "
                f"{self.channels}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"input.std must be above 0, got {self.std}")
        if self.background == "dark" and self.normalise == "fixed":
            raise ValueError("input.background dark needs input.normalise percentile")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"input.percentiles must increase within 0..100, got {self.percentiles}")
        if self.max_side is not None and (self.short_side is None or self.max_side < self.short_side):
            raise ValueError(
                f"input.max_side ({self.max_side}) needs an input.short_side not above it ({self.short_side})"
            )
        if self.diameter_px is not None and (self.short_side is not None or self.scale != 1):
            raise ValueError(
                f"input.diameter_px ({self.diameter_px:g}) already sets the size: omit input.short_side "
                f"({self.short_side}) and input.scale ({self.scale:g})"
            )
        if self.diameter_px is None and self.default_diameter_px is not None:
            raise ValueError("input.default_diameter_px has no effect without input.diameter_px")
        if self.colour_order == "bgr" and self.channels != 3:
            raise ValueError(f"input.colour_order bgr needs input.channels 3, got {self.channels}")
        return self


class DataConfig(Section):
    """Which objects are trained on and how samples are loaded. Workers and cache never change a result."""

    workers: int = Field(default=0, ge=0, le=256, description="Loading processes; 0 loads in the training process.")
    start_method: Literal["fork", "forkserver", "spawn"] | None = Field(
        default=None, description="How loading processes are started. null: the platform's default."
    )
    prefetch_batches: int = Field(default=2, ge=1, le=64, description="Batches that each loading process prepares.")
    cache_mb: int = Field(
        default=2048, ge=0, description="Memory for decoded images and labels, MiB for all workers; 0: no cache."
    )
    min_area_px: int = Field(
        default=1, ge=1, description="Minimum area of objects to train on, pixels of the source image."
    )
    max_area_px: int | None = Field(
        default=None,
        ge=1,
        description="Maximum area of objects to train on, pixels of the source image. null: no limit.",
    )
    repeat_factor_threshold: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Repeat images with a class that a smaller share of images contains (LVIS). null: never.",
    )

    @model_validator(mode="after")
    def _areas_are_ordered(self) -> Self:
        if self.max_area_px is not None and self.max_area_px < self.min_area_px:
            raise ValueError(
                f"data.min_area_px ({self.min_area_px}) must not exceed data.max_area_px ({self.max_area_px})"
            )
        return self


class AugmentConfig(Section):
    """Random changes of a training sample. Geometry is changed first (in one warp), then colour; each change is off at
    its neutral value.

    Applied in this order: crop of the source, resize, scale, crop, flips, rotation, affine map, elastic map, padding;
    gamma, stain, brightness, contrast and colour, inversion, blur, noise.
    """

    crop_relative: float | None = Field(
        default=None, gt=0, le=1, description="Share of each side that is cropped before resizing. null: whole image."
    )
    crop_source_px: int | None = Field(
        default=None, ge=16, le=16384, description="Side of the square crop before resizing, px. null: whole image."
    )
    short_sides_px: tuple[int, ...] = Field(
        default=(), description="Resize the short side to one of these at random, px; empty: as in input."
    )
    max_side_px: int | None = Field(
        default=None, ge=16, le=16384, description="Upper limit of the long side after short_sides_px, px. null: none."
    )
    scale_min: float = Field(default=1.0, ge=0.1, le=10, description="Minimum scale, a factor on the resized image.")
    scale_max: float = Field(default=1.0, ge=0.1, le=10, description="Maximum scale, a factor on the resized image.")
    scale_draw: Literal["log_uniform", "uniform"] = Field(
        default="log_uniform", description="Distribution of the scale; published large-scale jitter is uniform."
    )
    crop_px: int | None = Field(
        default=None, ge=16, le=16384, description="Side of the square crop after scaling, px. null: whole image."
    )
    pad_to_crop: bool = Field(
        default=False,
        description="Pad smaller samples to crop_px, at the right and at the bottom, so that all have that size.",
    )
    horizontal_flip: float = Field(default=0.5, ge=0, le=1, description="Probability of flipping left and right.")
    vertical_flip: float = Field(default=0.0, ge=0, le=1, description="Probability of flipping top and bottom.")
    quarter_turns: bool = Field(default=False, description="Rotate by 0, 90, 180 or 270 degrees, equally likely.")
    rotation_deg: float = Field(
        default=0.0, ge=0, le=180, description="Rotate about the centre by up to +- this, degrees."
    )
    shear_deg: float = Field(
        default=0.0, ge=0, le=45, description="Shear along x and along y by up to +- this, degrees."
    )
    translation: float = Field(
        default=0.0, ge=0, le=0.5, description="Shift along x and y by up to +- this share of the side."
    )
    elastic_amplitude_px: float = Field(
        default=0.0,
        ge=0,
        le=512,
        description="Elastic map: points move by up to +- this along x and y, px of the sample.",
    )
    elastic_smoothness_px: float = Field(
        default=64.0, ge=4, le=4096, description="Elastic map: distance between independently moved grid points, px."
    )
    min_visible: float = Field(
        default=0.25, ge=0, le=1, description="Drop objects that keep a smaller share of their area in the crop."
    )
    brightness: float = Field(default=0.0, ge=0, lt=1, description="Multiply intensities by 1 +- up to this.")
    contrast: float = Field(
        default=0.0, ge=0, lt=1, description="Multiply the distance to the mean by 1 +- up to this."
    )
    gamma: float = Field(
        default=0.0, ge=0, le=4, description="Exponent between 1 / (1 + this) and 1 + this, over the image's range."
    )
    saturation: float = Field(
        default=0.0, ge=0, lt=1, description="Multiply the distance to grey by 1 +- up to this; RGB only."
    )
    hue: float = Field(default=0.0, ge=0, le=0.5, description="Rotate hues by up to +- this, turns; RGB only.")
    stain: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Multiply the densities of haematoxylin, eosin and DAB by 1 +- up to this; RGB only.",
    )
    stain_shift: float = Field(
        default=0.0, ge=0, le=1, description="Add up to +- this to the three stain densities (natural log); RGB only."
    )
    blur_px: float = Field(default=0.0, ge=0, le=32, description="Maximum standard deviation of the Gaussian blur, px.")
    noise: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Maximum standard deviation of the Gaussian noise, as a share of the image's range.",
    )
    greyscale: float = Field(default=0.0, ge=0, le=1, description="Probability of removing the colour; RGB only.")
    invert: float = Field(
        default=0.0, ge=0, le=1, description="Probability of inverting intensities within the image's range."
    )
    renormalise: bool = Field(
        default=False,
        description="input.normalise percentile: take the percentiles of the changed image, as at prediction, with its "
        "rounding, and in half of the samples its limits; brightness and contrast are changed after that. false: "
        "change what is normalised.",
    )

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.scale_max < self.scale_min:
            raise ValueError(
                f"augment.scale_min ({self.scale_min}) must not exceed augment.scale_max ({self.scale_max})"
            )
        if self.crop_relative is not None and self.crop_source_px is not None:
            raise ValueError(
                f"augment.crop_relative ({self.crop_relative}) and augment.crop_source_px ({self.crop_source_px}) "
                "are mutually exclusive: set one of them"
            )
        if any(not 16 <= side <= 16384 for side in self.short_sides_px):
            raise ValueError(f"augment.short_sides_px must be within 16..16384, got {self.short_sides_px}")
        if self.max_side_px is not None and self.max_side_px < max(self.short_sides_px, default=self.max_side_px + 1):
            raise ValueError(
                f"augment.max_side_px ({self.max_side_px}) needs augment.short_sides_px not above it "
                f"({self.short_sides_px})"
            )
        if self.pad_to_crop and self.crop_px is None:
            raise ValueError("augment.pad_to_crop (true) needs augment.crop_px, the size to pad to")
        if 4 * self.elastic_amplitude_px >= self.elastic_smoothness_px:
            raise ValueError(
                f"augment.elastic_amplitude_px ({self.elastic_amplitude_px}) must be below a quarter of "
                f"augment.elastic_smoothness_px ({self.elastic_smoothness_px}), or the image would fold"
            )
        return self

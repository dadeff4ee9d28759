"""The recipe's ``model:`` section for the classical baseline, which needs no training.

The defaults were chosen on 12 VRDL and 60 DSB2018 training images by mean accuracy@0.5.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cellwright.config.section import Section

SignalKind = Literal["auto", "stain", "bright", "dark"]
ThresholdKind = Literal["auto", "otsu", "local"]


class ClassicalConfig(Section):
    """Threshold and watershed. Lengths are shares of the objects' diameter, so that they hold at any magnification."""

    kind: Literal["classical"] = Field(default="classical", description="The method.")
    diameter_px: float | None = Field(
        default=None, ge=3, le=2000, description="Typical diameter of an object, px; none: estimated for each image."
    )
    signal: SignalKind = Field(
        default="auto", description="stain: dye on a bright colour image; bright or dark: objects on the grey image."
    )
    threshold: ThresholdKind = Field(
        default="auto", description="otsu: one level an image; local: follows the surroundings; auto: local for stain."
    )
    smoothing: float = Field(default=0.06, ge=0, le=1, description="Sigma of the blur before the threshold, diameters.")
    local_sigma: float = Field(default=1.0, ge=0.25, le=20, description="local: sigma of the surroundings, diameters.")
    local_offset: float = Field(
        default=0.3, ge=-3, le=3, description="local: added level, standard deviations of the image."
    )
    peak_distance: float = Field(
        default=0.3, ge=0.05, le=2, description="Least distance of two objects' centres, diameters."
    )
    min_area_share: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Smaller objects are dropped: share of the area of a disc of the diameter.",
    )

"""The recipe's ``model`` section for the classical baseline, which needs no training.

The defaults were chosen on 12 VRDL and 60 DSB2018 training images by mean accuracy@0.5.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cellwright.config.section import Section

SignalKind = Literal["auto", "stain", "bright", "dark"]
ThresholdKind = Literal["auto", "otsu", "local"]


class ClassicalConfig(Section):
    """Threshold and watershed. Lengths are in object diameters, so they hold at any magnification."""

    kind: Literal["classical"] = Field(default="classical", description="The method.")
    diameter_px: float | None = Field(
        default=None, ge=3, le=2000, description="Typical diameter of an object, px. null: estimated for each image."
    )
    signal: SignalKind = Field(
        default="auto", description="stain: dye on a bright colour image; bright or dark: objects on the grey image."
    )
    threshold: ThresholdKind = Field(
        default="auto", description="otsu: one per image; local: relative to the surroundings; auto: local for stain."
    )
    smoothing: float = Field(default=0.06, ge=0, le=1, description="Sigma of the blur before the threshold, diameters.")
    local_sigma: float = Field(
        default=1.0, ge=0.25, le=20, description="local: sigma of the blur that gives the surroundings, diameters."
    )
    local_offset: float = Field(
        default=0.3, ge=-3, le=3, description="local: added to the threshold, standard deviations of the image."
    )
    peak_distance: float = Field(
        default=0.3, ge=0.05, le=2, description="Minimum distance between the centres of two objects, diameters."
    )
    min_area_share: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Drop objects below this share of the area of a disc of the typical diameter.",
    )

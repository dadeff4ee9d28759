"""The recipe's ``model`` section for the dense family: a U-Net, and what its output maps mean."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cellwright.config.section import Fraction, Section


class _Decoding(Section):
    """Options that all decoders share."""

    body_threshold: Fraction = Field(default=0.5, description="Minimum probability of a foreground pixel.")
    min_area_px: int = Field(default=1, ge=1, description="Smaller objects are dropped, pixels of the image.")
    max_hole_share: Fraction = Field(default=0.1, description="Holes up to this share of the object's area are filled.")


class SemanticTarget(_Decoding):
    """Foreground; its connected components are the objects, so touching objects merge."""

    kind: Literal["semantic"] = Field(default="semantic", description="What the maps mean.")


class WatershedTarget(_Decoding):
    """Body, border and distance maps, decoded by a seeded watershed (Caicedo et al. 2019)."""

    kind: Literal["watershed"] = Field(default="watershed", description="What the maps mean.")
    core_threshold: Fraction = Field(
        default=0.5, description="Seeds: minimum value of body minus border; applies together with core_distance."
    )
    core_distance: Fraction = Field(
        default=0.3, description="Seeds: minimum value of the distance map; applies together with core_threshold."
    )
    peak_distance: float = Field(
        default=0.9,
        ge=0,
        le=2,
        description="Value of the distance map that alone makes a pixel a seed; above 1: never.",
    )


class FlowTarget(_Decoding):
    """Body, and the flow to each object's centre; pixels that end at the same place are an object
    (Stringer et al. 2021)."""

    kind: Literal["flow"] = Field(default="flow", description="What the maps mean.")
    steps: int = Field(
        default=200, ge=1, le=5000, description="Steps, of at most 1 px, for which each pixel follows the flow."
    )
    outline_share: Fraction = Field(
        default=0.5,
        description="Body probability at an object's outline, as a share of the highest inside it.",
    )
    max_error: float | None = Field(
        default=0.4,
        ge=0,
        description="Drop objects whose flow differs more from the flow of their outline (Cellpose: flow_threshold). "
        "null: never.",
    )


class StarsTarget(Section):
    """Star-convex polygons: a probability, and the distance to the outline along rays (Schmidt et al. 2018)."""

    kind: Literal["stars"] = Field(default="stars", description="What the maps mean.")
    n_rays: int = Field(
        default=32, ge=4, le=256, multiple_of=4, description="Rays, and so vertices of a polygon; a multiple of 4."
    )
    probability_threshold: Fraction = Field(
        default=0.5, description="Candidates have a higher probability (StarDist: prob_thresh)."
    )
    max_overlap: Fraction = Field(
        default=0.4,
        description="Largest share of the smaller of two polygons that both may have in common (StarDist: nms_thresh).",
    )
    min_area_px: int = Field(default=1, ge=1, description="Smaller objects are dropped, pixels of the image.")


class UNetConfig(Section):
    """U-Net (Ronneberger et al. 2015) that predicts maps, from which a decoder derives objects."""

    kind: Literal["unet"] = Field(default="unet", description="The model family.")
    encoder: str | None = Field(
        default=None,
        pattern=r"^timm:[\w.]+$",
        description="timm:NAME: a timm network as encoder (extra timm). null: the U-Net's own.",
    )
    width: int = Field(
        default=32, ge=4, le=512, description="Channels at full resolution; doubled at each halving of the resolution."
    )
    depth: int = Field(default=4, ge=1, le=7, description="How often the resolution is halved.")
    style: Literal["plain", "residual"] = Field(
        default="plain", description="plain: blocks as in the paper; residual: with shortcuts."
    )
    norm: Literal["none", "batch_norm"] = Field(default="batch_norm", description="Normalisation of the convolutions.")
    skips: Literal["plain", "nested"] = Field(
        default="plain", description="plain: as in the paper; nested: U-Net++ (Zhou et al. 2018), which can be pruned."
    )
    deep_supervision: bool = Field(
        default=False,
        description="In training, coarser decoder stages predict the maps too; with nested skips, all columns.",
    )
    target: Annotated[SemanticTarget | WatershedTarget | FlowTarget | StarsTarget, Field(discriminator="kind")] = Field(
        default=FlowTarget(), description="What the maps mean, and how they are decoded into objects."
    )
    cross_entropy_weight: float = Field(
        default=1.0, ge=0, description="Weight of the cross-entropy of body, border and probability."
    )
    dice_weight: float = Field(
        default=1.0, ge=0, description="Weight of the soft Dice loss of body, border and probability."
    )
    flow_weight: float = Field(default=5.0, ge=0, description="Weight of the squared error of the flows.")
    distance_weight: float = Field(default=1.0, ge=0, description="Weight of the absolute error of the distance map.")
    ray_weight: float = Field(
        default=0.2,
        ge=0,
        description="Weight of the absolute error of the rays, px; pixels count by their probability.",
    )
    body_loss: Literal["cross_entropy", "focal"] = Field(
        default="cross_entropy", description="Pixel loss of body and border, times cross_entropy_weight."
    )
    focal_gamma: float = Field(
        default=2.0, ge=0, le=10, description="How strongly confident pixels are down-weighted; 0: cross-entropy."
    )
    focal_alpha: Fraction | None = Field(
        default=None, description="Weight of foreground in the focal loss; background gets 1 - this. null: both 1."
    )
    border_weight: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Extra weight of body (or probability) between two objects; 10 in the paper.",
    )
    border_sigma_px: float = Field(
        default=5.0,
        gt=0,
        le=100,
        description="How fast border_weight decreases with the distances to both objects, network pixels.",
    )
    init: str | None = Field(
        default=None,
        description="Initial weights: nuclei, a model or run folder of the same network, or timm:NAME (encoder only). "
        "null: random.",
    )
    init_fresh: tuple[Literal["maps"], ...] = Field(
        default=(), description="maps: the last layers start at random, for another target or other classes than init."
    )

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.body_loss != "focal" and (self.focal_alpha is not None or self.focal_gamma != 2.0):
            raise ValueError("focal_gamma and focal_alpha have no effect without body_loss: focal")
        if self.border_weight == 0 and self.border_sigma_px != 5.0:
            raise ValueError("border_sigma_px has no effect without border_weight, 10 in the paper")
        has_stars = self.target.kind == "stars"
        if has_stars and self.body_loss != "cross_entropy":
            raise ValueError("body_loss has no effect with target stars, which has no body")
        if not has_stars and self.ray_weight != 0.2:
            raise ValueError("ray_weight has no effect without target stars")
        return self

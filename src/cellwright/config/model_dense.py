"""The recipe's ``model`` section for the dense family: a U-Net, and what its output maps mean.

The U-Net is our own, or has the layers of another tool's network, so that its weights can be used.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

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
    overlap: Literal["pixels", "polygons"] = Field(
        default="pixels",
        description="max_overlap is a share of pixels, or of areas of polygons with vertices rounded down (StarDist).",
    )
    grid: int = Field(default=1, ge=1, le=64, description="Only every so many pixels are candidates, y and x.")
    border_px: int = Field(
        default=0, ge=0, le=1024, description="Candidates are at least this far from the edge of the image."
    )


class CellposeTarget(Section):
    """The maps of a flow target, decoded as Cellpose 3 does; options have its names (Stringer and Pachitariu 2025)."""

    kind: Literal["cellpose"] = Field(default="cellpose", description="What the maps mean.")
    cellprob_threshold: float = Field(
        default=0.0,
        ge=-100,
        le=100,
        description="Pixels of objects have a higher cellprob, a logit: 0 is probability 0.5.",
    )
    flow_threshold: float | None = Field(
        default=0.4,
        ge=0,
        description="Drop objects whose flow differs more from the flow of their outline. null or 0: never.",
    )
    niter: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Steps for which each pixel follows the flow. null: 200 times the diameter over input.diameter_px.",
    )
    min_size: int = Field(default=15, ge=0, description="Smaller objects are dropped, pixels of the image.")
    max_size_fraction: Fraction = Field(
        default=0.4, description="Objects of a larger share of the image are dropped, before holes are filled."
    )


AnyTarget = Annotated[
    SemanticTarget | WatershedTarget | FlowTarget | StarsTarget | CellposeTarget, Field(discriminator="kind")
]


class DenseConfig(Section):
    """What all networks of the dense family share: the target, and its losses in training."""

    target: AnyTarget = Field(
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
        description="Initial weights: nuclei, a model or run folder of the same network, timm:NAME (encoder only), or "
        "those of another tool, cellpose:FILE or stardist:FOLDER. null: random.",
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


class UNetConfig(DenseConfig):
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

    @model_validator(mode="after")
    def _target_is_of_a_unet(self) -> Self:
        if self.target.kind == "cellpose":
            raise ValueError("target cellpose needs model.kind cellpose; flow has the same maps")
        return self


class CellposeConfig(DenseConfig):
    """The network of Cellpose 3: a residual U-Net with a style vector, which sees tiles of 224 px."""

    kind: Literal["cellpose"] = Field(default="cellpose", description="The model family.")
    width: int = Field(default=32, ge=2, le=512, description="Channels at full resolution; 32 in Cellpose.")
    target: AnyTarget = Field(
        default=CellposeTarget(), description="cellpose: decoded as Cellpose does; flow: the same maps, decoded by us."
    )
    dice_weight: float = Field(
        default=0.0, ge=0, description="Weight of the soft Dice loss of body, border and probability."
    )
    flow_weight: float = Field(default=6.25, ge=0, description="Weight of the squared error of the flows.")

    @model_validator(mode="after")
    def _target_has_flows(self) -> Self:
        if self.target.kind not in ("cellpose", "flow"):
            raise ValueError(
                f"the maps of model.kind cellpose are flows: target cellpose or flow, not {self.target.kind}"
            )
        return self


class StarDistConfig(DenseConfig):
    """The network of StarDist 2-D: a U-Net on a grid of every second, fourth, ... pixel."""

    kind: Literal["stardist"] = Field(default="stardist", description="The model family.")
    width: int = Field(default=32, ge=2, le=512, description="Channels on the grid; doubled at each further halving.")
    depth: int = Field(default=3, ge=1, le=7, description="How often the resolution is halved after the grid.")
    convs: int = Field(default=2, ge=1, le=8, description="Convolutions at each resolution, on the way down and up.")
    grid: Literal[1, 2, 4, 8, 16] = Field(default=2, description="Pixels between the points of the grid.")
    features: int = Field(default=128, ge=0, le=1024, description="Channels before the maps. 0: those of the U-Net.")
    target: AnyTarget = Field(
        default=StarsTarget(), description="What the maps mean, and how they are decoded into objects."
    )
    dice_weight: float = Field(
        default=0.0, ge=0, description="Weight of the soft Dice loss of body, border and probability."
    )

    @model_validator(mode="after")
    def _target_has_rays(self) -> Self:
        if self.target.kind != "stars":
            raise ValueError(f"the maps of model.kind stardist are rays: target stars, not {self.target.kind}")
        return self


AnyDenseConfig: TypeAlias = UNetConfig | CellposeConfig | StarDistConfig

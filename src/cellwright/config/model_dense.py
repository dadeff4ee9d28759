"""The recipe's ``model:`` section for the dense family: a U-Net, and what its maps mean."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cellwright.config.section import Fraction, Section


class _Decoding(Section):
    """What the decoders share."""

    body_threshold: Fraction = Field(default=0.5, description="Probability from which a pixel is foreground.")
    min_area_px: int = Field(default=1, ge=1, description="Smaller objects are dropped, pixels of the image.")
    max_hole_share: Fraction = Field(default=0.1, description="Holes up to this share of the object's area are filled.")


class SemanticTarget(_Decoding):
    """Foreground; its connected components are the objects. Touching objects merge."""

    kind: Literal["semantic"] = Field(default="semantic", description="What the maps are.")


class WatershedTarget(_Decoding):
    """Body, border and distance maps; a watershed from seeds (Caicedo et al. 2019)."""

    kind: Literal["watershed"] = Field(default="watershed", description="What the maps are.")
    core_threshold: Fraction = Field(default=0.5, description="Body minus border from which a pixel may be in a seed.")
    core_distance: Fraction = Field(default=0.3, description="Distance map from which it then is.")
    peak_distance: float = Field(
        default=0.9, ge=0, le=2, description="Distance map from which a pixel is in a seed anyhow; above 1 for never."
    )


class FlowTarget(_Decoding):
    """Body and the flow to each object's centre; pixels that flow together are an object (Stringer et al. 2021)."""

    kind: Literal["flow"] = Field(default="flow", description="What the maps are.")
    steps: int = Field(default=200, ge=1, le=5000, description="Steps of at most 1 px that a pixel follows the flow.")
    outline_share: Fraction = Field(
        default=0.5,
        description="Share of an object's highest body probability at which its outline lies.",
    )
    max_error: float | None = Field(
        default=0.4, ge=0, description="Objects whose flow differs more from their outline's are dropped; none: never."
    )


class UNetConfig(Section):
    """U-Net (Ronneberger et al. 2015) that predicts maps, of which a decoder makes objects."""

    kind: Literal["unet"] = Field(default="unet", description="The model family.")
    encoder: str | None = Field(
        default=None,
        pattern=r"^timm:[\w.]+$",
        description="timm:NAME: a network of timm does the halvings (extra timm); null: the U-Net's own.",
    )
    width: int = Field(default=32, ge=4, le=512, description="Channels at full resolution; double with each halving.")
    depth: int = Field(default=4, ge=1, le=7, description="Halvings of the resolution.")
    style: Literal["plain", "residual"] = Field(default="plain", description="Blocks of the paper, or residual ones.")
    norm: Literal["none", "batch_norm"] = Field(default="batch_norm", description="Normalisation of convolutions.")
    deep_supervision: bool = Field(default=False, description="Coarser decoder stages learn the maps too.")
    target: Annotated[SemanticTarget | WatershedTarget | FlowTarget, Field(discriminator="kind")] = Field(
        default=FlowTarget(), description="What the maps are, and how objects are made of them."
    )
    cross_entropy_weight: float = Field(default=1.0, ge=0, description="Weight of body's and border's cross-entropy.")
    dice_weight: float = Field(default=1.0, ge=0, description="Weight of their soft Dice loss.")
    flow_weight: float = Field(default=5.0, ge=0, description="Weight of the flows' squared error.")
    distance_weight: float = Field(default=1.0, ge=0, description="Weight of the distance map's absolute error.")
    body_loss: Literal["cross_entropy", "focal"] = Field(
        default="cross_entropy", description="What body's and border's pixels lose, times cross_entropy_weight."
    )
    focal_gamma: float = Field(
        default=2.0, ge=0, le=10, description="How much less pixels count that are sure; 0: cross-entropy."
    )
    focal_alpha: Fraction | None = Field(
        default=None, description="Weight of foreground in the focal loss, 1 less it that of background; null: both 1."
    )
    border_weight: float = Field(
        default=0.0, ge=0, le=1000, description="How much more body's pixels between two objects count; the paper: 10."
    )
    border_sigma_px: float = Field(
        default=5.0, gt=0, le=100, description="Over which sum of distances to both this falls off, network pixels."
    )
    init: str | None = Field(
        default=None,
        description="nuclei, or a model or run folder of the same network, to start from; timm:NAME: encoder only.",
    )
    init_fresh: tuple[Literal["maps"], ...] = Field(
        default=(), description="maps: the last layers start at random, where target or classes differ."
    )

    @model_validator(mode="after")
    def _no_option_is_idle(self) -> Self:
        if self.body_loss != "focal" and (self.focal_alpha is not None or self.focal_gamma != 2.0):
            raise ValueError("focal_gamma and focal_alpha do nothing without body_loss: focal")
        if self.border_weight == 0 and self.border_sigma_px != 5.0:
            raise ValueError("border_sigma_px does nothing without border_weight, 10 in the paper")
        return self

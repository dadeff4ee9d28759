"""The recipe's ``model.backbone`` section."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Norm = Literal["batch_norm", "frozen_batch_norm", "group_norm"]
DeformableStage = Literal[2, 3, 4, 5]
BASIC_BLOCK_DEPTHS = (18, 34)


class BackboneConfig(BaseModel):
    """ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017). Stage outputs have stride 4, 8, 16, 32 px.

    A bottleneck of stage s has ``groups * group_width * 2**(s - 2)`` channels inside and ``4 * width * 2**(s - 2)``
    outside. ResNeXt 32x8d is groups 32, group_width 8.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    depth: Literal[18, 34, 50, 101, 152] = Field(
        default=50, description="Layers. 18 and 34 use basic blocks, 50, 101 and 152 bottlenecks."
    )
    width: Positive = Field(
        default=64, description="Channels of res2: as many in basic blocks, 4 times as many in bottlenecks."
    )
    groups: Positive = Field(default=1, description="Groups of the bottlenecks' 3x3 convolutions (ResNeXt).")
    group_width: Positive | None = Field(
        default=None, description="Channels of such a group in res2; doubles each stage. None: width / groups."
    )
    stem_channels: Positive | None = Field(
        default=None, description="Channels of the 7x7 stem. None: the same as width."
    )
    norm: Norm = Field(
        default="batch_norm", description="Normalisation of every convolution. Frozen: constants, never updated."
    )
    norm_eps: float = Field(
        default=1e-5, ge=0.0, le=0.1, description="Added to the variance. torchvision's COCO weights: 0."
    )
    stride_in_1x1: bool | None = Field(
        default=None, description="Bottlenecks stride in the 1x1. None: from conventions."
    )
    deformable_stages: tuple[DeformableStage, ...] = Field(
        default=(), description="Stages whose 3x3 convolutions are deformable (Dai et al. 2017); bottlenecks only."
    )
    deformable_modulated: bool = Field(
        default=False, description="Deformable samples are weighted too (version 2, Zhu et al. 2019)."
    )
    deformable_groups: Positive = Field(
        default=1, description="Parts of the channels that have their own deformable offsets."
    )
    frozen_stages: int = Field(
        default=0, ge=0, le=5, description="Stages not trained, from the stem (1) to res5 (5); 0 is none."
    )

    @property
    def inner_width(self) -> int:
        """Channels of res2's 3x3 convolutions."""
        return self.width if self.group_width is None else self.groups * self.group_width

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        if self.group_width is None and self.width % self.groups:
            raise ValueError(
                f"backbone.width = {self.width} does not divide into backbone.groups = {self.groups}: "
                "set backbone.group_width, the channels of a group (8 in ResNeXt 32x8d)"
            )
        if self.depth in BASIC_BLOCK_DEPTHS:
            wanted = {
                "groups": self.groups > 1,
                "group_width": self.inner_width != self.width,
                "deformable_stages": bool(self.deformable_stages),
            }
            for name in (name for name, asked in wanted.items() if asked):
                raise ValueError(
                    f"backbone.{name} = {getattr(self, name)} needs bottlenecks, but backbone.depth = {self.depth} "
                    "has basic blocks: use depth 50, 101 or 152"
                )
        return self

    @model_validator(mode="after")
    def _deformable_fits(self) -> Self:
        stages = self.deformable_stages
        if len(set(stages)) < len(stages):
            raise ValueError(f"backbone.deformable_stages names a stage twice: {list(stages)}")
        if not stages and (self.deformable_modulated or self.deformable_groups > 1):
            raise ValueError(
                "backbone.deformable_modulated and backbone.deformable_groups do nothing without "
                "backbone.deformable_stages: name stages, such as [3, 4, 5]"
            )
        channels = self.inner_width * 2 ** (min(stages, default=2) - 2)
        if channels % self.deformable_groups:
            raise ValueError(
                f"backbone.deformable_groups = {self.deformable_groups} must divide the {channels} channels of "
                f"res{min(stages)}'s 3x3 convolutions (backbone.groups * backbone.group_width, doubled each stage)"
            )
        return self

    @model_validator(mode="after")
    def _group_norm_divides(self) -> Self:
        if self.norm == "group_norm":
            widths = {
                "width": self.width,
                "stem_channels": self.stem_channels or self.width,
                "groups * backbone.group_width": self.inner_width,
            }
            for name, channels in widths.items():
                if channels % 8:
                    raise ValueError(
                        f"backbone.norm is group_norm: backbone.{name} must be a multiple of 8, got {channels}"
                    )
        return self

"""The recipe's ``model.backbone`` section."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Norm = Literal["batch_norm", "frozen_batch_norm", "group_norm"]


class BackboneConfig(BaseModel):
    """ResNet (He et al. 2016). Stage outputs have stride 4, 8, 16, 32 px."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    depth: Literal[18, 34, 50, 101] = Field(
        default=50, description="Layers. 18 and 34 use basic blocks, 50 and 101 bottlenecks."
    )
    width: Positive = Field(
        default=64, description="Channels of the 3x3 convolutions in the first stage; doubles each stage."
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
    frozen_stages: int = Field(
        default=0, ge=0, le=5, description="Stages not trained, from the stem (1) to res5 (5); 0 is none."
    )

    @model_validator(mode="after")
    def _group_norm_divides(self) -> Self:
        if self.norm == "group_norm":
            for name, channels in (("width", self.width), ("stem_channels", self.stem_channels or self.width)):
                if channels % 8:
                    raise ValueError(
                        f"backbone.norm is group_norm: backbone.{name} must be a multiple of 8, got {channels}"
                    )
        return self

"""The recipe's sections for regions: how boxes are pooled, and the heads for boxes, masks, points and mask quality."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cellwright.config.conventions import MaskTarget, PasteRule

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Pixels = Annotated[float, Field(gt=0.0)]
HeadNorm = Literal["none", "batch_norm", "group_norm"]
DeltaWeights = tuple[Pixels, Pixels, Pixels, Pixels]


class Section(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RegionConfig(Section):
    """How features of a box are pooled (RoIAlign, He et al. 2017), for every head."""

    aligned: bool | None = Field(default=None, description="Half-pixel shift. None: from conventions.")
    sampling_ratio: int | None = Field(
        default=None,
        ge=0,
        le=16,
        description="Samples an output cell and axis; 0 adapts to the box. None: from conventions.",
    )
    ignore_ioa: Fraction = Field(
        default=0.5,
        description="Anchors and boxes with at least this part of their area inside an ignored region are not used.",
    )
    chunk: Positive = Field(
        default=1000, description="Boxes that go through a head at once at inference; bounds memory."
    )


class PyramidRegionConfig(RegionConfig):
    """The same over a feature pyramid: which level a box is pooled from (Lin et al. 2017, equation 1)."""

    canonical_box_px: Pixels = Field(
        default=224.0, description="Square root of the area that belongs to canonical_level, px."
    )
    canonical_level: int = Field(default=4, ge=1, le=6, description="Pyramid level of boxes of canonical_box_px.")


class _BoxRules(Section):
    """What box heads of every kind share: which regions are learnt from, and which boxes become detections."""

    samples_per_image: Positive = Field(default=512, description="Boxes drawn for the losses, an image.")
    positive_fraction: Fraction = Field(default=0.25, description="At most this part of them holds an object.")
    smooth_l1_beta: float | None = Field(
        default=None, ge=0.0, description="Smooth L1's corner; 0 is L1. None: from conventions."
    )
    score_threshold: Fraction = Field(default=0.05, description="Detections must score more than this.")
    nms_iou: Fraction = Field(
        default=0.5, description="Detections of a class that overlap a better one by more are dropped."
    )
    detections_per_image: Positive = Field(default=100, description="Best detections kept, an image.")
    min_box_px: float | None = Field(
        default=None, ge=0.0, description="Smallest side of a detection, px. None: from conventions."
    )
    class_weight: float = Field(default=1.0, ge=0.0, description="Weight of the classification loss.")
    box_weight: float = Field(default=1.0, ge=0.0, description="Weight of the box loss.")
    class_weights: tuple[Annotated[float, Field(gt=0.0)], ...] | None = Field(
        default=None,
        description="Weight of each class in the classification loss, in the order of the classes, background last; "
        "None: all 1.",
    )


class _SingleStage(_BoxRules):
    """A head that looks once."""

    class_agnostic: bool = Field(default=False, description="One box for all classes instead of one for each.")
    delta_weights: DeltaWeights = Field(
        default=(10.0, 10.0, 5.0, 5.0), description="Factors of the coded dx, dy, dw, dh."
    )
    foreground_iou: Fraction = Field(default=0.5, description="Boxes with at least this IoU with an object hold it.")
    background_iou: Fraction = Field(
        default=0.5, description="Boxes with less than this IoU with every object are background."
    )

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Self:
        if self.background_iou > self.foreground_iou:
            raise ValueError("box_head.background_iou must not exceed box_head.foreground_iou")
        return self


class _BoxLayers(Section):
    """Layers of a box head over pyramid features."""

    resolution: Positive = Field(default=7, description="Side of the pooled features, cells.")
    pooled_levels: Positive | None = Field(
        default=None, description="Finest pyramid levels that boxes are pooled from. None: all."
    )
    convs: int = Field(default=0, ge=0, le=8, description="3x3 convolutions before the fully connected layers.")
    conv_channels: Positive = Field(default=256, description="Their channels.")
    fcs: int = Field(default=2, ge=0, le=4, description="Fully connected layers.")
    fc_channels: Positive = Field(default=1024, description="Their channels.")
    norm: HeadNorm = Field(default="none", description="Normalisation of the convolutions.")

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.convs:
            check_group_norm(self.norm, "box_head.conv_channels", self.conv_channels)
        return self


class BoxHeadConfig(_SingleStage, _BoxLayers):
    """Box classifier and regressor over a feature pyramid (Lin et al. 2017)."""


class C4BoxHeadConfig(_SingleStage):
    """Box classifier and regressor on the mean of res5's features (He et al. 2017, figure 4 left)."""

    resolution: Positive = Field(default=14, description="Side of the pooled res4 features, cells; res5 halves it.")


class CascadeBoxHeadConfig(_BoxRules, _BoxLayers):
    """Box heads in a row, each on the class-agnostic boxes of the one before (Cai & Vasconcelos 2018)."""

    stage_ious: tuple[Fraction, ...] = Field(
        default=(0.5, 0.6, 0.7),
        min_length=2,
        description="Stage by stage: boxes with at least this IoU with an object hold it, all others are background.",
    )
    stage_delta_weights: tuple[DeltaWeights, ...] = Field(
        default=((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
        description="Stage by stage: factors of the coded dx, dy, dw, dh.",
    )

    @model_validator(mode="after")
    def _one_entry_a_stage(self) -> Self:
        if len(self.stage_ious) != len(self.stage_delta_weights):
            raise ValueError(
                f"box_head.stage_ious has {len(self.stage_ious)} stages, box_head.stage_delta_weights "
                f"{len(self.stage_delta_weights)}: one entry a stage in both"
            )
        return self


class _MaskRules(Section):
    """What mask heads of every kind share."""

    target: MaskTarget | None = Field(
        default=None, description="Soft or binary training targets. None: from conventions."
    )
    target_aligned: bool | None = Field(
        default=None, description="Half-pixel shift of the targets. None: from conventions."
    )
    paste: PasteRule | None = Field(
        default=None, description="Resampling of masks into the image. None: from conventions."
    )
    threshold: Fraction = Field(default=0.5, description="A pixel belongs to the object from this probability on.")
    weight: float = Field(default=1.0, ge=0.0, description="Weight of the mask loss.")


class MaskHeadConfig(_MaskRules):
    """Fully convolutional mask predictor; its masks have twice the pooled resolution."""

    resolution: Positive = Field(default=14, description="Side of the pooled features, cells.")
    convs: int = Field(default=4, ge=0, le=8, description="3x3 convolutions before the upsampling.")
    channels: Positive = Field(default=256, description="Channels of the convolutions and of the upsampling.")
    norm: HeadNorm = Field(default="none", description="Normalisation of the convolutions.")
    class_agnostic: bool = Field(default=False, description="One mask for all classes instead of one for each.")

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.convs:
            check_group_norm(self.norm, "mask_head.channels", self.channels)
        return self


class C4MaskHeadConfig(MaskHeadConfig):
    """Mask predictor on res5's features; res5 halves the pooled resolution and the predictor doubles it again."""

    resolution: Positive = Field(
        default=14,
        description="Side of the pooled res4 features, cells; as box_head.resolution, res5 runs once for both.",
    )
    convs: int = Field(default=0, ge=0, le=8, description="3x3 convolutions before the upsampling.")


class CoarseMaskConfig(_MaskRules):
    """PointRend's coarse head: a 7 x 7 mask from a 14 x 14 grid on the finest level (Kirillov et al. 2020)."""

    resolution: Positive = Field(
        default=14, multiple_of=2, description="Side of the grid that is sampled; masks have half."
    )
    channels: Positive = Field(
        default=256, description="Channels of its convolutions; a 1x1 reduces the pyramid's where they are fewer."
    )
    fcs: Positive = Field(default=2, le=4, description="Fully connected layers.")
    fc_channels: Positive = Field(default=1024, description="Their channels.")


class PointHeadConfig(Section):
    """PointRend's point head: a class's logit at any point, from the finest level and the coarse mask."""

    fcs: Positive = Field(default=3, le=8, description="Layers, each a 1x1 over the points.")
    channels: Positive = Field(default=256, description="Their channels.")
    train_points: Positive = Field(default=196, description="Points an object that the loss looks at.")
    oversample: float = Field(default=3.0, ge=1.0, description="Candidates drawn, as a multiple of train_points.")
    uncertain_fraction: Fraction = Field(
        default=0.75, description="Part of train_points that are the most uncertain candidates; the rest is uniform."
    )
    subdivisions: int = Field(
        default=5,
        ge=0,
        le=8,
        description="Doublings of the coarse mask; those that need no choice of points are dense.",
    )
    test_points: Positive = Field(default=784, description="Most uncertain points computed anew after each doubling.")
    weight: float = Field(default=1.0, ge=0.0, description="Weight of the point loss.")


class MaskScoringConfig(Section):
    """A head that predicts each mask's IoU with its object; score = class x IoU (Huang et al. 2019)."""

    convs: Positive = Field(default=4, le=8, description="3x3 convolutions, the last of stride 2.")
    channels: Positive = Field(default=256, description="Their channels.")
    fcs: int = Field(default=2, ge=0, le=4, description="Fully connected layers before the predictor.")
    fc_channels: Positive = Field(default=1024, description="Their channels.")
    weight: float = Field(default=1.0, ge=0.0, description="Weight of its squared error.")


def check_group_norm(norm: str, field: str, channels: int) -> None:
    """Raise ``ValueError`` naming ``field`` (``section.field``) where group norm cannot divide its channels."""
    if norm == "group_norm" and channels % 8:
        section = field.partition(".")[0]
        raise ValueError(f"{section}.norm is group_norm: {field} must be a multiple of 8, got {channels}")

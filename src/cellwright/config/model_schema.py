"""The recipe's ``model:`` section for Mask R-CNN. Default widths and thresholds are the papers'.

Fields whose default is None follow the recipe's ``conventions`` key: ``MaskRCNNConfig.resolved(conventions)`` fills
them in, and the resolved section is what is saved beside every result.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cellwright.config.backbone_schema import BackboneConfig
from cellwright.config.conventions import Conventions, LossNormaliser, MaskTarget, PasteRule

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Pixels = Annotated[float, Field(gt=0.0)]
HeadNorm = Literal["none", "batch_norm", "group_norm"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FPNConfig(_Section):
    """Feature pyramid (Lin et al. 2017), levels ``first_level``..6; level l has a stride of 2**l px."""

    channels: Positive = Field(default=256, description="Channels of every level.")
    first_level: Literal[1, 2] = Field(
        default=2, description="Finest level: 2 has stride 4 px; 1 has stride 2 px, for tiny objects."
    )
    norm: HeadNorm = Field(default="none", description="Normalisation of the lateral and output convolutions.")

    @property
    def n_levels(self) -> int:
        return 7 - self.first_level


class AnchorConfig(_Section):
    """Reference boxes of the proposal network, centred at multiples of the level's stride."""

    sizes_px: tuple[tuple[Pixels, ...], ...] = Field(
        default=((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
        description="Square root of the anchors' area, px: one tuple a pyramid level, all of one length.",
    )
    ratios: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(
        default=(0.5, 1.0, 2.0), min_length=1, description="Height over width."
    )
    rounded: bool | None = Field(
        default=None, description="Round cell anchors to whole pixels. None: from conventions."
    )

    @model_validator(mode="after")
    def _one_head_fits_every_level(self) -> Self:
        lengths = {len(sizes) for sizes in self.sizes_px}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError("anchors.sizes_px: every level needs the same number of sizes, at least one")
        return self


class RPNConfig(_Section):
    """Region proposal network (Ren et al. 2015)."""

    convs: Positive = Field(default=1, description="3x3 convolutions before the two predictors.")
    foreground_iou: Fraction = Field(
        default=0.7, description="Anchors with at least this IoU with an object are positive."
    )
    background_iou: Fraction = Field(
        default=0.3, description="Anchors with less than this IoU with every object are negative."
    )
    samples_per_image: Positive = Field(default=256, description="Anchors drawn for the loss, an image.")
    positive_fraction: Fraction = Field(default=0.5, description="At most this part of them is positive.")
    pre_nms_train: Positive | None = Field(
        default=None, description="Best anchors a level before NMS. None: from conventions."
    )
    pre_nms_test: Positive | None = Field(default=None, description="The same at inference. None: from conventions.")
    post_nms_train: Positive | None = Field(
        default=None, description="Proposals an image after NMS. None: from conventions."
    )
    post_nms_test: Positive | None = Field(default=None, description="The same at inference. None: from conventions.")
    nms_iou: Fraction = Field(
        default=0.7, description="Proposals of a level that overlap a better one by more are dropped."
    )
    min_box_px: float | None = Field(
        default=None, ge=0.0, description="Smallest side of a proposal, px. None: from conventions."
    )
    smooth_l1_beta: float | None = Field(
        default=None, ge=0.0, description="Smooth L1's corner; 0 is L1. None: from conventions."
    )
    loss_normaliser: LossNormaliser | None = Field(
        default=None, description="Divide by anchors sampled, or by the sample size asked for. None: from conventions."
    )
    class_weight: float = Field(default=1.0, ge=0.0, description="Weight of the objectness loss.")
    box_weight: float = Field(default=1.0, ge=0.0, description="Weight of the box loss.")

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Self:
        if self.background_iou > self.foreground_iou:
            raise ValueError("rpn.background_iou must not exceed rpn.foreground_iou")
        return self


class RoIConfig(_Section):
    """How features of a box are pooled (RoIAlign, He et al. 2017), for both heads."""

    aligned: bool | None = Field(default=None, description="Half-pixel shift. None: from conventions.")
    sampling_ratio: int | None = Field(
        default=None,
        ge=0,
        le=16,
        description="Samples an output cell and axis; 0 adapts to the box. None: from conventions.",
    )
    canonical_box_px: Pixels = Field(
        default=224.0, description="Square root of the area that belongs to canonical_level, px."
    )
    canonical_level: int = Field(default=4, ge=1, le=6, description="Pyramid level of boxes of canonical_box_px.")
    ignore_ioa: Fraction = Field(
        default=0.5,
        description="Anchors and boxes with at least this part of their area inside an ignored region are not used.",
    )
    chunk: Positive = Field(
        default=1000, description="Boxes that go through a head at once at inference; bounds memory."
    )


class BoxHeadConfig(_Section):
    """Box classifier and regressor."""

    resolution: Positive = Field(default=7, description="Side of the pooled features, cells.")
    convs: int = Field(default=0, ge=0, le=8, description="3x3 convolutions before the fully connected layers.")
    conv_channels: Positive = Field(default=256, description="Their channels.")
    fcs: int = Field(default=2, ge=0, le=4, description="Fully connected layers.")
    fc_channels: Positive = Field(default=1024, description="Their channels.")
    norm: HeadNorm = Field(default="none", description="Normalisation of the convolutions.")
    class_agnostic: bool = Field(default=False, description="One box for all classes instead of one for each.")
    delta_weights: tuple[Pixels, Pixels, Pixels, Pixels] = Field(
        default=(10.0, 10.0, 5.0, 5.0), description="Factors of the coded dx, dy, dw, dh."
    )
    samples_per_image: Positive = Field(default=512, description="Boxes drawn for the losses, an image.")
    positive_fraction: Fraction = Field(default=0.25, description="At most this part of them holds an object.")
    foreground_iou: Fraction = Field(default=0.5, description="Boxes with at least this IoU with an object hold it.")
    background_iou: Fraction = Field(
        default=0.5, description="Boxes with less than this IoU with every object are background."
    )
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.background_iou > self.foreground_iou:
            raise ValueError("box_head.background_iou must not exceed box_head.foreground_iou")
        if self.norm == "group_norm" and self.convs and self.conv_channels % 8:
            raise ValueError("box_head.norm is group_norm: box_head.conv_channels must be a multiple of 8")
        return self


class MaskHeadConfig(_Section):
    """Fully convolutional mask predictor; its masks have twice the pooled resolution."""

    resolution: Positive = Field(default=14, description="Side of the pooled features, cells.")
    convs: int = Field(default=4, ge=0, le=8, description="3x3 convolutions before the upsampling.")
    channels: Positive = Field(default=256, description="Channels of the convolutions and of the upsampling.")
    norm: HeadNorm = Field(default="none", description="Normalisation of the convolutions.")
    class_agnostic: bool = Field(default=False, description="One mask for all classes instead of one for each.")
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

    @model_validator(mode="after")
    def _group_norm_divides(self) -> Self:
        if self.norm == "group_norm" and self.channels % 8:
            raise ValueError("mask_head.norm is group_norm: mask_head.channels must be a multiple of 8")
        return self


class MaskRCNNConfig(_Section):
    """Mask R-CNN with a feature pyramid (He et al. 2017; Lin et al. 2017)."""

    kind: Literal["mask_rcnn"] = Field(default="mask_rcnn", description="The model family.")
    backbone: BackboneConfig = Field(default=BackboneConfig(), description="Feature extractor.")
    fpn: FPNConfig = Field(default=FPNConfig(), description="Feature pyramid.")
    anchors: AnchorConfig = Field(default=AnchorConfig(), description="Reference boxes.")
    rpn: RPNConfig = Field(default=RPNConfig(), description="Proposal network.")
    roi: RoIConfig = Field(default=RoIConfig(), description="Pooling of boxes.")
    box_head: BoxHeadConfig = Field(default=BoxHeadConfig(), description="Classes and boxes.")
    mask_head: MaskHeadConfig = Field(default=MaskHeadConfig(), description="Masks.")
    init: str | None = Field(
        default=None, description="Weights to start from: torchvision:NAME, detectron2:FILE, a model or a run folder."
    )
    init_fresh: tuple[Literal["fpn", "rpn", "box_head", "mask_head"], ...] = Field(
        default=(),
        description="Parts that are not taken from init but start at random, where classes or widths differ.",
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        levels, sizes = self.fpn.n_levels, len(self.anchors.sizes_px)
        if levels != sizes:
            raise ValueError(
                f"anchors.sizes_px has {sizes} levels, but fpn.first_level = {self.fpn.first_level} makes {levels} "
                f"(levels {self.fpn.first_level} to 6)"
            )
        if self.fpn.norm == "group_norm" and self.fpn.channels % 8:
            raise ValueError("fpn.norm is group_norm: fpn.channels must be a multiple of 8")
        if not self.fpn.first_level <= self.roi.canonical_level <= 5:
            raise ValueError(f"roi.canonical_level must lie between fpn.first_level = {self.fpn.first_level} and 5")
        kept, proposed = self.box_head.detections_per_image, self.rpn.post_nms_test
        if proposed is not None and kept > proposed:
            raise ValueError(
                f"box_head.detections_per_image = {kept} exceeds rpn.post_nms_test = {proposed}: "
                "more detections asked for than there are proposals"
            )
        return self

    def resolved(self, conventions: Conventions) -> MaskRCNNConfig:
        """This section with every None that ``conventions`` decides filled in; validated again."""
        c = conventions
        filled = {
            "backbone": {"stride_in_1x1": c.stride_in_1x1, "stem_channels": self.backbone.width},
            "anchors": {"rounded": c.round_anchors},
            "rpn": {
                "pre_nms_train": c.pre_nms_train,
                "pre_nms_test": c.pre_nms_test,
                "post_nms_train": c.post_nms_train,
                "post_nms_test": c.post_nms_test,
                "min_box_px": c.rpn_min_box_px,
                "smooth_l1_beta": c.smooth_l1_beta,
                "loss_normaliser": c.rpn_loss_normaliser,
            },
            "roi": {"aligned": c.roi_aligned, "sampling_ratio": c.roi_sampling_ratio},
            "box_head": {"smooth_l1_beta": c.smooth_l1_beta, "min_box_px": c.box_min_px},
            "mask_head": {
                "target": c.mask_target,
                "target_aligned": c.mask_target_aligned,
                "paste": c.paste_rule,
            },
        }
        sections = self.model_dump()
        for section, defaults in filled.items():
            for field, value in defaults.items():
                if sections[section][field] is None:
                    sections[section][field] = value
        return MaskRCNNConfig.model_validate(sections)

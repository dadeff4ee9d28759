"""The recipe's ``model`` section for the R-CNN family: one class per kind, with the defaults of the papers.

Fields whose default is None follow the recipe's ``conventions`` key: ``resolved(conventions)`` fills them in. The
resolved section is what a network is built from and what is saved beside every result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cellwright.config.conventions import Conventions, LossNormaliser, MaskTarget, PasteRule
from cellwright.config.section import Cells, Fraction, Pixels, Positive, Section

Norm = Literal["batch_norm", "frozen_batch_norm", "group_norm"]
DeformableStage = Literal[2, 3, 4, 5]
BASIC_BLOCK_DEPTHS = (18, 34)
HeadNorm = Literal["none", "batch_norm", "group_norm"]
DeltaWeights = tuple[Pixels, Pixels, Pixels, Pixels]
Part = Literal["fpn", "rpn", "box_head", "mask_head", "point_head", "mask_scoring", "classes"]


def _check_group_norm(norm: str, field: str, channels: int) -> None:
    """Raise ``ValueError`` naming ``field`` (``section.field``) if group norm cannot divide its channels."""
    if norm == "group_norm" and channels % 8:
        section = field.partition(".")[0]
        raise ValueError(f"{field} must be a multiple of 8 for {section}.norm = group_norm, got {channels}")


def _check_ious(section: str, background: float, foreground: float) -> None:
    """Raise ``ValueError`` if boxes could be both foreground and background."""
    if background > foreground:
        raise ValueError(
            f"{section}.background_iou = {background:g} must not exceed {section}.foreground_iou = {foreground:g}: "
            "lower one or raise the other"
        )


# --- backbone -----------------------------------------------------------------------------------------------------

# Of a ResNet by its depth.
BLOCKS_PER_STAGE: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BOTTLENECK_FROM_DEPTH = 50


class BackboneConfig(Section):
    """ResNet (He et al. 2016) or ResNeXt (Xie et al. 2017). The stages' outputs have a stride of 4, 8, 16 and 32 px.

    A bottleneck of stage s has ``groups * group_width * 2**(s - 2)`` channels inside and ``4 * width * 2**(s - 2)``
    outside. ResNeXt 32x8d is groups 32, group_width 8.
    """

    depth: Literal[18, 34, 50, 101, 152] = Field(
        default=50, description="Layers: 18 and 34 use basic blocks; 50, 101 and 152 bottlenecks."
    )
    width: Positive = Field(default=64, description="Output channels of res2; bottlenecks have 4 times as many.")
    groups: Positive = Field(default=1, description="Groups of the bottlenecks' 3x3 convolutions (ResNeXt).")
    group_width: Positive | None = Field(
        default=None, description="Channels per group in res2; doubled in each stage. null: width / groups."
    )
    stem_channels: Positive | None = Field(default=None, description="Channels of the 7x7 stem. null: as width.")
    norm: Norm = Field(
        default="batch_norm", description="Normalisation of every convolution; frozen: constants, never updated."
    )
    norm_eps: float = Field(
        default=1e-5, ge=0.0, le=0.1, description="Added to the variance; 0 for torchvision's COCO weights."
    )
    stride_in_1x1: bool | None = Field(
        default=None, description="Bottlenecks stride in the first 1x1, not in the 3x3. null: from conventions."
    )
    deformable_stages: tuple[DeformableStage, ...] = Field(
        default=(), description="Stages with deformable 3x3 convolutions (Dai et al. 2017); bottlenecks only."
    )
    deformable_modulated: bool = Field(
        default=False, description="Deformable convolutions also weight their samples (version 2, Zhu et al. 2019)."
    )
    deformable_groups: Positive = Field(
        default=1, description="Groups of input channels, each with its own deformable offsets."
    )
    frozen_stages: int = Field(
        default=0, ge=0, le=5, description="Number of stages that are not trained: 1 is the stem, 5 includes res5."
    )

    @property
    def inner_width(self) -> int:
        """Channels of res2's 3x3 convolutions."""
        return self.width if self.group_width is None else self.groups * self.group_width

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        if self.group_width is None and self.width % self.groups:
            raise ValueError(
                f"backbone.width = {self.width} is not divisible by backbone.groups = {self.groups}: "
                "set backbone.group_width, the channels per group (8 in ResNeXt 32x8d)"
            )
        if self.depth in BASIC_BLOCK_DEPTHS:
            needs_bottlenecks = {
                "groups": self.groups > 1,
                "group_width": self.inner_width != self.width,
                "deformable_stages": bool(self.deformable_stages),
            }
            for name in (name for name, is_set in needs_bottlenecks.items() if is_set):
                raise ValueError(
                    f"backbone.{name} = {getattr(self, name)} needs bottlenecks, but backbone.depth = {self.depth} "
                    "has basic blocks: use depth 50, 101 or 152"
                )
        return self

    @model_validator(mode="after")
    def _deformable_fits(self) -> Self:
        stages = self.deformable_stages
        if len(set(stages)) < len(stages):
            raise ValueError(f"backbone.deformable_stages repeats a stage: {list(stages)}; name each stage once")
        if not stages and (self.deformable_modulated or self.deformable_groups > 1):
            raise ValueError(
                "backbone.deformable_modulated and backbone.deformable_groups have no effect without "
                "backbone.deformable_stages: list the stages, such as [3, 4, 5]"
            )
        channels = self.inner_width * 2 ** (min(stages, default=2) - 2)
        if channels % self.deformable_groups:
            raise ValueError(
                f"backbone.deformable_groups = {self.deformable_groups} must divide the {channels} channels of "
                f"res{min(stages)}'s 3x3 convolutions (backbone.groups * backbone.group_width, doubled in each stage)"
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
                        f"backbone.{name} must be a multiple of 8 for backbone.norm = group_norm, got {channels}"
                    )
        return self


# --- regions ------------------------------------------------------------------------------------------------------


class RegionConfig(Section):
    """How the features of boxes are pooled (RoIAlign, He et al. 2017), for all heads."""

    aligned: bool | None = Field(default=None, description="Half-pixel shift. null: from conventions.")
    sampling_ratio: int | None = Field(
        default=None,
        ge=0,
        le=16,
        description="Samples per output cell and axis; 0 adapts to the box. null: from conventions.",
    )
    ignore_ioa: Fraction = Field(
        default=0.5,
        description="Boxes with at least this share of their area in pixels that are not annotated are no background.",
    )
    chunk: Positive = Field(default=1000, description="Boxes per pass through a head at inference; limits memory.")


class PyramidRegionConfig(RegionConfig):
    """The same over a feature pyramid: the level that a box is pooled from (Lin et al. 2017, equation 1)."""

    canonical_box_px: Pixels = Field(
        default=224.0, description="Box size (square root of the area, px) that is pooled from canonical_level."
    )
    canonical_level: int = Field(default=4, ge=1, le=6, description="Pyramid level of boxes of canonical_box_px.")


# --- box heads ----------------------------------------------------------------------------------------------------


class _BoxRules(Section):
    """What all box heads share: the sample of regions for the losses, and which boxes become detections."""

    samples_per_image: Positive = Field(default=512, description="Boxes per image that are sampled for the losses.")
    positive_fraction: Fraction = Field(default=0.25, description="Maximum share of them that may be foreground.")
    smooth_l1_beta: float | None = Field(
        default=None, ge=0.0, description="Where smooth L1 becomes linear; 0 is plain L1. null: from conventions."
    )
    score_threshold: Fraction = Field(default=0.05, description="Detections must score more than this.")
    nms_iou: Fraction = Field(
        default=0.5, description="Detections that overlap a better one of their class by more are dropped."
    )
    detections_per_image: Positive = Field(default=100, description="Maximum number of detections per image.")
    min_box_px: float | None = Field(
        default=None, ge=0.0, description="Minimum side of a detection, px. null: from conventions."
    )
    class_weight: float = Field(default=1.0, ge=0.0, description="Weight of the classification loss.")
    box_weight: float = Field(default=1.0, ge=0.0, description="Weight of the box loss.")
    class_weights: tuple[Annotated[float, Field(gt=0.0)], ...] | None = Field(
        default=None,
        description="Weight of each class in the classification loss, in class order, background last. null: all 1.",
    )


class _SingleStage(_BoxRules):
    """A single box head, as opposed to a cascade."""

    class_agnostic: bool = Field(default=False, description="Predict one box for all classes instead of one per class.")
    delta_weights: DeltaWeights = Field(
        default=(10.0, 10.0, 5.0, 5.0), description="Factors of the encoded dx, dy, dw, dh."
    )
    foreground_iou: Fraction = Field(
        default=0.5, description="Boxes with at least this IoU with an object are foreground."
    )
    background_iou: Fraction = Field(
        default=0.5, description="Boxes with less than this IoU with every object are background."
    )

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Self:
        _check_ious("box_head", self.background_iou, self.foreground_iou)
        return self

    @property
    def stage_ious(self) -> tuple[float, ...]:
        """As in a cascade of one stage."""
        return (self.foreground_iou,)

    @property
    def stage_delta_weights(self) -> tuple[DeltaWeights, ...]:
        """As in a cascade of one stage."""
        return (self.delta_weights,)


class _BoxLayers(Section):
    """Layers of a box head over pyramid features."""

    resolution: Cells = Field(default=7, description="Side of the pooled features, cells.")
    pooled_levels: Positive | None = Field(
        default=None, description="Number of pyramid levels, from the finest, that boxes are pooled from. null: all."
    )
    convs: int = Field(default=0, ge=0, le=8, description="3x3 convolutions before the fully connected layers.")
    conv_channels: Positive = Field(default=256, description="Channels of these convolutions.")
    fcs: int = Field(default=2, ge=0, le=4, description="Fully connected layers.")
    fc_channels: Positive = Field(default=1024, description="Channels of the fully connected layers.")
    norm: HeadNorm = Field(default="none", description="Normalisation of the convolutions.")

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.convs:
            _check_group_norm(self.norm, "box_head.conv_channels", self.conv_channels)
        return self


class BoxHeadConfig(_SingleStage, _BoxLayers):
    """Box classifier and regressor over a feature pyramid (Lin et al. 2017)."""


class C4BoxHeadConfig(_SingleStage):
    """Box classifier and regressor on the mean of res5's features (He et al. 2017, figure 4 left)."""

    resolution: Cells = Field(default=14, description="Side of the pooled res4 features, cells; res5 halves it.")

    @property
    def pooled_levels(self) -> None:
        """There is only one map."""
        return None


class CascadeBoxHeadConfig(_BoxRules, _BoxLayers):
    """A sequence of box heads, each of which refines the class-agnostic boxes of the previous one
    (Cai & Vasconcelos 2018)."""

    stage_ious: tuple[Fraction, ...] = Field(
        default=(0.5, 0.6, 0.7),
        min_length=2,
        max_length=8,
        description="Per stage: boxes with at least this IoU with an object are foreground, all others background.",
    )
    stage_delta_weights: tuple[DeltaWeights, ...] = Field(
        default=((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
        description="Per stage: factors of the encoded dx, dy, dw, dh.",
    )

    @model_validator(mode="after")
    def _one_entry_per_stage(self) -> Self:
        if len(self.stage_ious) != len(self.stage_delta_weights):
            raise ValueError(
                f"box_head.stage_ious has {len(self.stage_ious)} entries, box_head.stage_delta_weights "
                f"{len(self.stage_delta_weights)}: give one entry per stage in both"
            )
        return self

    @property
    def foreground_iou(self) -> float:
        """Of the first stage, whose regions are sampled."""
        return self.stage_ious[0]

    @property
    def background_iou(self) -> float:
        """Of the first stage: all boxes that are not foreground are background."""
        return self.stage_ious[0]

    @property
    def class_agnostic(self) -> Literal[True]:
        """The boxes between the stages belong to no class."""
        return True


AnyBoxHeadConfig = BoxHeadConfig | C4BoxHeadConfig | CascadeBoxHeadConfig


# --- mask heads ---------------------------------------------------------------------------------------------------


class _MaskRules(Section):
    """What all mask heads share."""

    target: MaskTarget | None = Field(
        default=None, description="Soft or binary training targets. null: from conventions."
    )
    target_aligned: bool | None = Field(
        default=None, description="Half-pixel shift of the targets. null: from conventions."
    )
    paste: PasteRule | None = Field(
        default=None, description="How masks are resampled into the image. null: from conventions."
    )
    threshold: Fraction = Field(default=0.5, description="Minimum probability at which a pixel belongs to the object.")
    weight: float = Field(default=1.0, ge=0.0, description="Weight of the mask loss.")


class MaskHeadConfig(_MaskRules):
    """Fully convolutional mask predictor; its masks have twice the pooled resolution."""

    resolution: Cells = Field(default=14, description="Side of the pooled features, cells.")
    convs: int = Field(default=4, ge=0, le=8, description="3x3 convolutions before the upsampling.")
    channels: Positive = Field(default=256, description="Channels of the convolutions and of the upsampling.")
    norm: HeadNorm = Field(default="none", description="Normalisation of the convolutions.")
    class_agnostic: bool = Field(
        default=False, description="Predict one mask for all classes instead of one per class."
    )

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.convs:
            _check_group_norm(self.norm, "mask_head.channels", self.channels)
        return self


class C4MaskHeadConfig(MaskHeadConfig):
    """Mask predictor on res5's features; res5 halves the pooled resolution and the predictor doubles it again."""

    resolution: Cells = Field(
        default=14,
        description="Side of the pooled res4 features, cells; as in box_head, res5 runs once for both.",
    )
    convs: int = Field(default=0, ge=0, le=8, description="3x3 convolutions before the upsampling.")


class CoarseMaskConfig(_MaskRules):
    """PointRend's coarse head: a 7 x 7 mask from a 14 x 14 grid on the finest level (Kirillov et al. 2020)."""

    resolution: Cells = Field(
        default=14, multiple_of=2, description="Side of the sampled grid, cells; masks have half of it."
    )
    channels: Positive = Field(
        default=256, description="Channels of its convolutions; if the pyramid has more, a 1x1 reduces them first."
    )
    fcs: Positive = Field(default=2, le=4, description="Fully connected layers.")
    fc_channels: Positive = Field(default=1024, description="Channels of the fully connected layers.")


class PointHeadConfig(Section):
    """PointRend's point head: the logit of a class at any point, from the finest level and the coarse mask."""

    fcs: Positive = Field(default=3, le=8, description="Layers, each a 1x1 convolution over the points.")
    channels: Positive = Field(default=256, description="Channels of these layers.")
    train_points: Positive = Field(default=196, description="Points per object in the loss.")
    oversample: float = Field(default=3.0, ge=1.0, description="Candidate points, as a multiple of train_points.")
    uncertain_fraction: Fraction = Field(
        default=0.75, description="Share of train_points that are the most uncertain candidates; the rest is uniform."
    )
    subdivisions: int = Field(
        default=5, ge=0, le=8, description="How often the coarse mask is doubled; small masks are computed in full."
    )
    test_points: Positive = Field(default=784, description="Most uncertain points that each doubling recomputes.")
    weight: float = Field(default=1.0, ge=0.0, description="Weight of the point loss.")


class MaskScoringConfig(Section):
    """A head that predicts the IoU of each mask with its object; score = class x IoU (Huang et al. 2019)."""

    convs: Positive = Field(default=4, le=8, description="3x3 convolutions; the last has stride 2.")
    channels: Positive = Field(default=256, description="Channels of these convolutions.")
    fcs: int = Field(default=2, ge=0, le=4, description="Fully connected layers before the predictor.")
    fc_channels: Positive = Field(default=1024, description="Channels of the fully connected layers.")
    weight: float = Field(default=1.0, ge=0.0, description="Weight of the squared error.")


# --- pyramid and proposals ----------------------------------------------------------------------------------------


class FPNConfig(Section):
    """Feature pyramid (Lin et al. 2017) with levels ``first_level``..6; level l has a stride of 2**l px."""

    channels: Positive = Field(default=256, description="Channels of every level.")
    first_level: Literal[1, 2] = Field(
        default=2, description="Finest level: 2 has a stride of 4 px; 1 has 2 px, for tiny objects."
    )
    norm: HeadNorm = Field(default="none", description="Normalisation of the lateral and output convolutions.")

    @property
    def n_levels(self) -> int:
        return 7 - self.first_level

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        _check_group_norm(self.norm, "fpn.channels", self.channels)
        return self


class AnchorConfig(Section):
    """Reference boxes of the proposal network, centred at multiples of the level's stride."""

    sizes_px: tuple[tuple[Pixels, ...], ...] = Field(
        default=((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
        description="Anchor sizes (square root of the area, px): one list of at least one size per level.",
    )
    ratios: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(
        default=(0.5, 1.0, 2.0), min_length=1, description="Height over width."
    )
    rounded: bool | None = Field(default=None, description="Round anchors to whole pixels. null: from conventions.")

    @model_validator(mode="after")
    def _every_level_has_anchors(self) -> Self:
        if not self.sizes_px or not all(self.sizes_px):
            raise ValueError("anchors.sizes_px: give at least one size for every level, such as [[32], [64], ...]")
        if (most := max(map(len, self.sizes_px)) * len(self.ratios)) > 1000:
            raise ValueError(f"anchors.sizes_px and anchors.ratios make {most} anchors per place: at most 1000")
        return self


class RPNConfig(Section):
    """Region proposal network (Ren et al. 2015)."""

    convs: Positive = Field(default=1, description="3x3 convolutions before the two predictors.")
    foreground_iou: Fraction = Field(
        default=0.7, description="Anchors with at least this IoU with an object are positive."
    )
    background_iou: Fraction = Field(
        default=0.3, description="Anchors with less than this IoU with every object are negative."
    )
    samples_per_image: Positive = Field(default=256, description="Anchors per image that are sampled for the losses.")
    positive_fraction: Fraction = Field(default=0.5, description="Maximum share of them that may be positive.")
    pre_nms_train: Positive | None = Field(
        default=None, description="Best anchors per level before NMS, in training. null: from conventions."
    )
    pre_nms_test: Positive | None = Field(default=None, description="The same at inference. null: from conventions.")
    post_nms_train: Positive | None = Field(
        default=None, description="Proposals per image after NMS, in training. null: from conventions."
    )
    post_nms_test: Positive | None = Field(default=None, description="The same at inference. null: from conventions.")
    nms_iou: Fraction = Field(
        default=0.7, description="Proposals that overlap a better one of their level by more are dropped."
    )
    min_box_px: float | None = Field(
        default=None, ge=0.0, description="Minimum side of a proposal, px. null: from conventions."
    )
    smooth_l1_beta: float | None = Field(
        default=None, ge=0.0, description="Where smooth L1 becomes linear; 0 is plain L1. null: from conventions."
    )
    loss_normaliser: LossNormaliser | None = Field(
        default=None,
        description="Divide by the anchors drawn (sampled) or by samples_per_image (batch_size). "
        "null: from conventions.",
    )
    class_weight: float = Field(default=1.0, ge=0.0, description="Weight of the objectness loss.")
    box_weight: float = Field(default=1.0, ge=0.0, description="Weight of the box loss.")

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Self:
        _check_ious("rpn", self.background_iou, self.foreground_iou)
        return self


# --- kinds --------------------------------------------------------------------------------------------------------


class _RCNN(Section):
    """What all kinds share. ``kind`` and the sections that differ are in the subclasses."""

    no_mask_scoring: ClassVar[str | None] = None
    """Why this kind cannot have mask scoring; None if it can."""

    backbone: BackboneConfig = Field(default=BackboneConfig(), description="Feature extractor.")
    rpn: RPNConfig = Field(default=RPNConfig(), description="Proposal network.")
    init: str | None = Field(
        default=None,
        description="Initial weights: torchvision:NAME, detectron2:FILE, or a model or run folder. null: random.",
    )
    init_fresh: tuple[Part, ...] = Field(
        default=(),
        description="Parts that start at random although init is set; classes: all layers with one row per class.",
    )

    @model_validator(mode="before")
    @classmethod
    def _mask_scoring_is_supported(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("mask_scoring") is not None and cls.no_mask_scoring:
            raise ValueError(f"mask_scoring: {cls.no_mask_scoring}")
        return values

    def _resolved(self, conventions: Conventions, more: Mapping[str, Mapping[str, object]]) -> Self:
        """This section with every None that ``conventions`` decides filled in, and validated again."""
        c = conventions
        filled: dict[str, dict[str, object]] = {
            "backbone": {
                "stride_in_1x1": c.stride_in_1x1,
                "stem_channels": self.backbone.width,
                "group_width": self.backbone.width // self.backbone.groups,
            },
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
            for field, value in {**defaults, **more.get(section, {})}.items():
                if sections[section][field] is None:
                    sections[section][field] = value
        return type(self).model_validate(sections)


class _Pyramid(_RCNN):
    """What the kinds with a feature pyramid share."""

    fpn: FPNConfig = Field(default=FPNConfig(), description="Feature pyramid.")
    anchors: AnchorConfig = Field(default=AnchorConfig(), description="Reference boxes.")
    roi: PyramidRegionConfig = Field(default=PyramidRegionConfig(), description="Pooling of boxes.")

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        levels, sizes = self.fpn.n_levels, len(self.anchors.sizes_px)
        if levels != sizes:
            raise ValueError(
                f"anchors.sizes_px has {sizes} levels, but fpn.first_level = {self.fpn.first_level} means {levels} "
                f"(levels {self.fpn.first_level} to 6): give one list of sizes per level"
            )
        if not self.fpn.first_level <= self.roi.canonical_level <= 5:
            raise ValueError(
                f"roi.canonical_level = {self.roi.canonical_level} must be from fpn.first_level = "
                f"{self.fpn.first_level} to 5, the levels that boxes are pooled from"
            )
        return self

    def resolved(self, conventions: Conventions) -> Self:
        """This section with every None that ``conventions`` decides filled in, and validated again."""
        return self._resolved(conventions, {"box_head": {"pooled_levels": self.fpn.n_levels - 1}})

    @property
    def first_level(self) -> int:
        """Of the finest map."""
        return self.fpn.first_level


def _check_parts(box_head: AnyBoxHeadConfig, rpn: RPNConfig, fpn: FPNConfig | None) -> None:
    """Raise ``ValueError`` if the box head needs more proposals or levels than there are."""
    kept, proposed = box_head.detections_per_image, rpn.post_nms_test
    if proposed is not None and kept > proposed:
        raise ValueError(
            f"box_head.detections_per_image = {kept} exceeds rpn.post_nms_test = {proposed}, the number of proposals: "
            "lower one or raise the other"
        )
    levels = box_head.pooled_levels
    if fpn is not None and levels is not None and levels > fpn.n_levels - 1:
        raise ValueError(
            f"box_head.pooled_levels = {levels}, but boxes can be pooled from {fpn.n_levels - 1} levels: "
            "use at most that many"
        )


def _check_scoring(scoring: MaskScoringConfig | None, mask_head: MaskHeadConfig) -> None:
    """Raise ``ValueError`` if the scoring head cannot halve the mask head's resolution."""
    if scoring is not None and mask_head.resolution % 2:
        raise ValueError(f"mask_scoring needs an even mask_head.resolution, got {mask_head.resolution}")


class MaskRCNNConfig(_Pyramid):
    """Mask R-CNN with a feature pyramid (He et al. 2017; Lin et al. 2017)."""

    kind: Literal["mask_rcnn"] = Field(default="mask_rcnn", description="The model family.")
    box_head: BoxHeadConfig = Field(default=BoxHeadConfig(), description="Classes and boxes.")
    mask_head: MaskHeadConfig = Field(default=MaskHeadConfig(), description="Masks.")
    mask_scoring: MaskScoringConfig | None = Field(
        default=None, description="Predicted mask quality. null: scores are those of the class."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        _check_parts(self.box_head, self.rpn, self.fpn)
        _check_scoring(self.mask_scoring, self.mask_head)
        return self


class CascadeConfig(_Pyramid):
    """Cascade Mask R-CNN: a sequence of box heads with increasing IoU thresholds (Cai & Vasconcelos 2018, 2019)."""

    kind: Literal["cascade_mask_rcnn"] = Field(default="cascade_mask_rcnn", description="The model family.")
    box_head: CascadeBoxHeadConfig = Field(default=CascadeBoxHeadConfig(), description="Classes and boxes.")
    mask_head: MaskHeadConfig = Field(default=MaskHeadConfig(), description="Masks of the last stage's boxes.")
    mask_scoring: MaskScoringConfig | None = Field(
        default=None, description="Predicted mask quality. null: scores are those of the class."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        _check_parts(self.box_head, self.rpn, self.fpn)
        _check_scoring(self.mask_scoring, self.mask_head)
        return self


class PointRendConfig(_Pyramid):
    """Mask R-CNN whose masks are refined point by point (Kirillov et al. 2020)."""

    no_mask_scoring: ClassVar[str | None] = (
        "PointRend has no mask head whose pooled features and mask could be scored; use kind mask_rcnn or "
        "cascade_mask_rcnn, or omit mask_scoring"
    )

    kind: Literal["pointrend"] = Field(default="pointrend", description="The model family.")
    box_head: BoxHeadConfig = Field(default=BoxHeadConfig(), description="Classes and boxes.")
    mask_head: CoarseMaskConfig = Field(default=CoarseMaskConfig(), description="Coarse masks.")
    point_head: PointHeadConfig = Field(default=PointHeadConfig(), description="Refinement of the masks.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        _check_parts(self.box_head, self.rpn, self.fpn)
        return self


class C4Config(_RCNN):
    """Mask R-CNN on res4 alone; res5 is the shared head of boxes and masks (He et al. 2017, "C4")."""

    no_mask_scoring: ClassVar[str | None] = (
        "the C4 head predicts masks from the box head's res5 features, but the scoring head needs a mask head of its "
        "own (Huang et al. 2019); use kind mask_rcnn or cascade_mask_rcnn, or omit mask_scoring"
    )

    kind: Literal["mask_rcnn_c4"] = Field(default="mask_rcnn_c4", description="The model family.")
    anchors: AnchorConfig = Field(
        default=AnchorConfig(sizes_px=((32.0, 64.0, 128.0, 256.0, 512.0),)),
        description="Reference boxes, all on one map with a stride of 16 px.",
    )
    roi: RegionConfig = Field(default=RegionConfig(), description="Pooling of boxes.")
    box_head: C4BoxHeadConfig = Field(default=C4BoxHeadConfig(), description="Classes and boxes.")
    mask_head: C4MaskHeadConfig = Field(default=C4MaskHeadConfig(), description="Masks.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if len(self.anchors.sizes_px) != 1:
            raise ValueError(
                f"anchors.sizes_px has {len(self.anchors.sizes_px)} levels, but C4 has one map: "
                "give one list of all sizes, [[32, 64, ...]]"
            )
        if self.backbone.depth < 50:
            raise ValueError(
                f"backbone.depth = {self.backbone.depth}: C4's head is res5 of a network with bottlenecks; "
                "use depth 50, 101 or 152"
            )
        _check_parts(self.box_head, self.rpn, None)
        return self

    def resolved(self, conventions: Conventions) -> Self:
        """As in `MaskRCNNConfig`, but with the numbers of proposals of Detectron2's C4 models (a single map)."""
        counts = {"pre_nms_train": 12000, "pre_nms_test": 6000, "post_nms_train": 2000, "post_nms_test": 1000}
        return self._resolved(conventions, {"rpn": counts})

    @property
    def first_level(self) -> int:
        """Of res4, the only map: level l has a stride of 2**l px."""
        return 4


RCNNConfig = MaskRCNNConfig | C4Config | CascadeConfig | PointRendConfig

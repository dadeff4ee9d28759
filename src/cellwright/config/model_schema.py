"""The recipe's ``model:`` section for the R-CNN family: one class a kind, defaults from the papers.

Fields whose default is None follow the recipe's ``conventions`` key: ``resolved(conventions)`` fills them in, and the
resolved section is what is saved beside every result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cellwright.config.backbone_schema import BackboneConfig
from cellwright.config.conventions import Conventions, LossNormaliser
from cellwright.config.heads_schema import (
    BoxHeadConfig,
    C4BoxHeadConfig,
    C4MaskHeadConfig,
    CascadeBoxHeadConfig,
    CoarseMaskConfig,
    Fraction,
    HeadNorm,
    MaskHeadConfig,
    MaskScoringConfig,
    Pixels,
    PointHeadConfig,
    Positive,
    PyramidRegionConfig,
    RegionConfig,
    Section,
    check_group_norm,
)

Part = Literal["fpn", "rpn", "box_head", "mask_head", "point_head", "mask_scoring", "classes"]


class FPNConfig(Section):
    """Feature pyramid (Lin et al. 2017), levels ``first_level``..6; level l has a stride of 2**l px."""

    channels: Positive = Field(default=256, description="Channels of every level.")
    first_level: Literal[1, 2] = Field(
        default=2, description="Finest level: 2 has stride 4 px; 1 has stride 2 px, for tiny objects."
    )
    norm: HeadNorm = Field(default="none", description="Normalisation of the lateral and output convolutions.")

    @property
    def n_levels(self) -> int:
        return 7 - self.first_level

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        check_group_norm(self.norm, "fpn.channels", self.channels)
        return self


class AnchorConfig(Section):
    """Reference boxes of the proposal network, centred at multiples of the level's stride."""

    sizes_px: tuple[tuple[Pixels, ...], ...] = Field(
        default=((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
        description="Square root of the anchors' area, px: one tuple a pyramid level, of one size or more.",
    )
    ratios: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(
        default=(0.5, 1.0, 2.0), min_length=1, description="Height over width."
    )
    rounded: bool | None = Field(
        default=None, description="Round cell anchors to whole pixels. None: from conventions."
    )

    @model_validator(mode="after")
    def _every_level_has_anchors(self) -> Self:
        if not self.sizes_px or not all(self.sizes_px):
            raise ValueError("anchors.sizes_px: every level needs a size, at least one")
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


class _RCNN(Section):
    """What every kind shares. ``kind`` and the sections that differ stand in the subclasses."""

    supports_mask_scoring: ClassVar[str | None] = None
    """Why a kind has no mask scoring; None where it has."""

    backbone: BackboneConfig = Field(default=BackboneConfig(), description="Feature extractor.")
    rpn: RPNConfig = Field(default=RPNConfig(), description="Proposal network.")
    init: str | None = Field(
        default=None, description="Weights to start from: torchvision:NAME, detectron2:FILE, a model or a run folder."
    )
    init_fresh: tuple[Part, ...] = Field(
        default=(),
        description="Parts that are not taken from init but start at random; classes: all layers with a row a class.",
    )

    @model_validator(mode="before")
    @classmethod
    def _mask_scoring_has_its_place(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("mask_scoring") is not None and cls.supports_mask_scoring:
            raise ValueError(f"mask_scoring: {cls.supports_mask_scoring}")
        return values

    def _resolved(self, conventions: Conventions, more: Mapping[str, Mapping[str, object]]) -> Self:
        """This section with every None that ``conventions`` decides filled in; validated again."""
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
                f"anchors.sizes_px has {sizes} levels, but fpn.first_level = {self.fpn.first_level} makes {levels} "
                f"(levels {self.fpn.first_level} to 6)"
            )
        if not self.fpn.first_level <= self.roi.canonical_level <= 5:
            raise ValueError(f"roi.canonical_level must lie between fpn.first_level = {self.fpn.first_level} and 5")
        return self

    def resolved(self, conventions: Conventions) -> Self:
        """This section with every None that ``conventions`` decides filled in; validated again."""
        return self._resolved(conventions, {"box_head": {"pooled_levels": self.fpn.n_levels - 1}})


class MaskRCNNConfig(_Pyramid):
    """Mask R-CNN with a feature pyramid (He et al. 2017; Lin et al. 2017)."""

    kind: Literal["mask_rcnn"] = Field(default="mask_rcnn", description="The model family.")
    box_head: BoxHeadConfig = Field(default=BoxHeadConfig(), description="Classes and boxes.")
    mask_head: MaskHeadConfig = Field(default=MaskHeadConfig(), description="Masks.")
    mask_scoring: MaskScoringConfig | None = Field(
        default=None, description="Mask quality; None: scores are the class's."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        check_parts(self.box_head, self.rpn, self.fpn)
        check_scoring(self.mask_scoring, self.mask_head)
        return self


class CascadeConfig(_Pyramid):
    """Cascade Mask R-CNN: box heads in a row, each stricter than the one before (Cai & Vasconcelos 2018, 2019)."""

    kind: Literal["cascade_mask_rcnn"] = Field(default="cascade_mask_rcnn", description="The model family.")
    box_head: CascadeBoxHeadConfig = Field(default=CascadeBoxHeadConfig(), description="Classes and boxes.")
    mask_head: MaskHeadConfig = Field(default=MaskHeadConfig(), description="Masks, of the last stage's boxes.")
    mask_scoring: MaskScoringConfig | None = Field(
        default=None, description="Mask quality; None: scores are the class's."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        check_parts(self.box_head, self.rpn, self.fpn)
        check_scoring(self.mask_scoring, self.mask_head)
        return self


class PointRendConfig(_Pyramid):
    """Mask R-CNN whose masks are refined point by point (Kirillov et al. 2020)."""

    supports_mask_scoring: ClassVar[str | None] = (
        "PointRend has no mask head whose pooled features and mask could be scored; use kind mask_rcnn or "
        "cascade_mask_rcnn, or leave mask_scoring out"
    )

    kind: Literal["pointrend"] = Field(default="pointrend", description="The model family.")
    box_head: BoxHeadConfig = Field(default=BoxHeadConfig(), description="Classes and boxes.")
    mask_head: CoarseMaskConfig = Field(default=CoarseMaskConfig(), description="Coarse masks.")
    point_head: PointHeadConfig = Field(default=PointHeadConfig(), description="Their refinement.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        check_parts(self.box_head, self.rpn, self.fpn)
        return self


class C4Config(_RCNN):
    """Mask R-CNN on res4 alone; res5 is the head of boxes and masks (He et al. 2017, "C4")."""

    supports_mask_scoring: ClassVar[str | None] = (
        "the C4 head predicts masks from the box head's res5 features, and the scoring head is made for a mask head of "
        "its own (Huang et al. 2019); use kind mask_rcnn or cascade_mask_rcnn, or leave mask_scoring out"
    )

    kind: Literal["mask_rcnn_c4"] = Field(default="mask_rcnn_c4", description="The model family.")
    anchors: AnchorConfig = Field(
        default=AnchorConfig(sizes_px=((32.0, 64.0, 128.0, 256.0, 512.0),)),
        description="Reference boxes, all on one map of stride 16 px.",
    )
    roi: RegionConfig = Field(default=RegionConfig(), description="Pooling of boxes.")
    box_head: C4BoxHeadConfig = Field(default=C4BoxHeadConfig(), description="Classes and boxes.")
    mask_head: C4MaskHeadConfig = Field(default=C4MaskHeadConfig(), description="Masks.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if len(self.anchors.sizes_px) != 1:
            raise ValueError(
                f"anchors.sizes_px has {len(self.anchors.sizes_px)} levels, but C4 has one map: [[32, 64, ...]]"
            )
        if self.backbone.depth < 50:
            raise ValueError(
                f"backbone.depth = {self.backbone.depth}: C4's head is res5 of a bottleneck network, 50 or more"
            )
        check_parts(self.box_head, self.rpn, None)
        return self

    def resolved(self, conventions: Conventions) -> Self:
        """As in `MaskRCNNConfig`; counts of proposals are those of Detectron2's C4 models: one map has all anchors."""
        counts = {"pre_nms_train": 12000, "pre_nms_test": 6000, "post_nms_train": 2000, "post_nms_test": 1000}
        return self._resolved(conventions, {"rpn": counts})


RCNNConfig = MaskRCNNConfig | C4Config | CascadeConfig | PointRendConfig


def check_parts(
    box_head: BoxHeadConfig | C4BoxHeadConfig | CascadeBoxHeadConfig, rpn: RPNConfig, fpn: FPNConfig | None
) -> None:
    """Raise ``ValueError`` where the box head asks for more than proposals or levels there are."""
    kept, proposed = box_head.detections_per_image, rpn.post_nms_test
    if proposed is not None and kept > proposed:
        raise ValueError(
            f"box_head.detections_per_image = {kept} exceeds rpn.post_nms_test = {proposed}: "
            "more detections asked for than there are proposals"
        )
    levels = None if isinstance(box_head, C4BoxHeadConfig) else box_head.pooled_levels
    if fpn is not None and levels is not None and levels > fpn.n_levels - 1:
        raise ValueError(f"box_head.pooled_levels = {levels}, but boxes can be pooled from {fpn.n_levels - 1} levels")


def check_scoring(scoring: MaskScoringConfig | None, mask_head: MaskHeadConfig) -> None:
    """Raise ``ValueError`` where the scoring head cannot halve the mask head's resolution."""
    if scoring is not None and mask_head.resolution % 2:
        raise ValueError(f"mask_scoring needs an even mask_head.resolution, got {mask_head.resolution}")

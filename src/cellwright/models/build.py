"""From a recipe to a network: one literal match, explicit constructors."""

from __future__ import annotations

from typing import TypeVar

import torch

from cellwright.config.conventions import CONVENTIONS, Conventions
from cellwright.config.model_dense import UNetConfig
from cellwright.config.model_rcnn import (
    BackboneConfig,
    C4BoxHeadConfig,
    C4Config,
    CascadeBoxHeadConfig,
    CascadeConfig,
    CoarseMaskConfig,
    MaskRCNNConfig,
    PointRendConfig,
    RCNNConfig,
    RPNConfig,
)
from cellwright.config.recipe import Recipe
from cellwright.core.errors import RecipeError
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.layers import Deformable
from cellwright.models.rcnn.box_head import BoxHead, DetectionRules, RegionSampling
from cellwright.models.rcnn.fpn import FPN
from cellwright.models.rcnn.mask_head import MaskHead
from cellwright.models.rcnn.mask_rcnn import BoxRules, MaskRCNN, MaskRules, Rules
from cellwright.models.rcnn.mask_scoring import MaskScoring
from cellwright.models.rcnn.pointrend import CoarseMaskHead, PointHead, PointRules
from cellwright.models.rcnn.resnet import BottleneckStyle, ResNet
from cellwright.models.rcnn.rpn import RPN, AnchorSampling, RPNHead, RPNLossRules, Selection
from cellwright.ops.boxes import cell_anchors
from cellwright.ops.roi import Pooling

T = TypeVar("T")


def build_network(recipe: Recipe, n_classes: int) -> MaskRCNN | DenseNetwork:
    """A fresh ``Network`` with random weights, drawn from torch's global generator; seed it first.

    Raises:
        RecipeError: the recipe's model kind is not a network (the classical baseline needs no weights), or
            ``model.encoder`` names no network of timm that fits.
        UsageError: ``model.encoder`` needs the extra ``timm``, which is not installed.
    """
    conventions = CONVENTIONS[recipe.conventions]
    match recipe.model:
        case MaskRCNNConfig() | C4Config() | CascadeConfig() | PointRendConfig():
            network = build_mask_rcnn(recipe.model, conventions, in_channels=recipe.input.channels, n_classes=n_classes)
        case UNetConfig():
            network = DenseNetwork(recipe.model, in_channels=recipe.input.channels, n_classes=n_classes)
        case other:
            raise RecipeError(
                "this model kind has no network to build",
                where="model.kind",
                got=other.kind,
                remedy="name a recipe that is trained: cellwright recipes list",
            )
    # A fifth less time a training step on the CPU; feature maps follow the weights' layout.
    return network.to(memory_format=torch.channels_last)


def build_mask_rcnn(config: RCNNConfig, conventions: Conventions, *, in_channels: int, n_classes: int) -> MaskRCNN:
    """A member of the R-CNN family from its section; what is None there follows ``conventions``.

    Raises:
        RecipeError: ``box_head.class_weights`` has not one entry a class and one for background.
    """
    c = config.resolved(conventions)
    weights = c.box_head.class_weights
    if weights is not None and len(weights) != n_classes + 1:
        expected = f"{n_classes + 1}: one a class, background last"
        raise RecipeError(
            "class weights do not fit",
            where="model.box_head.class_weights",
            got=f"{len(weights)} of them",
            expected=expected,
            remedy="write so many of them, or set it to null",
        )
    backbone = _resnet(c.backbone, in_channels)
    fpn = None
    if not isinstance(c, C4Config):
        fpn = FPN(backbone.out_channels[c.fpn.first_level - 1 :], c.fpn.channels, c.fpn.norm)
    # C4's heads look at res5 behind the pooling.
    map_channels, region_channels = (
        (backbone.out_channels[-2], backbone.out_channels[-1]) if isinstance(c, C4Config) else (c.fpn.channels,) * 2
    )
    rows = n_classes + conventions.background_rows
    point_head = mask_scoring = None
    if isinstance(c, PointRendConfig):
        point_head = PointHead(
            in_channels=map_channels,
            channels=c.point_head.channels,
            n_layers=c.point_head.fcs,
            n_masks=rows,
        )
    elif not isinstance(c, C4Config) and c.mask_scoring is not None:
        mask_scoring = MaskScoring(
            in_channels=region_channels,
            resolution=c.mask_head.resolution,
            n_convs=c.mask_scoring.convs,
            channels=c.mask_scoring.channels,
            fc_channels=[c.mask_scoring.fc_channels] * c.mask_scoring.fcs,
            n_classes=n_classes,
        )
    return MaskRCNN(
        backbone=backbone,
        fpn=fpn,
        rpn=_rpn(c, conventions, map_channels),
        box_heads=_box_heads(c, region_channels, n_classes, rows),
        mask_head=_mask_head(c, region_channels, rows),
        point_head=point_head,
        mask_scoring=mask_scoring,
        rules=_rules(c, conventions),
    )


def _decided(value: T | None) -> T:
    """A field that ``resolved`` has filled in, for the type checker."""
    assert value is not None
    return value


def _resnet(c: BackboneConfig, in_channels: int) -> ResNet:
    return ResNet(
        depth=c.depth,
        in_channels=in_channels,
        width=c.width,
        stem_channels=_decided(c.stem_channels),
        bottlenecks=BottleneckStyle(
            channels=c.inner_width,
            groups=c.groups,
            stride_in_1x1=_decided(c.stride_in_1x1),
            deformable=Deformable(groups=c.deformable_groups, modulated=c.deformable_modulated),
            deformable_stages=c.deformable_stages,
        ),
        norm=c.norm,
        norm_eps=c.norm_eps,
        frozen_stages=c.frozen_stages,
    )


def _rpn(c: RCNNConfig, conventions: Conventions, channels: int) -> RPN:
    cells = [cell_anchors(sizes, c.anchors.ratios, rounded=_decided(c.anchors.rounded)) for sizes in c.anchors.sizes_px]
    return RPN(
        RPNHead(channels, max(map(len, cells)), c.rpn.convs),
        cells=cells,
        first_level=_first_level(c),
        infer_strides=conventions.infer_anchor_stride,
        train_selection=_selection(c.rpn, c.rpn.pre_nms_train, c.rpn.post_nms_train),
        test_selection=_selection(c.rpn, c.rpn.pre_nms_test, c.rpn.post_nms_test),
        sampling=AnchorSampling(
            foreground_iou=c.rpn.foreground_iou,
            background_iou=c.rpn.background_iou,
            per_image=c.rpn.samples_per_image,
            positive_fraction=c.rpn.positive_fraction,
            ignore_ioa=c.roi.ignore_ioa,
        ),
        loss_rules=RPNLossRules(
            smooth_l1_beta=_decided(c.rpn.smooth_l1_beta),
            normaliser=_decided(c.rpn.loss_normaliser),
            class_weight=c.rpn.class_weight,
            box_weight=c.rpn.box_weight,
        ),
    )


def _selection(c: RPNConfig, pre_nms: int | None, post_nms: int | None) -> Selection:
    return Selection(
        pre_nms=_decided(pre_nms), post_nms=_decided(post_nms), nms_iou=c.nms_iou, min_box_px=_decided(c.min_box_px)
    )


def _first_level(c: RCNNConfig) -> int:
    """Level l has a stride of 2**l px; C4's only map is level 4."""
    return 4 if isinstance(c, C4Config) else c.fpn.first_level


def _box_heads(c: RCNNConfig, in_channels: int, n_classes: int, rows: int) -> list[BoxHead]:
    head = c.box_head
    convs, fcs, norm = [], [], "none"
    if not isinstance(head, C4BoxHeadConfig):
        convs, fcs, norm = [head.conv_channels] * head.convs, [head.fc_channels] * head.fcs, head.norm
    if isinstance(head, CascadeBoxHeadConfig):
        n_stages, n_boxes = len(head.stage_ious), 1
    else:
        n_stages, n_boxes = 1, 1 if head.class_agnostic else rows
    return [
        BoxHead(
            in_channels=in_channels,
            resolution=head.resolution,
            conv_channels=convs,
            fc_channels=fcs,
            norm=norm,
            n_classes=n_classes,
            n_boxes=n_boxes,
            averages=isinstance(head, C4BoxHeadConfig),
        )
        for _ in range(n_stages)
    ]


def _mask_head(c: RCNNConfig, in_channels: int, rows: int) -> MaskHead | CoarseMaskHead:
    head = c.mask_head
    if isinstance(head, CoarseMaskConfig):
        return CoarseMaskHead(
            in_channels=in_channels,
            resolution=head.resolution,
            channels=head.channels,
            fc_channels=[head.fc_channels] * head.fcs,
            n_masks=rows,
        )
    return MaskHead(
        in_channels=in_channels,
        n_convs=head.convs,
        channels=head.channels,
        norm=head.norm,
        n_masks=1 if head.class_agnostic else rows,
    )


def _rules(c: RCNNConfig, conventions: Conventions) -> Rules:
    points, scoring_weight = None, 0.0
    if isinstance(c, PointRendConfig):
        points = PointRules(
            stride=2**c.fpn.first_level,
            train_points=c.point_head.train_points,
            oversample=c.point_head.oversample,
            uncertain_fraction=c.point_head.uncertain_fraction,
            subdivisions=c.point_head.subdivisions,
            test_points=c.point_head.test_points,
            weight=c.point_head.weight,
        )
    elif not isinstance(c, C4Config) and c.mask_scoring is not None:
        scoring_weight = c.mask_scoring.weight
    return Rules(
        pooling=Pooling(
            sampling_ratio=_decided(c.roi.sampling_ratio),
            aligned=_decided(c.roi.aligned),
            level_rule=conventions.level_rule,
            # With one map the size of a box decides nothing.
            canonical_box_px=224.0 if isinstance(c, C4Config) else c.roi.canonical_box_px,
            canonical_level=4 if isinstance(c, C4Config) else c.roi.canonical_level,
            first_level=_first_level(c),
        ),
        box=_box_rules(c, conventions),
        mask=MaskRules(
            resolution=c.mask_head.resolution,
            binary_targets=c.mask_head.target == "binary",
            aligned_targets=_decided(c.mask_head.target_aligned),
            paste=_decided(c.mask_head.paste),
            threshold=c.mask_head.threshold,
            weight=c.mask_head.weight,
        ),
        points=points,
        scoring_weight=scoring_weight,
        regions_at_once=c.roi.chunk,
    )


def _box_rules(c: RCNNConfig, conventions: Conventions) -> BoxRules:
    head = c.box_head
    if isinstance(head, CascadeBoxHeadConfig):
        ious, weights, background_iou = head.stage_ious, head.stage_delta_weights, head.stage_ious[0]
    else:
        ious, weights, background_iou = (head.foreground_iou,), (head.delta_weights,), head.background_iou
    return BoxRules(
        resolution=head.resolution,
        pooled_levels=None if isinstance(head, C4BoxHeadConfig) else head.pooled_levels,
        stage_ious=ious,
        stage_delta_weights=weights,
        smooth_l1_beta=_decided(head.smooth_l1_beta),
        class_weight=head.class_weight,
        box_weight=head.box_weight,
        class_weights=head.class_weights,
        sampling=RegionSampling(
            foreground_iou=ious[0],
            background_iou=background_iou,
            per_image=head.samples_per_image,
            positive_fraction=head.positive_fraction,
            ignore_ioa=c.roi.ignore_ioa,
        ),
        detection=DetectionRules(
            score_threshold=head.score_threshold,
            nms_iou=head.nms_iou,
            per_image=head.detections_per_image,
            min_box_px=_decided(head.min_box_px),
        ),
        drop_empty_boxes=conventions.drop_empty_boxes,
    )

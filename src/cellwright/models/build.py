"""From a recipe to a network: one literal match, explicit constructors."""

from __future__ import annotations

from typing import TypeVar

import torch

from cellwright.config.backbone_schema import BackboneConfig
from cellwright.config.conventions import CONVENTIONS, Conventions
from cellwright.config.model_schema import MaskRCNNConfig, RPNConfig
from cellwright.config.schema import Recipe
from cellwright.core.errors import RecipeError
from cellwright.models.box_head import BoxHead, DetectionRules, RegionSampling
from cellwright.models.fpn import FPN
from cellwright.models.mask_head import MaskHead
from cellwright.models.mask_rcnn import BoxRules, MaskRCNN, MaskRules, Rules
from cellwright.models.resnet import ResNet
from cellwright.models.rpn import RPN, AnchorSampling, RPNHead, RPNLossRules, Selection
from cellwright.ops.boxes import cell_anchors
from cellwright.ops.roi import Pooling

T = TypeVar("T")


def build_network(recipe: Recipe, n_classes: int) -> MaskRCNN:
    """A fresh ``Network`` with random weights, drawn from torch's global generator; seed it first.

    Raises:
        RecipeError: the recipe's model kind is not a network (the classical baseline needs no weights).
    """
    conventions = CONVENTIONS[recipe.conventions]
    match recipe.model:
        case MaskRCNNConfig():
            network = build_mask_rcnn(recipe.model, conventions, in_channels=recipe.input.channels, n_classes=n_classes)
        case other:
            raise RecipeError(
                "this model kind has no network to build", where="model.kind", got=other.kind, expected="mask_rcnn"
            )
    # A fifth less time a training step on the CPU; feature maps follow the weights' layout.
    return network.to(memory_format=torch.channels_last)


def build_mask_rcnn(config: MaskRCNNConfig, conventions: Conventions, *, in_channels: int, n_classes: int) -> MaskRCNN:
    """Mask R-CNN from its section; what is None there follows ``conventions``."""
    c = config.resolved(conventions)
    backbone = _resnet(c.backbone, in_channels)
    return MaskRCNN(
        backbone=backbone,
        fpn=FPN(backbone.out_channels[c.fpn.first_level - 1 :], c.fpn.channels, c.fpn.norm),
        rpn=_rpn(c, conventions),
        box_head=BoxHead(
            in_channels=c.fpn.channels,
            resolution=c.box_head.resolution,
            conv_channels=[c.box_head.conv_channels] * c.box_head.convs,
            fc_channels=[c.box_head.fc_channels] * c.box_head.fcs,
            norm=c.box_head.norm,
            n_classes=n_classes,
            class_agnostic=c.box_head.class_agnostic,
        ),
        mask_head=MaskHead(
            in_channels=c.fpn.channels,
            n_convs=c.mask_head.convs,
            channels=c.mask_head.channels,
            norm=c.mask_head.norm,
            n_classes=n_classes,
            class_agnostic=c.mask_head.class_agnostic,
        ),
        rules=Rules(
            pooling=_pooling(c, conventions),
            box=_box_rules(c, conventions),
            mask=_mask_rules(c),
            regions_at_once=c.roi.chunk,
        ),
    )


def _decided(value: T | None) -> T:
    """A field that ``MaskRCNNConfig.resolved`` has filled in, for the type checker."""
    assert value is not None
    return value


def _resnet(c: BackboneConfig, in_channels: int) -> ResNet:
    return ResNet(
        depth=c.depth,
        in_channels=in_channels,
        width=c.width,
        stem_channels=_decided(c.stem_channels),
        norm=c.norm,
        norm_eps=c.norm_eps,
        stride_in_1x1=_decided(c.stride_in_1x1),
        frozen_stages=c.frozen_stages,
    )


def _rpn(c: MaskRCNNConfig, conventions: Conventions) -> RPN:
    cells = [cell_anchors(sizes, c.anchors.ratios, rounded=_decided(c.anchors.rounded)) for sizes in c.anchors.sizes_px]
    return RPN(
        RPNHead(c.fpn.channels, len(cells[0]), c.rpn.convs),
        cells=cells,
        first_level=c.fpn.first_level,
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


def _box_rules(c: MaskRCNNConfig, conventions: Conventions) -> BoxRules:
    head = c.box_head
    return BoxRules(
        resolution=head.resolution,
        delta_weights=head.delta_weights,
        smooth_l1_beta=_decided(head.smooth_l1_beta),
        class_weight=head.class_weight,
        box_weight=head.box_weight,
        sampling=RegionSampling(
            foreground_iou=head.foreground_iou,
            background_iou=head.background_iou,
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


def _pooling(c: MaskRCNNConfig, conventions: Conventions) -> Pooling:
    return Pooling(
        sampling_ratio=_decided(c.roi.sampling_ratio),
        aligned=_decided(c.roi.aligned),
        level_rule=conventions.level_rule,
        canonical_box_px=c.roi.canonical_box_px,
        canonical_level=c.roi.canonical_level,
        first_level=c.fpn.first_level,
    )


def _mask_rules(c: MaskRCNNConfig) -> MaskRules:
    return MaskRules(
        resolution=c.mask_head.resolution,
        binary_targets=c.mask_head.target == "binary",
        aligned_targets=_decided(c.mask_head.target_aligned),
        paste=_decided(c.mask_head.paste),
        threshold=c.mask_head.threshold,
        weight=c.mask_head.weight,
    )

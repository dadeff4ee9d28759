"""Where torchvision and Detectron2 differ: the two tables behind the recipe's ``conventions`` key.

Every entry was checked against the framework's own numbers (``tests/models``): ``maskrcnn_resnet50_fpn`` of torchvision
0.24 to 0.29, and Detectron2 at commit 02b5c4e. A model keeps the conventions that it was trained with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ConventionsName = Literal["torchvision", "detectron2"]
MaskTarget = Literal["soft", "binary"]
PasteRule = Literal["torchvision", "detectron2"]
ResizeRule = Literal["torchvision", "detectron2"]
LossNormaliser = Literal["sampled", "batch_size"]


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """The choices of one framework."""

    name: ConventionsName

    # Backbone
    stride_in_1x1: bool
    """Bottlenecks stride in the first 1x1 convolution (original ResNet) instead of the 3x3."""

    # Anchors and proposals
    round_anchors: bool
    """Cell anchors are rounded to whole pixels, half to even."""
    infer_anchor_stride: bool
    """A level's stride is the padded image's side over the map's, rounded down: 58 px, not 64, for p6 of 352 px."""
    pre_nms_train: int
    pre_nms_test: int
    """Best anchors per pyramid level that enter NMS."""
    post_nms_train: int
    post_nms_test: int
    """Maximum number of proposals per image after NMS."""
    rpn_min_box_px: float
    """Proposals with a smaller side are dropped; 0 drops only those without area."""
    rpn_loss_normaliser: LossNormaliser
    """Both RPN losses are divided by the number of anchors drawn, or by the sample size times the number of images."""

    # Regions of interest
    roi_aligned: bool
    """RoIAlign shifts boxes by half a pixel, so that pixel centres are at .5."""
    roi_sampling_ratio: int
    """RoIAlign's samples per output cell and axis; 0 adapts to the size of the box."""
    level_rule: Literal["torchvision", "detectron2"]
    """Where equation 1 of the FPN paper has its small constant: after the logarithm, or inside it."""
    box_min_px: float
    """Detections with a smaller side are dropped before NMS; 0 drops none."""
    drop_empty_boxes: bool
    """Detections are clipped to the output image, and those without area after that are dropped."""
    background_rows: bool
    """Box deltas and masks have an unused row for background, as in the framework, so that parameter counts agree."""
    smooth_l1_beta: float
    """Where smooth L1 becomes linear, in units of the encoded deltas; 0 is plain L1."""

    # Masks
    mask_target: MaskTarget
    """Training targets: RoIAlign of the bitmask (soft), or whether that is at least .5 (binary)."""
    mask_target_aligned: bool
    """RoIAlign's half-pixel shift when targets are sampled."""
    paste_rule: PasteRule
    """How mask probabilities are resampled into the image; see ``ops/paste.py``."""

    # Foreign weights and images
    foreign_background: Literal["first", "last"]
    """Row of the background class in the framework's box classifier. Here it is always the last."""
    resize_rule: ResizeRule
    """torchvision rounds sizes down and does not antialias; Detectron2 rounds half up and resizes with PIL."""


TORCHVISION = Conventions(
    name="torchvision",
    stride_in_1x1=False,
    round_anchors=True,
    infer_anchor_stride=True,
    pre_nms_train=2000,
    pre_nms_test=1000,
    post_nms_train=2000,
    post_nms_test=1000,
    rpn_min_box_px=1e-3,
    rpn_loss_normaliser="sampled",
    roi_aligned=False,
    roi_sampling_ratio=2,
    level_rule="torchvision",
    box_min_px=1e-2,
    drop_empty_boxes=False,
    background_rows=True,
    smooth_l1_beta=1 / 9,
    mask_target="soft",
    mask_target_aligned=False,
    paste_rule="torchvision",
    foreign_background="first",
    resize_rule="torchvision",
)

DETECTRON2 = Conventions(
    name="detectron2",
    stride_in_1x1=True,
    round_anchors=False,
    infer_anchor_stride=False,
    pre_nms_train=2000,
    pre_nms_test=1000,
    post_nms_train=1000,
    post_nms_test=1000,
    rpn_min_box_px=0.0,
    rpn_loss_normaliser="batch_size",
    roi_aligned=True,
    roi_sampling_ratio=0,
    level_rule="detectron2",
    box_min_px=0.0,
    drop_empty_boxes=True,
    background_rows=False,
    smooth_l1_beta=0.0,
    mask_target="binary",
    mask_target_aligned=True,
    paste_rule="detectron2",
    foreign_background="last",
    resize_rule="detectron2",
)

CONVENTIONS: dict[str, Conventions] = {"torchvision": TORCHVISION, "detectron2": DETECTRON2}

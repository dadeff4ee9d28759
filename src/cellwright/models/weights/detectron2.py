"""Detectron2's R-CNN family, and the Caffe2 names of Detectron1 and of the ImageNet pickles.

Caffe2 names are translated to Detectron2's first, as Detectron2 does (``c2_model_loading.py``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cellwright.models.weights.layout import LEAF, Layout, Rule, translate

_NORM = r"norm\.(?P<leaf>weight|bias|running_mean|running_var|num_batches_tracked)"
# ImageNet files omit the enclosing modules; C4 has res5 among its heads.
_BODY = r"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)?"
_RPN = r"(?:proposal_generator\.)?(?:rpn_head\.)?"
_BOX = r"(?:roi_heads\.)?box_head\.(?:(?P<k>\d)\.)?"
_PREDICTOR = r"(?:roi_heads\.)?(?:box_predictor\.)?(?:(?P<k>\d)\.)?"
_MASK = r"(?:roi_heads\.)?mask_head\."
# PointRend files of 2020 in the model zoo have other names for these heads and layers.
_COARSE = r"roi_heads\.(?:mask_head\.coarse_head|mask_coarse_head)\."
_POINT = r"roi_heads\.(?:mask_head\.point_head|mask_point_head)\."
_RULES: tuple[Rule, ...] = (
    (_BODY + r"stem\.conv1\.(?P<leaf>weight)", "backbone.stem.conv.{leaf}", 0),
    (_BODY + r"stem\.conv1\." + _NORM, "backbone.stem.norm.{leaf}", 0),
    (_BODY + r"(?P<c>res[2-5]\.\d+\.(?:conv\d|shortcut))\.(?P<leaf>weight)", "backbone.{c}.conv.{leaf}", 0),
    (_BODY + r"(?P<c>res[2-5]\.\d+\.(?:conv\d|shortcut))\." + _NORM, "backbone.{c}.norm.{leaf}", 0),
    (_BODY + rf"(?P<c>res[2-5]\.\d+\.conv2)_offset\.{LEAF}", "backbone.{c}.offset.{leaf}", 0),
    (rf"(?:backbone\.)?fpn_(?P<c>lateral|output)(?P<n>\d)\.{LEAF}", "fpn.{c}.{n}.conv.{leaf}", 2),
    (r"(?:backbone\.)?fpn_(?P<c>lateral|output)(?P<n>\d)\." + _NORM, "fpn.{c}.{n}.norm.{leaf}", 2),
    (rf"(?:proposal_generator\.)?rpn_head\.conv\.{LEAF}", "rpn.head.convs.0.conv.{leaf}", 0),
    (rf"proposal_generator\.rpn_head\.conv\.conv(?P<n>\d)\.{LEAF}", "rpn.head.convs.{n}.conv.{leaf}", 0),
    (_RPN + rf"objectness_logits\.{LEAF}", "rpn.head.objectness.{leaf}", 0),
    (_RPN + rf"anchor_deltas\.{LEAF}", "rpn.head.deltas.{leaf}", 0),
    (_BOX + rf"fc(?P<n>\d)\.{LEAF}", "box_head.{k}.fcs.{n}.{leaf}", 1),
    (_BOX + rf"conv(?P<n>\d)\.{LEAF}", "box_head.{k}.convs.{n}.conv.{leaf}", 1),
    (_BOX + r"conv(?P<n>\d)\." + _NORM, "box_head.{k}.convs.{n}.norm.{leaf}", 1),
    (_PREDICTOR + rf"cls_score\.{LEAF}", "box_head.{k}.class_logits.{leaf}", 0),
    (_PREDICTOR + rf"bbox_pred\.{LEAF}", "box_head.{k}.deltas.{leaf}", 0),
    (_MASK + rf"mask_fcn(?P<n>\d)\.{LEAF}", "mask_head.convs.{n}.conv.{leaf}", 1),
    (_MASK + r"mask_fcn(?P<n>\d)\." + _NORM, "mask_head.convs.{n}.norm.{leaf}", 1),
    (_MASK + rf"deconv\.{LEAF}", "mask_head.upsample.{leaf}", 0),
    (_MASK + rf"predictor\.{LEAF}", "mask_head.logits.{leaf}", 0),
    (_COARSE + rf"reduce_channel_dim_conv\.{LEAF}", "mask_head.reduce.conv.{leaf}", 0),
    (_COARSE + rf"reduce_spatial_dim_conv\.{LEAF}", "mask_head.shrink.conv.{leaf}", 0),
    (_COARSE + rf"(?:coarse_mask_)?fc(?P<n>\d)\.{LEAF}", "mask_head.fcs.{n}.{leaf}", 1),
    (_COARSE + rf"prediction\.{LEAF}", "mask_head.logits.{leaf}", 0),
    (_POINT + rf"fc(?P<n>\d)\.{LEAF}", "point_head.fcs.{n}.{leaf}", 1),
    (_POINT + rf"predictor\.{LEAF}", "point_head.logits.{leaf}", 0),
)

# Caffe2 blobs, with dots instead of underscores, to Detectron2 names: replacements, applied in this order.
_CAFFE2 = (
    (r"\.bn\.(?:s|gamma)$", ".norm.weight"),
    (r"\.bn\.(?:b|beta)$", ".norm.bias"),
    (r"\.bn\.(?:rm|running\.mean)$", ".norm.running_mean"),
    (r"\.bn\.(?:riv|running\.var)$", ".norm.running_var"),
    (r"\.gn\.s$", ".norm.weight"),
    (r"\.gn\.b$", ".norm.bias"),
    (r"\.w$", ".weight"),
    (r"\.b$", ".bias"),
    (r"^pred\.", "linear."),
    (r"^res\.conv1\.norm\.", "conv1.norm."),
    (r"^conv1\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
    (r"^conv\.rpn(?:\.fpn2)?\.", "rpn_head.conv."),
    (r"^rpn\.bbox\.pred(?:\.fpn2)?\.", "anchor_deltas."),
    (r"^rpn\.cls\.logits(?:\.fpn2)?\.", "objectness_logits."),
    (r"^bbox\.pred\.", "bbox_pred."),
    (r"^cls\.score\.", "cls_score."),
    (r"^fc6\.", "box_head.fc1."),
    (r"^fc7\.", "box_head.fc2."),
    (r"^head\.conv", "box_head.conv"),
    (r"^fpn\.inner\.res(\d)\..*?(\.norm)?\.(weight|bias)$", r"fpn_lateral\1\2.\3"),
    (r"^fpn\.res(\d)\..*?(\.norm)?\.(weight|bias)$", r"fpn_output\1\2.\3"),
    (r"^\.(?:\[mask\]|mask)\.fcn", "mask_head.mask_fcn"),
    (r"^mask\.fcn\.logits\.", "mask_head.predictor."),
    (r"^conv5\.mask\.", "mask_head.deconv."),
)


def our_names(names: Sequence[str]) -> dict[str, str | None]:
    """Our name of each Detectron2 tensor; None where it is unknown."""
    return {name: translate(name, _RULES) for name in names}


def our_names_of_caffe2(names: Sequence[str]) -> dict[str, str | None]:
    """Our name of each Caffe2 blob; None where it is unknown."""
    return {name: translate(detectron2_name(name), _RULES) for name in names}


def detectron2_name(blob: str) -> str:
    """Detectron2's name of a Caffe2 blob, without the enclosing modules."""
    name = blob.replace("_", ".")
    for pattern, replacement in _CAFFE2:
        name = re.sub(pattern, replacement, name)
    return name


LAYOUT = Layout(our_names)
# Caffe2 models do not use the background row of boxes and masks; Detectron2, which fine-tunes them, does not have it.
CAFFE2_LAYOUT = Layout(our_names_of_caffe2, background_first=True, unused_background=True)

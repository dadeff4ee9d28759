"""What other frameworks call our tensors: torchvision, Detectron2, and Caffe2 (Detectron1 and the ImageNet pickles).

A name is translated by the first pattern that fits all of it; Caffe2's names become Detectron2's first, as Detectron2
itself does it (``c2_model_loading.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

Framework = Literal["cellwright", "detectron2", "torchvision", "caffe2"]
PARTS = ("backbone", "fpn", "rpn", "box_head", "mask_head", "point_head", "mask_scoring")

_LEAF = r"(?P<leaf>weight|bias)"
_NORM = r"norm\.(?P<leaf>weight|bias|running_mean|running_var|num_batches_tracked)"
# (pattern of the whole foreign name, our name, what the number n is counted from).
_Rule = tuple[str, str, int]

_TV_BLOCK = r"(?:backbone\.body\.)?layer(?P<n>[1-4])\.(?P<b>\d+)\."
_TORCHVISION: tuple[_Rule, ...] = (
    (r"(?:backbone\.body\.)?conv1\.(?P<leaf>weight)", "backbone.stem.conv.{leaf}", 0),
    (r"(?:backbone\.body\.)?bn1\.(?P<leaf>\w+)", "backbone.stem.norm.{leaf}", 0),
    # layer1 is res2.
    (_TV_BLOCK + r"conv(?P<c>\d)\.(?P<leaf>weight)", "backbone.res{n}.{b}.conv{c}.conv.{leaf}", -1),
    (_TV_BLOCK + r"bn(?P<c>\d)\.(?P<leaf>\w+)", "backbone.res{n}.{b}.conv{c}.norm.{leaf}", -1),
    (_TV_BLOCK + r"downsample\.0\.(?P<leaf>weight)", "backbone.res{n}.{b}.shortcut.conv.{leaf}", -1),
    (_TV_BLOCK + r"downsample\.1\.(?P<leaf>\w+)", "backbone.res{n}.{b}.shortcut.norm.{leaf}", -1),
    (rf"backbone\.fpn\.inner_blocks\.(?P<n>\d)\.(?:0\.)?{_LEAF}", "fpn.lateral.{n}.conv.{leaf}", 0),
    (r"backbone\.fpn\.inner_blocks\.(?P<n>\d)\.1\.(?P<leaf>\w+)", "fpn.lateral.{n}.norm.{leaf}", 0),
    (rf"backbone\.fpn\.layer_blocks\.(?P<n>\d)\.(?:0\.)?{_LEAF}", "fpn.output.{n}.conv.{leaf}", 0),
    (r"backbone\.fpn\.layer_blocks\.(?P<n>\d)\.1\.(?P<leaf>\w+)", "fpn.output.{n}.norm.{leaf}", 0),
    (rf"rpn\.head\.conv\.{_LEAF}", "rpn.head.convs.0.conv.{leaf}", 0),
    (rf"rpn\.head\.conv\.(?P<n>\d)\.0\.{_LEAF}", "rpn.head.convs.{n}.conv.{leaf}", 0),
    (rf"rpn\.head\.cls_logits\.{_LEAF}", "rpn.head.objectness.{leaf}", 0),
    (rf"rpn\.head\.bbox_pred\.{_LEAF}", "rpn.head.deltas.{leaf}", 0),
    (rf"roi_heads\.box_head\.fc(?P<n>\d)\.{_LEAF}", "box_head.0.fcs.{n}.{leaf}", 6),
    (rf"roi_heads\.box_head\.(?P<n>\d)\.0\.{_LEAF}", "box_head.0.convs.{n}.conv.{leaf}", 0),
    (r"roi_heads\.box_head\.(?P<n>\d)\.1\.(?P<leaf>\w+)", "box_head.0.convs.{n}.norm.{leaf}", 0),
    (rf"roi_heads\.box_predictor\.cls_score\.{_LEAF}", "box_head.0.class_logits.{leaf}", 0),
    (rf"roi_heads\.box_predictor\.bbox_pred\.{_LEAF}", "box_head.0.deltas.{leaf}", 0),
    (rf"roi_heads\.mask_head\.mask_fcn(?P<n>\d)\.{_LEAF}", "mask_head.convs.{n}.conv.{leaf}", 1),
    (rf"roi_heads\.mask_head\.(?P<n>\d)\.0\.{_LEAF}", "mask_head.convs.{n}.conv.{leaf}", 0),
    (r"roi_heads\.mask_head\.(?P<n>\d)\.1\.(?P<leaf>\w+)", "mask_head.convs.{n}.norm.{leaf}", 0),
    (rf"roi_heads\.mask_predictor\.conv5_mask\.{_LEAF}", "mask_head.upsample.{leaf}", 0),
    (rf"roi_heads\.mask_predictor\.mask_fcn_logits\.{_LEAF}", "mask_head.logits.{leaf}", 0),
)

# ImageNet files name their tensors without the modules around them; C4's res5 stands among the heads.
_D2_BODY = r"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)?"
_D2_RPN = r"(?:proposal_generator\.)?(?:rpn_head\.)?"
_D2_BOX = r"(?:roi_heads\.)?box_head\.(?:(?P<k>\d)\.)?"
_D2_PREDICTOR = r"(?:roi_heads\.)?(?:box_predictor\.)?(?:(?P<k>\d)\.)?"
_D2_MASK = r"(?:roi_heads\.)?mask_head\."
# The zoo's PointRend files of 2020 name these heads and layers otherwise.
_D2_COARSE = r"roi_heads\.(?:mask_head\.coarse_head|mask_coarse_head)\."
_D2_POINT = r"roi_heads\.(?:mask_head\.point_head|mask_point_head)\."
_DETECTRON2: tuple[_Rule, ...] = (
    (_D2_BODY + r"stem\.conv1\.(?P<leaf>weight)", "backbone.stem.conv.{leaf}", 0),
    (_D2_BODY + r"stem\.conv1\." + _NORM, "backbone.stem.norm.{leaf}", 0),
    (_D2_BODY + r"(?P<c>res[2-5]\.\d+\.(?:conv\d|shortcut))\.(?P<leaf>weight)", "backbone.{c}.conv.{leaf}", 0),
    (_D2_BODY + r"(?P<c>res[2-5]\.\d+\.(?:conv\d|shortcut))\." + _NORM, "backbone.{c}.norm.{leaf}", 0),
    (_D2_BODY + rf"(?P<c>res[2-5]\.\d+\.conv2)_offset\.{_LEAF}", "backbone.{c}.offset.{leaf}", 0),
    (rf"(?:backbone\.)?fpn_(?P<c>lateral|output)(?P<n>\d)\.{_LEAF}", "fpn.{c}.{n}.conv.{leaf}", 2),
    (r"(?:backbone\.)?fpn_(?P<c>lateral|output)(?P<n>\d)\." + _NORM, "fpn.{c}.{n}.norm.{leaf}", 2),
    (rf"(?:proposal_generator\.)?rpn_head\.conv\.{_LEAF}", "rpn.head.convs.0.conv.{leaf}", 0),
    (rf"proposal_generator\.rpn_head\.conv\.conv(?P<n>\d)\.{_LEAF}", "rpn.head.convs.{n}.conv.{leaf}", 0),
    (_D2_RPN + rf"objectness_logits\.{_LEAF}", "rpn.head.objectness.{leaf}", 0),
    (_D2_RPN + rf"anchor_deltas\.{_LEAF}", "rpn.head.deltas.{leaf}", 0),
    (_D2_BOX + rf"fc(?P<n>\d)\.{_LEAF}", "box_head.{k}.fcs.{n}.{leaf}", 1),
    (_D2_BOX + rf"conv(?P<n>\d)\.{_LEAF}", "box_head.{k}.convs.{n}.conv.{leaf}", 1),
    (_D2_BOX + r"conv(?P<n>\d)\." + _NORM, "box_head.{k}.convs.{n}.norm.{leaf}", 1),
    (_D2_PREDICTOR + rf"cls_score\.{_LEAF}", "box_head.{k}.class_logits.{leaf}", 0),
    (_D2_PREDICTOR + rf"bbox_pred\.{_LEAF}", "box_head.{k}.deltas.{leaf}", 0),
    (_D2_MASK + rf"mask_fcn(?P<n>\d)\.{_LEAF}", "mask_head.convs.{n}.conv.{leaf}", 1),
    (_D2_MASK + r"mask_fcn(?P<n>\d)\." + _NORM, "mask_head.convs.{n}.norm.{leaf}", 1),
    (_D2_MASK + rf"deconv\.{_LEAF}", "mask_head.upsample.{leaf}", 0),
    (_D2_MASK + rf"predictor\.{_LEAF}", "mask_head.logits.{leaf}", 0),
    (_D2_COARSE + rf"reduce_channel_dim_conv\.{_LEAF}", "mask_head.reduce.conv.{leaf}", 0),
    (_D2_COARSE + rf"reduce_spatial_dim_conv\.{_LEAF}", "mask_head.shrink.conv.{leaf}", 0),
    (_D2_COARSE + rf"(?:coarse_mask_)?fc(?P<n>\d)\.{_LEAF}", "mask_head.fcs.{n}.{leaf}", 1),
    (_D2_COARSE + rf"prediction\.{_LEAF}", "mask_head.logits.{leaf}", 0),
    (_D2_POINT + rf"fc(?P<n>\d)\.{_LEAF}", "point_head.fcs.{n}.{leaf}", 1),
    (_D2_POINT + rf"predictor\.{_LEAF}", "point_head.logits.{leaf}", 0),
)

# Caffe2's blobs, underscores already dots, to Detectron2's names: replacements that are made one after the other.
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

_OURS = (
    r"backbone\.(?:stem|res[2-5]\.\d+\.(?:conv\d|shortcut))\.(?:conv|norm|offset)\.\w+"
    r"|fpn\.(?:lateral|output)\.\d\..*|rpn\.head\.(?:convs\.|objectness|deltas).*|box_head\.\d\.[a-z].*"
    r"|(?:mask_head|point_head)\.(?:convs|fcs|upsample|logits|reduce|shrink)\..*|mask_scoring\..*"
)

# (pattern of a foreign name, why it has no place here).
_UNUSED = (
    (r"pixel_(mean|std)", "the recipe's input section has it"),
    (r".*anchor_generator\.cell_anchors\..*", "the recipe's anchors section has it"),
    (r"(stem\.)?(fc|linear|fc1000)\.(weight|bias)|(fc1000|pred)_[wb]", "ImageNet's classifier"),
    (r".*_momentum", "an optimiser's state"),
)


def our_names(theirs: Iterable[str], framework: Framework) -> dict[str, str | None]:
    """Our name of each foreign tensor, None where none is known."""
    names = list(theirs)
    if framework == "cellwright":
        return {name: name if re.fullmatch(_OURS, name) else None for name in names}
    if framework == "caffe2":
        return {name: _translate(detectron2_name(name), _DETECTRON2) for name in names}
    if framework == "detectron2":
        return {name: _translate(name, _DETECTRON2) for name in names}
    # In a box head of convolutions (v2) the first fully connected layer comes after them and the flattening.
    convs = [int(match[1]) for name in names if (match := re.match(r"roi_heads\.box_head\.(\d)\.0\.", name))]
    first = max(convs, default=-1) + 2
    found = {name: _translate(name, _TORCHVISION) for name in names}
    for name in names:
        if match := re.fullmatch(rf"roi_heads\.box_head\.(?P<n>\d)\.{_LEAF}", name):
            found[name] = f"box_head.0.fcs.{(int(match['n']) - first) // 2}.{match['leaf']}"
    return found


def detectron2_name(blob: str) -> str:
    """Detectron2's name of a Caffe2 blob, without the modules around it."""
    name = blob.replace("_", ".")
    for pattern, replacement in _CAFFE2:
        name = re.sub(pattern, replacement, name)
    return name


def why_unused(theirs: str) -> str | None:
    """Why a foreign tensor has no place here by design; None where it is unknown."""
    return next((why for pattern, why in _UNUSED if re.fullmatch(pattern, theirs)), None)


def framework_of(theirs: Iterable[str]) -> Framework | None:
    """Whose names these are: the framework that knows most of them; None where none knows any."""
    names = list(theirs)
    best, most = None, 0
    for framework in get_args(Framework):
        known = sum(ours is not None for ours in our_names(names, framework).values())
        if known > most:
            best, most = framework, known
    return best


def _translate(name: str, rules: Sequence[_Rule]) -> str | None:
    for pattern, ours, first in rules:
        if match := re.fullmatch(pattern, name):
            groups = match.groupdict()
            # A head that looks once is a cascade of one stage.
            return ours.format(**{**groups, "n": int(groups.get("n") or 0) - first, "k": groups.get("k") or "0"})
    return None

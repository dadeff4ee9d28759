"""torchvision's ResNets and Mask R-CNNs: the names of their tensors, and their published weights."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from cellwright.config.conventions import TORCHVISION
from cellwright.core.errors import ModelError
from cellwright.models.weights.layout import LEAF, Layout, Rule, translate

# Only these of torchvision's models fit our networks; others are rejected before they are downloaded.
_FAMILIES = ("resnet", "resnext", "wide_resnet", "maskrcnn")

_BLOCK = r"(?:backbone\.body\.)?layer(?P<n>[1-4])\.(?P<b>\d+)\."
_RULES: tuple[Rule, ...] = (
    (r"(?:backbone\.body\.)?conv1\.(?P<leaf>weight)", "backbone.stem.conv.{leaf}", 0),
    (r"(?:backbone\.body\.)?bn1\.(?P<leaf>\w+)", "backbone.stem.norm.{leaf}", 0),
    # layer1 is res2.
    (_BLOCK + r"conv(?P<c>\d)\.(?P<leaf>weight)", "backbone.res{n}.{b}.conv{c}.conv.{leaf}", -1),
    (_BLOCK + r"bn(?P<c>\d)\.(?P<leaf>\w+)", "backbone.res{n}.{b}.conv{c}.norm.{leaf}", -1),
    (_BLOCK + r"downsample\.0\.(?P<leaf>weight)", "backbone.res{n}.{b}.shortcut.conv.{leaf}", -1),
    (_BLOCK + r"downsample\.1\.(?P<leaf>\w+)", "backbone.res{n}.{b}.shortcut.norm.{leaf}", -1),
    (rf"backbone\.fpn\.inner_blocks\.(?P<n>\d)\.(?:0\.)?{LEAF}", "fpn.lateral.{n}.conv.{leaf}", 0),
    (r"backbone\.fpn\.inner_blocks\.(?P<n>\d)\.1\.(?P<leaf>\w+)", "fpn.lateral.{n}.norm.{leaf}", 0),
    (rf"backbone\.fpn\.layer_blocks\.(?P<n>\d)\.(?:0\.)?{LEAF}", "fpn.output.{n}.conv.{leaf}", 0),
    (r"backbone\.fpn\.layer_blocks\.(?P<n>\d)\.1\.(?P<leaf>\w+)", "fpn.output.{n}.norm.{leaf}", 0),
    (rf"rpn\.head\.conv\.{LEAF}", "rpn.head.convs.0.conv.{leaf}", 0),
    (rf"rpn\.head\.conv\.(?P<n>\d)\.0\.{LEAF}", "rpn.head.convs.{n}.conv.{leaf}", 0),
    (rf"rpn\.head\.cls_logits\.{LEAF}", "rpn.head.objectness.{leaf}", 0),
    (rf"rpn\.head\.bbox_pred\.{LEAF}", "rpn.head.deltas.{leaf}", 0),
    (rf"roi_heads\.box_head\.fc(?P<n>\d)\.{LEAF}", "box_head.0.fcs.{n}.{leaf}", 6),
    (rf"roi_heads\.box_head\.(?P<n>\d)\.0\.{LEAF}", "box_head.0.convs.{n}.conv.{leaf}", 0),
    (r"roi_heads\.box_head\.(?P<n>\d)\.1\.(?P<leaf>\w+)", "box_head.0.convs.{n}.norm.{leaf}", 0),
    (rf"roi_heads\.box_predictor\.cls_score\.{LEAF}", "box_head.0.class_logits.{leaf}", 0),
    (rf"roi_heads\.box_predictor\.bbox_pred\.{LEAF}", "box_head.0.deltas.{leaf}", 0),
    (rf"roi_heads\.mask_head\.mask_fcn(?P<n>\d)\.{LEAF}", "mask_head.convs.{n}.conv.{leaf}", 1),
    (rf"roi_heads\.mask_head\.(?P<n>\d)\.0\.{LEAF}", "mask_head.convs.{n}.conv.{leaf}", 0),
    (r"roi_heads\.mask_head\.(?P<n>\d)\.1\.(?P<leaf>\w+)", "mask_head.convs.{n}.norm.{leaf}", 0),
    (rf"roi_heads\.mask_predictor\.conv5_mask\.{LEAF}", "mask_head.upsample.{leaf}", 0),
    (rf"roi_heads\.mask_predictor\.mask_fcn_logits\.{LEAF}", "mask_head.logits.{leaf}", 0),
)


def our_names(names: Sequence[str]) -> dict[str, str | None]:
    """Our name of each torchvision tensor; None where it is unknown."""
    ours = {name: translate(name, _RULES) for name in names}
    # The box head of version 2 is one sequence: convolutions 0 to last, a flattening, and the fully connected layer.
    convs = [int(match[1]) for name in names if (match := re.match(r"roi_heads\.box_head\.(\d)\.0\.", name))]
    first_fc = max(convs, default=-1) + 2
    for name in names:
        if match := re.fullmatch(rf"roi_heads\.box_head\.(?P<n>\d)\.{LEAF}", name):
            ours[name] = f"box_head.0.fcs.{(int(match['n']) - first_fc) // 2}.{match['leaf']}"
    return ours


LAYOUT = Layout(our_names, background_first=TORCHVISION.foreign_background == "first")


def published_weights(name: str) -> dict[str, Tensor]:
    """torchvision's weights ``NAME`` or ``NAME:VERSION``, downloaded once by torchvision itself.

    Raises:
        ModelError: torchvision has no such weights, or they cannot be downloaded.
    """
    from torchvision.models import get_model_weights, list_models

    model, _, version = name.partition(":")
    models = [known for known in list_models() if known.startswith(_FAMILIES)]
    if model not in models:
        raise ModelError("torchvision has no such weights", got=name, expected=f"a file, or one of {', '.join(models)}")
    versions = get_model_weights(model)
    if version not in ("", *versions.__members__):
        raise ModelError("torchvision has no such version", got=name, expected=", ".join(versions.__members__))
    weights = versions[version or "DEFAULT"]
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise ModelError(
            "cannot download torchvision's weights",
            where=name,
            got=str(error),
            remedy=f"download {weights.url} on another machine, and give the file as torchvision:FILE.pth",
        ) from error

"""Weights of other frameworks: reading their files without running them, and giving their tensors our names.

Every tensor of the file and of the network is accounted for: taken, left out for a named reason, or an error.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cellwright.config.conventions import CONVENTIONS
from cellwright.core.errors import ModelError
from cellwright.core.unpickle import read_pickle

Framework = Literal["torchvision", "detectron2"]
Part = Literal["backbone", "fpn", "rpn", "box_head", "mask_head"]
PARTS: tuple[Part, ...] = ("backbone", "fpn", "rpn", "box_head", "mask_head")

# (pattern of the whole foreign name, our name). The first that fits decides.
_TORCHVISION_BODY = (
    (r"conv1\.weight", r"backbone.stem.conv.weight"),
    (r"bn1\.(\w+)", r"backbone.stem.norm.\1"),
    (r"layer1\.(.*)", r"res2.\1"),
    (r"layer2\.(.*)", r"res3.\1"),
    (r"layer3\.(.*)", r"res4.\1"),
    (r"layer4\.(.*)", r"res5.\1"),
)
_TORCHVISION_BLOCK = (
    (r"(res\d\.\d+)\.conv(\d)\.weight", r"backbone.\1.conv\2.conv.weight"),
    (r"(res\d\.\d+)\.bn(\d)\.(\w+)", r"backbone.\1.conv\2.norm.\3"),
    (r"(res\d\.\d+)\.downsample\.0\.weight", r"backbone.\1.shortcut.conv.weight"),
    (r"(res\d\.\d+)\.downsample\.1\.(\w+)", r"backbone.\1.shortcut.norm.\2"),
)
_TORCHVISION_DETECTOR = (
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"fpn.lateral.\1.conv.\2"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.1\.(\w+)", r"fpn.lateral.\1.norm.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"fpn.output.\1.conv.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.1\.(\w+)", r"fpn.output.\1.norm.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.convs.0.conv.\1"),
    (r"rpn\.head\.conv\.(\d)\.0\.(weight|bias)", r"rpn.head.convs.\1.conv.\2"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.head.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.head.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"box_head.fcs.0.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"box_head.fcs.1.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_head.class_logits.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box_head.deltas.\1"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(weight|bias)", r"mask_head.convs.\1.conv.\2"),
    (r"roi_heads\.mask_head\.(\d)\.1\.(\w+)", r"mask_head.convs.\1.norm.\2"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"mask_head.upsample.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"mask_head.logits.\1"),
)
_DETECTRON2 = (
    (r"backbone\.bottom_up\.stem\.conv1\.weight", r"backbone.stem.conv.weight"),
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.(\w+)", r"backbone.stem.norm.\1"),
    (r"backbone\.bottom_up\.(res\d\.\d+\.\w+)\.weight", r"backbone.\1.conv.weight"),
    (r"backbone\.bottom_up\.(res\d\.\d+\.\w+)\.norm\.(\w+)", r"backbone.\1.norm.\2"),
    (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.head.convs.0.conv.\1"),
    (r"proposal_generator\.rpn_head\.conv\.conv(\d)\.(weight|bias)", r"rpn.head.convs.\1.conv.\2"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.head.objectness.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.head.deltas.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_head.class_logits.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box_head.deltas.\1"),
    (r"roi_heads\.mask_head\.deconv\.(\w+)", r"mask_head.upsample.\1"),
    (r"roi_heads\.mask_head\.predictor\.(\w+)", r"mask_head.logits.\1"),
)
# Detectron2 counts these from another number than we do: (pattern, our name, number of the first).
_DETECTRON2_COUNTED = (
    (r"backbone\.fpn_(?P<what>lateral|output)(?P<n>\d)\.(?P<leaf>weight|bias)", "fpn.{what}.{n}.conv.{leaf}", 2),
    (r"backbone\.fpn_(?P<what>lateral|output)(?P<n>\d)\.norm\.(?P<leaf>\w+)", "fpn.{what}.{n}.norm.{leaf}", 2),
    (r"roi_heads\.box_head\.fc(?P<n>\d)\.(?P<leaf>\w+)", "box_head.fcs.{n}.{leaf}", 1),
    (r"roi_heads\.box_head\.conv(?P<n>\d)\.(?P<leaf>weight|bias)", "box_head.convs.{n}.conv.{leaf}", 1),
    (r"roi_heads\.box_head\.conv(?P<n>\d)\.norm\.(?P<leaf>\w+)", "box_head.convs.{n}.norm.{leaf}", 1),
    (r"roi_heads\.mask_head\.mask_fcn(?P<n>\d)\.(?P<leaf>weight|bias)", "mask_head.convs.{n}.conv.{leaf}", 1),
    (r"roi_heads\.mask_head\.mask_fcn(?P<n>\d)\.norm\.(?P<leaf>\w+)", "mask_head.convs.{n}.norm.{leaf}", 1),
)
# Tensors that carry no weights, and the ImageNet classifier.
_NOT_WEIGHTS = (
    r"pixel_(mean|std)",
    r".*anchor_generator\.cell_anchors\..*",
    r"fc\.(weight|bias)",
    r"linear\.(weight|bias)",
)


@dataclass(frozen=True)
class LoadReport:
    """Where every tensor came from and went to.

    Attributes:
        taken: (their name, our name, shape) of each tensor that was copied.
        left_out: (their name, why) of each tensor of the file that was not.
        fresh: our names of the tensors that keep their random start.
    """

    taken: tuple[tuple[str, str, tuple[int, ...]], ...]
    left_out: tuple[tuple[str, str], ...]
    fresh: tuple[str, ...]

    def text(self) -> str:
        """One line a tensor, for a log or a terminal."""
        lines = [f"{len(self.taken)} tensors taken, {len(self.left_out)} left out, {len(self.fresh)} at random"]
        lines += [f"  {theirs} -> {ours} {'x'.join(map(str, shape))}" for theirs, ours, shape in self.taken]
        lines += [f"  {theirs} left out: {why}" for theirs, why in self.left_out]
        lines += [f"  {ours} starts at random" for ours in self.fresh]
        return "\n".join(lines)


def read_foreign(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` (state dict) or ``.pkl`` (named arrays) file; nothing but data is unpickled.

    A dict under the key "model" or "state_dict" is looked into, as both frameworks wrap theirs.

    Raises:
        ModelError: the file is missing, damaged, holds more than data, or no named tensors.
    """
    path = Path(path)
    content: Any
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                content = read_pickle(file, where=path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError("cannot read these weights", where=path, got=error.strerror or str(error)) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        got = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ModelError(
            "these weights cannot be loaded safely", where=path, got=got, expected="a .pth or .pkl file of tensors only"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ModelError("these weights are no named tensors", where=path, got=type(content).__name__)
    tensors = {str(k): torch.as_tensor(v) for k, v in content.items() if isinstance(v, Tensor | np.ndarray)}
    if not tensors:
        raise ModelError("these weights hold no tensor", where=path, got=f"keys {sorted(map(str, content))[:5]}")
    return tensors


def our_name(theirs: str, framework: Framework) -> str | None:
    """Our name of a foreign tensor, or None where none is known."""
    if framework == "torchvision":
        body = theirs.removeprefix("backbone.body.")
        in_stage = _rename(body, _TORCHVISION_BODY)
        if in_stage is not None:
            return in_stage if in_stage.startswith("backbone.") else _rename(in_stage, _TORCHVISION_BLOCK)
        return _rename(theirs, _TORCHVISION_DETECTOR)
    for pattern, ours, first in _DETECTRON2_COUNTED:
        if match := re.fullmatch(pattern, theirs):
            return ours.format(**{**match.groupdict(), "n": int(match["n"]) - first})
    return _rename(theirs, _DETECTRON2)


def _rename(name: str, rules: Sequence[tuple[str, str]]) -> str | None:
    for pattern, ours in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    return None


def load_foreign(
    network: nn.Module, tensors: Mapping[str, Tensor], framework: Framework, *, fresh: Sequence[str], where: object
) -> LoadReport:
    """Copy foreign tensors into a Mask R-CNN, strictly.

    Args:
        network: a ``MaskRCNN``; changed in place.
        tensors: the foreign state dict.
        framework: whose names and row order the tensors have.
        fresh: parts that keep their random start. A file with a backbone only (ImageNet) leaves all others fresh.
        where: the file, for messages.

    Raises:
        ModelError: a tensor has no known name, another shape, or a part that is wanted is not in the file.
    """
    named, left_out = _translate(tensors, framework, where)
    has_background = CONVENTIONS[framework].foreign_background == "first"
    parts = {ours.split(".")[0] for _, ours, _ in named}
    if not parts:
        raise ModelError("no tensor of these weights is known", where=where, got=sorted(tensors)[:5])
    skipped = set(fresh) | (set(PARTS) - parts if parts == {"backbone"} else set())
    own, taken = network.state_dict(), {}
    for theirs, ours, tensor in named:
        if ours.split(".")[0] in skipped:
            left_out.append((theirs, f"{ours.split('.')[0]} starts fresh"))
        elif ours not in own and ours.endswith("num_batches_tracked"):
            left_out.append((theirs, "the normalisation is frozen"))
        else:
            taken[ours] = (theirs, _without_background_row(ours, tensor) if has_background else tensor)
    missing = [name for name in own if name not in taken and name.split(".")[0] not in skipped]
    # Frozen statistics come without a step counter; a fresh one is right.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    _check_fit(own, taken, missing, where)
    with torch.no_grad():
        for ours, (_, tensor) in taken.items():
            own[ours].copy_(tensor)
    return LoadReport(
        taken=tuple((theirs, ours, tuple(tensor.shape)) for ours, (theirs, tensor) in taken.items()),
        left_out=tuple(left_out),
        fresh=tuple(name for name in own if name not in taken),
    )


def _translate(
    tensors: Mapping[str, Tensor], framework: Framework, where: object
) -> tuple[list[tuple[str, str, Tensor]], list[tuple[str, str]]]:
    """(their name, our name, tensor) of every weight, and (their name, why) of what is none."""
    named, left_out, unknown = [], [], []
    for theirs, tensor in tensors.items():
        ours = our_name(theirs, framework)
        if ours is not None:
            named.append((theirs, ours, tensor))
        elif any(re.fullmatch(pattern, theirs) for pattern in _NOT_WEIGHTS):
            left_out.append((theirs, "no weight of a detector"))
        else:
            unknown.append(theirs)
    if unknown:
        raise ModelError(
            f"{len(unknown)} tensors of these weights have no place in a {framework} Mask R-CNN with FPN",
            where=where,
            got=", ".join(unknown[:5]),
            remedy="check that the weights are of this architecture",
        )
    return named, left_out


def _without_background_row(ours: str, tensor: Tensor) -> Tensor:
    """Background, first in torchvision's rows, goes last in the classifier and away elsewhere."""
    if ours.startswith("box_head.class_logits."):
        return torch.cat([tensor[1:], tensor[:1]])
    if ours.startswith("box_head.deltas."):
        return tensor[4:]
    return tensor[1:] if ours.startswith("mask_head.logits.") else tensor


def _check_fit(
    own: Mapping[str, Tensor], taken: Mapping[str, tuple[str, Tensor]], missing: Sequence[str], where: object
) -> None:
    problems = [f"{name}: not in the file" for name in missing]
    for ours, (theirs, tensor) in taken.items():
        if ours not in own:
            problems.append(f"{theirs}: the recipe's network has no {ours}")
        elif own[ours].shape != tensor.shape:
            problems.append(f"{theirs}: {tuple(tensor.shape)} in the file, {tuple(own[ours].shape)} in the network")
    if problems:
        raise ModelError(
            f"{len(problems)} tensors do not fit the recipe's network",
            where=where,
            got="; ".join(problems[:5]),
            remedy="make depth, widths and classes those of the file, or name the part in model.init_fresh",
        )

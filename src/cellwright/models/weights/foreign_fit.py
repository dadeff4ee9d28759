"""Where foreign tensors and a recipe's network disagree: rows for background, rows for classes, and what to say.

Shape shorthand: K classes. Our rows are the K classes, then background where there is a row for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cellwright.config.conventions import CONVENTIONS
from cellwright.core.errors import ModelError
from cellwright.models.weights.architecture import Shapes, architecture, class_count, summary
from cellwright.models.weights.foreign_names import PARTS, Framework

# What `model.init_fresh` calls all layers that have a row or a column a class.
CLASSES = "classes"
_PER_CLASS = re.compile(r"(box_head\.\d\.(?:class_logits|deltas)|(?:mask_head|point_head)\.logits)\.(?:weight|bias)")
_ALL_PER_CLASS = re.compile(
    r"box_head\.\d\.(class_logits|deltas)\..*|(mask_head\.logits|point_head)\..*|mask_scoring\.quality\..*"
)
_BACKGROUND_FIRST = {"caffe2", *(name for name, one in CONVENTIONS.items() if one.foreign_background == "first")}
# Rows a class.
_DELTAS, _MASK = 4, 1


@dataclass(frozen=True)
class Problem:
    """A tensor that does not fit: our name, and what is wrong with it."""

    ours: str
    what: str


def part_of(ours: str) -> str:
    """The part of the network that a tensor belongs to, as ``model.init_fresh`` names it."""
    return ours.partition(".")[0]


def depends_on_classes(ours: str, theirs: Shapes, own: Shapes) -> bool:
    """Whether a layer's size follows from the number of classes; shared boxes and masks do not."""
    if not _ALL_PER_CLASS.fullmatch(ours):
        return False
    same = theirs.get(ours, own.get(ours)) == own.get(ours)
    shared = own.get(ours, (0,))[0] == (_DELTAS if ".deltas." in ours else _MASK)
    certain = class_count(own) != 1 or class_count(theirs) != 1
    return not (same and shared and certain and not ours.startswith("point_head."))


def with_our_rows(tensors: Mapping[str, Tensor], framework: Framework, own: Shapes) -> dict[str, Tensor]:
    """Tensors under our names with background where we have it.

    torchvision's and Caffe2's first row is background: it goes last. In box deltas and masks nothing uses it: it stays
    where the network has such a row (``Conventions.background_rows``), is left out where not, and is 0 where only the
    network has it. With another number of classes than the network's nothing but the order changes.
    """
    rows = {ours: _background_last(ours, tensor, framework) for ours, tensor in tensors.items()}
    n_classes, classes = class_count(own), tensors.get("box_head.0.class_logits.bias")
    if n_classes is None or classes is None or classes.shape != (n_classes + 1,):
        return rows
    return {
        ours: _rows_fitted(ours, tensor, own, n_classes) if tensor.ndim == len(own.get(ours, ())) else tensor
        for ours, tensor in rows.items()
    }


def _background_last(ours: str, tensor: Tensor, framework: Framework) -> Tensor:
    size = _DELTAS if ".deltas." in ours else _MASK
    if framework not in _BACKGROUND_FIRST or not _PER_CLASS.fullmatch(ours) or tensor.ndim == 0 or len(tensor) <= size:
        return tensor
    # Caffe2's models have no use for the row either, but Detectron2, which trains on from them, has no such row.
    dropped = framework == "caffe2" and "class_logits" not in ours
    return tensor[size:] if dropped else torch.cat([tensor[size:], tensor[:size]])


def _rows_fitted(ours: str, tensor: Tensor, own: Shapes, n_classes: int) -> Tensor:
    """Rows (and the point head's columns) for background added or left out, where nothing else differs."""
    n_masks = own.get("point_head.logits.bias", own.get("mask_head.logits.bias", (n_classes,)))[0]
    if ours.startswith("point_head.") and ours.endswith(".weight"):
        # It sees the coarse logits of all rows, last.
        surplus = tensor.shape[1] - own[ours][1]
        if n_masks == n_classes + 1 and surplus == -1:
            tensor = torch.cat([tensor, tensor.new_zeros((len(tensor), 1, *tensor.shape[2:]))], dim=1)
        elif n_masks == n_classes and surplus == 1:
            tensor = tensor[:, :-1]
    if not _PER_CLASS.fullmatch(ours) or "class_logits" in ours:
        return tensor
    # Coarse masks have a row for every cell of a class.
    size = _DELTAS if ".deltas." in ours else max(own[ours][0] // n_masks, 1) if "mask_head" in ours else _MASK
    without, with_background = size * n_classes, size * (n_classes + 1)
    if (len(tensor), own[ours][0]) == (with_background, without):
        return tensor[:-size]
    if (len(tensor), own[ours][0]) == (without, with_background):
        return torch.cat([tensor, tensor.new_zeros((size, *tensor.shape[1:]))])
    return tensor


def misfit(theirs: Shapes, own: Shapes, problems: Sequence[Problem], fresh: Sequence[str], where: object) -> ModelError:
    """The error for tensors that do not fit: which keys of the recipe differ, and what to set."""
    n_theirs, n_own = class_count(theirs), class_count(own)
    differ = [] if not theirs else _differences(architecture(theirs, where), architecture(own), fresh)
    parts = {part_of(problem.ours) for problem in problems}
    remedy = _fresh_remedy(parts, fresh)
    counts = f"{_classes(n_theirs)} in the file, {_classes(n_own)} in the recipe's network"
    by_class = all(depends_on_classes(problem.ours, theirs, own) for problem in problems)
    if not differ and n_theirs is not None and n_theirs != n_own and by_class:
        only = _value({*fresh, CLASSES})
        return ModelError(
            "the class counts of these weights and of the recipe's network differ",
            where=where,
            got=counts,
            remedy=f"set model.init_fresh={only}: layers with a row a class start at random; {remedy}",
        )
    if differ:
        got = [summary(theirs), *(f"model.{key} is {a} in the file, {b} in the recipe" for key, a, b in differ)]
        if n_theirs is not None and n_theirs != n_own and n_own is not None:
            got.append(counts)
        return ModelError(
            "these weights are of another architecture than the recipe's network",
            where=where,
            got="\n       ".join(got),
            expected=summary(own),
            remedy="; ".join(filter(None, ("make these keys of the recipe those of the file, or name others", remedy))),
        )
    shown = "; ".join(f"{problem.ours}: {problem.what}" for problem in problems[:5])
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return ModelError(
        f"{len(problems)} tensors do not fit the recipe's network",
        where=where,
        got=shown + more,
        remedy=remedy or "compare the file with the recipe: cellwright model inspect FILE",
    )


def _classes(count: int | None) -> str:
    return "1 class" if count == 1 else f"{count} classes"


def _fresh_remedy(parts: set[str], fresh: Sequence[str]) -> str:
    """Which parts would have to start at random; nothing where the backbone is among them."""
    if "backbone" in parts:
        return ""
    value = _value({*fresh, *parts} - {CLASSES})
    return f"set model.init_fresh={value}: {'this part starts' if len(parts) == 1 else 'these parts start'} at random"


def _value(parts: set[str]) -> str:
    return f"[{', '.join(name for name in (*PARTS, CLASSES) if name in parts)}]"


def _differences(
    theirs: Mapping[str, object], own: Mapping[str, object], fresh: Sequence[str]
) -> list[tuple[str, object, object]]:
    """(key, theirs, ours) of keys that both have and whose values differ; frozen statistics fit running ones."""
    alike = {"frozen_batch_norm": "batch_norm"}
    keys = [key for key in theirs if key in own or key.startswith("backbone.deformable_stages")]
    keys += [key for key in own if key == "backbone.deformable_stages" and key not in theirs and "kind" in theirs]
    found = []
    for key in keys:
        a, b = theirs.get(key), own.get(key)
        if key.partition(".")[0] not in fresh and alike.get(str(a), a) != alike.get(str(b), b):
            found.append((key, a, b))
    return found

"""Weights of other frameworks in a network of the R-CNN family: names, background rows, copying, and what does not fit.

`load_foreign` is the whole procedure. Every tensor of the file and of the network is accounted for: loaded, skipped for
a stated reason, or an error.

Shape shorthand: K classes. Our per-class layers have K rows, and one for background, last, if the network has it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cellwright.core.errors import ModelError
from cellwright.core.text import count
from cellwright.models.weights import detectron2, torchvision
from cellwright.models.weights.architecture import Shapes, architecture, class_count, summary
from cellwright.models.weights.layout import Layout

# --- names ----------------------------------------------------------------------------------------------------------

Framework = Literal["cellwright", "detectron2", "torchvision", "caffe2", "cellpose", "stardist"]
PARTS = ("backbone", "fpn", "rpn", "box_head", "mask_head", "point_head", "mask_scoring")
CLASSES = "classes"
"""The name in ``model.init_fresh`` of all layers whose size depends on the number of classes."""

_OURS = (
    r"backbone\.(?:stem|res[2-5]\.\d+\.(?:conv\d|shortcut))\.(?:conv|norm|offset)\.\w+"
    r"|fpn\.(?:lateral|output)\.\d\..*|rpn\.head\.(?:convs\.|objectness|deltas).*|box_head\.\d\.[a-z].*"
    r"|(?:mask_head|point_head)\.(?:convs|fcs|upsample|logits|reduce|shrink)\..*|mask_scoring\..*"
)
LAYOUTS: dict[Framework, Layout] = {
    "cellwright": Layout(lambda names: {name: name if re.fullmatch(_OURS, name) else None for name in names}),
    "detectron2": detectron2.LAYOUT,
    "torchvision": torchvision.LAYOUT,
    "caffe2": detectron2.CAFFE2_LAYOUT,
}
# (pattern of a foreign name, why it is not needed).
_UNUSED = (
    (r"pixel_(mean|std)", "given by the recipe's input section"),
    (r".*anchor_generator\.cell_anchors\..*", "given by the recipe's anchors section"),
    (r"(stem\.)?(fc|linear|fc1000)\.(weight|bias)|(fc1000|pred)_[wb]", "ImageNet classifier"),
    (r".*_momentum", "state of an optimiser"),
)


def our_names(theirs: Iterable[str], framework: Framework) -> dict[str, str | None]:
    """Our name of each foreign tensor; None where it is unknown."""
    return LAYOUTS[framework].our_names(list(theirs))


def why_unused(theirs: str) -> str | None:
    """Why a foreign tensor is not needed; None for a tensor that is unknown or used."""
    return next((why for pattern, why in _UNUSED if re.fullmatch(pattern, theirs)), None)


def framework_of(theirs: Iterable[str]) -> Framework | None:
    """The framework that knows most of these names; None if none knows any."""
    names = list(theirs)
    best, most = None, 0
    for framework in LAYOUTS:
        known = sum(ours is not None for ours in our_names(names, framework).values())
        if known > most:
            best, most = framework, known
    return best


def matched_names(tensors: Mapping[str, Tensor], framework: Framework, where: object) -> dict[str, str]:
    """{our name: foreign name} of every tensor that we use.

    Raises:
        ModelError: a tensor is neither known nor known to be unused, or two tensors have the same name here.
    """
    matched: dict[str, str] = {}
    unknown, duplicate = [], []
    for theirs, ours in our_names(tensors, framework).items():
        if ours is None:
            if why_unused(theirs) is None:
                unknown.append(theirs)
        elif ours in matched:
            duplicate.append(f"{matched[ours]} and {theirs}")
        else:
            matched[ours] = theirs
    if not matched:
        raise ModelError(
            "no tensor of these weights is known",
            where=where,
            got=f"{count(len(tensors), 'tensor')}, such as {', '.join(sorted(tensors)[:3])}",
            expected=f"a ResNet or a network of the R-CNN family, under {framework}'s names",
        )
    if unknown or duplicate:
        problem = count(len(unknown), "unknown tensor") if unknown else count(len(duplicate), "pair") + " of duplicates"
        raise ModelError(
            f"these weights contain {problem}, by {framework}'s names of the R-CNN family",
            where=where,
            got=", ".join((unknown or duplicate)[:5]),
            remedy="check that the weights are of this architecture: cellwright model inspect FILE",
        )
    return matched


def shapes_of(tensors: Mapping[str, Tensor], matched: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Shapes of foreign tensors by our names. Batch norm that is folded into weight and bias counts as batch norm."""
    shapes = {ours: tuple(tensors[theirs].shape) for ours, theirs in matched.items()}
    return {**shapes, **{ours: shapes[weight] for ours, weight in _folded(matched).items()}}


def _folded(matched: Mapping[str, str]) -> dict[str, str]:
    """Statistics that Caffe2 files omit: {our name: our name of the weight of the same normalisation}."""
    return {
        statistic: ours
        for ours, theirs in matched.items()
        if re.search(r"_bn_(s|gamma)$", theirs)
        for statistic in (ours.replace(".norm.weight", f".norm.running_{which}") for which in ("mean", "var"))
        if statistic not in matched
    }


# --- report ---------------------------------------------------------------------------------------------------------

Status = Literal["loaded", "renamed", "re-initialised", "missing", "filled", "unused"]
_MEANINGS: dict[Status, str] = {
    "loaded": "under the same name",
    "renamed": "their name -> our name",
    "re-initialised": "in the file, but starting at random",
    "missing": "not in the file, starting at random",
    "filled": "not in the file, set to the value that this implies",
    "unused": "in the file only",
}


@dataclass(frozen=True)
class TensorRecord:
    """What happened to one tensor. ``theirs`` or ``ours`` is empty if it exists on one side only."""

    status: Status
    theirs: str
    ours: str
    shape: tuple[int, ...]
    why: str = ""

    def line(self) -> str:
        """``name [-> name] shape[: why]``."""
        names = " -> ".join(dict.fromkeys(name for name in (self.theirs, self.ours) if name))
        shape = "x".join(map(str, self.shape)) or "scalar"
        return f"{names} {shape}{f': {self.why}' if self.why else ''}"


@dataclass(frozen=True)
class LoadReport:
    """What happened to every tensor of the file and of the network: one record each."""

    records: tuple[TensorRecord, ...]

    @property
    def taken(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """(their name, our name, shape) of each tensor that was copied."""
        return tuple((r.theirs, r.ours, r.shape) for r in self.records if r.status in ("loaded", "renamed"))

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(their name, why) of each tensor of the file that was not copied."""
        return tuple((r.theirs, r.why) for r in self.records if r.status in ("unused", "re-initialised"))

    @property
    def fresh(self) -> tuple[str, ...]:
        """Our names of the tensors that start at random."""
        return tuple(r.ours for r in self.records if r.status in ("re-initialised", "missing"))

    @property
    def headline(self) -> str:
        """Number of tensors by status, in one line."""
        counts = Counter(record.status for record in self.records)
        return ", ".join(f"{counts[status]} {status}" for status in _MEANINGS if counts[status]) + " tensors"

    def text(self) -> str:
        """The headline, then one line per tensor, grouped by status."""
        lines = [self.headline]
        for status, meaning in _MEANINGS.items():
            group = [record for record in self.records if record.status == status]
            if group:
                lines += ["", f"{status} ({meaning}): {len(group)}", *(f"  {record.line()}" for record in group)]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Problem:
    """A tensor that does not fit: our name, and what is wrong."""

    ours: str
    what: str


# --- loading --------------------------------------------------------------------------------------------------------


def load_foreign(
    network: nn.Module, tensors: Mapping[str, Tensor], framework: Framework, *, fresh: Sequence[str], where: object
) -> LoadReport:
    """Copy foreign tensors into a network of the R-CNN family, strictly.

    Args:
        network: a `MaskRCNN`; modified in place, or unchanged if anything does not fit.
        tensors: the foreign state dict.
        framework: whose names and row order the tensors have.
        fresh: parts that start at random, a subset of `PARTS`; "classes" is all layers that depend on the number of
            classes. If the file contains a backbone only (ImageNet), all other parts start at random; so does mask
            scoring with the weights of any other framework, because none publishes weights for it.
        where: the file, for messages.

    Raises:
        ModelError: a tensor is unknown or has another shape, or a tensor that is needed is not in the file.
    """
    matched = matched_names(tensors, framework, where)
    own = network.state_dict()
    own_shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    shapes = shapes_of(tensors, matched)
    fresh_parts = _fresh_parts(matched, own, framework, fresh)
    renamed = with_our_rows({ours: tensors[theirs] for ours, theirs in matched.items()}, framework, own_shapes)
    used = set(matched.values())
    records = [
        TensorRecord("unused", theirs, "", tuple(tensor.shape), why_unused(theirs) or "")
        for theirs, tensor in tensors.items()
        if theirs not in used
    ]
    problems: list[Problem] = []

    def is_fresh(ours: str) -> bool:
        by_class = CLASSES in fresh and depends_on_classes(ours, shapes, own_shapes)
        return part_of(ours) in fresh_parts or by_class

    for ours, tensor in renamed.items():
        record = _record_of_theirs(ours, matched[ours], tensor, own_shapes, is_fresh(ours))
        (problems if isinstance(record, Problem) else records).append(record)  # type: ignore[arg-type]
    backbone_only = {part_of(ours) for ours in matched} == {"backbone"}
    for ours in own_shapes.keys() - renamed.keys():
        folded = ours in shapes
        record = _record_of_ours(ours, own_shapes[ours], is_fresh(ours), folded=folded, backbone_only=backbone_only)
        (problems if isinstance(record, Problem) else records).append(record)  # type: ignore[arg-type]
    order = {name: index for index, name in enumerate(own)}
    if problems:
        problems.sort(key=lambda problem: order.get(problem.ours, len(order)))
        raise _misfit(shapes, own_shapes, problems, fresh, where)
    records.sort(key=lambda record: order.get(record.ours, len(order)))
    with torch.no_grad():
        for record in records:
            if record.status in ("loaded", "renamed"):
                own[record.ours].copy_(renamed[record.ours])
            elif record.status == "filled" and record.ours in shapes:
                own[record.ours].fill_(1.0 if record.ours.endswith("running_var") else 0.0)
    return LoadReport(tuple(records))


def part_of(ours: str) -> str:
    """The part of the network that a tensor belongs to, as in ``model.init_fresh``."""
    return ours.partition(".")[0]


def _fresh_parts(
    matched: Mapping[str, str], own: Mapping[str, Tensor], framework: Framework, fresh: Sequence[str]
) -> set[str]:
    parts, fresh_parts = {part_of(ours) for ours in matched}, set(fresh)
    if parts == {"backbone"}:
        fresh_parts |= {part_of(ours) for ours in own} - parts
    if framework != "cellwright":
        fresh_parts.add("mask_scoring")
    return fresh_parts


def _record_of_theirs(ours: str, theirs: str, tensor: Tensor, own: Shapes, fresh: bool) -> TensorRecord | Problem:
    shape = tuple(tensor.shape)
    if fresh:
        if ours not in own:
            return TensorRecord("unused", theirs, "", shape, f"{part_of(ours)} starts at random")
        why = "named in init_fresh" if shape == own[ours] else f"{_sides(own[ours])} here"
        return TensorRecord("re-initialised", theirs, ours, shape, why)
    if ours not in own:
        if ours.endswith("num_batches_tracked"):
            return TensorRecord("unused", theirs, "", shape, "the normalisation is frozen")
        return Problem(ours, f"{theirs} in the file, nothing in the network")
    if shape != own[ours]:
        return Problem(ours, f"{_sides(shape)} in the file ({theirs}), {_sides(own[ours])} in the network")
    return TensorRecord("loaded" if theirs == ours else "renamed", theirs, ours, shape)


def _record_of_ours(
    ours: str, shape: tuple[int, ...], fresh: bool, *, folded: bool, backbone_only: bool
) -> TensorRecord | Problem:
    if folded:
        value = 1 if ours.endswith("running_var") else 0
        return TensorRecord("filled", "", ours, shape, f"{value}: batch norm is folded into its weight and bias")
    if fresh:
        return TensorRecord("missing", "", ours, shape)
    if ours.endswith("num_batches_tracked"):
        # Frozen statistics have no step counter, so it starts at 0.
        return TensorRecord("filled", "", ours, shape, "0: the number of steps is unknown")
    if backbone_only and ".offset." in ours:
        return TensorRecord("filled", "", ours, shape, "0: deformable convolutions start on the regular grid")
    return Problem(ours, "not in the file")


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


# --- background rows and classes ------------------------------------------------------------------------------------

_PER_CLASS = re.compile(r"(box_head\.\d\.(?:class_logits|deltas)|(?:mask_head|point_head)\.logits)\.(?:weight|bias)")
_ALL_PER_CLASS = re.compile(
    r"box_head\.\d\.(class_logits|deltas)\..*|(mask_head\.logits|point_head)\..*|mask_scoring\.quality\..*"
)
# Rows per class.
_DELTAS, _MASK = 4, 1


def depends_on_classes(ours: str, theirs: Shapes, own: Shapes) -> bool:
    """Whether the size of a layer depends on the number of classes; that of class-agnostic layers does not."""
    if not _ALL_PER_CLASS.fullmatch(ours):
        return False
    same = theirs.get(ours, own.get(ours)) == own.get(ours)
    agnostic = own.get(ours, (0,))[0] == (_DELTAS if ".deltas." in ours else _MASK)
    certain = class_count(own) != 1 or class_count(theirs) != 1
    return not (same and agnostic and certain and not ours.startswith("point_head."))


def with_our_rows(tensors: Mapping[str, Tensor], framework: Framework, own: Shapes) -> dict[str, Tensor]:
    """Tensors by our names with background where our network has it.

    torchvision and Caffe2 have background in the first row: it is moved to the end. In box deltas and masks that row is
    unused: it is kept if the network has it too (``Conventions.background_rows``), removed if not, and filled with 0 if
    only the network has it. If the network has another number of classes, only the order of the rows changes.
    """
    rows = {ours: _background_last(ours, tensor, LAYOUTS[framework]) for ours, tensor in tensors.items()}
    n_classes, classes = class_count(own), tensors.get("box_head.0.class_logits.bias")
    if n_classes is None or classes is None or classes.shape != (n_classes + 1,):
        return rows
    return {
        ours: _rows_fitted(ours, tensor, own, n_classes) if tensor.ndim == len(own.get(ours, ())) else tensor
        for ours, tensor in rows.items()
    }


def _background_last(ours: str, tensor: Tensor, layout: Layout) -> Tensor:
    size = _DELTAS if ".deltas." in ours else _MASK
    if not layout.background_first or not _PER_CLASS.fullmatch(ours) or tensor.ndim == 0 or len(tensor) <= size:
        return tensor
    if layout.unused_background and "class_logits" not in ours:
        return tensor[size:]
    return torch.cat([tensor[size:], tensor[:size]])


def _rows_fitted(ours: str, tensor: Tensor, own: Shapes, n_classes: int) -> Tensor:
    """Add or remove background rows (and columns of the point head) where nothing else differs."""
    n_masks = own.get("point_head.logits.bias", own.get("mask_head.logits.bias", (n_classes,)))[0]
    if ours.startswith("point_head.") and ours.endswith(".weight"):
        # Its last input columns are the coarse logits of all rows.
        surplus = tensor.shape[1] - own[ours][1]
        if n_masks == n_classes + 1 and surplus == -1:
            tensor = torch.cat([tensor, tensor.new_zeros((len(tensor), 1, *tensor.shape[2:]))], dim=1)
        elif n_masks == n_classes and surplus == 1:
            tensor = tensor[:, :-1]
    if not _PER_CLASS.fullmatch(ours) or "class_logits" in ours:
        return tensor
    # Coarse masks have one row per cell of each class.
    size = _DELTAS if ".deltas." in ours else max(own[ours][0] // n_masks, 1) if "mask_head" in ours else _MASK
    without, with_background = size * n_classes, size * (n_classes + 1)
    if (len(tensor), own[ours][0]) == (with_background, without):
        return tensor[:-size]
    if (len(tensor), own[ours][0]) == (without, with_background):
        return torch.cat([tensor, tensor.new_zeros((size, *tensor.shape[1:]))])
    return tensor


# --- what does not fit ----------------------------------------------------------------------------------------------


def _misfit(
    theirs: Shapes, own: Shapes, problems: Sequence[Problem], fresh: Sequence[str], where: object
) -> ModelError:
    """The error for tensors that do not fit: which keys of the recipe differ, and what to change."""
    n_theirs, n_own = class_count(theirs), class_count(own)
    differences = [] if not theirs else _differences(architecture(theirs, where), architecture(own), fresh)
    parts = {part_of(problem.ours) for problem in problems}
    remedy = _fresh_remedy(parts, fresh)
    counts = f"{_classes(n_theirs)} in the file, {_classes(n_own)} in the recipe's network"
    by_class = all(depends_on_classes(problem.ours, theirs, own) for problem in problems)
    if not differences and n_theirs is not None and n_theirs != n_own and by_class:
        classes = _as_list({*fresh, CLASSES})
        return ModelError(
            "the weights and the recipe's network have different numbers of classes",
            where=where,
            got=counts,
            remedy=f"set model.init_fresh={classes}: layers that depend on the classes start at random; {remedy}",
        )
    if differences:
        got = [summary(theirs), *(f"model.{key} is {a} in the file, {b} in the recipe" for key, a, b in differences)]
        if n_theirs is not None and n_theirs != n_own and n_own is not None:
            got.append(counts)
        return ModelError(
            "these weights are of another architecture than the recipe's network",
            where=where,
            got="\n       ".join(got),
            expected=summary(own),
            remedy="; ".join(filter(None, ("set these keys of the recipe to the values of the file", remedy))),
        )
    shown = "; ".join(f"{problem.ours}: {problem.what}" for problem in problems[:5])
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return ModelError(
        f"{count(len(problems), 'tensor')} of these weights and of the recipe's network do not match",
        where=where,
        got=shown + more,
        remedy=remedy or "compare the file with the recipe: cellwright model inspect FILE",
    )


def _classes(n: int | None) -> str:
    return "no classes" if n is None else count(n, "class")


def _fresh_remedy(parts: set[str], fresh: Sequence[str]) -> str:
    """Which parts could start at random; empty if the backbone is among them."""
    if "backbone" in parts:
        return ""
    value = _as_list({*fresh, *parts} - {CLASSES})
    return f"set model.init_fresh={value}: {'this part starts' if len(parts) == 1 else 'these parts start'} at random"


def _as_list(parts: set[str]) -> str:
    return f"[{', '.join(name for name in (*PARTS, CLASSES) if name in parts)}]"


def _differences(
    theirs: Mapping[str, object], own: Mapping[str, object], fresh: Sequence[str]
) -> list[tuple[str, object, object]]:
    """(key, theirs, ours) of keys with different values. Frozen statistics match running ones."""
    equivalent = {"frozen_batch_norm": "batch_norm"}
    keys = [key for key in theirs if key in own or key.startswith("backbone.deformable_stages")]
    keys += [key for key in own if key == "backbone.deformable_stages" and key not in theirs and "kind" in theirs]
    differences = []
    for key in keys:
        a, b = theirs.get(key), own.get(key)
        if key.partition(".")[0] not in fresh and equivalent.get(str(a), a) != equivalent.get(str(b), b):
            differences.append((key, a, b))
    return differences

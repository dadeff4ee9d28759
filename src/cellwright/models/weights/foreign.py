"""Weights of other frameworks: reading their files without running them, and giving their tensors our names.

Every tensor of the file and of the network is accounted for: taken, left out for a named reason, or an error.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cellwright.core.errors import ModelError
from cellwright.core.unpickle import read_pickle
from cellwright.models.weights.architecture import Shapes
from cellwright.models.weights.foreign_fit import CLASSES, Problem, depends_on_classes, misfit, part_of, with_our_rows
from cellwright.models.weights.foreign_names import Framework, our_names, why_unused

Fate = Literal["loaded", "renamed", "re-initialised", "missing", "filled", "unused"]
_FATES: dict[Fate, str] = {
    "loaded": "under the same name",
    "renamed": "their name -> ours",
    "re-initialised": "in the file, but starting at random",
    "missing": "not in the file, starting at random",
    "filled": "not in the file, set to what its absence means",
    "unused": "in the file only",
}
# What PyTorch and safetensors raise on bytes that are no weights.
_BROKEN = (
    RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError,
    SafetensorError,
)  # fmt: skip
_DOWNLOAD_AGAIN = "download it again, and compare its size with the publisher's"


@dataclass(frozen=True)
class TensorRecord:
    """What became of one tensor. ``theirs`` or ``ours`` is empty where only one side has it."""

    fate: Fate
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
    """Where every tensor came from and went to: one record for each of the file and each of the network."""

    records: tuple[TensorRecord, ...]

    @property
    def taken(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """(their name, our name, shape) of each tensor that was copied."""
        return tuple((r.theirs, r.ours, r.shape) for r in self.records if r.fate in ("loaded", "renamed"))

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """(their name, why) of each tensor of the file that was not."""
        return tuple((r.theirs, r.why) for r in self.records if r.fate in ("unused", "re-initialised"))

    @property
    def fresh(self) -> tuple[str, ...]:
        """Our names of the tensors that keep their random start."""
        return tuple(r.ours for r in self.records if r.fate in ("re-initialised", "missing"))

    @property
    def headline(self) -> str:
        """How many of each fate, in one line."""
        counts = Counter(record.fate for record in self.records)
        return ", ".join(f"{counts[fate]} {fate}" for fate in _FATES if counts[fate]) + " tensors"

    def text(self) -> str:
        """The headline, then one line a tensor under its fate."""
        lines = [self.headline]
        for fate, meaning in _FATES.items():
            own = [record for record in self.records if record.fate == fate]
            if own:
                lines += ["", f"{fate} ({meaning}): {len(own)}", *(f"  {record.line()}" for record in own)]
        return "\n".join(lines) + "\n"


def read_foreign(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` (state dict), ``.pkl`` (named arrays) or ``.safetensors`` file; data only, no code.

    A dict under the key "model", "state_dict" or "blobs" is looked into, as the frameworks wrap theirs.

    Raises:
        ModelError: the file is missing, damaged, no weights at all, holds more than data, or no named tensors.
        FormatError: a pickle that is broken or holds more than data.
    """
    path = Path(path)
    content: Any
    try:
        _check_head(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                content = read_pickle(file, where=path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(
            "cannot read these weights",
            where=path,
            got=error.strerror or str(error),
            remedy="check the path and its permissions",
        ) from error
    except pickle.UnpicklingError as error:
        raise _unsafe(path, str(error)) from error
    except _BROKEN as error:
        # PyTorch's unpickler meets an unknown instruction as a missing key.
        raise _damaged(path, "bytes that are no pickle" if isinstance(error, KeyError) else str(error)) from error
    for key in ("model", "state_dict", "blobs"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ModelError(
            "these weights are no named tensors",
            where=path,
            got=type(content).__name__,
            remedy="give a file of a state dictionary, such as torch.save(model.state_dict(), file)",
        )
    tensors = {str(name): _tensor(value) for name, value in content.items() if _is_numeric(value)}
    if not tensors:
        raise ModelError(
            "these weights hold no tensor",
            where=path,
            got=f"keys {sorted(map(str, content))[:5]}",
            remedy="give a file of a state dictionary, such as torch.save(model.state_dict(), file)",
        )
    # Parallel training puts this before every name.
    wrapped = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in tensors.items()}


def _check_head(path: Path) -> None:
    """Raise ``ModelError`` for what a failed download leaves; ``OSError`` where nothing can be read."""
    with path.open("rb") as file:
        head = file.read(200)
    if not head:
        raise ModelError("this file is empty", where=path, got="0 bytes", remedy=_DOWNLOAD_AGAIN)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ModelError(
            "this is a web page, not weights: the download failed",
            where=path,
            got=text.split(b"\n")[0][:40].decode("ascii", "replace"),
            remedy="open the link in a browser, and save the file that it leads to",
        )
    if text.startswith(b"version https://git-lfs"):
        remedy = "fetch the file itself: git lfs pull"
        raise ModelError("this is a pointer of git-lfs, not the weights", where=path, remedy=remedy)


def _unsafe(path: Path, text: str) -> ModelError:
    """The error for a ``.pth`` that PyTorch's own restricted unpickler refuses."""
    if match := re.search(r"GLOBAL ([\w.]+)", text):
        return ModelError(
            "this file holds more than tensors, and is not loaded",
            where=path,
            got=f"the name {match[1]}",
            expected="tensors and plain containers",
            remedy="ask its author for a plain state_dict, or save one in the tool that wrote it",
        )
    return _damaged(path, text.rpartition("WeightsUnpickler error: ")[2])


def _damaged(path: Path, text: str) -> ModelError:
    lines = text.strip().splitlines()
    return ModelError(
        "these weights are damaged or cut short, or no weights",
        where=path,
        got=lines[0].partition(". ")[0][:150] if lines else "no pickle",
        expected="a .pth, .pkl or .safetensors file of tensors",
        remedy=_DOWNLOAD_AGAIN,
    )


def _is_numeric(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.layout == torch.strided and not value.is_meta
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _tensor(value: Tensor | np.ndarray) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.from_numpy(np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("=")).reshape(value.shape))


def translate(tensors: Mapping[str, Tensor], framework: Framework, where: object) -> dict[str, str]:
    """Our name of every tensor that has a place here: {ours: theirs}.

    Raises:
        ModelError: a tensor that is neither known nor known to be of no use, or two for one place.
    """
    named: dict[str, str] = {}
    unknown, twice = [], []
    for theirs, ours in our_names(tensors, framework).items():
        if ours is None:
            if why_unused(theirs) is None:
                unknown.append(theirs)
        elif ours in named:
            twice.append(f"{named[ours]} and {theirs}")
        else:
            named[ours] = theirs
    if not named:
        raise ModelError(
            "no tensor of these weights is known",
            where=where,
            got=f"{len(tensors)} tensors, such as {', '.join(sorted(tensors)[:3])}",
            expected=f"a ResNet or a member of the R-CNN family, under {framework}'s names",
        )
    if unknown or twice:
        raise ModelError(
            f"{len(unknown or twice)} tensors of these weights have no place in the R-CNN family under {framework}'s "
            f"names",
            where=where,
            got=", ".join((unknown or twice)[:5]),
            remedy="check that the weights are of this architecture: cellwright model inspect FILE",
        )
    return named


def shapes_of(tensors: Mapping[str, Tensor], named: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Shapes of foreign tensors under our names; batch norm folded into weight and bias counts as batch norm."""
    shapes = {ours: tuple(tensors[theirs].shape) for ours, theirs in named.items()}
    return {**shapes, **{ours: shapes[weight] for ours, weight in _folded(named).items()}}


def _folded(named: Mapping[str, str]) -> dict[str, str]:
    """Statistics that Caffe2 files leave out: {our name: our name of the norm's weight}."""
    return {
        statistic: ours
        for ours, theirs in named.items()
        if re.search(r"_bn_(s|gamma)$", theirs)
        for statistic in (ours.replace(".norm.weight", f".norm.running_{which}") for which in ("mean", "var"))
        if statistic not in named
    }


def load_foreign(
    network: nn.Module, tensors: Mapping[str, Tensor], framework: Framework, *, fresh: Sequence[str], where: object
) -> LoadReport:
    """Copy foreign tensors into a network of the R-CNN family, strictly.

    Args:
        network: a ``MaskRCNN``; changed in place, or not at all where something does not fit.
        tensors: the foreign state dict.
        framework: whose names and row order the tensors have.
        fresh: parts that keep their random start; "classes" is all layers with a row a class. A file with a backbone
            only (ImageNet) leaves all others fresh, and mask scoring, which nobody publishes, always starts so.
        where: the file, for messages.

    Raises:
        ModelError: a tensor has no known name, another shape, or a part that is wanted is not in the file.
    """
    named = translate(tensors, framework, where)
    own = network.state_dict()
    own_shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    shapes = shapes_of(tensors, named)
    skipped = _parts_skipped(named, own, framework, fresh)
    found = with_our_rows({ours: tensors[theirs] for ours, theirs in named.items()}, framework, own_shapes)
    records = [
        TensorRecord("unused", theirs, "", tuple(tensor.shape), why_unused(theirs) or "")
        for theirs, tensor in tensors.items()
        if theirs not in set(named.values())
    ]
    problems: list[Problem] = []

    def is_skipped(ours: str) -> bool:
        by_class = CLASSES in fresh and depends_on_classes(ours, shapes, own_shapes)
        return part_of(ours) in skipped or by_class

    for ours, tensor in found.items():
        record = _record_of_theirs(ours, named[ours], tensor, own_shapes, is_skipped(ours))
        (problems if isinstance(record, Problem) else records).append(record)  # type: ignore[arg-type]
    backbone_alone = {part_of(ours) for ours in named} == {"backbone"}
    for ours in own_shapes.keys() - found.keys():
        folded = ours in shapes
        record = _record_of_ours(ours, own_shapes[ours], is_skipped(ours), folded=folded, alone=backbone_alone)
        (problems if isinstance(record, Problem) else records).append(record)  # type: ignore[arg-type]
    place = {name: index for index, name in enumerate(own)}
    if problems:
        problems.sort(key=lambda problem: place.get(problem.ours, len(place)))
        raise misfit(shapes, own_shapes, problems, fresh, where)
    records.sort(key=lambda record: place.get(record.ours, len(place)))
    with torch.no_grad():
        for record in records:
            if record.fate in ("loaded", "renamed"):
                own[record.ours].copy_(found[record.ours])
            elif record.fate == "filled" and record.ours in shapes:
                own[record.ours].fill_(1.0 if record.ours.endswith("running_var") else 0.0)
    return LoadReport(tuple(records))


def _parts_skipped(
    named: Mapping[str, str], own: Mapping[str, Tensor], framework: Framework, fresh: Sequence[str]
) -> set[str]:
    parts = {part_of(ours) for ours in named}
    skipped = set(fresh)
    if parts == {"backbone"}:
        skipped |= {part_of(ours) for ours in own} - parts
    if framework != "cellwright":
        skipped.add("mask_scoring")
    return skipped


def _record_of_theirs(ours: str, theirs: str, tensor: Tensor, own: Shapes, skipped: bool) -> TensorRecord | Problem:
    shape = tuple(tensor.shape)
    if skipped:
        if ours not in own:
            return TensorRecord("unused", theirs, "", shape, f"{part_of(ours)} starts fresh")
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
    ours: str, shape: tuple[int, ...], skipped: bool, *, folded: bool, alone: bool
) -> TensorRecord | Problem:
    if folded:
        value = 1 if ours.endswith("running_var") else 0
        return TensorRecord("filled", "", ours, shape, f"{value}: batch norm is folded into its weight and bias")
    if skipped:
        return TensorRecord("missing", "", ours, shape)
    if ours.endswith("num_batches_tracked"):
        # Frozen statistics come without a step counter; a fresh one is right.
        return TensorRecord("filled", "", ours, shape, "0: the steps of the statistics are not known")
    if alone and ".offset." in ours:
        return TensorRecord("filled", "", ours, shape, "0: deformable convolutions start on the regular grid")
    return Problem(ours, "not in the file")


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"

"""Checkpoints: all that a run needs to go on as if it had never been interrupted.

A checkpoint, such as `RUN/checkpoints/step_00002000/`, contains `weights.safetensors`, `optimiser.safetensors`,
`averaged.safetensors` (with `ema_decay`), `best_model/` (the best model so far), and `state.json`: the position, the
loss scale of fp16, and the size and digest of every file. It is written completely or not at all, and verified when it
is read. It contains no random generator states, because every random draw depends only on the step.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from cellwright.core.claim import files_below, remove_ours
from cellwright.core.errors import FormatError, InputError, ModelError
from cellwright.core.file_identity import FileIdentity, digest_of
from cellwright.core.files import atomic_path, output_error, read_json, write_json
from cellwright.models.weights.model_folder import MODEL_FILES, WEIGHTS, read_model_info
from cellwright.models.weights.torch_io import save_tensors
from cellwright.training.run_folder import finite_or_none
from cellwright.training.state import Position, TrainState, check_finite

SCHEMA_VERSION = 1  # of state.json
STATE, BEST_MODEL = "state.json", "best_model"
_FOLDER = re.compile(r"step_(\d{8,})")
_FILES = re.compile(
    r"state\.json|(weights|optimiser|averaged)\.safetensors|best_model/(weights\.safetensors|model\.json|README\.md)"
)


class DamagedCheckpoint(FormatError):
    """A checkpoint is not as it was written."""


# --- writing --------------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, state: TrainState, keep: int, best_model: Path | None = None) -> Path:
    """Write ``folder/step_NNNNNNNN`` and remove all but the newest ``keep`` checkpoints.

    An existing checkpoint of the same state is kept, because it is bit-identical. best_model: the folder of the best
    model so far, if there is one. Raises `OutputError` (full disk, no permission) or `TrainingDiverged` (weights that
    are not finite), and then writes nothing.
    """
    check_finite(state.network, state.position.step)
    path = folder / f"step_{state.position.step:08d}"
    description = _description(state)
    if not _is_of(path, description):
        with atomic_path(path) as partial:
            partial.mkdir()
            save_tensors(partial / "weights.safetensors", state.network.state_dict())
            save_tensors(partial / "optimiser.safetensors", _optimiser_tensors(state))
            if state.averaged is not None:
                save_tensors(partial / "averaged.safetensors", state.averaged)
            if best_model is not None:
                (partial / BEST_MODEL).mkdir()
                for name in MODEL_FILES:
                    _link_or_copy(best_model / name, partial / BEST_MODEL / name)
            identities = {name: FileIdentity.of(partial / name) for name in files_below(partial)}
            description["files"] = {name: [one.bytes, one.digest] for name, one in identities.items()}
            write_json(partial / STATE, {**description, "digest": _digest(description)})
            _remove(path)
    for old in checkpoints(folder)[:-keep]:
        _remove(old)
    return path


def _link_or_copy(source: Path, target: Path) -> None:
    """Weights as another name of the same file, where there are such links. The other files are edited by users."""
    if source.name == WEIGHTS:
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _is_of(path: Path, description: dict[str, Any]) -> bool:
    """Whether there is a checkpoint with this description."""
    if not path.is_dir():
        return False
    with suppress(DamagedCheckpoint):
        content = _read_state(path)
        return all(content.get(name) == value for name, value in description.items())
    return False


def _remove(path: Path) -> None:
    """Remove a checkpoint; first its name, so that an interruption leaves no incomplete one. Other files in it stay."""
    doomed = path.with_name(f".{path.name}.partial")
    try:
        _clear(doomed)
        path.rename(doomed)
        _clear(doomed)
    except FileNotFoundError:
        return
    except OSError as error:
        raise output_error(path, error) from error


def _clear(doomed: Path) -> None:
    """Remove what `_remove` has renamed; if there are files that are not ours, they get their place back."""
    for name in files_below(doomed):
        if _FILES.fullmatch(name):
            remove_ours(doomed, name)
    if doomed.is_dir() and any(doomed.iterdir()):
        doomed.rename(doomed.with_name(doomed.name.removeprefix(".").removesuffix(".partial")))
    elif doomed.is_dir():
        doomed.rmdir()


def _description(state: TrainState) -> dict[str, Any]:
    """The part of ``state`` that is not tensors, as strict JSON values."""
    position = state.position
    return {
        "schema_version": SCHEMA_VERSION,
        **vars(position),
        "metrics": finite_or_none(position.metrics),
        "best_metrics": finite_or_none(position.best_metrics),
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
    }


def _digest(content: dict[str, Any]) -> str:
    return digest_of(json.dumps(content, sort_keys=True))


def _optimiser_tensors(state: TrainState) -> dict[str, Tensor]:
    """The optimiser's buffers as ``"<parameter>/<buffer>"``; before the first step a parameter has none."""
    names = {id(parameter): name for name, parameter in state.network.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, buffers in state.optimiser.state.items()
        for key, value in buffers.items()
        if isinstance(value, Tensor)
    }


# --- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resumed:
    """From where a run goes on. path: the checkpoint, or None for the first step. damaged: what was wrong with newer
    checkpoints, one sentence each; these are removed.
    """

    path: Path | None
    damaged: tuple[str, ...] = ()


def resume(folder: Path, state: TrainState, model: Path) -> Resumed:
    """Load the newest checkpoint that is whole into ``state``, and restore the best model of that step at ``model``.

    Raises `FormatError` if it belongs to another network or optimiser, and `OutputError`.
    """
    damaged: list[str] = []
    try:
        for leftover in folder.glob(".step_*.partial"):
            if _FOLDER.fullmatch(leftover.name[1:].removesuffix(".partial")):
                _clear(leftover)
            else:  # a checkpoint that was being written
                shutil.rmtree(leftover, ignore_errors=True)
    except OSError as error:
        raise output_error(folder, error) from error
    for path in reversed(checkpoints(folder)):
        try:
            content = load_checkpoint(path, state, model)
        except DamagedCheckpoint as error:
            damaged.append(f"{path.name} is damaged ({error.where}: {error.got})")
            _remove(path)
            continue
        _restore_model(path / BEST_MODEL, model, content["files"])
        return Resumed(path, tuple(damaged))
    return Resumed(None, tuple(damaged))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; none if it does not exist."""
    entries = folder.iterdir() if folder.is_dir() else ()
    numbered = [(int(match[1]), path) for path in entries if (match := _FOLDER.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(numbered)]


def load_checkpoint(path: Path, state: TrainState, model: Path | None = None) -> dict[str, Any]:
    """Load the checkpoint at ``path`` into ``state`` (changed in place), bit for bit; returns its ``state.json``.

    model: the best model of a checkpoint that contains none, because an earlier version wrote it.

    Raises `DamagedCheckpoint` if it is not as it was written, and `FormatError` if it belongs to another network or
    optimiser; ``state`` is then as before.
    """
    content = _read_state(path)
    device = next(iter(state.network.state_dict().values())).device
    position = _position_from(content, path)
    weights = _load_tensors(path / "weights.safetensors", device)
    buffers = _optimiser_state(state, _load_tensors(path / "optimiser.safetensors", device), path)
    averaged = None if state.averaged is None else _load_tensors(path / "averaged.safetensors", device)
    has_model = any(name.startswith(f"{BEST_MODEL}/") for name in content["files"])
    if position.best_step >= 0 and not has_model and model is not None:
        _check_model(model)
    try:
        state.network.load_state_dict(weights)
    except RuntimeError as error:
        raise FormatError(
            "this checkpoint is for another network",
            where=path,
            got=str(error),
            remedy="resume with the recipe that the run was started with (RUN/recipe.yaml), or choose another `out`",
        ) from error
    state.optimiser.load_state_dict(buffers)
    state.position, state.averaged = position, averaged
    if state.scaler is not None:
        state.scaler.load_state_dict(content["scaler"])
    return content


def _read_state(path: Path) -> dict[str, Any]:
    """The ``state.json`` of a checkpoint whose files all are as they were written.

    In checkpoints of earlier versions, which have no digests, ``files`` is empty.
    """
    try:
        content = dict(read_json(path / STATE))
    except (FormatError, InputError, TypeError, ValueError) as error:
        raise _damaged(path / STATE, getattr(error, "got", None) or error) from error
    if content.get("schema_version") != SCHEMA_VERSION:
        raise FormatError(
            "this checkpoint has another schema version",
            where=path,
            got=content.get("schema_version"),
            expected=SCHEMA_VERSION,
            remedy="resume with the cellwright version that wrote it (see environment.json), or choose another `out`",
        )
    if "digest" not in content and "files" not in content:
        return {**content, "files": {}}
    if content.pop("digest", None) != _digest(content):
        raise _damaged(path / STATE, "its content was changed")
    for name, (n_bytes, digest) in content["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != n_bytes:
            size = f"{file.stat().st_size} bytes instead of {n_bytes}" if file.is_file() else "it does not exist"
            raise _damaged(file, size)
        if FileIdentity.of(file).digest != digest:
            raise _damaged(file, "its content was changed")
    return content


def _damaged(where: Path, got: object) -> DamagedCheckpoint:
    return DamagedCheckpoint("this checkpoint is damaged", where=where, got=got, remedy="run the same command again")


def _position_from(content: dict[str, Any], path: Path) -> Position:
    try:
        values = {field.name: content[field.name] for field in fields(Position)}
        for name, default in vars(Position()).items():
            if isinstance(default, int) and type(values[name]) is not int:
                raise TypeError(f"{name} {values[name]!r}")
        for name in ("metrics", "best_metrics"):
            values[name] = {key: math.nan if value is None else float(value) for key, value in values[name].items()}
        if values["patience_best"] is not None:
            values["patience_best"] = float(values["patience_best"])
        return Position(**values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path / STATE, error) from error


def _optimiser_state(state: TrainState, tensors: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """What the optimiser's ``load_state_dict`` takes."""
    saved: dict[str, dict[str, Any]] = {}
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        saved.setdefault(name, {})[key] = value
    names = {id(parameter): name for name, parameter in state.network.named_parameters()}
    order = [names[id(p)] for group in state.optimiser.param_groups for p in group["params"]]
    if unknown := sorted(set(saved) - set(order)):
        raise FormatError(
            "the optimiser of this checkpoint has different parameters",
            where=path,
            got=", ".join(unknown[:5]),
            remedy="start from scratch with `overwrite=True`, or choose another `out`",
        )
    buffers = {index: saved[name] for index, name in enumerate(order) if name in saved}
    return {"state": buffers, "param_groups": state.optimiser.state_dict()["param_groups"]}


def _load_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


# --- the best model -------------------------------------------------------------------------------------------------


def _check_model(model: Path) -> None:
    """Raise `DamagedCheckpoint` if a model cannot be read; there is no record of its content."""
    try:
        read_model_info(model)
        with safe_open(model / WEIGHTS, framework="numpy"):
            pass
    except (ModelError, FormatError, InputError, SafetensorError, OSError) as error:
        raise _damaged(model, getattr(error, "problem", None) or error) from error


def _restore_model(saved: Path, model: Path, files: dict[str, Any]) -> None:
    """Give ``model`` the content it had at a checkpoint: a later one was lost with the steps that made it."""
    for name in MODEL_FILES:
        recorded = files.get(f"{BEST_MODEL}/{name}")
        if recorded is not None and FileIdentity.of(model / name).digest != recorded[1]:
            with atomic_path(model / name) as partial:
                _link_or_copy(saved / name, partial)

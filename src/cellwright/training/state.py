"""Everything that a run needs to go on: weights, optimiser, averaged weights, position. Written whole or not at all.

`RUN/checkpoints/step_00002000/` holds `weights.safetensors`, `optimiser.safetensors`, `averaged.safetensors` (with
`ema_decay`) and `state.json`, which also keeps the loss scale of fp16. States of random generators are not among them:
every draw is a function of the step.
"""

from __future__ import annotations

import copy
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cellwright.core.errors import FormatError, TrainingDiverged
from cellwright.core.files import atomic_path, output_error, read_json, write_json
from cellwright.models.weights.tensor_files import save_tensors

SCHEMA_VERSION = 1
_FOLDER = re.compile(r"step_(\d{8,})")


@dataclass
class Position:
    """How far a run is, and the best model so far.

    Attributes:
        step: optimiser steps done.
        evaluated_step: step of the last evaluation, -1 before the first.
        metrics: of the last evaluation.
        best_step: step of the best evaluation, -1 before the first.
        best_metrics: of the best evaluation.
        patience_best: best value among the evaluations that were due, None before the first.
        patience_spent: such evaluations since then.
        threads: CPU threads that the run uses from its first step on; other numbers round differently.
    """

    step: int = 0
    evaluated_step: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    best_step: int = -1
    best_metrics: dict[str, float] = field(default_factory=dict)
    patience_best: float | None = None
    patience_spent: int = 0
    threads: int = 1


@dataclass
class TrainState:
    """What changes while training.

    ``averaged`` holds the averaged weights by name, None without averaging; ``scaler`` scales the loss of fp16.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    position: Position
    averaged: dict[str, Tensor] | None
    scaler: torch.amp.GradScaler | None = None

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the averaged weights towards the network's, after step ``position.step``.

        The decay grows from 0.1 to ``decay``, so that early averages forget the random start. Buffers (statistics of
        normalisation layers) are copied, not averaged.
        """
        assert self.averaged is not None
        trained = dict(self.network.named_parameters())
        step = self.position.step
        weight = 1 - min(decay, (1 + step) / (10 + step))
        for name, value in self.network.state_dict().items():
            if name in trained:
                self.averaged[name].lerp_(value, weight)
            else:
                self.averaged[name].copy_(value)

    @contextmanager
    def evaluated_weights(self) -> Iterator[nn.Module]:
        """The network to evaluate and save, in eval mode: a copy with the averaged weights where there are any."""
        if self.averaged is not None:
            # A copy, not a swap: nothing has to be put back, so nothing can be left half put back.
            averaged = copy.deepcopy(self.network)
            averaged.load_state_dict(self.averaged)
            yield averaged.eval()
            return
        self.network.eval()
        try:
            yield self.network
        finally:
            self.network.train()


def finite_or_none(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics for strict JSON, which knows no NaN: a metric that is not defined becomes null."""
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}


def check_finite(network: nn.Module, step: int) -> None:
    """Raise `TrainingDiverged` if a weight or buffer is NaN or infinite, so that no such weights are ever written."""
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise TrainingDiverged(
                "training diverged: a weight is not finite",
                where=f"step {step}, tensor {name}",
                remedy="lower train.lr, or lengthen train.warmup; the last checkpoint is still sound",
            )


def save_checkpoint(folder: Path, state: TrainState, keep: int) -> Path:
    """Write ``folder/step_NNNNNNNN`` and remove all but the newest ``keep`` checkpoints.

    A checkpoint of the same step that is there already is left as it is: the same step has the same bits. Raises
    `OutputError` (full disk, no permission) and `TrainingDiverged` (weights that are not finite) and then leaves no
    trace.
    """
    path = folder / f"step_{state.position.step:08d}"
    check_finite(state.network, state.position.step)
    if not path.exists():
        with atomic_path(path) as partial:
            partial.mkdir()
            save_tensors(partial / "weights.safetensors", state.network.state_dict())
            save_tensors(partial / "optimiser.safetensors", _optimiser_tensors(state))
            if state.averaged is not None:
                save_tensors(partial / "averaged.safetensors", state.averaged)
            write_json(partial / "state.json", _description(state))
            _flush_to_disk(partial)
    for old in _checkpoints(folder)[:-keep]:
        # Renamed first: a removal that is interrupted must not leave half a checkpoint under a checkpoint's name.
        doomed = old.with_name(f".{old.name}.partial")
        try:
            old.rename(doomed)
        except OSError as error:
            raise output_error(old, error) from error
        shutil.rmtree(doomed, ignore_errors=True)
    return path


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint below ``folder``, or None. What an interrupted write left behind is removed."""
    if not folder.is_dir():
        return None
    for leftover in folder.glob(".step_*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    return next(reversed(_checkpoints(folder)), None)


def load_checkpoint(path: Path, state: TrainState) -> None:
    """Put the checkpoint at ``path`` into ``state`` (which is changed), to the same bits.

    Raises `FormatError` naming the file where it is damaged or belongs to another network or optimiser.
    """
    described = read_json(path / "state.json")
    if described.get("schema_version") != SCHEMA_VERSION:
        raise FormatError(
            "this checkpoint has another schema version",
            where=path,
            got=described.get("schema_version"),
            expected=SCHEMA_VERSION,
            remedy="go on with the version that wrote it (see environment.json), or choose another --out",
        )
    try:
        state.position = _position_from(described)
    except (AttributeError, KeyError, TypeError) as error:
        remedy = f"remove the folder {path.name}; the run then goes on from the checkpoint before it"
        raise FormatError(
            "this checkpoint is damaged", where=path / "state.json", got=str(error), remedy=remedy
        ) from error
    if state.scaler is not None:
        state.scaler.load_state_dict(described["scaler"])
    device = next(iter(state.network.state_dict().values())).device
    _load_into(state.network, _load_tensors(path / "weights.safetensors", device), path)
    _load_optimiser(state, _load_tensors(path / "optimiser.safetensors", device), path)
    if state.averaged is not None:
        state.averaged = _load_tensors(path / "averaged.safetensors", device)


def _description(state: TrainState) -> dict[str, object]:
    """Everything of ``state`` that is no tensor, as strict JSON."""
    position = state.position
    return {
        "schema_version": SCHEMA_VERSION,
        **vars(position),
        "metrics": finite_or_none(position.metrics),
        "best_metrics": finite_or_none(position.best_metrics),
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
    }


def _position_from(described: dict[str, Any]) -> Position:
    values = {name: value for name, value in described.items() if name not in ("schema_version", "scaler")}
    for name in ("metrics", "best_metrics"):
        values[name] = {key: math.nan if value is None else value for key, value in values[name].items()}
    return Position(**values)


def _checkpoints(folder: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _load_into(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise FormatError(
            "this checkpoint belongs to another network",
            where=path,
            got=str(error),
            remedy="go on with the recipe that began the run (RUN/recipe.yaml), or choose another --out",
        ) from error


def _optimiser_tensors(state: TrainState) -> dict[str, Tensor]:
    """The optimiser's buffers as ``"<parameter>/<buffer>"``; a parameter without one (no step yet) is left out."""
    names = {id(parameter): name for name, parameter in state.network.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, buffers in state.optimiser.state.items()
        for key, value in buffers.items()
        if isinstance(value, Tensor)
    }


def _load_optimiser(state: TrainState, tensors: dict[str, Tensor], path: Path) -> None:
    places: dict[str, dict[str, Any]] = {}
    for full_name, value in tensors.items():
        name, key = full_name.rsplit("/", 1)
        places.setdefault(name, {})[key] = value
    names = {id(parameter): name for name, parameter in state.network.named_parameters()}
    order = [names[id(p)] for group in state.optimiser.param_groups for p in group["params"]]
    if unknown := sorted(set(places) - set(order)):
        raise FormatError(
            "this checkpoint's optimiser knows other parameters",
            where=path,
            got=", ".join(unknown[:5]),
            remedy="begin again with --overwrite, or another --out",
        )
    groups = state.optimiser.state_dict()["param_groups"]
    buffers = {index: places[name] for index, name in enumerate(order) if name in places}
    state.optimiser.load_state_dict({"state": buffers, "param_groups": groups})


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def initial_average(network: nn.Module) -> dict[str, Tensor]:
    """Averaged weights before the first step: a copy of the network's."""
    return _copied(network.state_dict())


def _load_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise FormatError(
            "this checkpoint is damaged",
            where=path,
            got=str(error),
            remedy=f"remove the folder {path.parent.name}; the run then goes on from the checkpoint before it",
        ) from error


def _flush_to_disk(folder: Path) -> None:
    """Wait until the files of ``folder`` are on disk: after a power cut a renamed folder may else hold empty files."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

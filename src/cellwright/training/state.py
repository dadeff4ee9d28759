"""The state of a training run and its checkpoints: weights, optimiser, averaged weights, position.

A checkpoint, such as `RUN/checkpoints/step_00002000/`, contains `weights.safetensors`, `optimiser.safetensors`,
`averaged.safetensors` (with `ema_decay`) and `state.json`, which also holds the loss scale of fp16. It is written
completely or not at all. It contains no random generator states, because every random draw depends only on the step.
"""

from __future__ import annotations

import copy
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cellwright.config.training import TrainConfig
from cellwright.core.errors import FormatError, TrainingDiverged
from cellwright.core.files import atomic_path, output_error, read_json, write_json
from cellwright.models.weights.torch_io import save_tensors
from cellwright.training.optimiser import build_optimiser
from cellwright.training.run_folder import finite_or_none

SCHEMA_VERSION = 1  # of state.json
_FOLDER = re.compile(r"step_(\d{8,})")
_REMOVE = "remove the folder {}: training then resumes from the checkpoint before it"


@dataclass
class Position:
    """How far a run has got, and its best model so far. The field names are keys of `state.json`.

    Attributes:
        step: number of optimiser steps done.
        evaluated_step: step of the last evaluation, -1 before the first.
        metrics: metrics of the last evaluation.
        best_step: step of the best evaluation, -1 before the first.
        best_metrics: metrics of the best evaluation.
        patience_best: best value among the scheduled evaluations, None before the first.
        patience_spent: number of scheduled evaluations since that best value.
        threads: number of CPU threads, the same throughout a run because another number rounds differently.
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
    """Everything that changes during training.

    Attributes:
        network: the network in training.
        optimiser: its optimiser.
        position: how far the run has got.
        averaged: the averaged weights by name, or None without averaging.
        scaler: scales the loss for fp16, else None.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    position: Position
    averaged: dict[str, Tensor] | None
    scaler: torch.amp.GradScaler | None = None

    @staticmethod
    def initial(network: nn.Module, config: TrainConfig) -> TrainState:
        """The state before the first step; puts ``network`` into training mode."""
        if config.compile:
            cast(nn.Module, network.backbone).compile()  # in place, so the names of the tensors stay the same
        network.train()
        return TrainState(
            network,
            build_optimiser(network, config),
            Position(threads=config.threads or torch.get_num_threads()),
            averaged=None if config.ema_decay is None else initial_average(network),
            scaler=torch.amp.GradScaler("cuda") if config.precision == "fp16" else None,
        )

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the averaged weights towards the network's weights, after step ``position.step``.

        The decay grows from 0.1 to ``decay``, so that early averages forget the random initial weights. Buffers
        (statistics of normalisation layers) are copied, not averaged.
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
        """The network to evaluate and save, in eval mode: with averaging, a copy that has the averaged weights."""
        if self.averaged is not None:
            # A copy instead of swapping weights: an interruption cannot leave the network half restored.
            averaged = copy.deepcopy(self.network)
            averaged.load_state_dict(self.averaged)
            yield averaged.eval()
            return
        self.network.eval()
        try:
            yield self.network
        finally:
            self.network.train()


def check_finite(network: nn.Module, step: int) -> None:
    """Raise `TrainingDiverged` if a weight or buffer is NaN or infinite, so that such weights are never written."""
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise TrainingDiverged(
                "training diverged: a weight is not finite",
                where=f"step {step}, tensor {name}",
                remedy="lower train.lr, or lengthen train.warmup; the last checkpoint is still valid",
            )


def save_checkpoint(folder: Path, state: TrainState, keep: int) -> Path:
    """Write ``folder/step_NNNNNNNN`` and remove all but the newest ``keep`` checkpoints.

    An existing checkpoint of the same step is kept, because it is bit-identical. Raises `OutputError` (full disk, no
    permission) or `TrainingDiverged` (weights that are not finite), and then writes nothing.
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
    for old in _checkpoints(folder)[:-keep]:
        # Rename first, so that an interrupted removal does not leave an incomplete checkpoint behind.
        doomed = old.with_name(f".{old.name}.partial")
        try:
            old.rename(doomed)
        except OSError as error:
            raise output_error(old, error) from error
        shutil.rmtree(doomed, ignore_errors=True)
    return path


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder``, or None. Removes the remains of interrupted writes."""
    if not folder.is_dir():
        return None
    for leftover in folder.glob(".step_*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    return next(reversed(_checkpoints(folder)), None)


def load_checkpoint(path: Path, state: TrainState) -> None:
    """Load the checkpoint at ``path`` into ``state`` (changed in place), bit for bit.

    Raises `FormatError` if it is damaged or belongs to another network or optimiser.
    """
    content = read_json(path / "state.json")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise FormatError(
            "this checkpoint has another schema version",
            where=path,
            got=content.get("schema_version"),
            expected=SCHEMA_VERSION,
            remedy="resume with the cellwright version that wrote it (see environment.json), or choose another `out`",
        )
    try:
        state.position = _position_from(content)
    except (AttributeError, KeyError, TypeError) as error:
        remedy = _REMOVE.format(path.name)
        raise FormatError(
            "this checkpoint is damaged", where=path / "state.json", got=str(error), remedy=remedy
        ) from error
    if state.scaler is not None:
        state.scaler.load_state_dict(content["scaler"])
    device = next(iter(state.network.state_dict().values())).device
    _load_into(state.network, _load_tensors(path / "weights.safetensors", device), path)
    _load_optimiser(state, _load_tensors(path / "optimiser.safetensors", device), path)
    if state.averaged is not None:
        state.averaged = _load_tensors(path / "averaged.safetensors", device)


def _description(state: TrainState) -> dict[str, object]:
    """The part of ``state`` that is not tensors, as strict JSON values."""
    position = state.position
    return {
        "schema_version": SCHEMA_VERSION,
        **vars(position),
        "metrics": finite_or_none(position.metrics),
        "best_metrics": finite_or_none(position.best_metrics),
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
    }


def _position_from(content: dict[str, Any]) -> Position:
    values = {name: value for name, value in content.items() if name not in ("schema_version", "scaler")}
    for name in ("metrics", "best_metrics"):
        values[name] = {key: math.nan if value is None else value for key, value in values[name].items()}
    return Position(**values)


def _checkpoints(folder: Path) -> list[Path]:
    numbered = [(int(match[1]), path) for path in folder.iterdir() if (match := _FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def _load_into(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise FormatError(
            "this checkpoint is for another network",
            where=path,
            got=str(error),
            remedy="resume with the recipe that the run was started with (RUN/recipe.yaml), or choose another `out`",
        ) from error


def _optimiser_tensors(state: TrainState) -> dict[str, Tensor]:
    """The optimiser's buffers as ``"<parameter>/<buffer>"``; before the first step a parameter has none."""
    names = {id(parameter): name for name, parameter in state.network.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, buffers in state.optimiser.state.items()
        for key, value in buffers.items()
        if isinstance(value, Tensor)
    }


def _load_optimiser(state: TrainState, tensors: dict[str, Tensor], path: Path) -> None:
    saved: dict[str, dict[str, Any]] = {}
    for full_name, value in tensors.items():
        name, key = full_name.rsplit("/", 1)
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
    groups = state.optimiser.state_dict()["param_groups"]
    buffers = {index: saved[name] for index, name in enumerate(order) if name in saved}
    state.optimiser.load_state_dict({"state": buffers, "param_groups": groups})


def initial_average(network: nn.Module) -> dict[str, Tensor]:
    """The averaged weights before the first step: a copy of the network's weights."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _load_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise FormatError(
            "this checkpoint is damaged",
            where=path,
            got=str(error),
            remedy=_REMOVE.format(path.parent.name),
        ) from error

"""The state of a training run: weights, optimiser, averaged weights, position."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from cellwright.config.training import TrainConfig
from cellwright.core.errors import TrainingDiverged
from cellwright.training.optimiser import build_optimiser


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


def initial_average(network: nn.Module) -> dict[str, Tensor]:
    """The averaged weights before the first step: a copy of the network's weights."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}

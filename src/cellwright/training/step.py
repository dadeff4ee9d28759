"""One optimiser step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from cellwright.config.training import TrainConfig
from cellwright.core.errors import TrainingDiverged
from cellwright.models.contract import Network
from cellwright.ops.batch import Batch
from cellwright.training.optimiser import clip_gradients, set_learning_rate
from cellwright.training.state import TrainState

_AUTOCAST = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepOutcome:
    """The numbers of one step.

    Attributes:
        step: the number of steps done, including this one.
        lr: learning rate.
        losses: each loss by name, averaged over the batches.
        gradient_norm: norm before clipping. NaN if the gradient was not computed; infinite if fp16 overflowed (such a
            step changes no weight, and the next one uses a smaller loss scale).
        problem: why the run has diverged, or None.
    """

    step: int
    lr: float
    losses: dict[str, float]
    gradient_norm: float
    problem: str | None = None

    @property
    def loss(self) -> float:
        """The sum of all losses."""
        return sum(self.losses.values())


def take_step(state: TrainState, batches: Sequence[Batch], config: TrainConfig, lr: float) -> StepOutcome:
    """One optimiser step on the mean gradient of ``batches``; advances ``state`` by one step.

    Where several processes share the batches, all of them take the same step; the losses and the gradient norm are
    those of the whole batches.

    If the outcome has a problem (a loss or the gradient norm is not finite, or the norm exceeds
    ``config.max_gradient_norm``), no weight has changed and ``state`` has not advanced.
    """
    network, optimiser, scaler = state.network, state.optimiser, state.scaler
    step = state.position.step + 1
    losses: dict[str, float] = {}
    optimiser.zero_grad(set_to_none=True)
    for batch in batches:
        for name, value in _backward(state, batch, config, len(batches)).items():
            losses[name] = losses.get(name, 0.0) + value
        if not all(math.isfinite(value) for value in losses.values()):
            return StepOutcome(step, lr, losses, math.nan, "a loss is not finite")
    batches[0].ranks.sum_gradients(network.parameters())
    if scaler is not None:
        scaler.unscale_(optimiser)
    norm = float(clip_gradients(network.parameters(), config.clip_norm))
    if problem := _gradient_problem(norm, state, config):
        return StepOutcome(step, lr, losses, norm, problem)
    set_learning_rate(optimiser, lr)
    if scaler is None:
        optimiser.step()
    else:
        scaler.step(optimiser)  # does nothing if the gradient overflowed
        scaler.update()
    state.position.step = step
    if config.ema_decay is not None:
        state.update_average(config.ema_decay)
    return StepOutcome(step, lr, losses, norm)


def _backward(state: TrainState, batch: Batch, config: TrainConfig, n_batches: int) -> dict[str, float]:
    """Accumulate the gradient of one of ``n_batches`` batches, unless a loss is not finite.

    Returns each loss divided by ``n_batches``.
    """
    with batch.ranks.shared_batch_norm():
        losses = losses_of(cast(Network, state.network), batch, config)
    stacked = torch.stack([loss.float() for loss in losses.values()]) / n_batches
    values = dict(zip(losses, stacked.detach().tolist(), strict=True))
    if all(math.isfinite(value) for value in values.values()):
        total = stacked.sum()
        (total if state.scaler is None else state.scaler.scale(total)).backward()
    return values


def losses_of(network: Network, batch: Batch, config: TrainConfig) -> dict[str, Tensor]:
    """The losses of a batch, which depend on weights and batch alone.

    They are computed in ``config.precision``, which is that of the device by now (`precision_for`), not ``auto``.
    """
    # Layers that draw from torch's global generator (dropout) then depend on the step alone, too.
    torch.manual_seed(batch.seed + batch.first)
    dtype = _AUTOCAST[config.precision]
    with torch.autocast(batch.images.device.type, dtype, enabled=dtype is not None):
        return network.losses(batch)


def _gradient_problem(norm: float, state: TrainState, config: TrainConfig) -> str | None:
    """Why a gradient of this norm ends the run, or None; an fp16 overflow does not while the loss scale exceeds 1."""
    if state.scaler is not None and not math.isfinite(norm) and state.scaler.get_scale() > 1:
        return None
    if norm <= config.max_gradient_norm:  # False for NaN
        return None
    return f"the gradient norm is {norm:g}, above train.max_gradient_norm ({config.max_gradient_norm:g})"


def diverged(outcome: StepOutcome, config: TrainConfig) -> TrainingDiverged:
    """The error for an outcome with a problem, with the recipe keys to change."""
    clip = "none" if config.clip_norm is None else f"{config.clip_norm:g}"
    return TrainingDiverged(
        f"training diverged at step {outcome.step}: {outcome.problem}",
        where=f"step {outcome.step}, learning rate {outcome.lr:g}",
        got=", ".join(f"{name} {value:g}" for name, value in outcome.losses.items()),
        expected="finite losses and gradients",
        remedy=f"lower train.lr (now {config.lr:g}), lengthen train.warmup (now {config.warmup or 'none'}) or lower "
        f"train.clip_norm (now {clip}), and train again from scratch; the last checkpoint is valid",
    )

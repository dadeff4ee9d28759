"""One optimiser step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cellwright.config.train_schema import TrainConfig
from cellwright.core.errors import TrainingDiverged
from cellwright.ops.batch import Batch
from cellwright.train.optimiser import clip_gradients, set_learning_rate
from cellwright.train.schedule import learning_rate
from cellwright.train.state import TrainState


@dataclass(frozen=True)
class StepOutcome:
    """Numbers of one step: ``step`` done, its learning rate, losses by name, gradient norm before clipping."""

    step: int
    lr: float
    losses: dict[str, float]
    gradient_norm: float

    @property
    def loss(self) -> float:
        """Sum of all losses."""
        return sum(self.losses.values())


def take_step(state: TrainState, batch: Batch, config: TrainConfig, total_steps: int) -> StepOutcome:
    """One optimiser step on ``batch``; ``state`` moves on by one.

    Raises `TrainingDiverged` (a loss or the gradient's norm is not finite, or the norm is above
    ``config.max_gradient_norm``) before a weight is changed.
    """
    network, position = state.network, state.position
    lr = learning_rate(config, position.step, total_steps)
    # Layers that draw from torch's global generator (dropout) then depend on the step alone, too.
    torch.manual_seed(batch.seed)
    losses: dict[str, Tensor] = network.losses(batch)  # type: ignore[operator]
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    if not all(math.isfinite(value) for value in values.values()):
        raise _diverged("a loss is not finite", values, position.step, lr, config)
    state.optimiser.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    norm = float(clip_gradients(network.parameters(), config.clip_norm))
    if not norm <= config.max_gradient_norm:  # also true of NaN
        problem = f"the gradient norm is {norm:g}, above train.max_gradient_norm ({config.max_gradient_norm:g})"
        raise _diverged(problem, values, position.step, lr, config)
    set_learning_rate(state.optimiser, lr)
    state.optimiser.step()
    position.step += 1
    if config.ema_decay is not None:
        state.update_average(config.ema_decay)
    return StepOutcome(position.step, lr, values, norm)


def _diverged(problem: str, losses: dict[str, float], step: int, lr: float, config: TrainConfig) -> TrainingDiverged:
    clip = "none" if config.clip_norm is None else f"{config.clip_norm:g}"
    return TrainingDiverged(
        f"training diverged at step {step}: {problem}",
        where=f"step {step}, learning rate {lr:g}",
        got=", ".join(f"{name} {value:g}" for name, value in losses.items()),
        expected="finite losses and gradients",
        remedy=f"lower train.lr (now {config.lr:g}), lengthen train.warmup_steps (now {config.warmup_steps}) or lower "
        f"train.clip_norm (now {clip}), and begin anew; the last checkpoint is sound",
    )

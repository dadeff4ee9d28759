"""The optimiser with its parameter groups, and its gradient's norm."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cellwright.config.train_schema import TrainConfig


def build_optimiser(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters of ``network``.

    Parameters with one dimension or none (biases, scales and shifts of normalisation layers) get no weight decay
    unless ``config.decay_norms_and_biases``. The learning rate is set before every step by the loop.
    """
    trainable = [p for p in network.parameters() if p.requires_grad]
    undecayed = [] if config.decay_norms_and_biases else [p for p in trainable if p.ndim <= 1]
    skip = {id(p) for p in undecayed}
    groups = [
        {"params": [p for p in trainable if id(p) not in skip], "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match config.optimiser:
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, config.beta2))


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate ``lr``."""
    for group in optimiser.param_groups:
        group["lr"] = lr


def clip_gradients(parameters: Iterable[nn.Parameter], clip_norm: float | None) -> Tensor:
    """Scale all gradients so that their joint L2 norm is at most ``clip_norm`` (None: leave them).

    Returns the norm before clipping, a scalar tensor; 0 where no parameter has a gradient.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    if clip_norm is not None and with_gradient:
        torch.nn.utils.clip_grads_with_norm_(with_gradient, clip_norm, norm)
    return norm

"""The optimiser with its parameter groups, and its gradient's norm."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cellwright.config.training import TrainConfig
from cellwright.core.errors import RecipeError

_BACKBONE = "backbone."


def build_optimiser(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over the trainable parameters of ``network``; frozen ones are left out.

    Parameters with one dimension or none (biases, scales and shifts of normalisation layers) get no weight decay
    unless ``config.decay_norms_and_biases``. Every group carries ``lr_factor``, which `set_learning_rate` multiplies
    with: ``config.backbone_lr_factor`` for the backbone (names that begin with "backbone."), 1 for the rest.

    Raises `RecipeError` where that factor is not 1 and the network has no backbone.
    """
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    backbone = [p for name, p in named if name.startswith(_BACKBONE)] if config.backbone_lr_factor != 1 else []
    if config.backbone_lr_factor != 1 and not any(name.startswith(_BACKBONE) for name, _ in network.named_parameters()):
        remedy = "set it to 1"
        raise RecipeError("this network has no backbone", where="train.backbone_lr_factor", remedy=remedy)
    chosen = {id(p) for p in backbone}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": params, "weight_decay": config.weight_decay if decayed else 0.0, "lr_factor": lr_factor}
        for part, lr_factor in ((rest, 1.0), (backbone, config.backbone_lr_factor))
        for decayed in (True, False)
        if (params := [p for p in part if (config.decay_norms_and_biases or p.ndim > 1) == decayed])
    ]
    match config.optimiser:
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, betas=(config.momentum, config.beta2))
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, config.beta2))


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate ``lr`` times its own factor."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_factor"]


def clip_gradients(parameters: Iterable[nn.Parameter], clip_norm: float | None) -> Tensor:
    """Scale all gradients so that their joint L2 norm is at most ``clip_norm`` (None: leave them).

    Returns the norm before clipping, a scalar tensor; 0 where no parameter has a gradient.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    if clip_norm is not None and with_gradient:
        torch.nn.utils.clip_grads_with_norm_(with_gradient, clip_norm, norm)
    return norm

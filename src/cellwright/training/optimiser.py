"""The optimiser with its parameter groups, and gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cellwright.config.training import TrainConfig
from cellwright.core.errors import RecipeError

_BACKBONE = "backbone."


def build_optimiser(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over the trainable parameters of ``network``.

    Parameters with at most one dimension (biases, and the scales and shifts of normalisation layers) get no weight
    decay unless ``config.decay_norms_and_biases`` is set. Every parameter group has an ``lr_factor``, by which
    `set_learning_rate` multiplies the learning rate: ``config.backbone_lr_factor`` for the backbone (names that start
    with "backbone."), 1 for everything else.

    Raises `RecipeError` if that factor is not 1 and the network has no backbone.
    """
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    backbone = [p for name, p in named if name.startswith(_BACKBONE)] if config.backbone_lr_factor != 1 else []
    if config.backbone_lr_factor != 1 and not any(name.startswith(_BACKBONE) for name, _ in network.named_parameters()):
        raise RecipeError("this network has no backbone", where="train.backbone_lr_factor", remedy="set it to 1")
    in_backbone = {id(p) for p in backbone}
    rest = [p for _, p in named if id(p) not in in_backbone]
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
    """Set the learning rate of every parameter group to ``lr`` times the group's ``lr_factor``."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_factor"]


def clip_gradients(parameters: Iterable[nn.Parameter], clip_norm: float | None) -> Tensor:
    """Scale all gradients so that their total L2 norm is at most ``clip_norm`` (None: no clipping).

    Returns the norm before clipping as a scalar tensor; 0 if no parameter has a gradient.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    if clip_norm is not None and with_gradient:
        torch.nn.utils.clip_grads_with_norm_(with_gradient, clip_norm, norm)
    return norm

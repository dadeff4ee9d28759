"""Parameter groups: weight decay, the learning rate of the backbone, and gradient clipping."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cellwright.config.training import TrainConfig
from cellwright.core.errors import RecipeError
from cellwright.training.optimiser import build_optimiser, clip_gradients, set_learning_rate


def test_norms_and_biases_have_no_weight_decay_by_default() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    groups = build_optimiser(network, TrainConfig(weight_decay=0.1)).param_groups
    assert [(group["weight_decay"], [p.ndim for p in group["params"]]) for group in groups] == [
        (0.1, [4]),
        (0.0, [1, 1, 1]),
    ]
    groups = build_optimiser(network, TrainConfig(weight_decay=0.1, decay_norms_and_biases=True)).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 4)]


def test_the_backbone_has_its_own_learning_rate() -> None:
    network = nn.ModuleDict({"backbone": nn.Linear(3, 4), "head": nn.Linear(4, 1)})
    network.backbone.bias.requires_grad_(False)
    optimiser = build_optimiser(network, TrainConfig(backbone_lr_factor=0.1, optimiser="adam", weight_decay=0.2))
    set_learning_rate(optimiser, 0.5)
    names = {id(p): name for name, p in network.named_parameters()}
    groups = [(g["lr"], g["weight_decay"], [names[id(p)] for p in g["params"]]) for g in optimiser.param_groups]
    assert groups == [(0.5, 0.2, ["head.weight"]), (0.5, 0.0, ["head.bias"]), (0.05, 0.2, ["backbone.weight"])]
    with pytest.raises(RecipeError, match="no backbone"):
        build_optimiser(nn.Linear(1, 1), TrainConfig(backbone_lr_factor=0.1))


def test_clipping_scales_all_gradients_to_the_norm() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, None).item() == 5
    assert clip_gradients(parameters, 2.5).item() == 5
    assert parameters[0].grad.tolist() == pytest.approx([1.5, 0])
    assert parameters[1].grad.tolist() == pytest.approx([2])
    assert clip_gradients(parameters, 10).item() == pytest.approx(2.5)
    assert clip_gradients([nn.Parameter(torch.zeros(1))], 1.0).item() == 0

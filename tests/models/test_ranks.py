"""The losses and gradients of every kind of network, with the images of a batch in two processes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import network_conformance as suite
import numpy as np
import pytest
import torch

from cellwright.config.model_dense import FlowTarget, SemanticTarget, StarsTarget, UNetConfig, WatershedTarget
from cellwright.core.masks import MaskSet
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.layers import share_batch_norm
from cellwright.ops.batch import Batch
from cellwright.ops.ranks import Ranks
from cellwright.testing.networks import draw_batch, squares
from ranks import together

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the ranks are forked, since imports take seconds")
KINDS = (
    *("fpn_r50", "c4_r50", "torchvision_v2", "cascade_r50", "pointrend_r50", "mask_scoring_cascade", "class_weights"),
    *("deformable_v1", "group_norm_heads"),
)
TARGETS = {
    "semantic": SemanticTarget(),
    "watershed": WatershedTarget(),
    "flow": FlowTarget(),
    "stars": StarsTarget(),
}
# In CI: without batch norm, with it everywhere, points; a map of classes, and flows.
SHORT = ("fpn_r50", "torchvision_v2", "pointrend_r50", "semantic", "flow")


def part(batch: Batch, images: slice, ranks: Ranks) -> Batch:
    """Some images of a batch."""
    names = ("images", "image_hws", "boxes", "class_ids", "ignore", "layers", "layer_of")
    return replace(batch, **{name: getattr(batch, name)[images] for name in names}, first=images.start, ranks=ranks)


def backward(kind: str, ranks: Ranks, images: slice) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The losses and gradients of some images of a batch of three, of which one has no objects and ignored regions."""
    torch.manual_seed(1)
    if kind in TARGETS:
        config = UNetConfig(target=TARGETS[kind], width=8, depth=2, border_weight=2.0)
        network: Any = DenseNetwork(config, in_channels=3, n_classes=2).train()
    else:
        network = suite.build(suite.CASES[kind].recipe())
    share_batch_norm(network)
    for layer in network.modules():  # channels that are constant would be at the kink of ReLU, where rounding decides
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.bias, std=0.3)
    n_classes = network.n_classes
    batch = draw_batch([squares(), MaskSet.empty((64, 96))], n_classes=n_classes, n_ignored=1, stride=network.stride)
    with ranks.shared_batch_norm():
        losses = network.losses(part(batch, images, ranks))
    torch.stack(list(losses.values())).sum().backward()
    ranks.sum_gradients(network.parameters())
    gradients = {name: p.grad.numpy() for name, p in network.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in SHORT else pytest.mark.slow) for kind in (*KINDS, *TARGETS)]
)
def test_two_processes_give_what_one_gives(kind: str, tmp_path: Path) -> None:
    """The one process uses the same batch norm, because other rounding would change the proposals."""
    ((losses, whole),) = together(1, tmp_path, lambda *_: backward(kind, Ranks(2), slice(0, 2)))
    first, second = together(2, tmp_path, lambda ranks, rank: backward(kind, ranks, slice(rank, rank + 1)))
    assert first[0] == pytest.approx(second[0], rel=1e-6)
    assert first[0] == pytest.approx(losses, rel=1e-5, abs=1e-6)
    assert first[1].keys() == second[1].keys() == whole.keys()
    assert all((first[1][name] == second[1][name]).all() for name in whole)
    difference = sum(float(np.square(first[1][name] - whole[name], dtype=np.float64).sum()) for name in whole)
    total = sum(float(np.square(own, dtype=np.float64).sum()) for own in whole.values())
    # With batch norm in all 69 layers, a change of the images by one rounding changes the gradient by 7e-5.
    assert (difference / total) ** 0.5 < (3e-4 if kind == "torchvision_v2" else 1e-5)

"""What is annotated in a region that is not annotated has no influence on losses and gradients, in any family."""

from __future__ import annotations

import network_conformance as suite
import numpy as np
import pytest
import torch
from torch import nn

from cellwright.config.model_dense import FlowTarget, SemanticTarget, StarsTarget, UNetConfig, WatershedTarget
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.labels import Labels
from cellwright.data.loader import collate
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.rcnn.heads import counted_cells
from cellwright.models.rcnn.losses import mask_loss
from cellwright.models.rcnn.regions import Regions
from cellwright.ops.assign import BACKGROUND, UNUSED
from cellwright.ops.batch import Batch

HW = (64, 96)
# A ring, whose box is the whole image, and a strip of it that reaches into the middle.
REGION = np.ones(HW, bool)
REGION[12:52, 12:84] = False
REGION[12:30, 40:50] = True
OUTSIDE = [(16, 16, 30, 30), (36, 18, 48, 34), (20, 56, 34, 72), (8, 30, 24, 39)]  # the last is half in the region


def batch_of(inside: list[tuple[int, int, int, int]], *, ignores: bool = True) -> Batch:
    """A batch with the boxes y0, x0, y1, x1 of `OUTSIDE` and ``inside``, of classes 0 and 1 in turn."""
    shapes = []
    for y0, x0, y1, x1 in [*OUTSIDE, *inside]:
        shape = np.zeros(HW, bool)
        shape[y0:y1, x0:x1] = True
        shapes.append(shape)
    n = len(shapes)
    masks = MaskSet.from_dense(np.stack([*shapes, REGION][: n + ignores]))
    instances = Instances.from_masks(
        masks, class_ids=np.arange(len(masks)) % 2 * (np.arange(len(masks)) < n), ignore=np.arange(len(masks)) >= n
    )
    image = torch.from_numpy(np.random.default_rng(5).normal(size=(3, *HW)).astype(np.float32))
    return collate([image, image.flip(2)], [Labels.from_instances(instances)] * 2, stride=64, seed=3)


def learned(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network.zero_grad(set_to_none=True)
    losses = network.losses(batch)  # type: ignore[operator]
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return {**{name: loss.detach() for name, loss in losses.items()}, **gradients}


def network_of(kind: str) -> nn.Module:
    targets = {
        "semantic": SemanticTarget(),
        "watershed": WatershedTarget(),
        "flow": FlowTarget(),
        "stars": StarsTarget(),
    }
    if kind not in targets:
        return suite.build(suite.CASES[kind].recipe()).eval()
    torch.manual_seed(0)
    config = UNetConfig(target=targets[kind], width=4, depth=2, border_weight=5.0)
    return DenseNetwork(config, in_channels=3, n_classes=2)


KINDS = ["semantic", "watershed", "flow", "stars", "fpn_r18", "c4_r50", "cascade_r50", "pointrend_r50", "mask_scoring"]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_do_not_depend_on_what_is_annotated_in_the_region(kind: str) -> None:
    network = network_of(kind)
    some = [(0, 0, 10, 12), (54, 60, 64, 80), (2, 40, 20, 50)]
    first = learned(network, batch_of([]))
    again = learned(network, batch_of(some))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    without = learned(network, batch_of(some, ignores=False))
    assert any(not torch.equal(first[name], without[name]) for name in first)


def test_anchors_are_excused_by_the_pixels_of_a_region_not_by_its_box() -> None:
    network = network_of("fpn_r18")
    batch = batch_of([])
    anchors = torch.cat(network.rpn.anchors_of(network.features(batch.images)))  # type: ignore[operator, union-attr]
    labels, _ = network.rpn.anchor_targets(anchors, batch, 0)  # type: ignore[operator, union-attr]
    inside = torch.tensor([[38.0, 40.0, 54.0, 51.0], [41.0, 2.0, 49.0, 10.0], [86.0, 14.0, 94.0, 22.0]])
    labels_of, _ = network.rpn.anchor_targets(inside, batch, 0)  # type: ignore[operator, union-attr]
    assert labels_of.tolist()[1:] == [UNUSED, UNUSED]
    assert labels_of[0] == BACKGROUND  # in the hole of the ring
    assert (labels == BACKGROUND).any()


def test_masks_are_not_trained_on_pixels_of_the_region() -> None:
    batch = batch_of([])
    regions = [Regions(torch.tensor([[36.0, 20.0, 56.0, 40.0]]), torch.tensor([0]), torch.tensor([2]))] * 2
    cells = counted_cells(regions, batch, 20, aligned=True)
    assert cells is not None
    assert np.array_equal(cells[0].numpy(), ~REGION[20:40, 36:56])
    logits = torch.zeros((2, 1, 20, 20), requires_grad=True)
    mask_loss(logits, torch.tensor([0, 0]), torch.ones(2, 20, 20), cells).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[:, 0] != 0, cells)
    assert counted_cells(regions, batch_of([], ignores=False), 20, aligned=True) is None

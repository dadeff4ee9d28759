"""PointRend's parts on drawn maps with hand-set weights, and the whole network at reduced size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cellwright.config.conventions import DETECTRON2, TORCHVISION, Conventions
from cellwright.config.model_rcnn import CoarseMaskConfig, PointHeadConfig, PointRendConfig
from cellwright.core.masks import MaskSet
from cellwright.models.build import build_mask_rcnn
from cellwright.models.rcnn import pointrend
from cellwright.models.rcnn.pointrend import (
    CoarseMaskHead,
    PointHead,
    PointRend,
    draw_points,
    render_masks,
    sample_grid,
)
from cellwright.models.rcnn.regions import Regions
from cellwright.ops.batch import Batch

CONFIG = PointHeadConfig(
    train_points=196,
    oversample=3.0,
    uncertain_fraction=0.75,
    subdivisions=3,
    test_points=784,
    channels=2,
    fcs=2,
)
# A disc in the middle of a 64 px map: the logit of being inside.
CENTRE, RADIUS = 32.0, 19.0


def disc() -> Tensor:
    """FloatTensor[1,1,64,64]: distance to the disc's edge, px, positive inside."""
    axis = torch.arange(64) + 0.5 - CENTRE
    return (RADIUS - torch.hypot(axis[:, None], axis[None]))[None, None]


def head_of(fine: float, coarse: float) -> PointHead:
    """A head for one fine channel and two classes: the logit of class 0 is ``fine * map + coarse * coarse logit``, that
    of class 1 the same with the negative map."""
    head = PointHead(CONFIG, in_channels=1, n_masks=2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        # ReLU passes the map as its positive and its negative part.
        head.fcs[0].weight[:, 0, 0] = torch.tensor([1.0, -1.0])
        head.fcs[1].weight[[0, 1], [0, 1], 0] = 1.0
        head.logits.weight[0, :, 0] = torch.tensor([fine, -fine, coarse, 0.0])
        head.logits.weight[1, :, 0] = torch.tensor([-fine, fine, 0.0, coarse])
    return head


def render(
    coarse: Tensor, head: PointHead, fine: Tensor, boxes: Tensor, class_id: int, config: PointHeadConfig = CONFIG
) -> Tensor:
    return render_masks(coarse, head, fine, boxes, torch.full((len(boxes),), class_id), config, stride=1)


def changed(**values: Any) -> PointHeadConfig:
    return CONFIG.model_copy(update=values)


def test_a_shape_on_the_fine_map_is_rendered() -> None:
    """Only few points are computed, but every cell is on the correct side of the disc's edge."""
    boxes = torch.tensor([[8.0, 8.0, 56.0, 56.0], [20.0, 4.0, 60.0, 44.0]])
    config = changed(test_points=400)
    masks = render(torch.zeros((2, 2, 7, 7)), head_of(1.0, 0.0), disc(), boxes, 0, config)
    assert masks.shape == (2, 56, 56)
    units = (torch.arange(56) + 0.5) / 56
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        y, x = y0 + units * (y1 - y0), x0 + units * (x1 - x0)
        distance = RADIUS - torch.hypot(y[:, None] - CENTRE, x[None] - CENTRE)
        clear = distance.abs() > 0.05  # closer to the edge, the interpolation of the map decides
        assert torch.equal(mask[clear] > 0.5, distance[clear] > 0)
        assert clear.float().mean() > 0.98


def test_the_requested_class_is_rendered() -> None:
    boxes = torch.tensor([[8.0, 8.0, 56.0, 56.0]])
    inside, outside = (render(torch.zeros((1, 2, 7, 7)), head_of(1.0, 0.0), disc(), boxes, k, CONFIG) for k in (0, 1))
    assert torch.allclose(inside + outside, torch.ones(1, 56, 56), atol=1e-6)


def test_copied_coarse_logits_are_enlarged_bilinearly() -> None:
    """With a point head that returns the coarse logit, and enough points for all cells; outside the box is zero."""
    coarse = torch.randn((3, 2, 7, 7), generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[8.0, 8.0, 56.0, 56.0]]).repeat(3, 1)
    ours = render(coarse, head_of(0.0, 1.0), disc(), boxes, 1, changed(test_points=56 * 56))
    framed = F.interpolate(F.pad(coarse[:, 1:], (1, 1, 1, 1)), scale_factor=8, mode="bilinear", align_corners=False)
    assert torch.allclose(ours, framed[:, 0, 8:-8, 8:-8].sigmoid(), atol=1e-5)


def test_cells_that_are_not_computed_are_interpolated() -> None:
    """One point per step in 56 x 56 cells: all others are interpolated from the dense 7 x 7 mask."""
    coarse = torch.randn((1, 2, 7, 7), generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[8.0, 8.0, 56.0, 56.0]])
    ours = render(coarse, head_of(0.0, 1.0), disc(), boxes, 0, changed(test_points=1, subdivisions=1))
    plain = F.interpolate(coarse[:, :1], scale_factor=2, mode="bilinear", align_corners=False).sigmoid()[:, 0]
    assert ((ours - plain).abs() > 1e-6).sum() <= 1


@pytest.mark.parametrize("subdivisions", [0, 1])
def test_few_subdivisions(subdivisions: int) -> None:
    boxes = torch.tensor([[8.0, 8.0, 56.0, 56.0]])
    config = changed(subdivisions=subdivisions)
    masks = render(torch.zeros((1, 2, 7, 7)), head_of(1.0, 0.0), disc(), boxes, 0, config)
    side = 7 << subdivisions
    assert masks.shape == (1, side, side)
    assert masks[0, side // 2, side // 2] > 0.99
    assert masks[0, 0, 0] < 0.01


def test_chunks_do_not_change_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = changed(subdivisions=5, channels=16, fcs=3)
    head = PointHead(config, in_channels=6, n_masks=3)
    torch.nn.init.normal_(head.logits.weight)
    coarse, fine = torch.randn((11, 3, 7, 7)), torch.randn((1, 6, 20, 30))
    corners = torch.rand((11, 2)) * torch.tensor([80.0, 50.0])
    boxes = torch.cat([corners, corners + 5 + torch.rand((11, 2)) * 40], dim=1)
    class_ids = torch.arange(11) % 3
    whole = render_masks(coarse, head, fine, boxes, class_ids, config, 4)
    monkeypatch.setattr(pointrend, "_CHUNK_VALUES", 1)
    assert torch.allclose(render_masks(coarse, head, fine, boxes, class_ids, config, 4), whole, atol=1e-5)


def test_the_grid_samples_cell_centres() -> None:
    """A map with the value x + 100 y, px: the grid of a box samples the centres of its cells."""
    y, x = torch.meshgrid(torch.arange(16) * 4 + 2.0, torch.arange(24) * 4 + 2.0, indexing="ij")
    fine = (x + 100 * y).expand(2, 1, -1, -1)
    boxes = [torch.tensor([[10.0, 20.0, 38.0, 48.0]]), torch.tensor([[40.0, 6.0, 54.0, 34.0], [4.0, 4.0, 18.0, 18.0]])]
    grid = sample_grid(fine, boxes, 14, 4)
    assert grid.shape == (3, 1, 14, 14)
    expected = (10 + 2 * torch.arange(14) + 1) + 100 * (20 + 2 * torch.arange(14)[:, None] + 1)
    assert torch.allclose(grid[0, 0], expected.float(), rtol=1e-4)
    assert torch.allclose(grid[1, 0, 0], 40.5 + torch.arange(14) + 100 * 7.0, rtol=1e-4)


def test_points_are_drawn_where_the_mask_is_uncertain() -> None:
    ramp = (torch.arange(7) - 3.0).expand(5, 7, 7)  # logit 0 along x = 1/2
    points = draw_points(ramp, CONFIG, torch.Generator().manual_seed(0))
    assert points.shape == (5, 196, 2)
    assert ((points >= 0) & (points < 1)).all()
    uncertain, uniform = points[:, :147], points[:, 147:]
    # The border counts too, where the coarse mask decreases to zero.
    distance = torch.minimum((uncertain[..., 0] - 0.5).abs(), torch.minimum(uncertain, 1 - uncertain).amin(dim=2))
    assert distance.max() < 0.2
    assert (uniform[..., 0] - 0.5).abs().mean() == pytest.approx(0.25, abs=0.03)
    again = draw_points(ramp, CONFIG, torch.Generator().manual_seed(0))
    other = draw_points(ramp, CONFIG, torch.Generator().manual_seed(1))
    assert torch.equal(points, again)
    assert not torch.equal(points, other)


def test_coarse_head_reduces_only_where_channels_shrink() -> None:
    same = CoarseMaskHead(CoarseMaskConfig(channels=8, fc_channels=16), in_channels=8, n_masks=3)
    fewer = CoarseMaskHead(CoarseMaskConfig(channels=8, fc_channels=16, fcs=1), in_channels=12, n_masks=3)
    assert "reduce.conv.weight" not in same.state_dict()
    assert fewer.state_dict()["reduce.conv.weight"].shape == (8, 12, 1, 1)
    assert same.state_dict()["shrink.conv.weight"].shape == (8, 8, 2, 2)
    assert same(torch.randn(2, 8, 14, 14)).shape == (2, 3, 7, 7)
    assert fewer(torch.randn(0, 12, 14, 14)).shape == (0, 3, 7, 7)


# --- the whole network --------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "kind": "pointrend",
    "backbone": {"depth": 18, "width": 8},
    "fpn": {"channels": 16},
    "anchors": {"sizes_px": ((8,), (16,), (32,), (64,), (128,))},
    "box_head": {"fc_channels": 32, "score_threshold": 0.0},
    "mask_head": {"channels": 8, "fc_channels": 32},
    "point_head": {"channels": 16, "train_points": 24, "subdivisions": 3, "test_points": 100},
}


def small(conventions: Conventions = DETECTRON2) -> PointRend:
    torch.manual_seed(0)
    network = build_mask_rcnn(PointRendConfig.model_validate(SMALL), conventions, in_channels=3, n_classes=2)
    assert isinstance(network, PointRend)
    return network


def batch_of(masks: list[MaskSet]) -> Batch:
    layers = [mask_set.to_layers() for mask_set in masks]
    return Batch(
        images=torch.randn((len(masks), 3, 64, 96), generator=torch.Generator().manual_seed(0)),
        image_hws=[mask_set.image_hw for mask_set in masks],
        boxes=[torch.from_numpy(mask_set.boxes).float() for mask_set in masks],
        class_ids=[torch.arange(len(mask_set)) % 2 for mask_set in masks],
        ignore=[torch.zeros(len(mask_set), dtype=torch.bool) for mask_set in masks],
        layers=[torch.from_numpy(mask_set) for mask_set, _ in layers],
        layer_of=[torch.from_numpy(of) for _, of in layers],
        seed=7,
    )


def squares() -> MaskSet:
    """Four squares of 12 px, two of them overlapping."""
    labels = np.zeros((4, 60, 90), bool)
    for k, (y, x) in enumerate([(4, 4), (10, 10), (30, 5), (35, 50)]):
        labels[k, y : y + 12, x : x + 12] = True
    return MaskSet.from_dense(labels)


@pytest.mark.parametrize("conventions", [TORCHVISION, DETECTRON2], ids=lambda c: c.name)
def test_one_step_of_training(conventions: Conventions) -> None:
    network = small(conventions).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    losses = network.losses(batch_of([squares(), MaskSet.empty((64, 96))]))
    assert set(losses) == {"rpn_class", "rpn_box", "class", "box", "mask", "point"}
    total = torch.stack(list(losses.values())).sum()
    assert total.isfinite()
    total.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(fc.weight.grad.abs().sum() > 0 for fc in [*network.point_head.fcs, *network.mask_head.fcs])
    optimiser.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_training_reduces_the_point_loss() -> None:
    """Sixty steps on one batch: points inside and outside the squares are distinguished."""
    network, batch = small().train(), batch_of([squares()])
    boxes = batch.boxes[0]
    regions = [Regions(boxes, batch.class_ids[0], torch.arange(len(boxes)))]
    parameters = [*network.point_head.parameters(), *network.mask_head.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=0.01)
    with torch.no_grad():
        images = torch.zeros_like(batch.images)
        images[0, :, :60, :90] = (batch.layers[0] > 0).any(dim=0).float()
        source = network.region_features(network.features(images))
    point_losses = []
    for _ in range(60):
        losses = network.point_losses(source, regions, batch, batch.generators())
        optimiser.zero_grad()
        (losses["mask"] + losses["point"]).backward()
        optimiser.step()
        point_losses.append(losses["point"].item())
    assert point_losses[-1] < 0.5 * point_losses[0]


def test_images_without_objects() -> None:
    network = small().train()
    losses = network.losses(batch_of([MaskSet.empty((60, 90)), MaskSet.empty((64, 96))]))
    assert losses["mask"] == losses["point"] == 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_no_boxes_no_masks() -> None:
    network = small().eval()
    features = network.features(torch.zeros((1, 3, 64, 96)))
    none = torch.zeros(0, dtype=torch.int64)
    (probs,) = network.masks_for(features, [torch.zeros((0, 4))], [none])
    assert probs.shape == (0, 56, 56)


def test_detects_objects() -> None:
    (detected,) = small().eval().detect(torch.randn((1, 3, 64, 96)), [(60, 90)], [(120, 180)])
    assert detected.image_hw == (120, 180)
    assert (detected.masks.areas > 0).all()


def test_half_precision() -> None:
    """Under autocast, losses are close to those of full precision, and masks are 32-bit probabilities."""
    network, batch = small().train(), batch_of([squares()])
    full = network.losses(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = network.losses(batch)
        features = network.features(batch.images[:1])
        (probs,) = network.masks_for(features, [batch.boxes[0]], [batch.class_ids[0]])
    assert half["point"].item() == pytest.approx(full["point"].item(), rel=0.05)
    assert probs.dtype == torch.float32

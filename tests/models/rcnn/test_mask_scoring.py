"""Mask Scoring R-CNN: targets against dense masks, training of the head, and its effect on scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cellwright.config.conventions import TORCHVISION
from cellwright.config.model_rcnn import C4Config, CascadeConfig, MaskRCNNConfig, MaskScoringConfig, PointRendConfig
from cellwright.core.masks import MaskSet
from cellwright.models.build import build_mask_rcnn
from cellwright.models.rcnn.heads import mask_coverage
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.mask_scoring import MaskScoring, MaskScoringRCNN, mask_ious, quality_loss
from cellwright.models.rcnn.regions import Regions
from cellwright.ops.batch import Batch

SIDE = 4
SMALL: dict[str, Any] = {
    "backbone": {"depth": 18, "width": 8},
    "fpn": {"channels": 16},
    "anchors": {"sizes_px": ((8,), (16,), (32,), (64,), (128,))},
    "box_head": {"fc_channels": 32, "score_threshold": 0.0},
    "mask_head": {"channels": 16, "convs": 1},
}
SCORING = {"convs": 2, "channels": 8, "fcs": 1, "fc_channels": 16}


def small(kind: type[MaskRCNNConfig] | type[CascadeConfig] = MaskRCNNConfig, scoring: bool = True) -> MaskRCNN:
    torch.manual_seed(0)
    config = kind.model_validate({**SMALL, **({"mask_scoring": SCORING} if scoring else {})})
    return build_mask_rcnn(config, TORCHVISION, in_channels=3, n_classes=2)


def batch_of(masks: list[MaskSet], ignored: bool = False) -> Batch:
    layers = [mask_set.to_layers() for mask_set in masks]
    height, width = masks[0].image_hw
    return Batch(
        images=torch.randn((len(masks), 3, height, width), generator=torch.Generator().manual_seed(0)),
        image_hws=[mask_set.image_hw for mask_set in masks],
        boxes=[torch.from_numpy(mask_set.boxes).float() for mask_set in masks],
        class_ids=[torch.arange(len(mask_set)) % 2 for mask_set in masks],
        ignore=[torch.full((len(mask_set),), ignored) for mask_set in masks],
        layers=[torch.from_numpy(mask_set) for mask_set, _ in layers],
        layer_of=[torch.from_numpy(of) for _, of in layers],
        seed=3,
    )


def squares() -> MaskSet:
    dense = np.zeros((6, 64, 96), bool)
    for k, (y, x) in enumerate([(4, 4), (10, 10), (30, 5), (8, 40), (35, 50), (44, 70)]):
        dense[k, y : y + 12, x : x + 12] = True
    return MaskSet.from_dense(dense)


def regions_of(boxes: list[list[float]], objects: list[int]) -> Regions:
    index = torch.tensor(objects, dtype=torch.int64)
    return Regions(torch.tensor(boxes).reshape(-1, 4), torch.zeros_like(index), index)


def as_logits(masks: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.where(masks, 3.0, -3.0)).float()


def ious(masks: np.ndarray, regions: list[Regions], batch: Batch) -> torch.Tensor:
    coverage = mask_coverage(regions, batch, masks.shape[-1], aligned=True)
    return mask_ious(as_logits(masks), coverage, regions, batch)


def test_iou_of_hand_drawn_masks() -> None:
    """An object of 8 x 8 px and cells of 2 x 2 px: covered pixels, false pixels, and pixels outside the box."""
    dense = np.zeros((1, 24, 24), bool)
    dense[0, 8:16, 8:16] = True
    batch = batch_of([MaskSet.from_dense(dense)])
    whole, left = np.ones((SIDE, SIDE), bool), np.zeros((SIDE, SIDE), bool)
    left[:, :2] = True
    inside, shifted = [8.0, 8.0, 16.0, 16.0], [12.0, 8.0, 20.0, 16.0]
    regions = [regions_of([inside, inside, inside, shifted, shifted], [0] * 5)]
    masks = np.stack([whole, left, ~whole, left, whole])
    # All; half; nothing predicted; a box with half of the object, filled correctly and completely.
    assert ious(masks, regions, batch).tolist() == pytest.approx([1.0, 0.5, 0.0, 0.5, 32 / 96])


@pytest.mark.parametrize("seed", range(4))
def test_iou_equals_dense_masks(seed: int) -> None:
    """Random objects, some overlapping, in two images; the pixels of every cell are painted and counted."""
    rng = np.random.default_rng(seed)
    sets, regions, masks, expected = [], [], [], []
    for _ in range(2):
        objects = np.zeros((4, 32, 48), bool)
        for mask in objects:
            y, x = rng.integers(0, 20), rng.integers(0, 36)
            mask[y : y + rng.integers(3, 12), x : x + rng.integers(3, 12)] = True
        objects &= rng.random(objects.shape) < 0.8
        sets.append(MaskSet.from_dense(objects))
        boxes, matched = [], rng.integers(0, 4, 6)
        for k in matched:
            y, x = rng.integers(0, 16), rng.integers(0, 24)
            cell_h, cell_w = (int(n) for n in rng.integers(1, 5, 2))
            mask = rng.random((SIDE, SIDE)) < 0.5
            painted = np.zeros((32, 48), bool)
            painted[y : y + SIDE * cell_h, x : x + SIDE * cell_w] = mask.repeat(cell_h, 0).repeat(cell_w, 1)
            boxes.append([float(x), float(y), float(x + SIDE * cell_w), float(y + SIDE * cell_h)])
            masks.append(mask)
            expected.append((painted & objects[k]).sum() / (painted | objects[k]).sum())
        regions.append(regions_of(boxes, matched.tolist()))
    np.testing.assert_allclose(ious(np.stack(masks), regions, batch_of(sets)).numpy(), expected, atol=1e-5)


def test_loss_is_the_mean_squared_error() -> None:
    batch = batch_of([squares()])
    regions = [regions_of(batch.boxes[0].tolist(), list(range(6)))]
    logits = as_logits(np.ones((6, SIDE, SIDE), bool))
    coverage = mask_coverage(regions, batch, SIDE, aligned=True)
    quality = torch.tensor([1.0, 1.0, 0.5, 1.0, 0.0, 1.2], requires_grad=True)
    loss = quality_loss(quality, logits, coverage, regions, batch)
    assert loss.item() == pytest.approx((0.25 + 1.0 + 0.04) / 6)
    loss.backward()
    assert quality.grad is not None
    np.testing.assert_allclose(quality.grad.numpy(), 2 * (quality.detach().numpy() - 1) / 6, rtol=1e-6)


def test_the_mask_is_pooled_as_probability() -> None:
    """The head computed layer by layer, with the mask of the class as an additional channel."""
    torch.manual_seed(0)
    config = MaskScoringConfig(convs=2, channels=5, fcs=1, fc_channels=6)
    head = MaskScoring(config, in_channels=3, resolution=4, n_classes=2)
    assert set(head.state_dict()) == {
        f"{name}.{part}" for name in ("convs.0.conv", "convs.1.conv", "fcs.0", "quality") for part in ("weight", "bias")
    }
    pooled, logits = torch.randn((7, 3, 4, 4)), torch.randn((7, 8, 8)) * 3
    probs = 1 / (1 + (-logits).exp())
    corners = probs.reshape(7, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(7, 4, 4, 4).amax(dim=3)
    x = torch.cat([pooled, corners[:, None]], dim=1)
    first, second = (layer.conv for layer in head.convs)
    x = torch.conv2d(x, first.weight, first.bias, stride=1, padding=1).relu()
    x = torch.conv2d(x, second.weight, second.bias, stride=2, padding=1).relu()
    x = (x.reshape(7, -1) @ head.fcs[0].weight.T + head.fcs[0].bias).relu()
    expected = x @ head.quality.weight.T + head.quality.bias
    torch.testing.assert_close(head(pooled, logits), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("masks", "ignored"), [(MaskSet.empty((64, 96)), False), (squares(), True)])
def test_without_positives_the_loss_is_0(masks: MaskSet, ignored: bool) -> None:
    network = small().train()
    losses = network.losses(batch_of([masks], ignored))
    assert losses["mask_quality"] == 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("kind", [MaskRCNNConfig, CascadeConfig])
def test_one_step_reduces_the_loss(kind: type[MaskRCNNConfig] | type[CascadeConfig]) -> None:
    """With everything else fixed, one step improves the predicted quality of the same regions."""
    network = small(kind).train()
    assert isinstance(network, MaskScoringRCNN)
    batch = batch_of([squares(), squares().flip("horizontal")])
    before = network.losses(batch)["mask_quality"]
    before.backward()
    torch.optim.SGD(network.mask_scoring.parameters(), lr=0.02).step()
    assert 0 < network.losses(batch)["mask_quality"] < before


def test_the_mask_head_gets_the_gradient() -> None:
    """Through the probabilities that are the head's input, as in the paper's code, and not through the target."""
    network = small().train()
    assert isinstance(network, MaskScoringRCNN)
    network.losses(batch_of([squares()]))["mask_quality"].backward()
    assert network.mask_head.logits.weight.grad.abs().sum() > 0
    network.zero_grad()
    torch.nn.init.zeros_(network.mask_scoring.quality.weight)
    network.losses(batch_of([squares()]))["mask_quality"].backward()
    assert network.mask_head.logits.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("kind", [MaskRCNNConfig, CascadeConfig])
def test_score_is_class_times_quality(kind: type[MaskRCNNConfig] | type[CascadeConfig]) -> None:
    """Qualities of .1 and 3 for the two classes change scores and their order; a quality above 1 counts as 1."""
    plain, scored = small(kind, scoring=False).eval(), small(kind).eval()
    for head in plain.box_head:
        torch.nn.init.normal_(head.class_logits.weight)  # both classes are detected
    scored.load_state_dict(plain.state_dict(), strict=False)
    assert isinstance(scored, MaskScoringRCNN)
    torch.nn.init.zeros_(scored.mask_scoring.quality.weight)
    scored.mask_scoring.quality.bias.data = torch.tensor([0.1, 3.0])
    batch = batch_of([squares()])
    (a,), (b,) = (network.detect(batch.images, batch.image_hws, batch.image_hws) for network in (plain, scored))
    assert len(a) == len(b) > 20
    assert set(a.class_ids) == {0, 1}
    expected = a.scores * np.array([0.1, 1.0], np.float32)[a.class_ids]
    order = np.argsort(-expected, kind="stable")
    np.testing.assert_allclose(b.scores, expected[order], rtol=1e-6)
    assert (np.diff(b.scores) <= 0).all()
    assert b.ids.tolist() == list(range(1, len(b) + 1))
    by_box = [
        sorted(zip(instances.boxes_xyxy.tolist(), instances.class_ids.tolist(), strict=True)) for instances in (a, b)
    ]
    assert by_box[0] == by_box[1]


@pytest.mark.parametrize(
    ("kind", "reason"), [(C4Config, "box head's res5 features"), (PointRendConfig, "PointRend has no mask head")]
)
def test_unsupported_kinds_are_refused_with_the_reason(
    kind: type[C4Config] | type[PointRendConfig], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        kind.model_validate({"mask_scoring": SCORING})


def test_odd_resolution_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"even mask_head\.resolution, got 7"):
        MaskRCNNConfig.model_validate({"mask_scoring": SCORING, "mask_head": {"resolution": 7}})

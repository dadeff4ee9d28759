"""Mask targets from label layers against RoIAlign of dense bitmasks; pooling from a pyramid."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from cellwright.ops import roi
from cellwright.ops.roi import Pooling, pool_boxes, sample_mask_targets

HW = (70, 90)
TORCHVISION = Pooling(
    sampling_ratio=2, aligned=False, level_rule="torchvision", canonical_box_px=224, canonical_level=4, first_level=2
)


def field(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Label layers (2,h,w) of 12 objects, the layer of each, and boxes around them, some much too large or tiny."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(HW[0]), torch.arange(HW[1]), indexing="ij")
    layers, layer_of, boxes = torch.zeros((2, *HW), dtype=torch.int32), torch.arange(12) % 2, []
    for k in range(12):
        cy, cx, radius = (torch.rand(3, generator=generator) * torch.tensor([70.0, 90.0, 14.0])).tolist()
        layers[layer_of[k]][(y - cy) ** 2 + (x - cx) ** 2 < (radius + 2) ** 2] = k + 1
        jitter = torch.rand(4, generator=generator) * 30
        low_high = torch.tensor([cx, cy, cx, cy]) + jitter * torch.tensor([-1, -1, 1, 1])
        boxes.append(low_high.clamp(min=0).minimum(torch.tensor([90.0, 70.0, 90.0, 70.0])))
    boxes += [
        torch.tensor([0.0, 0.0, 90.0, 70.0]),
        torch.tensor([3.2, 4.1, 3.5, 4.3]),
        torch.tensor([5.0, 5.0, 5.0, 9.0]),
    ]
    return layers, layer_of, torch.stack(boxes)


@pytest.mark.parametrize("chunk", [800, 1_000_000])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("resolution", [14, 28])
def test_targets_equal_roi_align_of_bitmasks(
    monkeypatch: pytest.MonkeyPatch, resolution: int, aligned: bool, chunk: int
) -> None:
    monkeypatch.setattr(roi, "_CHUNK_VALUES", chunk)
    for seed in range(3):
        layers, layer_of, boxes = field(seed)
        index = torch.arange(len(boxes)) % 12
        values = (index + 1).int()
        ours = sample_mask_targets(layers, layer_of[index], values, boxes, resolution, aligned=aligned)
        bitmasks = (layers[layer_of[index]] == values[:, None, None]).float()[:, None]
        rois = torch.cat([torch.arange(len(boxes))[:, None].float(), boxes], dim=1)
        dense = roi_align(bitmasks, rois, resolution, 1.0, 0, aligned)[:, 0]
        assert torch.equal(ours, dense)
        assert ours.sum() > 100


def test_no_regions() -> None:
    layers = torch.zeros((1, 5, 5), dtype=torch.int32)
    none = torch.zeros(0, dtype=torch.int64)
    targets = sample_mask_targets(layers, none, none.int(), torch.zeros((0, 4)), 28, aligned=True)
    assert targets.shape == (0, 28, 28)


def test_pooling_equals_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn((2, 3, 256 >> level, 320 >> level), generator=generator) for level in range(2, 6)]
    boxes = []
    for count in (40, 0):
        low = torch.rand((count, 2), generator=generator) * 100
        size = 2 ** (torch.rand((count, 2), generator=generator) * 8)
        boxes.append(torch.cat([low, low + size], dim=1))
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    expected = pooler({str(i): level for i, level in enumerate(maps)}, boxes, [(256, 320)] * 2)
    assert torch.equal(pool_boxes(maps, boxes, 7, TORCHVISION), expected)
    assert pool_boxes(maps, [boxes[1], boxes[1]], 7, TORCHVISION).shape == (0, 3, 7, 7)
    with torch.inference_mode():
        assert pool_boxes(maps, [boxes[1], boxes[1]], 7, TORCHVISION).shape == (0, 3, 7, 7)


@pytest.mark.parametrize(("sampling_ratio", "aligned"), [(2, False), (0, True)])
def test_pooling_in_inference_mode_is_the_same(sampling_ratio: int, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn((2, 5, 64 >> level, 96 >> level), generator=generator) for level in range(3)]
    low = torch.rand((2, 60, 2), generator=generator) * 300 - 30
    boxes = list(torch.cat([low, low + 2 ** (torch.rand((2, 60, 2), generator=generator) * 9) - 1], dim=2))
    boxes[1][0, 2:] = boxes[1][0, :2]  # without area
    sizes = {"canonical_box_px": 64, "canonical_level": 3, "first_level": 2}
    pooling = Pooling(sampling_ratio=sampling_ratio, aligned=aligned, level_rule="detectron2", **sizes)
    expected = pool_boxes(maps, boxes, 7, pooling)
    with torch.inference_mode():
        pooled = pool_boxes(maps, boxes, 7, pooling)
    assert expected.std() > 0.1
    torch.testing.assert_close(pooled, expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize(("sampling_ratio", "aligned"), [(2, False), (0, True), (3, False)])
def test_the_gradient_of_pooling_equals_that_of_torchvision(sampling_ratio: int, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn((2, 5, 64, 96), generator=generator).requires_grad_() for _ in range(2)]
    low = torch.rand((80, 2), generator=generator) * 400 - 30
    boxes = torch.cat([low, low + 2 ** (torch.rand((80, 2), generator=generator) * 9) - 1], dim=1)
    boxes[0, 2:] = boxes[0, :2]  # without area
    sizes = {"canonical_box_px": 64, "canonical_level": 3, "first_level": 2}
    pooling = Pooling(sampling_ratio=sampling_ratio, aligned=aligned, level_rule="detectron2", **sizes)
    pooled = pool_boxes(maps[:1], [boxes[:50], boxes[50:]], 7, pooling)
    expected = roi_align(maps[1], [boxes[:50], boxes[50:]], 7, 0.25, sampling_ratio, aligned)
    given = torch.randn(pooled.shape, generator=generator)
    pooled.backward(given)
    expected.backward(given)
    own, other = (feature.grad for feature in maps)
    assert own is not None
    assert other is not None
    assert other.std() > 0.1
    if sampling_ratio == 2 and platform.machine() in {"x86_64", "AMD64"}:
        assert torch.equal(own, other)
    torch.testing.assert_close(own, other, atol=5e-5, rtol=0)


def test_the_gradient_of_pooling_has_no_gradient() -> None:
    feature = torch.rand((1, 3, 8, 8), requires_grad=True)
    pooled = pool_boxes([feature], [torch.tensor([[1.0, 2.0, 20.0, 30.0]])], 7, TORCHVISION)
    (gradient,) = torch.autograd.grad(pooled.square().sum(), feature, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_gradient_without_regions_is_zero() -> None:
    feature = torch.ones((1, 3, 8, 8), requires_grad=True)
    pool_boxes([feature], [torch.zeros((0, 4))], 7, TORCHVISION).sum().backward()
    assert feature.grad is not None
    assert not feature.grad.any()

"""Pasting against the frameworks' dense way: one full image per object."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.roi_heads import paste_masks_in_image

from cellwright.ops import paste
from cellwright.ops.paste import PasteMean, paste_masks

IMAGE_HW = (90, 130)


def objects(count: int, side: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth random masks and boxes; some cross the image border, some exceed the image, some are below a pixel."""
    generator = torch.Generator().manual_seed(seed)
    probs = functional.interpolate(torch.rand((count, 1, 5, 5), generator=generator), side, mode="bicubic")[:, 0]
    low = torch.rand((count, 2), generator=generator) * torch.tensor([130.0, 90.0]) - 8
    size = torch.rand((count, 2), generator=generator) ** 3 * 120 + 0.3
    # torchvision's paste fails on boxes that miss the image (test_no_objects_and_objects_outside_the_image has them).
    return probs.clamp(0, 1), torch.cat([low, (low + size).clamp(min=1)], dim=1)


def dense(probs: Tensor, boxes: Tensor, rule: str) -> Tensor:
    """FloatTensor[N,H,W] of probabilities, one object after the other."""
    if rule == "torchvision":
        return paste_masks_in_image(probs[:, None], boxes, IMAGE_HW)[:, 0]
    y = torch.arange(IMAGE_HW[0]) + 0.5
    x = torch.arange(IMAGE_HW[1]) + 0.5
    unit_y = (y - boxes[:, 1:2]) / (boxes[:, 3:] - boxes[:, 1:2]) * 2 - 1
    unit_x = (x - boxes[:, 0:1]) / (boxes[:, 2:3] - boxes[:, 0:1]) * 2 - 1
    points = torch.stack([unit_x[:, None].expand(-1, len(y), -1), unit_y[:, :, None].expand(-1, -1, len(x))], dim=-1)
    return functional.grid_sample(probs[:, None], points, align_corners=False)[:, 0]


@pytest.mark.parametrize("chunk", [1, 3000, 1 << 18])
@pytest.mark.parametrize("side", [14, 28])
@pytest.mark.parametrize("rule", ["torchvision", "detectron2"])
def test_masks_equal_a_dense_paste(monkeypatch: pytest.MonkeyPatch, rule: str, side: int, chunk: int) -> None:
    monkeypatch.setattr(paste, "_CHUNK_PIXELS", chunk)
    probs, boxes = objects(60, side)
    ours = paste_masks(probs, boxes, IMAGE_HW, rule=rule, threshold=0.5).to_dense().astype(bool)
    values = dense(probs, boxes, rule).numpy()
    expected = values > 0.5 if rule == "torchvision" else values >= 0.5
    # Rounding may change a pixel only if its probability is within 1e-5 of the threshold.
    assert (ours == expected)[np.abs(values - 0.5) > 1e-5].all()
    assert expected.sum() > 5000


@pytest.mark.parametrize("rule", ["torchvision", "detectron2"])
def test_soft_masks_are_the_probabilities(rule: str) -> None:
    probs, boxes = objects(20, 28, seed=1)
    mean = PasteMean(boxes, 28, IMAGE_HW, rule=rule)
    mean.add(0, probs[:7])
    mean.add(7, probs[7:])
    masks, soft = mean.finish(1, threshold=0.5)
    assert masks == paste_masks(probs, boxes, IMAGE_HW, rule=rule, threshold=0.5)
    expected = dense(probs, boxes, rule).numpy()
    for i, (x0, y0, x1, y1) in enumerate(soft.boxes):
        assert np.abs(soft.crop(i) / 255 - expected[i, y0:y1, x0:x1]).max(initial=0) <= 0.5 / 255 + 1e-5
        outside = expected[i].copy()
        outside[y0:y1, x0:x1] = 0
        assert outside.max() == 0


@pytest.mark.parametrize("rule", ["torchvision", "detectron2"])
def test_no_objects_and_objects_outside_the_image(rule: str) -> None:
    none = paste_masks(torch.zeros((0, 28, 28)), torch.zeros((0, 4)), IMAGE_HW, rule=rule, threshold=0.5)
    assert len(none) == 0
    far = torch.tensor([[500.0, 500.0, 520.0, 520.0], [-50.0, 10.0, -30.0, 20.0]])
    masks = paste_masks(torch.ones((2, 28, 28)), far, IMAGE_HW, rule=rule, threshold=0.5)
    assert masks.areas.tolist() == [0, 0]


def test_cost_depends_on_the_pixels_of_the_objects() -> None:
    """2,000 objects of 20 px in a 4000 x 4000 image: a dense paste would take 128 GB."""
    generator = torch.Generator().manual_seed(0)
    low = torch.rand((2000, 2), generator=generator) * 3970
    boxes = torch.cat([low, low + 20], dim=1)
    masks = paste_masks(torch.ones((2000, 28, 28)), boxes, (4000, 4000), rule="detectron2", threshold=0.5)
    assert 2000 * 19**2 <= masks.areas.sum() <= 2000 * 21**2

"""Chunked assignment against a dense matcher; its memory; seeded sampling; ignored regions."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou as torchvision_iou

from cellwright.ops.assign import BACKGROUND, FOREGROUND, UNUSED, assign, inside_ignored, sample
from cellwright.ops.boxes import cell_anchors, grid_anchors


def grid(height: int, width: int) -> Tensor:
    """Anchors of two levels over an image of height x width px."""
    levels = []
    for stride, size in ((4, 16.0), (8, 32.0)):
        cell = cell_anchors([size], (0.5, 1.0, 2.0), rounded=True)
        levels.append(grid_anchors(cell, (height // stride, width // stride), (stride, stride)))
    return torch.cat(levels)


def objects_in(count: int, height: int, width: int, seed: int) -> Tensor:
    """Integer boxes, so that equal IoUs are common."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand((count, 2), generator=generator) * torch.tensor([width - 40, height - 40])
    size = 4 + torch.rand((count, 2), generator=generator) * 36
    return torch.cat([low, low + size], dim=1).round()


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("count", [1, 7, 120])
@pytest.mark.parametrize(("foreground", "background", "keep_best"), [(0.7, 0.3, True), (0.5, 0.5, False)])
def test_equals_a_dense_matcher(
    count: int, foreground: float, background: float, keep_best: bool, shuffled: bool
) -> None:
    boxes, objects = grid(160, 224), objects_in(count, 160, 224, seed=count)
    if shuffled:
        boxes = boxes[torch.randperm(len(boxes), generator=torch.Generator().manual_seed(1))]
    dense = Matcher(foreground, background, keep_best)(torchvision_iou(objects, boxes))
    ours = assign(boxes, objects, foreground_iou=foreground, background_iou=background, keep_best=keep_best)
    assert torch.equal(ours.labels == FOREGROUND, dense >= 0)
    assert torch.equal(ours.labels == BACKGROUND, dense == Matcher.BELOW_LOW_THRESHOLD)
    assert torch.equal(ours.labels == UNUSED, dense == Matcher.BETWEEN_THRESHOLDS)
    assert torch.equal(ours.objects, torchvision_iou(objects, boxes).argmax(dim=0))
    assert (ours.labels == FOREGROUND).any()


def test_no_boxes_and_no_objects() -> None:
    boxes, none = grid(32, 32), torch.zeros((0, 4))
    ours = assign(boxes, none, foreground_iou=0.7, background_iou=0.3, keep_best=True)
    assert (ours.labels == BACKGROUND).all()
    assert (ours.objects == 0).all()
    assert len(assign(none, boxes, foreground_iou=0.5, background_iou=0.5, keep_best=False).labels) == 0
    assert not inside_ignored(boxes, None, 0.5).any()


def test_an_object_that_overlaps_no_box_gets_none() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    objects = torch.tensor([[0.0, 0.0, 9.0, 9.0], [100.0, 100.0, 110.0, 110.0]])
    ours = assign(boxes, objects, foreground_iou=0.9, background_iou=0.3, keep_best=True)
    assert ours.labels.tolist() == [FOREGROUND, BACKGROUND]


def test_ignored_share_counts_the_pixels_of_the_region_in_the_box() -> None:
    rng = np.random.default_rng(3)
    region = torch.from_numpy(rng.random((40, 60)) < 0.5)
    corners = torch.from_numpy(rng.uniform(-10, 65, (300, 2, 2)).astype(np.float32))
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    shares = []
    for x0, y0, x1, y1 in boxes.tolist():  # the overlap of the box with every pixel
        wide = (np.minimum(np.arange(60) + 1, x1) - np.maximum(np.arange(60), x0)).clip(0)
        high = (np.minimum(np.arange(40) + 1, y1) - np.maximum(np.arange(40), y0)).clip(0)
        overlap = high[:, None] * wide
        shares.append((overlap * region.numpy()).sum() / max(overlap.sum(), 1e-9))
    ours = inside_ignored(boxes, region, 0.5)
    decided = np.abs(np.array(shares) - 0.5) > 1e-6
    assert 0.2 < ours.float().mean() < 0.8
    assert (ours.numpy() == (np.array(shares) >= 0.5))[decided].all()


def test_sampling_is_seeded_and_limited() -> None:
    labels = torch.tensor([FOREGROUND] * 30 + [BACKGROUND] * 300 + [UNUSED] * 50, dtype=torch.int8)

    def draw(seed: int, count: int = 64, fraction: float = 0.25) -> Tensor:
        return sample(labels, count, fraction, torch.Generator().manual_seed(seed))

    first = draw(1)
    assert torch.equal(first, draw(1))
    assert not torch.equal(first, draw(2))
    assert (labels[first] == FOREGROUND).sum() == 16
    assert (labels[first] == BACKGROUND).sum() == 48
    assert first.unique().numel() == 64
    # Missing foreground is replaced by background; the sample is smaller if both run out.
    assert (labels[draw(1, count=200, fraction=0.5)] == FOREGROUND).sum() == 30
    assert len(draw(1, count=1000, fraction=0.5)) == 330


def test_memory_of_a_crowded_image() -> None:
    """250,000 anchors and 1,862 objects stay below 200 MB (a dense IoU matrix alone: 1.9 GB)."""
    script = """
        import resource, torch
        torch.set_num_threads(1)
        from cellwright.ops.assign import assign
        from cellwright.ops.boxes import cell_anchors, grid_anchors

        generator = torch.Generator().manual_seed(0)
        low = torch.rand((1862, 2), generator=generator) * 1100
        objects = torch.cat([low, low + 8 + torch.rand((1862, 2), generator=generator) * 30], dim=1)
        cell = cell_anchors([24.0], (0.5, 1.0, 2.0), rounded=True)
        boxes = grid_anchors(cell, (289, 289), (4, 4))
        assert len(boxes) > 250_000
        rules = dict(foreground_iou=0.7, background_iou=0.3, keep_best=True)
        shuffled = boxes[torch.randperm(len(boxes), generator=generator)]
        assign(boxes[:2000], objects, **rules)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assignment = assign(boxes, objects, **rules)
        assign(shuffled[:10_000], objects, **rules)  # no chunk can leave objects out
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print((after - before) / 1024, int((assignment.labels == 1).sum()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=120
    )
    megabytes, foreground = done.stdout.split()
    assert float(megabytes) < 200
    assert int(foreground) > 1862

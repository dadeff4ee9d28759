"""Mask head (He et al. 2017): a small mask for every region.

Shape shorthand: R regions, K classes, M side of pooled features (masks have 2 M).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.models.layers import ConvNorm, NormName, init_kaiming, init_normal
from cellwright.models.rcnn.regions import Regions
from cellwright.ops.batch import Batch
from cellwright.ops.roi import sample_mask_targets


class MaskHead(nn.Module):
    """Pooled features of regions to mask logits."""

    def __init__(self, *, in_channels: int, n_convs: int, channels: int, norm: NormName, n_masks: int) -> None:
        """``n_masks`` a region: 1 (class-agnostic), K, or K + 1 with a last one for background that nothing uses."""
        super().__init__()
        widths = [in_channels] + [channels] * n_convs
        self.convs = nn.Sequential(*(ConvNorm(a, b, 3, norm=norm, relu=True) for a, b in pairwise(widths)))
        self.upsample = nn.ConvTranspose2d(widths[-1], channels, 2, 2)
        self.logits = nn.Conv2d(channels, n_masks, 1)
        init_kaiming(self)
        init_normal(self.logits, std=0.001)

    def forward(self, pooled: Tensor) -> Tensor:
        """FloatTensor[R,C,M,M] -> logits FloatTensor[R,n_masks,2M,2M]; R may be 0."""
        return self.logits(F.relu(self.upsample(self.convs(pooled)), inplace=True))


@torch.no_grad()
def mask_targets(regions: Sequence[Regions], batch: Batch, resolution: int, *, aligned: bool, binary: bool) -> Tensor:
    """FloatTensor[R,resolution,resolution]: the part of each foreground region's cell that its object covers.

    Args:
        regions: foreground only.
        batch: its label layers hold the objects.
        resolution: side of the masks, 2 M.
        aligned: RoIAlign's half-pixel shift.
        binary: 1 where at least half is covered, else 0 (Detectron2); otherwise the share itself (torchvision).
    """
    targets = []
    for image, region in enumerate(regions):
        layers, values = batch.layers[image], (region.objects + 1).to(batch.layers[image].dtype)
        layer_of = batch.layer_of[image][region.objects]
        targets.append(sample_mask_targets(layers, layer_of, values, region.boxes, resolution, aligned=aligned))
    stacked = torch.cat(targets)
    return (stacked >= 0.5).to(stacked.dtype) if binary else stacked

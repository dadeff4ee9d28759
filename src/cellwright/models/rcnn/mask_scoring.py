"""Mask Scoring R-CNN (Huang et al. 2019): a head that predicts how well each mask fits its object.

Shape shorthand: R regions, P positives among them, C channels, K classes, m side of the pooled features, M = 2 m side
of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.models.layers import ConvNorm, init_kaiming, init_normal
from cellwright.models.rcnn.regions import Regions
from cellwright.ops.batch import Batch


class MaskScoring(nn.Module):
    """Pooled features and the mask made from them to the IoU that the mask is expected to have with its object."""

    def __init__(
        self,
        *,
        in_channels: int,
        resolution: int,
        n_convs: int,
        channels: int,
        fc_channels: Sequence[int],
        n_classes: int,
    ) -> None:
        """``resolution`` is m; the last of the ``n_convs`` has stride 2; ``fc_channels``: one entry a layer."""
        super().__init__()
        convs, entry = [], in_channels + 1
        for index in range(n_convs):
            stride = 2 if index == n_convs - 1 else 1
            convs.append(ConvNorm(entry, channels, 3, stride=stride, norm="none", relu=True))
            entry = channels
        widths = [channels * ((resolution + 1) // 2) ** 2, *fc_channels]
        fcs = [nn.Linear(a, b) for a, b in pairwise(widths)]
        for fc in fcs:
            nn.init.kaiming_uniform_(fc.weight, a=1)
            nn.init.zeros_(fc.bias)
        self.convs, self.fcs = nn.Sequential(*convs), nn.ModuleList(fcs)
        self.quality = nn.Linear(widths[-1], n_classes)
        init_kaiming(self.convs)
        init_normal(self.quality, std=0.01)

    def forward(self, pooled: Tensor, logits: Tensor) -> Tensor:
        """FloatTensor[R,C,m,m] and the class's mask logits FloatTensor[R,M,M] -> FloatTensor[R,K]; R may be 0.

        Not clamped: the loss pulls it into [0, 1]. As in the paper's code, its gradient goes on through the
        probabilities into the mask head, besides the features.
        """
        mask = F.max_pool2d(logits.sigmoid()[:, None], kernel_size=2)
        hidden = self.convs(torch.cat([pooled, mask.to(pooled.dtype)], dim=1)).flatten(1)
        for fc in self.fcs:
            hidden = F.relu(fc(hidden), inplace=True)
        return self.quality(hidden)


def quality_loss(quality: Tensor, logits: Tensor, targets: Tensor, regions: Sequence[Regions], batch: Batch) -> Tensor:
    """Mean squared error with the true IoU of the class's mask with the full object; 0 for P = 0.

    Args:
        quality: FloatTensor[P], of the regions' own classes.
        logits: FloatTensor[P,M,M], their masks; no gradient reaches them from here.
        targets: FloatTensor[P,M,M] in [0, 1], the share of each cell that the object covers.
        regions: foreground only.
        batch: its label layers hold the objects.
    """
    truth = mask_ious(logits, targets, regions, batch)
    return (quality.to(truth.dtype) - truth).square().sum() / max(len(truth), 1)


@torch.no_grad()
def mask_ious(logits: Tensor, targets: Tensor, regions: Sequence[Regions], batch: Batch) -> Tensor:
    """FloatTensor[P] in [0, 1]: IoU of each region's mask (probability > .5) with its full object.

    The mask ends at the region's box, the object may not: what the box cuts off counts as missed. The object's area is
    its pixel count in the label layers, the mask's that of its cells in pixels. A mask without cells has IoU 0. Other
    arguments as in `quality_loss`.
    """
    masks = (logits > 0).to(targets.dtype)
    boxes = torch.cat([region.boxes for region in regions])
    cell_px = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) / masks.shape[-1] ** 2
    predicted = masks.sum(dim=(1, 2)) * cell_px
    covered = (masks * targets).sum(dim=(1, 2)) * cell_px
    areas = torch.cat([_areas(batch, image)[region.objects] for image, region in enumerate(regions)])
    union = predicted + areas - covered
    # Without cells nothing is covered: 0 over the object's area, which is 0 only where augmentation left no pixel.
    return (covered / union.clamp(min=torch.finfo(union.dtype).tiny)).clamp(max=1.0)


def _areas(batch: Batch, image: int) -> Tensor:
    """FloatTensor[max(N, 1)]: pixels of each object of one image, at the network's input."""
    values = batch.layers[image].flatten().long()
    n_objects = max(len(batch.boxes[image]), 1)
    return torch.bincount(values, minlength=n_objects + 1)[1 : n_objects + 1].to(batch.boxes[image].dtype)

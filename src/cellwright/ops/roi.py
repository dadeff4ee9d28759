"""Regions of interest: pooling features of boxes (RoIAlign) and sampling mask targets from label layers.

Shape shorthand: R boxes, B images, C channels, M side of the pooled grid, L label layers. Boxes are ``x0 y0 x1 y1`` px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cellwright.ops.winograd import is_recorded

# Maximum number of values in memory in the target sampler; four gathers of this size stay below 100 MB.
_CHUNK_VALUES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How boxes are pooled from a feature pyramid whose level l has a stride of 2**l px.

    Attributes:
        sampling_ratio: samples per output cell and axis; 0 adapts to the size of the box.
        aligned: shift boxes by half a pixel, so that pixel centres are at .5 (Detectron2's ROIAlignV2).
        level_rule: where `box_levels` has the small constant that keeps exact powers of two in their level.
        canonical_box_px: size (square root of the area) of boxes that belong to ``canonical_level``.
        canonical_level: 4 in the FPN paper.
        first_level: level of the finest feature map that is pooled from.
    """

    sampling_ratio: int
    aligned: bool
    level_rule: Literal["torchvision", "detectron2"]
    canonical_box_px: float
    canonical_level: int
    first_level: int


def box_levels(boxes: Tensor, n_levels: int, pooling: Pooling) -> Tensor:
    """Pyramid level of each box (Lin et al. 2017, equation 1), counted from ``pooling.first_level``.

    Args:
        boxes: FloatTensor[R,4].
        n_levels: number of feature maps that boxes are pooled from.

    Returns:
        LongTensor[R], 0..n_levels-1: ``floor(k0 + log2(sqrt(area) / canonical))``, clamped.
    """
    sizes = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt() / pooling.canonical_box_px
    if pooling.level_rule == "torchvision":
        levels = torch.floor(pooling.canonical_level + torch.log2(sizes) + 1e-6)
    else:
        levels = torch.floor(pooling.canonical_level + torch.log2(sizes + 1e-8))
    first = pooling.first_level
    return levels.clamp(first, first + n_levels - 1).long() - first


def pool_boxes(features: Sequence[Tensor], boxes: Sequence[Tensor], resolution: int, pooling: Pooling) -> Tensor:
    """RoIAlign (He et al. 2017) of every box, from the pyramid level that matches its size.

    Args:
        features: finest first, FloatTensor[B,C,H_l,W_l] each; level l has a stride of ``2 ** (first_level + l)`` px.
        boxes: per image FloatTensor[R_i,4].
        resolution: M.

    Returns:
        FloatTensor[R,C,M,M], image by image; R may be 0.
    """
    if features[0].device.type == "cpu" and torch.is_inference_mode_enabled():
        return _pooled_channels_last(features, boxes, resolution, pooling)
    image = torch.cat([per_image.new_full((len(per_image), 1), i) for i, per_image in enumerate(boxes)])
    stacked = torch.cat(list(boxes))
    rois = torch.cat([image, stacked], dim=1).to(features[0].dtype)
    levels = box_levels(stacked, len(features), pooling)
    pooled, members = [], []
    for level, feature in enumerate(features):
        index = torch.nonzero(levels == level).squeeze(1)
        scale = 1.0 / 2 ** (pooling.first_level + level)
        pooled.append(_pool_level(feature, rois[index], resolution, scale, pooling))
        members.append(index)
    return torch.cat(pooled)[torch.argsort(torch.cat(members))]


def _pool_level(feature: Tensor, rois: Tensor, resolution: int, scale: float, pooling: Pooling) -> Tensor:
    """RoIAlign of boxes FloatTensor[R,5], each after the index of its image, from a map: FloatTensor[R,C,M,M]."""
    from torchvision.ops import roi_align  # takes two seconds, and dense networks do without

    arguments = feature, rois, resolution, scale, pooling.sampling_ratio, pooling.aligned
    trained = feature.requires_grad and torch.is_grad_enabled()
    if trained and not is_recorded() and feature.device.type == "cpu" and feature.dtype == torch.float32:
        return _RoIAlign.apply(*arguments)
    return roi_align(*arguments)


class _RoIAlign(torch.autograd.Function):
    """torchvision's on the CPU in float32, with the same gradient in less time; boxes have no gradient."""

    @staticmethod
    def forward(
        ctx: Any, feature: Tensor, rois: Tensor, resolution: int, scale: float, ratio: int, aligned: bool
    ) -> Tensor:
        from torchvision.ops import roi_align

        ctx.save_for_backward(rois.detach())
        ctx.arguments = tuple(feature.shape), np.float32(scale), ratio, np.float32(0.5 if aligned else 0.0)
        return roi_align(feature, rois, resolution, scale, ratio, aligned)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:  # type: ignore[override]
        from cellwright.ops._roi_kernels import unpool

        rois, ((images, channels, height, width), *others) = ctx.saved_tensors[0].numpy(), ctx.arguments
        features = np.zeros((images, height, width, channels), np.float32)
        pooled = gradient.permute(0, 2, 3, 1).contiguous().numpy()
        unpool(pooled, rois[:, 0].astype(np.int64), np.ascontiguousarray(rois[:, 1:]), *others, features)
        return torch.from_numpy(features).permute(0, 3, 1, 2), None, None, None, None, None


def _pooled_channels_last(
    features: Sequence[Tensor], boxes: Sequence[Tensor], resolution: int, pooling: Pooling
) -> Tensor:
    """`pool_boxes` on the CPU in inference mode, in a tenth of the time; channels are last in memory."""
    from cellwright.ops._roi_kernels import pool

    stacked = torch.cat(list(boxes)).float()
    image = np.repeat(np.arange(len(boxes)), [len(own) for own in boxes])
    levels = box_levels(stacked, len(features), pooling).numpy()
    pooled = np.zeros((len(stacked), resolution, resolution, features[0].shape[1]), np.float32)
    for level, feature in enumerate(features):
        scale, shift = np.float32(1.0 / 2 ** (pooling.first_level + level)), np.float32(0.5 if pooling.aligned else 0.0)
        for k in range(len(boxes)):
            index = np.flatnonzero((levels == level) & (image == k))
            if not len(index):
                continue
            part = np.empty((len(index), *pooled.shape[1:]), np.float32)
            cells = feature[k].permute(1, 2, 0).float().contiguous().numpy()
            pool(cells, stacked[index].numpy(), scale, pooling.sampling_ratio, shift, part)
            pooled[index] = part
    return torch.from_numpy(pooled).permute(0, 3, 1, 2).to(features[0].dtype)


def sample_mask_targets(
    layers: Tensor, layer_of: Tensor, values: Tensor, boxes: Tensor, resolution: int, *, aligned: bool
) -> Tensor:
    """RoIAlign of objects' bitmasks (adaptive sampling), without building the bitmasks.

    At each of RoIAlign's sample points, the four neighbouring labels are gathered and compared with the object's value:
    the cost depends on the boxes, not on objects x image. Equals ``roi_align(bitmask, box, M, 1.0, 0, aligned)``.

    Args:
        layers: IntTensor[L,h,w], label layers of one image.
        layer_of: LongTensor[R], the layer that holds each box's object.
        values: IntTensor[R], the object's value in that layer (its index + 1).
        boxes: FloatTensor[R,4], px of the layers.
        resolution: M.
        aligned: RoIAlign's half-pixel shift.

    Returns:
        FloatTensor[R,M,M] in [0, 1]; R may be 0. Detectron2's targets are whether it is at least .5.
    """
    shift = 0.5 if aligned else 0.0
    start, end = boxes[:, :2] - shift, boxes[:, 2:] - shift
    size = end - start if aligned else (end - start).clamp(min=1.0)
    grid = torch.ceil(size / resolution).long()
    targets = boxes.new_zeros((len(boxes), resolution, resolution))
    per_chunk = max(1, _CHUNK_VALUES // resolution**2)
    # Boxes with the same sampling grid are processed together; there are few different grids.
    for code in torch.unique(grid[:, 0] << 32 | grid[:, 1]).tolist():
        grid_x, grid_y = code >> 32, code & 0xFFFFFFFF
        # A box without area has no sample points and stays 0.
        members = torch.nonzero((grid[:, 0] == grid_x) & (grid[:, 1] == grid_y)).squeeze(1)
        for index in members.split(per_chunk) if grid_x > 0 and grid_y > 0 else ():
            columns = _axis_samples(start[index, 0], size[index, 0], grid_x, resolution, layers.shape[2])
            rows = _axis_samples(start[index, 1], size[index, 1], grid_y, resolution, layers.shape[1])
            targets[index] = _mean_of_matches(layers, layer_of[index], values[index], rows, columns)
    return targets


@dataclass(frozen=True)
class _AxisSamples:
    """Sample points along one axis of n boxes: neighbours LongTensor[g,n,M] and their weights FloatTensor[g,n,M]."""

    low: Tensor
    high: Tensor
    weight_low: Tensor
    weight_high: Tensor


def _axis_samples(start: Tensor, size: Tensor, grid: int, resolution: int, length: int) -> _AxisSamples:
    """RoIAlign's bilinear sample points, in the order of its own terms, so that rounding agrees."""
    cell = (size / resolution)[:, None]
    cells = torch.arange(resolution, dtype=size.dtype, device=size.device)
    within = torch.arange(grid, dtype=size.dtype, device=size.device)[:, None, None] + 0.5
    point = start[:, None] + cells * cell + within * cell / grid
    inside = (point >= -1) & (point <= length)
    point = point.clamp(min=0)
    low = point.long().clamp(max=length - 1)
    point = torch.where(low == length - 1, low.to(point.dtype), point)
    fraction = point - low
    weights = [torch.where(inside, weight, 0.0) for weight in (1.0 - fraction, fraction)]
    return _AxisSamples(low, (low + 1).clamp(max=length - 1), *weights)


def _mean_of_matches(
    layers: Tensor, layer_of: Tensor, values: Tensor, rows: _AxisSamples, columns: _AxisSamples
) -> Tensor:
    """FloatTensor[n,M,M]: mean over the sample points of the bilinear value of ``label == value``."""
    height, width = layers.shape[1:]
    flat, base, values = layers.flatten(), (layer_of * (height * width))[:, None, None], values[:, None, None]
    grid_y, n, resolution = rows.low.shape
    total = rows.weight_low.new_zeros((n, resolution, resolution))
    for iy in range(grid_y):
        vertical = ((rows.low[iy], rows.weight_low[iy]), (rows.high[iy], rows.weight_high[iy]))
        for ix in range(len(columns.low)):
            horizontal = ((columns.low[ix], columns.weight_low[ix]), (columns.high[ix], columns.weight_high[ix]))
            value = torch.zeros_like(total)
            for y, weight_y in vertical:
                line = base + (y * width)[:, :, None]
                for x, weight_x in horizontal:
                    matches = flat[line + x[:, None, :]] == values
                    value += weight_y[:, :, None] * weight_x[:, None, :] * matches
            total += value
    return total / (grid_y * len(columns.low))

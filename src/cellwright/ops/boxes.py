"""Boxes as tensors: encoding, clipping, overlap, anchors.

Shape shorthand: N boxes, M boxes, K classes, A anchors per cell. Boxes are ``x0 y0 x1 y1``, half open, absolute pixels;
the width is ``x1 - x0``. All functions accept N = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from cellwright.core.geometry import Window

Extent: TypeAlias = tuple[int, int] | Window
"""Where the image lies in a network's input, px: its (h, w) from the first pixel on, or a window."""
# A box grows by at most a factor of 1000/16 (Girshick's py-faster-rcnn), which keeps exp() finite for any prediction.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def encode_boxes(targets: Tensor, references: Tensor, weights: Sequence[float]) -> Tensor:
    """Encode target boxes relative to reference boxes (Girshick et al. 2014, appendix C).

    Args:
        targets: FloatTensor[N,4], positive width and height.
        references: FloatTensor[N,4], positive width and height.
        weights: factors of dx, dy, dw, dh.

    Returns:
        FloatTensor[N,4] ``dx dy dw dh``, dimensionless.

    >>> target, reference = torch.tensor([[12.0, 0, 32, 10]]), torch.tensor([[10.0, 0, 30, 10]])
    >>> encode_boxes(target, reference, (10, 10, 5, 5)).tolist()
    [[1.0, 0.0, 0.0, 0.0]]
    """
    size = references[:, 2:] - references[:, :2]
    centre = references[:, :2] + 0.5 * size
    target_size = targets[:, 2:] - targets[:, :2]
    target_centre = targets[:, :2] + 0.5 * target_size
    factors = references.new_tensor(weights)
    shift = factors[:2] * (target_centre - centre) / size
    scale = factors[2:] * torch.log(target_size / size)
    return torch.cat([shift, scale], dim=1)


def decode_boxes(deltas: Tensor, references: Tensor, weights: Sequence[float]) -> Tensor:
    """The inverse of `encode_boxes`, for one or several boxes per reference.

    Args:
        deltas: FloatTensor[N,K*4], class by class ``dx dy dw dh``. After division by the weights, dw and dh are limited
            to ``MAX_LOG_SCALE``.
        references: FloatTensor[N,4].
        weights: as in `encode_boxes`.

    Returns:
        FloatTensor[N,K*4], not clipped to any image.
    """
    grouped = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4) / deltas.new_tensor(weights)
    references = references.to(deltas.dtype)[:, None]
    size = references[..., 2:] - references[..., :2]
    centre = references[..., :2] + 0.5 * size
    centre = grouped[..., :2] * size + centre
    half = 0.5 * (torch.exp(grouped[..., 2:].clamp(max=MAX_LOG_SCALE)) * size)
    return torch.cat([centre - half, centre + half], dim=-1).reshape(deltas.shape)


def clip_boxes(boxes: Tensor, inside: Extent) -> Tensor:
    """Boxes FloatTensor[...,4] clipped to the image; a box outside of it gets zero area."""
    y0, x0, y1, x1 = inside if isinstance(inside, Window) else (0, 0, *inside)
    x = boxes[..., 0::2].clamp(x0, x1)
    y = boxes[..., 1::2].clamp(y0, y1)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def scale_boxes(boxes: Tensor, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Tensor:
    """Boxes FloatTensor[N,4] of an image of size ``from_hw`` in the pixels of the same image resized to ``to_hw``."""
    # Ratios in float32, as in both frameworks: in float64, box edges could be rounded differently in the paste.
    ratios = [torch.tensor(float(to)) / torch.tensor(float(was)) for to, was in zip(to_hw, from_hw, strict=True)]
    return boxes * torch.stack([ratios[1], ratios[0], ratios[1], ratios[0]]).to(boxes)


def large_enough(boxes: Tensor, min_side_px: float) -> Tensor:
    """BoolTensor[N]: whether both sides are at least ``min_side_px``, or positive if that is 0."""
    size = boxes[:, 2:] - boxes[:, :2]
    return (size >= min_side_px).all(1) if min_side_px > 0 else (size > 0).all(1)


def box_areas(boxes: Tensor) -> Tensor:
    """Areas FloatTensor[N], square pixels, of boxes FloatTensor[N,4]."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def intersection_areas(a: Tensor, b: Tensor) -> Tensor:
    """FloatTensor[N,M]: area that each box of ``a`` [N,4] shares with each box of ``b`` [M,4], square pixels."""
    # Column by column and in place: the inner loop of anchor assignment is limited by memory bandwidth.
    width = torch.minimum(a[:, None, 2], b[:, 2]).sub_(torch.maximum(a[:, None, 0], b[:, 0])).clamp_(min=0)
    height = torch.minimum(a[:, None, 3], b[:, 3]).sub_(torch.maximum(a[:, None, 1], b[:, 1])).clamp_(min=0)
    return width.mul_(height)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """FloatTensor[N,M]: intersection over union of boxes [N,4] and [M,4]; 0 if the union has no area."""
    shared = intersection_areas(a, b)
    union = (box_areas(a)[:, None] + box_areas(b)).sub_(shared)
    return shared.div_(union).nan_to_num_(nan=0.0)


def cell_anchors(sizes_px: Sequence[float], ratios: Sequence[float], *, rounded: bool) -> Tensor:
    """Anchors of one cell, centred at the origin.

    Args:
        sizes_px: square roots of the areas, px.
        ratios: height over width.
        rounded: round the corners to whole pixels, half to even (torchvision's convention).

    Returns:
        FloatTensor[A,4]. The outer loop is over the ratios if rounded (torchvision), else over the sizes (Detectron2).

    >>> cell_anchors([8], [1.0, 4.0], rounded=False).tolist()
    [[-4.0, -4.0, 4.0, 4.0], [-2.0, -8.0, 2.0, 8.0]]
    """
    sizes, shapes = torch.tensor(sizes_px, dtype=torch.float64), torch.tensor(ratios, dtype=torch.float64).sqrt()
    if rounded:
        widths = ((1 / shapes)[:, None] * sizes).flatten()
        heights = (shapes[:, None] * sizes).flatten()
    else:
        widths = (sizes[:, None] / shapes).flatten()
        heights = (sizes[:, None] * shapes).flatten()
    anchors = torch.stack([-widths, -heights, widths, heights], dim=1).float() / 2
    return anchors.round() if rounded else anchors


def grid_anchors(cell: Tensor, grid_hw: tuple[int, int], stride_hw: tuple[int, int]) -> Tensor:
    """Cell anchors FloatTensor[A,4] at every cell of a feature map: FloatTensor[h*w*A,4], in the order y, x, anchor.

    The centres are at multiples of the stride, px, without a half-cell offset, as in both frameworks.
    """
    y = torch.arange(grid_hw[0], dtype=cell.dtype, device=cell.device) * stride_hw[0]
    x = torch.arange(grid_hw[1], dtype=cell.dtype, device=cell.device) * stride_hw[1]
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1).reshape(-1, 1, 4)
    return (shifts + cell).reshape(-1, 4)

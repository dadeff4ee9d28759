"""Boxes as tensors: coding, clipping, overlap, anchors.

Shape shorthand: N boxes, M boxes, K classes, A anchors a cell. Boxes are ``x0 y0 x1 y1``, half open, absolute pixels; a
width is ``x1 - x0``. Every function accepts N = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# A box grows by at most 1000/16 (Girshick's py-faster-rcnn): keeps exp() finite when the regressor is wild.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def encode_boxes(targets: Tensor, references: Tensor, weights: Sequence[float]) -> Tensor:
    """Code target boxes relative to reference boxes (Girshick et al. 2014, appendix C).

    Args:
        targets: FloatTensor[N,4], positive width and height.
        references: FloatTensor[N,4], positive width and height.
        weights: factors of dx, dy, dw, dh.

    Returns:
        FloatTensor[N,4] ``dx dy dw dh``, without unit.
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
    """The inverse of ``encode_boxes``, for one or several boxes a reference.

    Args:
        deltas: FloatTensor[N,K*4], class by class ``dx dy dw dh``. dw and dh are cut at ``MAX_LOG_SCALE`` from above
            after division by the weights.
        references: FloatTensor[N,4].
        weights: as in ``encode_boxes``.

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


def clip_boxes(boxes: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Boxes FloatTensor[...,4] cut to ``[0, w] x [0, h]``; a box outside the image becomes one without area."""
    height, width = image_hw
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def scale_boxes(boxes: Tensor, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Tensor:
    """Boxes FloatTensor[N,4] of an image of ``from_hw``, in the pixels of the same image resized to ``to_hw``."""
    # In float32, as both frameworks do it: a ratio in float64 moves box edges across rounding in the paste.
    ratios = [torch.tensor(float(to)) / torch.tensor(float(was)) for to, was in zip(to_hw, from_hw, strict=True)]
    return boxes * torch.stack([ratios[1], ratios[0], ratios[1], ratios[0]]).to(boxes)


def large_enough(boxes: Tensor, min_side_px: float) -> Tensor:
    """BoolTensor[N]: both sides at least ``min_side_px``; for 0, both sides positive."""
    size = boxes[:, 2:] - boxes[:, :2]
    return (size >= min_side_px).all(1) if min_side_px > 0 else (size > 0).all(1)


def box_areas(boxes: Tensor) -> Tensor:
    """FloatTensor[N] areas in square pixels of boxes FloatTensor[N,4]."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def intersection_areas(a: Tensor, b: Tensor) -> Tensor:
    """FloatTensor[N,M]: area shared by each of boxes ``a`` [N,4] and each of boxes ``b`` [M,4], square pixels."""
    # Columns one at a time and in place: this is the inner loop of anchor matching, bound by memory traffic.
    width = torch.minimum(a[:, None, 2], b[:, 2]).sub_(torch.maximum(a[:, None, 0], b[:, 0])).clamp_(min=0)
    height = torch.minimum(a[:, None, 3], b[:, 3]).sub_(torch.maximum(a[:, None, 1], b[:, 1])).clamp_(min=0)
    return width.mul_(height)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """FloatTensor[N,M]: intersection over union of boxes [N,4] and [M,4]; 0 where the union has no area."""
    shared = intersection_areas(a, b)
    union = (box_areas(a)[:, None] + box_areas(b)).sub_(shared)
    return shared.div_(union).nan_to_num_(nan=0.0)


def cell_anchors(sizes_px: Sequence[float], ratios: Sequence[float], *, rounded: bool) -> Tensor:
    """Anchors of one cell, centred at the origin.

    Args:
        sizes_px: square roots of the areas, px.
        ratios: height over width.
        rounded: round corners to whole pixels, half to even (torchvision's convention).

    Returns:
        FloatTensor[A,4]. Rounded (torchvision): ratios in the outer loop, else (Detectron2): sizes in the outer loop.
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
    """Cell anchors FloatTensor[A,4] at every cell of a feature map: FloatTensor[h*w*A,4], order y, x, anchor.

    Centres lie at multiples of the stride, px (no half-cell offset), as in both frameworks.
    """
    y = torch.arange(grid_hw[0], dtype=cell.dtype, device=cell.device) * stride_hw[0]
    x = torch.arange(grid_hw[1], dtype=cell.dtype, device=cell.device) * stride_hw[1]
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1).reshape(-1, 1, 4)
    return (shifts + cell).reshape(-1, 4)

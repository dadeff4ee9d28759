"""Values at points: of maps by bilinear interpolation, and of objects directly from their label layers.

The value of a cell is that at its centre, and outside the map values are 0 (``F.grid_sample``, align_corners=False), as
in Detectron2's PointRend. Shape shorthand: R boxes, P points per box, C channels, M side of a mask, L label layers.
Points are (x, y); unit points are in [0, 1], which spans a box or a whole map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def grid_points(side: int, device: torch.device) -> Tensor:
    """FloatTensor[side * side,2]: the unit points at the centres of ``side x side`` cells, row by row."""
    centres = (torch.arange(side, device=device) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Unit points FloatTensor[R,P,2] of boxes FloatTensor[R,4] px -> FloatTensor[R,P,2] px."""
    start, end = boxes[:, None, :2], boxes[:, None, 2:]
    return points * (end - start) + start


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """FloatTensor[R,C,M,M] at unit points FloatTensor[R,P,2] of each -> FloatTensor[R,C,P]; R may be 0."""
    return F.grid_sample(masks, (2 * points - 1)[:, :, None], align_corners=False).squeeze(3)


def sample_map(feature: Tensor, points: Tensor, stride: int) -> Tensor:
    """One map FloatTensor[1,C,H,W] of ``stride`` px at points FloatTensor[R,P,2] px -> FloatTensor[R,C,P]."""
    extent = points.new_tensor([feature.shape[3] * stride, feature.shape[2] * stride])
    sampled = F.grid_sample(feature, (2 * (points / extent) - 1)[None], align_corners=False)
    return sampled[0].transpose(0, 1)


def uncertain_cells(logits: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The ``n`` cells of each mask FloatTensor[R,M,M] whose logits are closest to 0, most uncertain first.

    Returns:
        LongTensor[R,P], ``y * M + x``, P being ``n`` or at most M * M, and their unit points FloatTensor[R,P,2].
    """
    side = logits.shape[-1]
    cells = (-logits.flatten(1).abs()).topk(min(n, side**2), dim=1).indices
    return cells, (torch.stack([cells % side, cells // side], dim=-1) + 0.5) / side


def sample_labels(layers: Tensor, layer_of: Tensor, values: Tensor, points: Tensor) -> Tensor:
    """The bilinear value of objects' bitmasks at points, without building the bitmasks.

    The four labels around each point are gathered and compared with the object's value. The result equals
    ``grid_sample`` of the bitmask; it is 0 outside the image.

    Args:
        layers: IntTensor[L,h,w], label layers of one image.
        layer_of: LongTensor[R], the layer that holds each box's object.
        values: IntTensor[R], the object's value in that layer (its index + 1).
        points: FloatTensor[R,P,2], px of the layers.

    Returns:
        FloatTensor[R,P] in [0, 1]; R may be 0.
    """
    height, width = layers.shape[1:]
    extent = points.new_tensor([width, height])
    # In the order of grid_sample's own terms, so that rounding agrees.
    place = ((2 * (points / extent) - 1) + 1) * (extent / 2) - 0.5
    low = place.floor()
    (right, down), (x, y) = (place - low).unbind(-1), low.long().unbind(-1)
    flat, base = layers.flatten(), (layer_of * (height * width))[:, None]
    total = torch.zeros_like(right)
    for row, weight_y in ((y, 1 - down), (y + 1, down)):
        for column, weight_x in ((x, 1 - right), (x + 1, right)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = base + row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            total += weight_x * weight_y * (inside & (flat[index] == values[:, None]))
    return total

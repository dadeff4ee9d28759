"""Non-maximum suppression of boxes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, max_iou: float) -> Tensor:
    """Greedy hard NMS inside each group (a class or a pyramid level); boxes of different groups never meet.

    Args:
        boxes: FloatTensor[N,4], px.
        scores: FloatTensor[N], any scale.
        groups: LongTensor[N].
        max_iou: a box goes when its IoU with a better box that stays is greater than this; equality keeps it.

    Returns:
        LongTensor[M]: indices that stay, by falling score, equal scores by rising index.
    """
    # Group by group, not by shifting coordinates: shifts of thousands of pixels cost the IoU its last digits.
    order = torch.argsort(scores, descending=True, stable=True)
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for group in torch.unique(groups).tolist():
        members = order[groups[order] == group]
        kept[members[nms(boxes[members], scores[members], max_iou)]] = True
    return order[kept[order]]

"""Non-maximum suppression (NMS) of boxes."""

from __future__ import annotations

import torch
from torch import Tensor


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, max_iou: float) -> Tensor:
    """Greedy NMS inside each group (a class or a pyramid level); boxes of different groups do not interact.

    Args:
        boxes: FloatTensor[N,4], px; N may be 0.
        scores: FloatTensor[N], any scale.
        groups: LongTensor[N].
        max_iou: a box is dropped if its IoU with a better box that is kept is greater than this.

    Returns:
        LongTensor[M]: indices of the boxes that are kept, by descending score; equal scores by ascending index.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10]])
    >>> grouped_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1]), max_iou=0.5).tolist()
    [0, 2]
    """
    from torchvision.ops import nms  # takes two seconds, and dense networks do without

    # Group by group instead of shifting coordinates, since shifts of thousands of pixels make the IoU less precise.
    order = torch.argsort(scores, descending=True, stable=True)
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for group in torch.unique(groups).tolist():
        members = order[groups[order] == group]
        kept[members[nms(boxes[members], scores[members], max_iou)]] = True
    return order[kept[order]]

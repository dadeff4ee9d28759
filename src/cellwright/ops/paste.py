"""Pasting predicted masks into the image: probabilities on a small grid become pixels.

Every object fills a small window of its own. All windows of a chunk are filled by one gather over a flat index, on the
device of the probabilities. There is no ``N x H x W`` array and no loop over objects.

Shape shorthand: N objects, M side of a predicted mask, P pixels of all windows together.

The two rules resample differently and give different pixels:

- detectron2: pixel centres are mapped into the box, and probabilities are interpolated bilinearly with zeros outside
  (``F.grid_sample``, align_corners=False); a pixel belongs to the object at ``>= threshold``.
- torchvision: the mask gets a border of zeros, the box grows by (M + 2) / M and is truncated to whole pixels, and the
  mask is stretched over it (``F.interpolate``); a pixel belongs to the object at ``> threshold``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cellwright.core.masks import MaskSet, SoftMasks

PasteRule = Literal["torchvision", "detectron2"]

# Pixels per chunk: small enough for the CPU's cache, with about 60 bytes of temporaries each.
_CHUNK_PIXELS = 1 << 18


def paste_masks(
    probs: Tensor, boxes: Tensor, image_hw: tuple[int, int], *, rule: PasteRule, threshold: float
) -> MaskSet:
    """Binary masks of all objects of one image.

    Args:
        probs: FloatTensor[N,M,M] in [0, 1], the mask of each box.
        boxes: FloatTensor[N,4] ``x0 y0 x1 y1`` px, positive area.
        image_hw: (H, W) of the image into which masks are pasted.
        rule: see the module's docstring.
        threshold: minimum probability at which a pixel belongs to the object.

    Returns:
        N masks, in order; an object that reaches the threshold at no pixel has an empty mask.

    >>> boxes = torch.tensor([[2.0, 3, 6, 5]])
    >>> masks = paste_masks(torch.ones(1, 28, 28), boxes, (8, 8), rule="detectron2", threshold=0.5)
    >>> masks.boxes.tolist(), masks.areas.tolist()
    ([[2, 3, 6, 5]], [8])
    """
    windows = _windows(boxes, probs.shape[-1], image_hw, rule)
    crops = []
    for part in _chunks(windows):
        values = _fill(probs[part].float(), boxes[part].float(), windows[part], rule)
        crops.append(_reached(values, threshold, rule).cpu())
    return MaskSet.from_flat(image_hw, *_as_arrays(windows, crops))


class PasteMean:
    """The mean of several masks of each of N objects, as they would be pasted (test-time augmentation).

    Takes four bytes per pixel of the objects' windows, for any number of masks.
    """

    def __init__(self, boxes: Tensor, mask_side: int, image_hw: tuple[int, int], *, rule: PasteRule) -> None:
        """``boxes``, ``image_hw`` and ``rule`` as in `paste_masks`; ``mask_side``: M of the masks to add."""
        self._boxes, self._image_hw = boxes.float(), image_hw
        self._rule: PasteRule = rule
        self._windows = _windows(boxes, mask_side, image_hw, rule)
        sizes = (self._windows[:, 2:] - self._windows[:, :2]).prod(dim=1)
        self._ends = sizes.cumsum(0)
        self._sums = torch.zeros(int(sizes.sum()), device=boxes.device)

    def add(self, first: int, probs: Tensor) -> None:
        """Add masks FloatTensor[n,M,M] in [0, 1] of the n objects from index ``first`` on."""
        own = slice(first, first + len(probs))
        boxes, windows = self._boxes[own], self._windows[own]
        end = int(self._ends[first - 1]) if first else 0
        for part in _chunks(windows):
            values = _fill(probs[part].float(), boxes[part], windows[part], self._rule)
            self._sums[end : end + len(values)] += values
            end += len(values)

    def finish(self, n_masks: int, *, threshold: float) -> tuple[MaskSet, SoftMasks]:
        """N masks where the mean reaches the threshold, and the means rounded to 1/255.

        ``n_masks``: how many masks of each object were added.
        """
        mean = self._sums / n_masks
        boxes, offsets, inside = _as_arrays(self._windows, [_reached(mean, threshold, self._rule).cpu()])
        soft = SoftMasks(self._image_hw, boxes, offsets, _rounded(mean).cpu().numpy())
        return MaskSet.from_flat(self._image_hw, boxes, offsets, inside), soft


def _reached(values: Tensor, threshold: float, rule: PasteRule) -> Tensor:
    return (values > threshold if rule == "torchvision" else values >= threshold).to(torch.uint8)


def _rounded(values: Tensor) -> Tensor:
    return (values * 255).round().to(torch.uint8)


def _windows(boxes: Tensor, mask_side: int, image_hw: tuple[int, int], rule: PasteRule) -> Tensor:
    """LongTensor[N,4] on the CPU: the pixels of the image that each object can cover; all 0 if there are none."""
    boxes = boxes.detach().float().cpu()
    spans = []
    for axis, length in ((0, image_hw[1]), (1, image_hw[0])):
        edges = boxes[:, [axis, axis + 2]]
        if rule == "torchvision":
            span = _grown(edges, mask_side) + torch.tensor([0, 1])
        else:
            span = torch.stack([edges[:, 0].floor().long() - 1, edges[:, 1].ceil().long() + 1], dim=1)
        spans.append(span.clamp(0, length))
    windows = torch.stack([spans[0][:, 0], spans[1][:, 0], spans[0][:, 1], spans[1][:, 1]], dim=1)
    return windows * (windows[:, 2:] > windows[:, :2]).all(dim=1, keepdim=True)


def _grown(edges: Tensor, mask_side: int) -> Tensor:
    """LongTensor[N,2]: spans grown by (M + 2) / M about their centre, then truncated to whole pixels."""
    half = (edges[:, 1] - edges[:, 0]) * 0.5 * ((mask_side + 2) / mask_side)
    centre = (edges[:, 1] + edges[:, 0]) * 0.5
    return torch.stack([centre - half, centre + half], dim=1).long()


def _chunks(windows: Tensor) -> Iterator[slice]:
    """Slices of objects whose windows have about ``_CHUNK_PIXELS`` together; a larger object gets its own slice."""
    pixels = (windows[:, 2:] - windows[:, :2]).prod(dim=1).cumsum(0)
    start, done = 0, 0
    while start < len(windows):
        stop = max(start + 1, int(torch.searchsorted(pixels, done + _CHUNK_PIXELS, right=True)))
        yield slice(start, stop)
        start, done = stop, int(pixels[stop - 1])


def _as_arrays(windows: Tensor, crops: list[Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sizes = (windows[:, 2:] - windows[:, :2]).prod(dim=1).numpy()
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
    flat = torch.cat(crops).numpy() if crops else np.zeros(0, np.uint8)
    return windows.numpy().astype(np.int32), offsets, flat


@dataclass(frozen=True)
class _Lines:
    """The rows or columns of all windows, one after the other (T lines).

    Attributes:
        object_of: LongTensor[T], the object of each line.
        first: LongTensor[N], index of each object's first line.
        low, high: LongTensor[T], the two mask lines that are interpolated, within 0..M-1.
        weight_low, weight_high: FloatTensor[T]; 0 for a mask line outside the mask.
    """

    object_of: Tensor
    first: Tensor
    low: Tensor
    high: Tensor
    weight_low: Tensor
    weight_high: Tensor


def _fill(probs: Tensor, boxes: Tensor, windows: Tensor, rule: PasteRule) -> Tensor:
    """FloatTensor[P]: the windows' interpolated probabilities, object by object in C order."""
    side, device = probs.shape[-1], probs.device
    windows = windows.to(device)
    rows = _lines(windows[:, 1], windows[:, 3], boxes[:, [1, 3]], side, rule)
    columns = _lines(windows[:, 0], windows[:, 2], boxes[:, [0, 2]], side, rule)
    # First interpolate between mask rows (T x M values), then between two values of that row for every pixel.
    mixed = probs[rows.object_of, rows.low] * rows.weight_low[:, None]
    mixed += probs[rows.object_of, rows.high] * rows.weight_high[:, None]
    width_of_row = (windows[:, 2] - windows[:, 0])[rows.object_of]
    row = torch.repeat_interleave(width_of_row)
    start_of_row = width_of_row.cumsum(0) - width_of_row
    column = torch.arange(len(row), device=device) + (columns.first[rows.object_of] - start_of_row)[row]
    flat, base = mixed.flatten(), row * side
    values = flat[base + columns.low[column]] * columns.weight_low[column]
    return values.addcmul_(flat[base + columns.high[column]], columns.weight_high[column])


def _lines(low: Tensor, high: Tensor, edges: Tensor, side: int, rule: PasteRule) -> _Lines:
    """The pixels ``low[i] .. high[i] - 1`` of one axis as positions on mask lines; ``edges``: FloatTensor[N,2] px."""
    counts = high - low
    object_of = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    pixel = torch.arange(len(object_of), device=low.device) + (low - first)[object_of]
    if rule == "torchvision":
        # Positions in the mask including its border of zeros: lines 0 and side + 1 are the border.
        corners = _grown(edges, side)[object_of]
        extent = (corners[:, 1] - corners[:, 0] + 1).clamp(min=1)
        scale = torch.full_like(extent, side + 2, dtype=torch.float32) / extent
        point = ((pixel - corners[:, 0] + 0.5) * scale - 0.5).clamp(min=0) - 1
        point = point.clamp(max=side)
    else:
        edge = edges[object_of]
        unit = (pixel + 0.5 - edge[:, 0]) / (edge[:, 1] - edge[:, 0]) * 2 - 1
        point = ((unit + 1) * side - 1) / 2
    below = point.floor()
    fraction = point - below
    below = below.long()
    weight_low = torch.where((below >= 0) & (below < side), 1 - fraction, 0.0)
    weight_high = torch.where((below >= -1) & (below < side - 1), fraction, 0.0)
    return _Lines(object_of, first, below.clamp(0, side - 1), (below + 1).clamp(0, side - 1), weight_low, weight_high)

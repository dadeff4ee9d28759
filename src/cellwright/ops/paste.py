"""From mask probabilities to the pixels of the image: the ragged paste.

Every object fills its own small window; all windows of a chunk are filled by one gather over a flat index, where the
probabilities are (CPU or GPU). No ``N x H x W`` array is made, and no loop runs over objects.

Shape shorthand: N objects, M side of a predicted mask, P pixels of all windows together.

The two rules resample differently and give different pixels:

- detectron2: pixel centres are mapped into the box and probabilities interpolated bilinearly with zeros outside
  (``F.grid_sample``, align_corners=False); a pixel belongs to the object at ``>= threshold``.
- torchvision: the mask gets a border of zeros, the box grows by (M + 2) / M and is cut to whole pixels, and the mask is
  stretched over it (``F.interpolate``); a pixel belongs to the object at ``> threshold``.
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

# Pixels a chunk: small enough for the CPU's cache, and about 60 bytes each in temporaries.
_CHUNK_PIXELS = 1 << 18


def paste_masks(
    probs: Tensor, boxes: Tensor, image_hw: tuple[int, int], *, rule: PasteRule, threshold: float
) -> MaskSet:
    """Binary masks of all objects of one image.

    Args:
        probs: FloatTensor[N,M,M] in [0, 1], the mask of each box.
        boxes: FloatTensor[N,4] ``x0 y0 x1 y1`` px, positive area.
        image_hw: (H, W) of the image that is pasted into.
        rule: see the module's text.
        threshold: probability from which a pixel belongs to the object.

    Returns:
        N masks, in order; an object that reaches the threshold nowhere has an empty mask.
    """
    windows = _windows(boxes, probs.shape[-1], image_hw, rule)
    crops = []
    for part in _chunks(windows):
        values = _fill(probs[part].float(), boxes[part].float(), windows[part], rule)
        crops.append(_reached(values, threshold, rule).cpu())
    return MaskSet.from_flat(image_hw, *_as_arrays(windows, crops))


def paste_soft_masks(probs: Tensor, boxes: Tensor, image_hw: tuple[int, int], *, rule: PasteRule) -> SoftMasks:
    """The same with probabilities kept, rounded to 1/255; arguments as in ``paste_masks``."""
    windows = _windows(boxes, probs.shape[-1], image_hw, rule)
    crops = [
        _rounded(_fill(probs[part].float(), boxes[part].float(), windows[part], rule)).cpu()
        for part in _chunks(windows)
    ]
    return SoftMasks(image_hw, *_as_arrays(windows, crops))


class PasteMean:
    """Masks of the same N objects from several looks at them: the mean of what each would paste.

    It holds four bytes for each pixel of the objects' windows, however many looks there are.
    """

    def __init__(self, boxes: Tensor, mask_side: int, image_hw: tuple[int, int], *, rule: PasteRule) -> None:
        """``boxes``, ``image_hw``, ``rule`` as in ``paste_masks``; ``mask_side``: M of the masks to come."""
        self._boxes, self._image_hw = boxes.float(), image_hw
        self._rule: PasteRule = rule
        self._windows = _windows(boxes, mask_side, image_hw, rule)
        sizes = (self._windows[:, 2:] - self._windows[:, :2]).prod(dim=1)
        self._ends = sizes.cumsum(0)
        self._sums = torch.zeros(int(sizes.sum()), device=boxes.device)

    def add(self, first: int, probs: Tensor) -> None:
        """One look's masks FloatTensor[n,M,M] in [0, 1] of the objects from ``first`` on."""
        own = slice(first, first + len(probs))
        boxes, windows = self._boxes[own], self._windows[own]
        end = int(self._ends[first - 1]) if first else 0
        for part in _chunks(windows):
            values = _fill(probs[part].float(), boxes[part], windows[part], self._rule)
            self._sums[end : end + len(values)] += values
            end += len(values)

    def finish(self, looks: int, *, threshold: float) -> tuple[MaskSet, SoftMasks]:
        """N masks where the mean of so many looks reaches the threshold, and the means rounded to 1/255."""
        mean = self._sums / looks
        boxes, offsets, inside = _as_arrays(self._windows, [_reached(mean, threshold, self._rule).cpu()])
        soft = SoftMasks(self._image_hw, boxes, offsets, _rounded(mean).cpu().numpy())
        return MaskSet.from_flat(self._image_hw, boxes, offsets, inside), soft


def _reached(values: Tensor, threshold: float, rule: PasteRule) -> Tensor:
    return (values > threshold if rule == "torchvision" else values >= threshold).to(torch.uint8)


def _rounded(values: Tensor) -> Tensor:
    return (values * 255).round().to(torch.uint8)


def _windows(boxes: Tensor, mask_side: int, image_hw: tuple[int, int], rule: PasteRule) -> Tensor:
    """LongTensor[N,4] on the CPU: the pixels that each object can reach, inside the image; without area: all 0."""
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
    """LongTensor[N,2]: spans grown by (M + 2) / M about their centre, then cut towards zero to whole pixels."""
    half = (edges[:, 1] - edges[:, 0]) * 0.5 * ((mask_side + 2) / mask_side)
    centre = (edges[:, 1] + edges[:, 0]) * 0.5
    return torch.stack([centre - half, centre + half], dim=1).long()


def _chunks(windows: Tensor) -> Iterator[slice]:
    """Slices of objects whose windows hold about ``_CHUNK_PIXELS`` together; a larger object comes alone."""
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
    """Rows or columns of all windows, one after the other (T lines).

    Attributes:
        object_of: LongTensor[T].
        first: LongTensor[N], where each object's lines begin.
        low, high: LongTensor[T], the two mask lines that a line mixes, inside 0..M-1.
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
    # First mix mask rows (T x M values), then mix two values of the mixed row for every pixel.
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
    """The pixels ``low[i] .. high[i] - 1`` of one axis, placed on mask lines; ``edges`` FloatTensor[N,2] px."""
    counts = high - low
    object_of = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    pixel = torch.arange(len(object_of), device=low.device) + (low - first)[object_of]
    if rule == "torchvision":
        # Positions in the mask with its border of zeros: line 0 and line side + 1 are that border.
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

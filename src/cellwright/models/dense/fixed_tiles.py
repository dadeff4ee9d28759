"""How Cellpose shows an image to its network: padded with zeros, in overlapping tiles whose maps are averaged.

The network is defined on tiles of `TILE_PX`, because its style depends on all that it sees. Where the tiles of an image
lie follows from the size of the image alone, so that the maps of a part need only the tiles that reach it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from cellwright.core.geometry import Window

TILE_PX, OVERLAP, PADDING_PX, MULTIPLE_PX = 224, 0.1, 8, 16
AT_ONCE = 8
# The weight of a pixel falls to a half at this distance from the border of its tile, px.
_TAPER_PX, _TAPER_WIDTH_PX = 20, 7.5


def starts(side: int) -> tuple[list[int], int, int]:
    """Along one axis of an image of ``side`` px: where its tiles begin, their length, and the padding before it, px.

    Positions are those of the padded image.

    >>> starts(520)
    ([0, 160, 320], 224, 12)
    """
    to_multiple = -side % MULTIPLE_PX
    padded = side + to_multiple + 2 * PADDING_PX
    length = min(TILE_PX, padded)
    n = 1 if padded <= TILE_PX else math.ceil((1 + 2 * OVERLAP) * padded / TILE_PX)
    return np.linspace(0, padded - length, n).astype(int).tolist(), length, PADDING_PX + to_multiple // 2


def maps_of_region(
    read: Callable[[Window], np.ndarray],
    image_hw: tuple[int, int],
    region: Window,
    compute: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """The maps (D, h, w) float32 of a region of an image of ``image_hw``: those of the whole image, to the bit.

    read: the network's input (C, h, w) in a window of the image. compute: (B, C, H, W) -> maps (B, D, H, W).
    """
    (tops, height, above), (lefts, width, before) = (starts(side) for side in image_hw)
    weights = _taper(height)[:, None] * _taper(width)
    chosen = [
        (top - above, left - before)
        for top in tops
        for left in lefts
        if top - above < region.y1
        and top - above + height > region.y0
        and left - before < region.x1
        and left - before + width > region.x0
    ]
    total: np.ndarray | None = None
    weight = np.zeros(region.hw)
    for start in range(0, len(chosen), AT_ONCE):
        batch = chosen[start : start + AT_ONCE]
        tiles = np.stack([_padded(read, image_hw, Window(y, x, y + height, x + width)) for y, x in batch])
        for (y, x), maps in zip(batch, compute(tiles), strict=True):
            y0, x0 = max(y, region.y0), max(x, region.x0)
            y1, x1 = min(y + height, region.y1), min(x + width, region.x1)
            inside = slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)
            into = slice(y0 - region.y0, y1 - region.y0), slice(x0 - region.x0, x1 - region.x0)
            if total is None:
                total = np.zeros((len(maps), *region.hw), np.float32)
            total[:, *into] += maps[:, *inside] * weights[inside]
            weight[into] += weights[inside]
    assert total is not None  # every region is reached by a tile
    return np.divide(total, weight, out=total, casting="unsafe")


def _padded(read: Callable[[Window], np.ndarray], image_hw: tuple[int, int], window: Window) -> np.ndarray:
    """The pixels of a window that may reach beyond the image, where it is zero."""
    inside = Window(max(window.y0, 0), max(window.x0, 0), min(window.y1, image_hw[0]), min(window.x1, image_hw[1]))
    beyond = (
        (0, 0),
        (inside.y0 - window.y0, window.y1 - inside.y1),
        (inside.x0 - window.x0, window.x1 - inside.x1),
    )
    return np.pad(read(inside).astype(np.float32, copy=False), beyond)


def _taper(length: int) -> np.ndarray:
    """Weights (length,) float64 along one side of a tile; they fall towards the border of a whole one."""
    from_middle = np.abs(np.arange(TILE_PX) - (TILE_PX - 1) / 2)
    weights = 1 / (1 + np.exp((from_middle - (TILE_PX / 2 - _TAPER_PX)) / _TAPER_WIDTH_PX))
    first = TILE_PX // 2 - length // 2
    return weights[first : first + length]

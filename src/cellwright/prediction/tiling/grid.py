"""The tiles of an image: cores that partition it, and the windows around them that the network sees.

+-------------------+      window: core and halo, aligned to the network's stride. All windows of an image have one
|  halo             |      size; at the edge of the image they are moved inwards.
|    +---------+    |      core: the tile owns the objects whose anchor pixel is in it.
|    |  core   |    |      output: the source pixels of which the window determines the network's maps.
|    +---------+    |
+-------------------+
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cellwright.core.geometry import Window


@dataclass(frozen=True)
class Tile:
    """One tile; see the module's docstring. core and window in network pixels, output in source pixels."""

    index: int
    row: int
    column: int
    core: Window
    window: Window
    output: Window


def aligned_window(
    output: Window, source_hw: tuple[int, int], net_hw: tuple[int, int], stride: int, margin_px: int
) -> Window:
    """The window of network pixels, from one multiple of the stride to another, that determines source pixels.

    output: window of the source. net_hw: of the source at the network's scale. margin_px: network px around what the
    interpolation of the output needs.

    >>> aligned_window(Window(50, 0, 100, 100), (100, 100), (200, 200), 16, 10)
    Window(y0=80, x0=0, y1=208, x1=208)
    """
    lows, highs = [], []
    for axis, (whole, side) in enumerate(zip(source_hw, net_hw, strict=True)):
        ratio = side / whole
        margin = max(ratio, 1.0) + margin_px
        low = math.floor(output[axis] * ratio - margin) // stride * stride
        high = -(-math.ceil(output[axis + 2] * ratio + margin) // stride) * stride
        lows.append(max(low, 0))
        highs.append(min(high, -(-side // stride) * stride))
    return Window(lows[0], lows[1], highs[0], highs[1])


@dataclass(frozen=True)
class Grid:
    """The tiles of one image, row by row.

    source_hw: (H, W) of the source. net_hw: (h, w) of the source at the network's scale, unpadded.
    stride: of the network, px; windows begin and end at multiples of it, up to ``padded_hw``.
    core_px: largest side of a core, network px. halo_px: at least the receptive field and the largest object, network
    px. Both are rounded up to the stride, and cores are made equally large.

    >>> grid = Grid((1000, 3000), (1000, 3000), stride=16, core_px=1024, halo_px=128)
    >>> grid.shape, grid[1].core, grid[1].window
    ((1, 3), Window(y0=0, x0=1008, y1=1000, x1=2016), Window(y0=0, x0=880, y1=1008, x1=2144))
    """

    source_hw: tuple[int, int]
    net_hw: tuple[int, int]
    stride: int
    core_px: int
    halo_px: int

    @property
    def padded_hw(self) -> tuple[int, int]:
        """(h, w) of the network's input for the whole image: a multiple of the stride."""
        height, width = (self._aligned(side) for side in self.net_hw)
        return height, width

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return len(self._rows), len(self._columns)

    @property
    def scale_yx(self) -> tuple[float, float]:
        """Network pixels per source pixel."""
        return self.net_hw[0] / self.source_hw[0], self.net_hw[1] / self.source_hw[1]

    def __len__(self) -> int:
        return len(self._rows) * len(self._columns)

    def __iter__(self) -> Iterator[Tile]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Tile:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, column = divmod(index, len(self._columns))
        (cy0, cy1, wy0, wy1, oy0, oy1), (cx0, cx1, wx0, wx1, ox0, ox1) = self._rows[row], self._columns[column]
        core, window = Window(cy0, cx0, cy1, cx1), Window(wy0, wx0, wy1, wx1)
        return Tile(index, row, column, core, window, Window(oy0, ox0, oy1, ox1))

    def owner(self, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
        """The tile (N,) int64 whose core holds each source pixel (N,)."""
        (scale_y, scale_x), (n_rows, n_columns) = self.scale_yx, self.shape
        rows = np.minimum(((ys + 0.5) * scale_y).astype(np.int64) // self._core(0), n_rows - 1)
        columns = np.minimum(((xs + 0.5) * scale_x).astype(np.int64) // self._core(1), n_columns - 1)
        return rows * n_columns + columns

    def source_window(self, core: Window) -> Window:
        """The smallest source window that covers network pixels."""
        scale_y, scale_x = self.scale_yx
        height, width = self.source_hw
        y0, x0 = math.floor(core.y0 / scale_y), math.floor(core.x0 / scale_x)
        return Window(y0, x0, min(math.ceil(core.y1 / scale_y), height), min(math.ceil(core.x1 / scale_x), width))

    def neighbours(self, index: int, reach: int = 1) -> list[int]:
        """The tiles around one, at most ``reach`` rows and columns away: up to eight."""
        (n_rows, n_columns), (row, column) = self.shape, divmod(index, self.shape[1])
        rows = range(max(row - reach, 0), min(row + reach + 1, n_rows))
        columns = range(max(column - reach, 0), min(column + reach + 1, n_columns))
        around = [y * n_columns + x for y in rows for x in columns]
        return [tile for tile in around if tile != index]

    def reach_of(self, extent_hw: tuple[int, int]) -> int:
        """How many rows or columns of tiles away the owner of an object of this size can be from a tile it touches."""
        sides = (extent_hw[axis] * self.scale_yx[axis] / self._core(axis) for axis in (0, 1))
        return max(math.ceil(max(sides)), 1)

    def _aligned(self, side: int) -> int:
        return -(-side // self.stride) * self.stride

    def _core(self, axis: int) -> int:
        """The side of all cores but the last, network px."""
        side = self.net_hw[axis]
        return self._aligned(-(-side // -(-side // self._aligned(self.core_px))))

    @cached_property
    def _rows(self) -> list[tuple[int, ...]]:
        return self._spans(0)

    @cached_property
    def _columns(self) -> list[tuple[int, ...]]:
        return self._spans(1)

    def _spans(self, axis: int) -> list[tuple[int, ...]]:
        """Along one axis: start and end of each core, window and output."""
        side, padded, core, halo = (
            self.net_hw[axis],
            self.padded_hw[axis],
            self._core(axis),
            self._aligned(self.halo_px),
        )
        length, spans = min(core + 2 * halo, padded), []
        for start in range(0, side, core):
            low = min(max(start - halo, 0), padded - length)
            spans.append((start, min(start + core, side), low, low + length, *self._output(axis, low, low + length)))
        return spans

    def _output(self, axis: int, low: int, high: int) -> tuple[int, int]:
        """The source pixels whose interpolation from the maps needs no network pixel outside [low, high)."""
        whole, side = self.source_hw[axis], self.net_hw[axis]
        ratio = side / whole
        reach = max(ratio, 1.0)  # support of the bilinear filter, antialiased if maps are reduced
        first = 0 if low == 0 else math.ceil((low + reach) / ratio)
        last = whole if high >= side else math.floor((high - reach) / ratio)
        return first, max(last, first)

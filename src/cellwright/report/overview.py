"""The pictures of a tile job: the whole image, reduced, with the outlines of all objects, or of the tissue."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from cellwright.core.geometry import Window
from cellwright.core.image import Image
from cellwright.core.text import count
from cellwright.data.images.source import ImageSource
from cellwright.prediction.tiling.finish import FinalTiles, LabelPainter
from cellwright.prediction.tiling.grid import Grid
from cellwright.prediction.tiling.regions import Regions
from cellwright.prediction.tiling.statistics import readable_blocks
from cellwright.prediction.tiling.tissue import Tissue
from cellwright.report.colours import SKY_BLUE, VERMILLION, YELLOW
from cellwright.report.display import to_display_rgb
from cellwright.report.legend import legend_strip

LARGEST_PX, TISSUE_PX = 2048, 1536
_SEAM, _DARKENED = (150, 150, 150), 0.6


def draw_overview(
    source: ImageSource, final: FinalTiles, regions: Regions | None = None, *, largest_px: int = LARGEST_PX
) -> np.ndarray:
    """uint8 RGB (h, w, 3), at most ``largest_px`` on each side. Reads the image block by block.

    Outlines of objects that are smaller than two pixels of the picture become spots. regions: where objects were kept;
    outlined.
    """
    step = max(-(-max(source.image_hw) // largest_px), 1)
    thumbnail = _reduced(source, step)
    labels = _reduced_labels(final, source, step)
    picture = to_display_rgb(Image(thumbnail, source.channels)).copy()
    picture[_edges(labels)] = YELLOW
    if regions is not None:
        rings = [np.rint(ring / step).astype(np.int32) for ring in regions.rings]
        cv2.polylines(picture, rings, isClosed=True, color=SKY_BLUE, thickness=2)
    return picture


def draw_tissue(source: ImageSource, tissue: Tissue, grid: Grid, tiles: Sequence[int]) -> np.ndarray:
    """uint8 RGB (h, w, 3): the image, reduced, with the tissue outlined and tiles that are not predicted darkened."""
    step = max(-(-max(source.image_hw) // TISSUE_PX), 1)
    picture = to_display_rgb(Image(_reduced(source, step), source.channels)).copy()
    ys, xs = (np.arange(side) * step + step // 2 for side in picture.shape[:2])
    rows, columns = (
        np.minimum((places / cell).astype(np.int64), n - 1)
        for places, cell, n in zip((ys, xs), tissue.cell_px, tissue.cells.shape, strict=True)
    )
    edges = _edges(tissue.cells[np.ix_(rows, columns)])
    predicted = set(tiles)
    for tile in grid:
        y0, x0, y1, x1 = (side // step for side in grid.source_window(tile.core))
        part = picture[y0:y1, x0:x1]
        if tile.index not in predicted:
            part[:] = _DARKENED * part
        part[:1], part[:, :1] = _SEAM, _SEAM
    picture[edges] = VERMILLION
    n_skipped = len(grid) - len(tiles)
    caption = f"dark: {n_skipped:,} of {count(len(grid), 'tile')} skipped; orange: border of the tissue"
    return np.concatenate([picture, legend_strip(picture.shape[1], (), caption=caption)])


def _edges(values: np.ndarray) -> np.ndarray:
    """The pixels (h, w) bool whose right or lower neighbour has another value."""
    edges = np.zeros(values.shape, bool)
    edges[:-1] |= values[:-1] != values[1:]
    edges[:, :-1] |= values[:, :-1] != values[:, 1:]
    return edges


def _reduced(source: ImageSource, step: int) -> np.ndarray:
    """Every ``step``-th pixel of the image, (h, w, C); from a smaller level if the file has one."""
    height, width = -(-source.image_hw[0] // step), -(-source.image_hw[1] // step)
    level = max((k for k, one in enumerate(source.levels) if max(one.downsample) <= step), default=0)
    level_h, level_w = source.levels[level].image_hw
    rows = np.minimum((np.arange(height) + 0.5) * level_h / height, level_h - 1).astype(np.int64)
    columns = np.minimum((np.arange(width) + 0.5) * level_w / width, level_w - 1).astype(np.int64)
    small: np.ndarray | None = None
    for block, region in readable_blocks(source, level):
        own_rows = np.flatnonzero((rows >= block.y0) & (rows < block.y1))
        own_columns = np.flatnonzero((columns >= block.x0) & (columns < block.x1))
        if not len(own_rows) or not len(own_columns):
            continue
        data = region.data
        if small is None:
            small = np.zeros((height, width, data.shape[2]), data.dtype)
        small[np.ix_(own_rows, own_columns)] = data[np.ix_(rows[own_rows] - block.y0, columns[own_columns] - block.x0)]
    assert small is not None
    return small


def _reduced_labels(final: FinalTiles, source: ImageSource, step: int) -> np.ndarray:
    """The label of the middle pixel of each ``step`` x ``step`` square, (h, w) uint32."""
    height, width = source.image_hw
    labels = np.zeros((-(-height // step), -(-width // step)), np.uint32)
    painter, side = LabelPainter(final), 2048 // step * step
    for y in range(0, height, max(side, step)):
        for x in range(0, width, max(side, step)):
            window = Window(y, x, min(y + max(side, step), height), min(x + max(side, step), width))
            part = painter(window)[min(step // 2, window.hw[0] - 1) :: step, min(step // 2, window.hw[1] - 1) :: step]
            labels[y // step : y // step + part.shape[0], x // step : x // step + part.shape[1]] = part
    return labels

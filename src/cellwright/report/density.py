"""The density picture of a tile job: how many objects there are per area, everywhere in the image."""

from __future__ import annotations

import math
from collections.abc import Collection

import cv2
import numpy as np

from cellwright.core.geometry import Window
from cellwright.core.text import count
from cellwright.prediction.tiling.finish import FinalTiles
from cellwright.prediction.tiling.grid import Grid
from cellwright.prediction.tiling.regions import Regions

# Cells along the longer side of the image; and objects, on average, in what a density is the mean of.
_CELLS, _OBJECTS = 200, 8
_NOT_PREDICTED = "#d9d9d9"


def density(
    final: FinalTiles, grid: Grid, predicted: Collection[int], regions: Regions | None
) -> tuple[np.ndarray, float, float]:
    """Objects per pixel of the image (rows, columns), NaN where nothing was predicted; the side of a cell, and the
    standard deviation of the Gaussian by which they are smoothed, px.

    An object counts where the middle of its box is. Reads the tiles of ``final`` one by one.
    """
    height, width = grid.source_hw
    cell = max(max(height, width) / _CELLS, 1.0)
    shape = (math.ceil(height / cell), math.ceil(width / cell))
    counts = np.zeros(shape, np.float64)
    for _, objects in final:
        x0, y0, x1, y1 = objects.masks.boxes.T.astype(np.float64)
        rows, columns = ((low + high) / 2 / cell for low, high in ((y0, y1), (x0, x1)))
        np.add.at(counts, (rows.astype(np.int64), columns.astype(np.int64)), 1)
    is_seen = _is_seen(grid, predicted, regions, shape, cell)
    sides = [np.minimum(cell, whole - cell * np.arange(n)) for whole, n in zip((height, width), shape, strict=True)]
    areas = sides[0][:, None] * sides[1][None] * is_seen
    sigma = math.sqrt(_OBJECTS * areas.sum() / (2 * math.pi * max(final.n_objects, 1)))
    sigma = min(max(sigma, 0.7 * cell), max(height, width) / 10)
    counts, areas = (
        cv2.GaussianBlur(values, (0, 0), sigma / cell, borderType=cv2.BORDER_CONSTANT) for values in (counts, areas)
    )
    per_px = np.full(shape, np.nan)
    np.divide(counts, areas, out=per_px, where=is_seen > 0.25)
    return per_px, cell, sigma


def _is_seen(
    grid: Grid, predicted: Collection[int], regions: Regions | None, shape: tuple[int, int], cell: float
) -> np.ndarray:
    """The share of each cell that was predicted, by 4 x 4 points of it."""
    (height, width), n = grid.source_hw, 4
    ys = np.minimum((np.arange(n * shape[0]) + 0.5) * cell / n, height - 1).astype(np.int64)
    xs = np.minimum((np.arange(n * shape[1]) + 0.5) * cell / n, width - 1).astype(np.int64)
    seen = np.zeros((len(ys), len(xs)), bool)
    for index in predicted:
        core: Window = grid.source_window(grid[index].core)
        rows, columns = np.searchsorted(ys, (core.y0, core.y1)), np.searchsorted(xs, (core.x0, core.x1))
        seen[rows[0] : rows[1], columns[0] : columns[1]] = True
    if regions is not None:
        for row, y in enumerate(ys):
            seen[row] &= regions.contain(np.full(len(xs), y), xs)
    return seen.reshape(shape[0], n, shape[1], n).mean(axis=(1, 3))


def draw_density(
    per_px: np.ndarray,
    cell: float,
    sigma: float,
    image_hw: tuple[int, int],
    pixel_size_um: tuple[float, float] | None,
    n: int,
) -> np.ndarray:
    """uint8 RGB (h, w, 3): the density as colours, per mm2 where the pixel size is known, else per megapixel.

    The scale of colours ends at the 99.5th percentile, above which all have one colour. n: number of objects.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    (height, width), (um_y, um_x) = image_hw, pixel_size_um or (1000.0, 1000.0)
    values = per_px * 1e6 / (um_y * um_x) if pixel_size_um is not None else per_px * 1e6
    unit, axis = ("objects per mm2", "mm") if pixel_size_um is not None else ("objects per megapixel", "px")
    scale_y, scale_x = (um_y / 1000, um_x / 1000) if pixel_size_um is not None else (1.0, 1.0)
    known = values[np.isfinite(values)]
    top = float(np.percentile(known, 99.5)) if len(known) else 0.0
    aspect = min(max(height * scale_y / (width * scale_x), 0.2), 3.0)
    figure = Figure(figsize=(9, 0.9 + 7.2 * aspect), layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    colours: Colormap = colormaps["viridis"].with_extremes(bad=_NOT_PREDICTED)
    extent = (0.0, per_px.shape[1] * cell * scale_x, per_px.shape[0] * cell * scale_y, 0.0)
    is_above = len(known) > 0 and known.max() > top
    picture = axes.imshow(
        np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=top or 1, extent=extent, interpolation="nearest"
    )
    axes.set(xlim=(0, width * scale_x), ylim=(height * scale_y, 0), xlabel=axis, ylabel=axis)
    figure.colorbar(picture, ax=axes, label=unit, extend="max" if is_above else "neither", shrink=0.9)
    smoothed = f"{sigma * um_x:.3g} um" if pixel_size_um is not None else f"{sigma:.3g} px"
    title = f"{count(n, 'object')}; smoothed by a Gaussian, standard deviation {smoothed}"
    if len(known) < values.size:
        title += "; grey: not predicted"
    axes.set_title(title, fontsize="medium")
    figure.set_dpi(110)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()

"""Pictures of all images of a prediction folder together: a plate with one image per well, and counts as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from cellwright.core.text import count
from cellwright.report.colours import BLACK, WHITE
from cellwright.report.curves import line_format
from cellwright.report.legend import shortened

_SIDE_PX = 1900  # of the picture of a plate, about
_LARGEST_TILE_PX = 240
_NO_IMAGE = (225, 225, 225)
_NAMED_BARS = 60  # more images have no names in the figure of counts
_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "--")


def draw_plate(tiles: Mapping[tuple[int, int], tuple[str, np.ndarray]], title: str = "") -> np.ndarray:
    """One picture per well in the rows (letters) and columns (numbers) of the plate, uint8 RGB on white.

    tiles: (row, column) from 0 -> caption and picture (h, w, 3) uint8. Rows and columns from the first to the last one
    used are shown; wells without a picture are grey.
    """
    rows, columns = ([place[k] for place in tiles] for k in (0, 1))
    first_row, first_column = min(rows), min(columns)
    n_rows, n_columns = max(rows) - first_row + 1, max(columns) - first_column + 1
    tile_px = min(_LARGEST_TILE_PX, max(_SIDE_PX // max(n_rows, n_columns) - 6, 40))
    size = max(tile_px // 12, 11)
    font, heading = ImageFont.load_default(size), ImageFont.load_default(size + 4)
    step_x, step_y, left, top = tile_px + 6, tile_px + size + 10, 3 * size, 3 * size + (2 * size if title else 0)
    sheet = Pillow.new("RGB", (left + n_columns * step_x + 6, top + n_rows * step_y + 6), WHITE)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((6, size), shortened(title, heading, sheet.width - 12), BLACK, heading, anchor="lm")
    for column in range(n_columns):
        place = (left + column * step_x + tile_px // 2, top - size)
        draw.text(place, str(first_column + column + 1), BLACK, heading, anchor="mm")
    for row in range(n_rows):
        place = (left // 2, top + row * step_y + tile_px // 2)
        draw.text(place, chr(ord("A") + first_row + row), BLACK, heading, anchor="mm")
        for column in range(n_columns):
            x, y = left + column * step_x, top + row * step_y
            tile = tiles.get((first_row + row, first_column + column))
            if tile is None:
                draw.rectangle((x, y, x + tile_px, y + tile_px), fill=_NO_IMAGE)
                continue
            caption, rgb = tile
            scale = tile_px / max(rgb.shape[:2])
            shown_wh = max(round(rgb.shape[1] * scale), 1), max(round(rgb.shape[0] * scale), 1)
            resampling = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
            picture = cv2.resize(np.ascontiguousarray(rgb), shown_wh, interpolation=resampling)
            sheet.paste(Pillow.fromarray(picture), (x, y))
            draw.text((x, y + tile_px + size // 2 + 2), shortened(caption, font, tile_px), BLACK, font, anchor="lm")
    return np.array(sheet)


def draw_counts(names: Sequence[str], counts: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """The number of objects in each image as bars, uint8 RGB; classes are stacked, in colours and hatches.

    names: of N images. counts: (N, K) int. Up to 60 images are named; more are numbered in this order.
    """
    # Without pyplot: no global state, and no window system is needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n, has_names = len(names), len(names) <= _NAMED_BARS
    figure = Figure(figsize=(8, 1.3 + 0.22 * n) if has_names else (11, 4.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    places, base = np.arange(n), np.zeros(n, np.int64)
    for k, name in enumerate(class_names):
        look = {"color": line_format(k).colour, "edgecolor": "white", "linewidth": 0.3, "label": name}
        look["hatch"] = _HATCHES[k % len(_HATCHES)] if len(class_names) > 1 else ""
        if has_names:
            axes.barh(places, counts[:, k], left=base, height=0.8, **look)
        else:
            axes.bar(places + 1, counts[:, k], bottom=base, width=1.0, **look)
        base = base + counts[:, k]
    if has_names:
        labels = [name if len(name) <= 40 else f"...{name[-37:]}" for name in names]
        axes.set_yticks(places, labels, fontsize="small")
        axes.set(xlabel="objects", ylim=(n - 0.4, -0.6))
    else:
        axes.set(xlabel="image, in the order of summary.csv", ylabel="objects", xlim=(0.4, n + 0.6))
    axes.grid(visible=True, alpha=0.3, axis="x" if has_names else "y")
    axes.set_axisbelow(True)
    total = base.sum()
    axes.set_title(
        f"{count(int(total), 'object')} in {count(n, 'image')}, median {np.median(base):,.0f}", fontsize="medium"
    )
    if len(class_names) > 1:
        axes.legend(fontsize="small")
    figure.set_dpi(110)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()

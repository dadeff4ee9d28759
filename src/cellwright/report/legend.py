"""Text in pictures: legends and labels, in the font included with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from cellwright.report.colours import BLACK, WHITE, LineStyle

_LEGEND_PX = 13
_SAMPLE_PX = 30  # length of the line samples in a legend
_SAMPLE_GREY = (60, 60, 60)  # background of the samples, so that bright and dark colours are visible on white


def legend_strip(width: int, styles: Sequence[LineStyle]) -> np.ndarray:
    """A white strip (h, width, 3) uint8 with a sample of every line style and its name, in as many rows as needed."""
    font = ImageFont.load_default(_LEGEND_PX)
    row_px, gap = _LEGEND_PX + 9, 14
    entries, x, row = [], 6, 0
    for style in styles:
        name = shortened(style.name, font, width - 12 - _SAMPLE_PX - 6)
        used = _SAMPLE_PX + 6 + math.ceil(font.getlength(name))
        if x > 6 and x + used > width - 6:
            x, row = 6, row + 1
        entries.append((style, name, x, row))
        x += used + gap
    strip = Pillow.new("RGB", (width, (row + 1) * row_px if styles else 0), WHITE)
    draw = ImageDraw.Draw(strip)
    for style, name, left, row in entries:
        middle = row * row_px + row_px // 2
        draw.rectangle((left, middle - 6, left + _SAMPLE_PX, middle + 6), fill=_SAMPLE_GREY)
        _draw_sample(draw, left + 2, left + _SAMPLE_PX - 2, middle, style)
        draw.text((left + _SAMPLE_PX + 6, middle), name, fill=BLACK, font=font, anchor="lm")
    return np.array(strip)


def draw_labels(canvas: np.ndarray, boxes_xyxy: np.ndarray, texts: Sequence[str], size_px: int = 10) -> None:
    """Write a text at the top left of every box (N, 4) on the canvas, white with a black border."""
    picture = Pillow.fromarray(canvas)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size_px)
    for (x0, y0, _, _), text in zip(boxes_xyxy.tolist(), texts, strict=True):
        draw.text((x0, y0), text, fill=WHITE, font=font, stroke_width=1, stroke_fill=BLACK)
    canvas[:] = np.asarray(picture)


def _draw_sample(draw: ImageDraw.ImageDraw, x0: int, x1: int, y: int, style: LineStyle) -> None:
    pattern = style.pattern or (x1 - x0,)
    x, k = x0, 0
    while x < x1:
        step = pattern[k % len(pattern)]
        if k % 2 == 0:
            draw.line((x, y, min(x + step, x1) - 1, y), fill=style.colour, width=2)
        x, k = x + step, k + 1


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: float) -> str:
    """The text, or only its end after an ellipsis if it is too long, since file names usually differ at the end."""
    if font.getlength(text) <= width_px:
        return text
    for start in range(1, len(text)):
        short = "..." + text[start:]
        if font.getlength(short) <= width_px:
            return short
    return ""

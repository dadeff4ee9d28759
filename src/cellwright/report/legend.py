"""Text in pictures: legends and labels, in the font included with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from cellwright.report.colours import BLACK, WHITE, LineStyle

_SMALLEST_PX = 13  # of text in legends
_SMALLEST_MARK_PX = 7
_SAMPLE_GREY = (60, 60, 60)  # background of the samples, so that bright and dark colours are visible on white
_BAR_SHARE = 0.2  # of the width of a picture, at most, for its scale bar


def text_size(width: int) -> int:
    """Font size for a picture of this width: legible when the picture is fitted to a screen.

    >>> text_size(400), text_size(1000), text_size(4000)
    (13, 15, 60)
    """
    return max(_SMALLEST_PX, round(width * 0.015))


def legend_strip(width: int, styles: Sequence[LineStyle], *, caption: str = "", size: int | None = None) -> np.ndarray:
    """A white strip (h, width, 3) uint8 with a sample of every line style and its name, in as many rows as needed.

    caption: text in a row of its own above the samples. size: of the font; None: for a picture of this width.
    """
    size = text_size(width) if size is None else size
    font, row_px, gap = ImageFont.load_default(size), round(1.7 * size), size
    margin, sample_px, space = size // 2, round(2.6 * size), size // 2
    entries, x, row = [], margin, 1 if caption else 0
    for style in styles:
        name = shortened(style.name, font, width - 2 * margin - sample_px - space)
        used = sample_px + space + math.ceil(font.getlength(name))
        if x > margin and x + used > width - margin:
            x, row = margin, row + 1
        entries.append((style, name, x, row))
        x += used + gap
    n_rows = row + 1 if styles else row
    strip = Pillow.new("RGB", (width, n_rows * row_px), WHITE)
    draw = ImageDraw.Draw(strip)
    if caption:
        draw.text((margin, row_px // 2), shortened(caption, font, width - 2 * margin), BLACK, font, anchor="lm")
    for style, name, left, place in entries:
        middle = place * row_px + row_px // 2
        draw.rectangle((left, middle - size // 2, left + sample_px, middle + size // 2), fill=_SAMPLE_GREY)
        _draw_sample(draw, left + 2, left + sample_px - 2, middle, style, max(2, size // 6))
        draw.text((left + sample_px + space, middle), name, fill=BLACK, font=font, anchor="lm")
    return np.array(strip)


def draw_marks(canvas: np.ndarray, boxes_xyxy: np.ndarray, mark: str) -> None:
    """Write a letter in the middle of every box (N, 4) on the canvas, white with a black border.

    The letter is about half as high as its box; boxes that are too small for a legible one have none.
    """
    picture = Pillow.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for x0, y0, x1, y1 in boxes_xyxy.tolist():
        size = min(round(0.55 * min(x1 - x0, y1 - y0)), text_size(canvas.shape[1]))
        if size >= _SMALLEST_MARK_PX:
            place, font = ((x0 + x1) / 2, (y0 + y1) / 2), ImageFont.load_default(size)
            draw.text(place, mark, WHITE, font, anchor="mm", stroke_width=max(1, size // 8), stroke_fill=BLACK)
    canvas[:] = np.asarray(picture)


def draw_scale_bar(canvas: np.ndarray, um_per_px: float) -> None:
    """Draw a scale bar with its length at the bottom right of the canvas (H, W, 3) uint8, white with a black border.

    um_per_px: pixel size of the canvas. Nothing is drawn if the picture is too small for a bar of 10 px.
    """
    height, width = canvas.shape[:2]
    length_um = round_length(_BAR_SHARE * width * um_per_px)
    length_px = length_um / um_per_px
    size = text_size(width)
    if length_px < 10 or height < 5 * size:
        return
    picture = Pillow.fromarray(canvas)
    draw, thick = ImageDraw.Draw(picture), max(3, size // 4)
    right, bottom = width - size, height - size
    border = max(1, thick // 3)
    left, top = right - length_px, bottom - thick
    draw.rectangle((left - border, top - border, right + border, bottom + border), fill=BLACK)
    draw.rectangle((left, top, right, bottom), fill=WHITE)
    # The font of Pillow has no Greek letters.
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} um"
    place, font = ((left + right) / 2, top - size // 3), ImageFont.load_default(size)
    draw.text(place, text, fill=WHITE, font=font, anchor="mb", stroke_width=max(1, size // 8), stroke_fill=BLACK)
    canvas[:] = np.asarray(picture)


def round_length(longest: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is at most ``longest`` (above 0).

    >>> round_length(73.0), round_length(0.3), round_length(20.0)
    (50.0, 0.2, 20.0)
    """
    power = 10.0 ** math.floor(math.log10(longest))
    step = max(step for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9))
    return float(f"{step * power:.6g}")


def draw_labels(canvas: np.ndarray, boxes_xyxy: np.ndarray, texts: Sequence[str], size_px: int = 10) -> None:
    """Write a text at the top left of every box (N, 4) on the canvas, white with a black border."""
    picture = Pillow.fromarray(canvas)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size_px)
    for (x0, y0, _, _), text in zip(boxes_xyxy.tolist(), texts, strict=True):
        draw.text((x0, y0), text, fill=WHITE, font=font, stroke_width=1, stroke_fill=BLACK)
    canvas[:] = np.asarray(picture)


def _draw_sample(draw: ImageDraw.ImageDraw, x0: int, x1: int, y: int, style: LineStyle, px: int) -> None:
    pattern = [length * max(1, px // 2) for length in style.pattern] or [x1 - x0]
    x, k = x0, 0
    while x < x1:
        step = pattern[k % len(pattern)]
        if k % 2 == 0:
            draw.line((x, y, min(x + step, x1) - 1, y), fill=style.colour, width=px)
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

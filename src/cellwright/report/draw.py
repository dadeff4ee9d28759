"""Pictures of objects on their image: outlines by class with a dark halo, and contact sheets.

Outlines follow the pixel edges of the masks and are drawn inside them, object by object: time is proportional to the
length of the outlines, and overlapping objects have complete outlines. A darkened halo around them keeps bright lines
visible on a pale stain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from cellwright.core.errors import InputError, UsageError
from cellwright.core.ignored import ignored_region
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.report.colours import (
    BLACK,
    GREY,
    WHITE,
    LineStyle,
    class_styles,
)
from cellwright.report.display import to_display_rgb
from cellwright.report.legend import draw_labels, draw_scale_bar, legend_strip, shortened

# For unit edges to the right, down, left and up: the step along the edge, and the offset from its start to the pixel on
# its right side, which is inside the object in the outlines of `MaskSet.to_polygons`.
_STEP_XY = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
_INSIDE_XY = np.array([[0, 0], [-1, 0], [-1, -1], [0, -1]])
NOT_ANNOTATED = LineStyle("not annotated", GREY, (1, 4))  # the outline of what is hatched
HALO = 0.3  # share of the brightness that is left beside a line
SHOWN_PX = 1000  # about the size at which pictures are looked at
_LARGEST_FACTOR = 4  # by which a small image is enlarged


def draw_overlay(
    image: Image,
    instances: Instances,
    *,
    class_names: Sequence[str] | None = None,
    outline_px: int | None = None,
    fill_alpha: float = 0.0,
    show_boxes: bool = False,
    show_scores: bool = False,
    legend: bool = True,
) -> np.ndarray:
    """The image with its objects outlined by class, (H, W, 3) uint8 RGB; the legend adds rows at the bottom.

    class_names: None calls a single class "objects", and several "class 0", "class 1", ...
    outline_px: line width; None fits it to the picture and its objects, 0 draws no lines. fill_alpha: opacity of
    filled masks, 0..1. show_scores: show the score of every object in percent. Raises `InputError` if objects and image
    differ in size, `UsageError` if a class has no name.
    """
    _check_sizes(image, instances)
    region, instances = ignored_region(instances), instances[~instances.ignore]
    styles = class_styles(_names(instances, class_names))
    canvas = to_display_rgb(image).copy()
    hatch(canvas, region)
    of_class = [instances.class_ids == class_id for class_id in range(len(styles))]
    if fill_alpha > 0:
        for chosen, style in zip(of_class, styles, strict=True):
            _fill(canvas, instances.masks[chosen], style, fill_alpha)
    outline_px = line_width(instances.masks) if outline_px is None else outline_px
    layers = [(instances.masks[chosen], style, outline_px) for chosen, style in zip(of_class, styles, strict=True)]
    draw_outlines(canvas, [(region, NOT_ANNOTATED, outline_px), *layers])
    if show_boxes:
        for chosen, style in zip(of_class, styles, strict=True):
            _draw_boxes(canvas, instances.boxes_xyxy[chosen], style)
    if show_scores and instances.scores is not None:
        texts = [f"{round(100 * float(score))}" for score in instances.scores]
        draw_labels(canvas, instances.boxes_xyxy, texts)
    if not legend:
        return canvas
    counts = np.bincount(instances.class_ids, minlength=len(styles))
    return np.concatenate([canvas, legend_strip(canvas.shape[1], _with_counts(styles, counts.tolist(), region))])


def draw_picture(
    image: Image,
    instances: Instances,
    *,
    class_names: Sequence[str] | None = None,
    caption: str = "",
    cells: Instances | None = None,
) -> np.ndarray:
    """The picture to show of an image and its objects, uint8 RGB: `draw_overlay` with a scale bar and a caption.

    cells: of the objects, which are nuclei; they are outlined too. A small image is enlarged by a whole factor. The
    scale bar needs the image's pixel size. Raises as `draw_overlay`.
    """
    canvas = draw_enlarged(image, instances, class_names=class_names, cells=cells)
    region, objects = ignored_region(instances), instances[~instances.ignore]
    styles = class_styles(_names(objects, class_names))
    counts = np.bincount(objects.class_ids, minlength=len(styles))
    shown = _with_counts(styles, counts.tolist(), region)
    if cells is not None:
        shown[len(styles) : len(styles)] = _with_counts([_cell_style(styles)], [len(cells)], MaskSet.empty((1, 1)))
    legend = legend_strip(canvas.shape[1], shown, caption=caption)
    return np.concatenate([canvas, legend])


def draw_enlarged(
    image: Image,
    instances: Instances,
    *,
    class_names: Sequence[str] | None = None,
    side_px: int = SHOWN_PX,
    cells: Instances | None = None,
) -> np.ndarray:
    """`draw_picture` without legend and caption; enlarged to about ``side_px``."""
    _check_sizes(image, instances)
    factor = enlargement(image.image_hw, side_px)
    region, instances = enlarged_masks(ignored_region(instances), factor), instances[~instances.ignore]
    styles = class_styles(_names(instances, class_names))
    canvas = enlarged(to_display_rgb(image), factor)
    masks = enlarged_masks(instances.masks, factor)
    px = line_width(masks)
    hatch(canvas, region)
    layers = [(masks[instances.class_ids == class_id], style, px) for class_id, style in enumerate(styles)]
    if cells is not None:
        layers.insert(0, (enlarged_masks(cells.masks, factor), _cell_style(styles), px))
    draw_outlines(canvas, [(region, NOT_ANNOTATED, px), *layers])
    if image.pixel_size_um is not None:
        draw_scale_bar(canvas, image.pixel_size_um[1] / factor)
    return canvas


def enlargement(image_hw: tuple[int, int], shown_px: int = SHOWN_PX) -> int:
    """The whole factor, 1 to 4, by which a small image is enlarged to about ``shown_px``.

    >>> enlargement((256, 256)), enlargement((1000, 800)), enlargement((50, 60))
    (4, 1, 4)
    """
    return min(max(round(shown_px / max(image_hw)), 1), _LARGEST_FACTOR)


def enlarged(rgb: np.ndarray, factor: int) -> np.ndarray:
    """A copy of the picture, each of its pixels repeated ``factor`` times along both axes."""
    return rgb.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else rgb.copy()


def enlarged_masks(masks: MaskSet, factor: int) -> MaskSet:
    """The masks on an image enlarged by a whole factor."""
    return masks if factor == 1 else masks.resize((masks.image_hw[0] * factor, masks.image_hw[1] * factor))


def line_width(masks: MaskSet) -> int:
    """A line width for these objects: visible when the picture is fitted to a screen, narrow for small objects."""
    wanted = 2 * max(masks.image_hw) / SHOWN_PX
    diameter = math.sqrt(4 / math.pi * float(np.median(masks.areas))) if len(masks) else 0.0
    return max(round(min(wanted, diameter / 9)), 1)


def draw_outlines(canvas: np.ndarray, layers: Sequence[tuple[MaskSet, LineStyle, int]]) -> None:
    """Draw the outlines of masks on an RGB canvas (H, W, 3) uint8, which is modified.

    layers: masks, style and line width (0 draws nothing) of each kind of object, from below. All halos are below all
    lines, so that no object hides the line of its neighbour. A line pattern is stretched with the line width.
    """
    lines = []
    halo = np.zeros(canvas.shape[:2], np.uint8)
    for masks, style, px in layers:
        if px < 1 or len(masks) == 0:
            continue
        y, x = outline_pixels(masks)
        halo |= _widened(canvas.shape[:2], y, x, px + 2 * halo_width(px))
        if style.pattern:
            y, x = outline_pixels(masks, tuple(length * px for length in style.pattern))
        lines.append((y, x, px, style.colour))
    canvas[halo > 0] = np.round(HALO * canvas[halo > 0]).astype(np.uint8)
    for y, x, px, colour in lines:
        canvas[_widened(canvas.shape[:2], y, x, px) > 0] = colour


def hatch(canvas: np.ndarray, region: MaskSet) -> None:
    """Darken a region of an RGB canvas (H, W, 3) uint8, which is modified, in diagonal stripes."""
    height, width = canvas.shape[:2]
    period = max(round(max(height, width) / 60), 8)
    for k, (x0, y0, x1, y1) in enumerate(region.boxes.tolist()):
        y, x = np.ogrid[y0:y1, x0:x1]
        part, inside = canvas[y0:y1, x0:x1], region.crop(k).astype(bool)
        for share, chosen in ((0.75, inside), (0.6, inside & ((x + y) % period < period // 3))):
            part[chosen] = np.round(share * part[chosen]).astype(np.uint8)


def halo_width(line_px: int) -> int:
    """Width of the halo on each side of a line."""
    return max(round(line_px / 2), 1)


def _widened(shape: tuple[int, ...], y: np.ndarray, x: np.ndarray, px: int) -> np.ndarray:
    """The pixels (H, W) uint8 of a line of width ``px`` along the given pixels."""
    line = np.zeros(shape, np.uint8)
    line[y, x] = 1
    return line if px == 1 else cv2.dilate(line, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (px, px)))


def outline_pixels(masks: MaskSet, pattern: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels inside the masks along their outlines, including holes.

    pattern: numbers of pixels to draw and to skip along each ring, alternating; empty draws all. Pixels may repeat.
    """
    rings = [ring for polygons in masks.to_polygons() for polygon in polygons for ring in polygon]
    if not rings:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    start = np.concatenate(rings)
    delta = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]) - start
    direction = np.where(delta[:, 0] != 0, np.where(delta[:, 0] > 0, 0, 2), np.where(delta[:, 1] > 0, 1, 3))
    length = np.abs(delta).sum(axis=1)
    edge = np.repeat(np.arange(len(start)), length)
    along = np.arange(len(edge)) - np.repeat(np.cumsum(length) - length, length)
    pixels = start[edge] + along[:, None] * _STEP_XY[direction[edge]] + _INSIDE_XY[direction[edge]]
    if pattern:
        ring_length = np.add.reduceat(length, np.cumsum([0] + [len(ring) for ring in rings[:-1]]))
        along_ring = np.arange(len(edge)) - np.repeat(np.cumsum(ring_length) - ring_length, ring_length)
        drawn = np.repeat(np.arange(len(pattern)) % 2 == 0, pattern)
        pixels = pixels[drawn[along_ring % len(drawn)]]
    return pixels[:, 1], pixels[:, 0]


def contact_sheet(
    tiles: Sequence[tuple[str, np.ndarray]],
    *,
    columns: int | None = None,
    tile_px: int = 320,
    title: str = "",
    styles: Sequence[LineStyle] = (),
) -> np.ndarray:
    """Pictures with captions in a grid, uint8 RGB on white.

    tiles: (caption, uint8 RGB (h, w, 3)); each is resized to fit a square of ``tile_px``, preserving its proportions.
    columns: None makes the grid nearly square. styles: for a legend at the bottom. Without tiles the sheet says "no
    pictures".
    """
    columns = columns or max(math.ceil(math.sqrt(len(tiles))), 1)
    rows = math.ceil(len(tiles) / columns)
    font, gap, caption_px = ImageFont.load_default(12), 8, 20
    title_px = 28 if title or not tiles else 0
    size = (columns * (tile_px + gap) + gap, title_px + rows * (tile_px + caption_px + gap) + gap)
    sheet = Pillow.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(sheet)
    heading = shortened(title or ("" if tiles else "no pictures"), ImageFont.load_default(15), size[0] - 2 * gap)
    draw.text((gap, title_px // 2 + 2), heading, fill=BLACK, font=ImageFont.load_default(15), anchor="lm")
    for k, (caption, rgb) in enumerate(tiles):
        left = gap + (k % columns) * (tile_px + gap)
        top = title_px + gap + (k // columns) * (tile_px + caption_px + gap)
        tile = _resized_to_fit(rgb, tile_px)
        sheet.paste(tile, (left + (tile_px - tile.width) // 2, top + tile_px - tile.height))
        text = shortened(caption, font, tile_px)
        draw.text((left, top + tile_px + caption_px // 2), text, fill=BLACK, font=font, anchor="lm")
    return np.concatenate([np.array(sheet), legend_strip(size[0], styles)]) if styles else np.array(sheet)


def _resized_to_fit(rgb: np.ndarray, tile_px: int) -> Pillow.Image:
    scale = tile_px / max(rgb.shape[:2])
    size_wh = (max(round(rgb.shape[1] * scale), 1), max(round(rgb.shape[0] * scale), 1))
    # Enlarge without interpolation, so that one-pixel outlines stay sharp.
    resampling = Pillow.Resampling.NEAREST if scale >= 2 else Pillow.Resampling.LANCZOS
    return Pillow.fromarray(np.ascontiguousarray(rgb)).resize(size_wh, resampling)


def _cell_style(styles: Sequence[LineStyle]) -> LineStyle:
    """The style of the cells around nuclei of these styles."""
    name = "cells" if all(style.name != "cells" for style in styles) else "whole cells"
    return class_styles((*(style.name for style in styles), name))[-1]


def _names(instances: Instances, class_names: Sequence[str] | None) -> tuple[str, ...]:
    n_needed = int(instances.class_ids.max(initial=0)) + 1
    if class_names is None:
        return ("objects",) if n_needed == 1 else tuple(f"class {k}" for k in range(n_needed))
    if len(instances) and n_needed > len(class_names):
        got, expected = f"class id {n_needed - 1}", f"0 to {len(class_names) - 1} ({', '.join(class_names)})"
        raise UsageError("an object has a class id without a name", got=got, expected=expected)
    return tuple(class_names)


def _check_sizes(image: Image, instances: Instances) -> None:
    if image.image_hw != instances.image_hw:
        raise InputError(
            "objects and image differ in size", where=image.path, got=instances.image_hw, expected=image.image_hw
        )


def _fill(canvas: np.ndarray, masks: MaskSet, style: LineStyle, alpha: float) -> None:
    inside = masks.foreground()
    mixed = (1 - alpha) * canvas[inside] + alpha * np.array(style.colour)
    canvas[inside] = np.round(mixed).astype(np.uint8)


def _draw_boxes(canvas: np.ndarray, boxes: np.ndarray, style: LineStyle) -> None:
    for x0, y0, x1, y1 in np.round(boxes).astype(int).tolist():
        cv2.rectangle(canvas, (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0)), style.colour, 1)


def _with_counts(styles: Sequence[LineStyle], counts: Sequence[int], region: MaskSet) -> list[LineStyle]:
    pairs = zip(styles, counts, strict=True)
    counted = [LineStyle(f"{style.name} ({count:,})", style.colour, style.pattern) for style, count in pairs]
    return [*counted, NOT_ANNOTATED] if len(region) else counted

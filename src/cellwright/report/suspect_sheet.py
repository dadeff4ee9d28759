"""A contact sheet of suspicious annotations: each with its outline and those of its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import CellwrightError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.reading import Reading
from cellwright.data.suspects import Suspect
from cellwright.report.colours import DOTTED, SKY_BLUE, YELLOW, LineStyle
from cellwright.report.display import to_display_rgb
from cellwright.report.draw import contact_sheet, draw_outlines

SHOWN = 24
COLUMNS = 6
TILE_PX = 240
MIN_WINDOW_PX = 48
NO_IMAGE_GREY = 96  # grey level where the image cannot be shown

_SUSPECT = LineStyle("suspect", YELLOW)
_OTHERS = LineStyle("other objects", SKY_BLUE, DOTTED)


def draw_suspects(dataset: Dataset, suspects: Sequence[Suspect], track: Track = no_progress) -> np.ndarray:
    """The first 24 suspects, uint8 RGB: each outlined in solid yellow, its neighbours in dotted blue.

    Each window is about twice as wide as its object, and at least 48 px. An image that is missing, cannot be read or
    differs in size from its objects is shown in plain grey. Without suspects the sheet says "no pictures".
    """
    shown = suspects[:SHOWN]
    sample_ids = {suspect.sample_id for suspect in shown}
    tiles: dict[int, tuple[str, np.ndarray]] = {}
    for sample in track([sample for sample in dataset if sample.id in sample_ids], "drawing", len(sample_ids)):
        cells = sample.read_instances()
        picture = _picture(sample, cells, Reading.recorded(dataset.info))
        for k, suspect in enumerate(shown):
            if suspect.sample_id == sample.id:
                caption = f"{k + 1}. {suspect.kind} {suspect.score:.2f}, object {suspect.object_id}"
                tiles[k] = (caption, _tile(picture, cells, suspect.object_id))
    title = f"first {len(shown)} of {len(suspects)} suspects" if shown else ""
    return contact_sheet([tiles[k] for k in sorted(tiles)], columns=COLUMNS, tile_px=TILE_PX, title=title)


def _picture(sample: Sample, cells: Instances, reading: Reading) -> np.ndarray:
    try:
        picture = None if sample.image_path is None else to_display_rgb(reading.of(sample).chosen(sample.image_path))
    except CellwrightError:  # reported by the findings of the same command
        picture = None
    if picture is None or picture.shape[:2] != cells.image_hw:
        return np.full((*cells.image_hw, 3), NO_IMAGE_GREY, np.uint8)
    return picture


def _tile(picture: np.ndarray, cells: Instances, object_id: int) -> np.ndarray:
    """A square window around an object, enlarged by a whole factor, with outlines."""
    index = int(np.flatnonzero(cells.ids == object_id)[0])
    x0, y0, x1, y1 = cells.masks.boxes[index].tolist()
    half = max(2 * max(x1 - x0, y1 - y0), MIN_WINDOW_PX) // 2 + 8
    middle_y, middle_x = (y0 + y1) // 2, (x0 + x1) // 2
    height, width = cells.image_hw
    top, left = max(middle_y - half, 0), max(middle_x - half, 0)
    bottom, right = min(middle_y + half, height), min(middle_x + half, width)
    window = picture[top:bottom, left:right]
    zoom = max(2 * TILE_PX // max(window.shape[:2]), 1)
    size_hw = (window.shape[0] * zoom, window.shape[1] * zoom)
    canvas = cv2.resize(np.ascontiguousarray(window), size_hw[::-1], interpolation=cv2.INTER_CUBIC)
    boxes = cells.masks.boxes
    is_neighbour = (boxes[:, 0] < right) & (boxes[:, 2] > left) & (boxes[:, 1] < bottom) & (boxes[:, 3] > top)
    is_neighbour[index] = False
    drawn = (cells.masks[is_neighbour], _OTHERS), (cells.masks[[index]], _SUSPECT)
    layers = [(_enlarged(masks.window(top, left, bottom, right), size_hw), style, 3) for masks, style in drawn]
    draw_outlines(canvas, layers)
    return canvas


def _enlarged(masks: MaskSet, image_hw: tuple[int, int]) -> MaskSet:
    return masks[masks.areas > 0].resize(image_hw)

"""A contact sheet of suspects: each cut out of its image with its outline, its neighbours thin around it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import CellwrightError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.read import read_image
from cellwright.data.suspects import Suspect
from cellwright.report.colours import DOTTED, SKY_BLUE, YELLOW, LineStyle
from cellwright.report.display import to_display_rgb
from cellwright.report.draw import contact_sheet, draw_outlines

SHOWN = 24
COLUMNS = 6
TILE_PX = 240
LEAST_WINDOW_PX = 48
GROUND = 96  # grey level where there is no image to show

_SUSPECT = LineStyle("suspect", YELLOW)
_OTHERS = LineStyle("other objects", SKY_BLUE, DOTTED)


def draw_suspects(dataset: Dataset, suspects: Sequence[Suspect], track: Track = no_progress) -> np.ndarray:
    """The first 24 suspects, uint8 RGB: the suspect's outline solid yellow, those of its neighbours dotted blue.

    Each window is about four times as wide as its object. An image that is missing, cannot be read or has another
    size than its objects is shown as plain grey. No suspects give a sheet that says so.
    """
    shown = suspects[:SHOWN]
    wanted = {one.sample_id for one in shown}
    tiles: dict[int, tuple[str, np.ndarray]] = {}
    for sample in track([sample for sample in dataset if sample.id in wanted], "drawing", len(wanted)):
        cells = sample.read_instances()
        picture = _picture(sample, cells)
        for k, one in enumerate(shown):
            if one.sample_id == sample.id:
                caption = f"{k + 1}. {one.kind} {one.score:.2f}, object {one.object_id}"
                tiles[k] = (caption, _tile(picture, cells, one.object_id))
    title = f"the first {len(shown)} of {len(suspects)} suspects" if shown else ""
    return contact_sheet([tiles[k] for k in sorted(tiles)], columns=COLUMNS, tile_px=TILE_PX, title=title)


def _picture(sample: Sample, cells: Instances) -> np.ndarray:
    try:
        picture = None if sample.image_path is None else to_display_rgb(read_image(sample.image_path))
    except CellwrightError:  # the same command's findings name it
        picture = None
    if picture is None or picture.shape[:2] != cells.image_hw:
        return np.full((*cells.image_hw, 3), GROUND, np.uint8)
    return picture


def _tile(picture: np.ndarray, cells: Instances, object_id: int) -> np.ndarray:
    """A square window around the object, enlarged by a whole number, then outlined."""
    at = int(np.flatnonzero(cells.ids == object_id)[0])
    x0, y0, x1, y1 = cells.masks.boxes[at].tolist()
    half = max(2 * max(x1 - x0, y1 - y0), LEAST_WINDOW_PX) // 2 + 8
    middle_y, middle_x = (y0 + y1) // 2, (x0 + x1) // 2
    height, width = cells.image_hw
    top, left = max(middle_y - half, 0), max(middle_x - half, 0)
    bottom, right = min(middle_y + half, height), min(middle_x + half, width)
    window = picture[top:bottom, left:right]
    zoom = max(2 * TILE_PX // max(window.shape[:2]), 1)
    size_hw = (window.shape[0] * zoom, window.shape[1] * zoom)
    canvas = cv2.resize(np.ascontiguousarray(window), size_hw[::-1], interpolation=cv2.INTER_CUBIC)
    boxes = cells.masks.boxes
    near = (boxes[:, 0] < right) & (boxes[:, 2] > left) & (boxes[:, 1] < bottom) & (boxes[:, 3] > top)
    near[at] = False
    for masks, style in ((cells.masks[near], _OTHERS), (cells.masks[[at]], _SUSPECT)):
        draw_outlines(canvas, _enlarged(masks.window(top, left, bottom, right), size_hw), style, 3)
    return canvas


def _enlarged(masks: MaskSet, image_hw: tuple[int, int]) -> MaskSet:
    return masks[masks.areas > 0].resize(image_hw)

"""How objects are shown in a notebook: a card of HTML with a small picture. Everything is escaped, without script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.text import printable

if TYPE_CHECKING:
    from cellwright.core.instances import Instances

PICTURE_PX, MAX_DRAWN = 280, 20_000
_PALETTE = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178))
_BACKGROUND = (24, 27, 31)
_CELL = "text-align:left;padding:1px 12px 1px 0"
_STYLE = "display:inline-flex;gap:14px;align-items:flex-start;font-family:system-ui,sans-serif;font-size:13px"


def card(title: str, rows: Sequence[tuple[str, str]], picture: str) -> str:
    """HTML with a title, names and values, and a picture, which is HTML as `drawing` or `bars` return it."""
    cells = "".join(
        f'<tr style="font-size:13px;vertical-align:top"><td style="{_CELL};white-space:nowrap;opacity:.7">{_text(name)}'
        f'</td><td style="{_CELL}">{_text(value)}</td></tr>'
        for name, value in rows
    )
    return f'<div style="{_STYLE}">{picture}<div><b>{_text(title)}</b><table>{cells}</table></div></div>'


def drawing(instances: Instances) -> str:
    """The objects of an image in colours, as an element ``img``; colours tell classes
    apart, or neighbours where there is one class. Of more than ``MAX_DRAWN`` objects, the first ones."""
    import cv2

    height, width = instances.image_hw
    step = max(round(max(height, width) / PICTURE_PX), 1)
    canvas = np.full((-(-height // step), -(-width // step), 3), _BACKGROUND, np.uint8)
    instances = instances[~instances.ignore]
    keys = instances.class_ids if len(np.unique(instances.class_ids)) > 1 else instances.ids
    for i in reversed(range(min(len(instances), MAX_DRAWN))):  # where masks overlap, the first is on top
        x0, y0, x1, y1 = instances.masks.boxes[i].tolist()
        if x1 <= x0 or y1 <= y0:
            continue
        part = instances.masks.crop(i)[-y0 % step :: step, -x0 % step :: step].astype(bool)
        top, left = -(-y0 // step), -(-x0 // step)
        colour = _PALETTE[int(keys[i]) % len(_PALETTE)]
        if part.any():
            canvas[top : top + part.shape[0], left : left + part.shape[1]][part] = colour
        else:  # smaller than a pixel of the picture
            canvas[(y0 + y1) // 2 // step, (x0 + x1) // 2 // step] = colour
    data = base64.b64encode(cv2.imencode(".png", canvas[:, :, ::-1])[1].tobytes()).decode()
    factor = PICTURE_PX / max(canvas.shape[:2])
    size = f'width="{round(canvas.shape[1] * factor)}" height="{round(canvas.shape[0] * factor)}"'
    style = "flex:none;image-rendering:pixelated"
    return f'<img alt="the objects" {size} style="{style}" src="data:image/png;base64,{data}">'


def bars(rows: Sequence[tuple[str, float]]) -> str:
    """Values from 0 to 1 as bars, in an element ``svg``; without those that are undefined."""
    known = [(name, value) for name, value in rows if np.isfinite(value)]
    height = 22 * len(known) + 6
    parts = []
    for k, (name, value) in enumerate(known):
        y = 22 * k + 4
        length = 150 * min(max(value, 0.0), 1.0)
        parts.append(
            f'<text x="104" y="{y + 12}" text-anchor="end" fill="currentColor">{_text(name)}</text>'
            f'<rect x="110" y="{y + 1}" width="150" height="14" fill="none" stroke="#999"/>'
            f'<rect x="110" y="{y + 1}" width="{length:.1f}" height="14" fill="#0072b2"/>'
            f'<text x="266" y="{y + 12}" fill="currentColor">{value:.3f}</text>'
        )
    return f'<svg width="310" height="{height}" font-size="12" style="flex:none" role="img">{"".join(parts)}</svg>'


def _text(text: str) -> str:
    return escape(printable(text))

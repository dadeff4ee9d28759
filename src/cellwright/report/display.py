"""Conversion of an `Image` of any type to 8-bit RGB for display."""

from __future__ import annotations

import numpy as np

from cellwright.core.image import Image
from cellwright.report.colours import RGB

_PERCENTILES = (0.1, 99.8)
# Colours of the channels of a composite, added up: blue first, since the first channel is often a nuclear stain.
_CHANNEL_COLOURS: dict[str, RGB] = {
    "blue": (0, 96, 255),
    "green": (0, 255, 96),
    "red": (255, 48, 48),
    "yellow": (255, 224, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
}


def to_display_rgb(image: Image) -> np.ndarray:
    """An image of any dtype and number of channels as uint8 RGB (H, W, 3).

    8-bit colour is not changed. Grey, 16-bit and float images are stretched from their 0.1st to their 99.8th
    percentile; constant or non-finite values are black. Alpha is dropped. A single channel is shown in grey, several
    channels other than R, G, B as a colour composite.
    """
    data, names = image.data, image.channels
    if len(names) > 1 and names[-1] == "A":
        data, names = data[:, :, :-1], names[:-1]
    if names == ("R", "G", "B"):
        if data.dtype != np.uint8:
            return np.round(255 * _stretched(data)).astype(np.uint8)
        is_grey = np.array_equal(data[..., 0], data[..., 1]) and np.array_equal(data[..., 1], data[..., 2])
        if not is_grey:
            return np.ascontiguousarray(data)
        data, names = data[:, :, :1], names[:1]
    if len(names) == 1:
        grey = np.round(255 * _stretched(data[:, :, 0])).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    canvas = np.zeros((*image.image_hw, 3), np.float32)
    for channel in range(data.shape[2]):
        colour = np.array([*_CHANNEL_COLOURS.values()][channel % len(_CHANNEL_COLOURS)], np.float32)
        canvas += _stretched(data[:, :, channel])[:, :, None] * colour
    return np.round(canvas.clip(0, 255)).astype(np.uint8)


def channel_colours(image: Image) -> list[str]:
    """The colour in which `to_display_rgb` shows each channel of a composite; empty for other images.

    >>> channel_colours(Image(np.zeros((4, 4, 2), np.uint16), ("DAPI", "GFP")))
    ['DAPI blue', 'GFP green']
    """
    names = image.channels[:-1] if image.channels[-1] == "A" else image.channels
    if len(names) < 2 or names == ("R", "G", "B"):
        return []
    colours = [*_CHANNEL_COLOURS]
    return [f"{name} {colours[k % len(colours)]}" for k, name in enumerate(names)]


def _stretched(values: np.ndarray) -> np.ndarray:
    """Values stretched to 0..1, float32 of the same shape."""
    values = values.astype(np.float32)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, _PERCENTILES) if finite.size else (0.0, 0.0)
    if not high > low:
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if not high > low:
        return np.zeros(values.shape, np.float32)
    return np.nan_to_num((values - np.float32(low)) / np.float32(high - low), nan=0.0).clip(0, 1)

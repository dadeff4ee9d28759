"""What the numbers of an image file mean: palettes, ink, inverted grey, samples, and number types."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from cellwright.core.errors import InputError
from cellwright.core.image import Image
from cellwright.core.notes import Note
from cellwright.core.text import count

# A lookup table is a smooth curve through the colours: along its 256 entries, each of red, green and blue turns round
# at most so often. Palettes that were fitted to a colour picture turn round dozens of times.
MAX_LUT_TURNS = 7


def is_lookup_table(colours: np.ndarray) -> bool:
    """Whether a palette (N, 3) uint8 is a lookup table over a grey image, rather than the colours of a picture.

    >>> ramp = np.arange(256, dtype=np.uint8)
    >>> is_lookup_table(np.stack([ramp, ramp // 2, 255 - ramp], axis=1))
    True
    >>> is_lookup_table(np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8))
    False
    """
    if len(colours) < 256:
        return False
    for channel in colours.astype(np.int16).T:
        steps = np.diff(channel)
        signs = np.sign(steps[np.abs(steps) > 2])
        if int((signs[1:] != signs[:-1]).sum()) > MAX_LUT_TURNS:
            return False
    return True


def shows_colours(colours: np.ndarray) -> bool:
    """Whether a palette (N, 3) uint8 stands for colours: it is neither grey nor a lookup table."""
    return not (colours == colours[:, :1]).all() and not is_lookup_table(colours)


def apply_palette(numbers: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, tuple[Note, ...]]:
    """Pixels of a palette image: (H, W, 3) colours, (H, W, 1) grey, or the numbers under a lookup table, with a note.

    numbers: (H, W) unsigned. colours: (N, 3) uint8.
    """
    if shows_colours(colours):
        return colours[numbers], ()
    if not is_lookup_table(colours) or (colours == colours[:, :1]).all():
        return colours[numbers][:, :, :1], ()
    text = "it is a grey image with a colour lookup table: its numbers are used, not the colours"
    return numbers[:, :, None], (Note("the colours of a lookup table were ignored", text),)


def cmyk_to_rgb(cmyk: np.ndarray) -> np.ndarray:
    """(H, W, 4) ink, 0 = no ink, as (H, W, 3) light, both unsigned of the same type; without a colour profile."""
    full = np.iinfo(cmyk.dtype).max
    light = full - cmyk.astype(np.float64)
    return np.rint(light[:, :, :3] * light[:, :, 3:4] / full).astype(cmyk.dtype)


def inverted(data: np.ndarray, bits: int) -> np.ndarray:
    """Min-is-white as min-is-black: unsigned values of ``bits`` bits, or bool, turned round."""
    return ~data if data.dtype == bool else (2**bits - 1 - data.astype(np.int64)).astype(data.dtype)


def finite_pixels(image: Image) -> Image:
    """The image without NaN and infinity, which no method can use; a note says how many pixels were replaced.

    NaN and minus infinity become the smallest finite value of the channel, infinity the largest. Raises `InputError`
    for a channel without a finite pixel.
    """
    limits, notes = finite_limits([image])
    if not limits:
        return image
    return dataclasses.replace(with_finite(image, limits), notes=(*image.notes, *notes))


def finite_limits(regions: Iterable[Image]) -> tuple[tuple[tuple[float, float], ...], tuple[Note, ...]]:
    """The smallest and largest finite value of each channel of an image, given as its parts, and a note.

    Both are empty if all pixels are finite. Raises `InputError` for a channel without a finite pixel.
    """
    lows, highs = np.array(np.inf), np.array(-np.inf)
    n_pixels, last = 0, None
    for region in regions:
        last, data = region, region.data
        if data.dtype.kind != "f":
            return (), ()
        finite = np.isfinite(data)
        n_pixels += int((~finite).any(axis=2).sum())
        lows = np.minimum(lows, data.min(axis=(0, 1), where=finite, initial=np.inf))
        highs = np.maximum(highs, data.max(axis=(0, 1), where=finite, initial=-np.inf))
    if not n_pixels or last is None:
        return (), ()
    for name, low, high in zip(last.channels, lows, highs, strict=True):
        if low > high:
            raise InputError(
                "a channel of this image has no finite pixel",
                where=last.path,
                got=f"channel {name}: NaN or infinity everywhere",
                remedy="save the image again with numbers in its pixels",
            )
    text = f"{count(n_pixels, 'pixel')} with NaN or infinity: the model saw the smallest value of the image there (the "
    text += "largest for infinity)"
    limits = tuple((float(low), float(high)) for low, high in zip(lows, highs, strict=True))
    return limits, (Note("NaN or infinity in some pixels", text, last.path or ""),)


def with_finite(image: Image, limits: Sequence[tuple[float, float]]) -> Image:
    """The image with the limits of each channel in place of NaN and infinity; itself without limits."""
    if not limits or np.isfinite(image.data).all():
        return image
    data = image.data.copy()
    for k, (low, high) in enumerate(limits):
        np.nan_to_num(data[:, :, k], copy=False, nan=low, posinf=high, neginf=low)
    return dataclasses.replace(image, data=data)

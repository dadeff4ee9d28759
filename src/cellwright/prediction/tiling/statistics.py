"""Exact statistics of all pixels of a source, block by block: the values that normalisation needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError, InputError
from cellwright.core.geometry import Window
from cellwright.core.image import Image
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.pixels import with_finite
from cellwright.data.images.source import ImageSource

# Pixels of a source that are read at once: tiles of a file are decoded once if they fit.
BLOCK_PX = 2048
_LOW_BITS = 16


class Quantiles:
    """Exact quantiles of a stream of values of one type, in one pass over integers and two over float32.

    Each pass calls `add` with the same values, then `next_pass`, which tells whether another is needed.

    >>> quantiles = Quantiles(np.dtype(np.uint8), (50.0,))
    >>> quantiles.add(np.array([1, 2, 200], np.uint8))
    >>> quantiles.next_pass(), quantiles.values()
    (False, [2.0])
    """

    def __init__(self, dtype: np.dtype, percents: Sequence[float]) -> None:
        self._dtype, self._percents = dtype, tuple(percents)
        self._high = np.zeros(1 << 16, np.int64)
        self._low: dict[int, np.ndarray] | None = None
        self._needs_low = dtype.kind == "f"

    @property
    def n(self) -> int:
        """Number of values."""
        return int(self._high.sum())

    def add(self, values: np.ndarray) -> None:
        """Count values of any shape."""
        keys = _keys(values.ravel())
        if self._low is None:
            shift = keys >> _LOW_BITS if self._needs_low else keys
            self._high += np.bincount(shift, minlength=1 << 16)
            return
        high = keys >> _LOW_BITS
        for key in self._low:
            chosen = keys[high == key] & ((1 << _LOW_BITS) - 1)
            self._low[key] += np.bincount(chosen, minlength=1 << _LOW_BITS)

    def next_pass(self) -> bool:
        """Whether the values are needed once more."""
        if not self._needs_low or self._low is not None:
            return False
        ends = np.cumsum(self._high)
        bins = {
            int(np.searchsorted(ends, rank, side="right"))
            for percent in self._percents
            for rank in self._ranks(percent)
        }
        self._low = {key: np.zeros(1 << _LOW_BITS, np.int64) for key in bins}
        return True

    def values(self) -> list[float]:
        """The quantiles, interpolated linearly as `np.percentile` does."""
        found = []
        for percent in self._percents:
            low, high = self._ranks(percent)
            a, b, share = self._at(low), self._at(high), percent / 100 * (self.n - 1) - low
            found.append(a + (b - a) * share if share < 0.5 else b - (b - a) * (1 - share))
        return found

    def highest(self) -> float:
        """The largest value; of float32 to 16 of its bits, rounded up."""
        key = int(np.flatnonzero(self._high)[-1])
        return float(_value(((key + 1) << _LOW_BITS) - 1)) if self._needs_low else float(key)

    def _ranks(self, percent: float) -> tuple[int, int]:
        position = percent / 100 * (self.n - 1)
        return int(position), min(int(position) + 1, self.n - 1)

    def _at(self, rank: int) -> float:
        ends = np.cumsum(self._high)
        key = int(np.searchsorted(ends, rank, side="right"))
        if not self._needs_low:
            return float(key)
        assert self._low is not None
        within = rank - int(ends[key] - self._high[key])
        low = int(np.searchsorted(np.cumsum(self._low[key]), within, side="right"))
        return float(_value((key << _LOW_BITS) | low))


def _keys(values: np.ndarray) -> np.ndarray:
    """Integers in the order of the values: of float32 32 bits."""
    if values.dtype.kind == "u":
        return values.astype(np.int64)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # Negative numbers are ordered backwards, below the others.
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.int64)


def _value(key: int) -> np.float32:
    bits = np.uint32(key & 0x7FFFFFFF) if key >> 31 else np.uint32(~key & 0xFFFFFFFF)
    return bits.view(np.float32)


@dataclass(frozen=True)
class FiniteSource:
    """A source in which the limits (low, high) of each channel are in place of NaN and infinity."""

    source: Any
    limits: tuple[tuple[float, float], ...]

    def __getattr__(self, name: str) -> Any:
        """Everything else is that of the source."""
        if name.startswith("__"):  # asked for while a copy is made, before there is a source
            raise AttributeError(name)
        return getattr(self.source, name)

    def read(self, y0: int, x0: int, h: int, w: int, level: int = 0) -> Image:
        """The pixels (h, w, C) of a window, all of them finite."""
        return with_finite(self.source.read(y0, x0, h, w, level), self.limits)


@dataclass(frozen=True)
class SourceValues:
    """percentiles: of each channel that was asked for. highest, pooled: largest value and percentiles of all."""

    percentiles: tuple[tuple[float, ...], ...]
    highest: float
    pooled: tuple[float, ...]


def blocks(source_hw: tuple[int, int], tile_hw: tuple[int, int], side: int = BLOCK_PX) -> Iterator[Window]:
    """Windows of about ``side`` px that cover an image, aligned to what the file stores in one piece."""
    steps = [
        min(max(side // tile * tile, min(tile, 4 * side)), whole)
        for tile, whole in zip(tile_hw, source_hw, strict=True)
    ]
    for y in range(0, source_hw[0], steps[0]):
        for x in range(0, source_hw[1], steps[1]):
            yield Window(y, x, min(y + steps[0], source_hw[0]), min(x + steps[1], source_hw[1]))


def values_of(
    source: ImageSource,
    channels: Callable[[Image], np.ndarray],
    percents: Sequence[float],
    pooled_percents: Sequence[float] = (),
    *,
    track: Track = no_progress,
) -> SourceValues:
    """Percentiles of every channel of ``channels(block)`` (H, W, C) over a source, and of all of them together.

    Values are finite. Raises `InputError` if nothing can be decoded.
    """
    of_channels: list[Quantiles] = []
    pooled: Quantiles | None = None
    again = True
    n_blocks = len(list(blocks(source.image_hw, source.tile_hw)))
    while again:
        for _, region in track(readable_blocks(source), "reading values", n_blocks):
            data = channels(region)
            if pooled is None:
                of_channels = [Quantiles(data.dtype, percents) for _ in range(data.shape[2])]
                pooled = Quantiles(data.dtype, pooled_percents)
            for c, quantiles in enumerate(of_channels):
                quantiles.add(data[:, :, c])
            if pooled_percents:
                pooled.add(data)
        if pooled is None:
            remedy = "copy or download the file again"
            raise InputError("no part of this image can be decoded", where=source.path, remedy=remedy)
        more = [quantiles.next_pass() for quantiles in (*of_channels, *([pooled] if pooled_percents else []))]
        again = any(more)
    return SourceValues(
        tuple(tuple(quantiles.values()) for quantiles in of_channels),
        max(quantiles.highest() for quantiles in of_channels),
        tuple(pooled.values()) if pooled_percents and pooled is not None else (),
    )


def readable_blocks(source: ImageSource, level: int = 0) -> Iterator[tuple[Window, Image]]:
    """The `blocks` of a level of a source and their pixels; parts that cannot be decoded are left out."""
    for block in blocks(source.levels[level].image_hw, source.tile_hw):
        try:
            yield block, read_block(source, block, level)
            continue
        except FormatError:
            height, width = source.tile_hw
        for y in range(block.y0, block.y1, height):
            for x in range(block.x0, block.x1, width):
                part = Window(y, x, min(y + height, block.y1), min(x + width, block.x1))
                with suppress(FormatError):
                    yield part, read_block(source, part, level)


def read_block(source: ImageSource, window: Window, level: int = 0) -> Image:
    """A window of a level of a source as an image."""
    return source.read(window.y0, window.x0, *window.hw, level)

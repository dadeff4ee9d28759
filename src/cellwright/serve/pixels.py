"""Rendered tiles of images: regions of any size and type as JPEG, the most recent ones kept.

Level L of an image is its full size divided by 2^L. A level that the file has is read from it; others are made from
the level before, tile by tile, so that no step needs the whole image. Decoded and rendered tiles share one budget of
memory. Reading holds no lock: threads that ask for the same tile at once may both read it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cellwright.core.errors import UsageError
from cellwright.data.images.regions import CACHE_BYTES, ImageSource

TILE = 512
THUMBNAIL = 256
BUDGET = 128 << 20
# Smaller images may be decoded by all threads at once; of larger ones, two files.
_SMALL, _WHOLE_FILES = 1 << 24, threading.BoundedSemaphore(2)
_BINS = 256
_PERCENTILES = (0.1, 99.8)
_QUALITY = 90
# The colours of several channels, as in the pictures of reports.
_COLOURS = ("#0060ff", "#00ff60", "#ff3030", "#ffe000", "#ff00ff", "#00ffff")
_RGB = {"R": "#ff0000", "G": "#00ff00", "B": "#0000ff"}


class Channel(BaseModel, frozen=True):
    """How a channel is shown: its values from ``low`` to ``high`` from black to the colour."""

    model_config = ConfigDict(extra="forbid")
    channel: int = Field(ge=0)
    colour: str = Field("#ffffff", pattern="^#[0-9a-fA-F]{6}$")
    low: float = Field(0.0, allow_inf_nan=False)
    high: float = Field(255.0, allow_inf_nan=False)
    gamma: float = Field(default=1.0, ge=0.05, le=20)
    invert: bool = False


_SHOWN = TypeAdapter(tuple[Channel, ...])


class Kept:
    """Values by key up to a number of bytes, the most recently used; safe for threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max, self._n = max_bytes, 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int] = len) -> Any:
        """The value of a key, made if it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value = make()
        n = size(value)
        with self._lock:
            before = self._values.pop(key, None)
            self._n += n - (0 if before is None else before[1])
            self._values[key] = (value, n)
            while self._n > self._max and len(self._values) > 1:
                self._n -= self._values.popitem(last=False)[1][1]
        return value


@dataclass(frozen=True)
class ChannelFacts:
    """A channel with the histogram of a small copy of the image. edges: of the first and the last bin."""

    name: str
    dtype: str
    histogram: list[int]
    edges: tuple[float, float]
    low: float
    high: float
    colour: str


class Pixels:
    """The pixels of one image; see the module.

    n_bytes: what it keeps in memory, at most. state: of the file when it was opened.
    """

    def __init__(self, source: ImageSource, kept: Kept, state: tuple[int, int] | None = None) -> None:
        self.source, self._kept, self.state = source, kept, state
        self.version = hashlib.blake2b(source.fingerprint().encode(), digest_size=8).hexdigest()
        self.n_levels = 1
        while max(self.level_hw(self.n_levels - 1)) > TILE:
            self.n_levels += 1
        self._of_file = {0: 0} | {k: n for n, k in enumerate(map(_power, source.levels)) if k is not None}
        self._facts: tuple[ChannelFacts, ...] | None = None
        self._lock = threading.Lock()
        height, width = source.image_hw
        whole = height * width * len(source.channels) * source.dtype.itemsize
        self._is_whole = source.tile_hw == source.image_hw and whole > _SMALL
        self.n_bytes = whole if self._is_whole else min(whole, CACHE_BYTES)

    def level_hw(self, level: int) -> tuple[int, int]:
        """(height, width) of a level."""
        height, width = self.source.image_hw
        return -(-height >> level), -(-width >> level)

    def tile(self, level: int, row: int, column: int, shown: Sequence[Channel] | None = None) -> bytes:
        """A tile as JPEG. Raises `UsageError` if there is none."""
        self._check(level, row, column)
        channels = tuple(self.default() if shown is None else shown)
        key = (self.version, "jpeg", level, row, column, channels)
        return self._kept.get(key, lambda: _jpeg(rendered(self.raw(level, row, column), channels)))

    def thumbnail(self) -> bytes:
        """A small picture of the whole image, as JPEG."""
        import cv2

        def make() -> bytes:
            small = rendered(self.raw(self.n_levels - 1, 0, 0), self.default())
            factor = THUMBNAIL / max(small.shape[:2])
            if factor < 1:
                size = (max(round(small.shape[1] * factor), 1), max(round(small.shape[0] * factor), 1))
                small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
            return _jpeg(small)

        return self._kept.get((self.version, "thumbnail"), make)

    def raw(self, level: int, row: int, column: int) -> np.ndarray:
        """The values (h, w, C) of a tile, in the type of the source."""
        key = (self.version, "raw", level, row, column)
        return self._kept.get(key, lambda: self._read(level, row, column), lambda pixels: pixels.nbytes)

    def facts(self) -> tuple[ChannelFacts, ...]:
        """The channels, with their contrast."""
        with self._lock:
            if self._facts is None:
                small = self.raw(self.n_levels - 1, 0, 0)
                is_plain = self._is_colour(small)
                self._facts = tuple(
                    _channel_facts(name, small[:, :, k], self._colour(k, is_plain=is_plain), is_plain=is_plain)
                    for k, name in enumerate(self.source.channels)
                    if name != "A"
                )
            return self._facts

    def default(self) -> tuple[Channel, ...]:
        """How the image is shown at first."""
        return tuple(
            Channel(channel=k, colour=facts.colour, low=facts.low, high=facts.high, gamma=1.0)
            for k, facts in enumerate(self.facts())
        )

    def _is_colour(self, small: np.ndarray) -> bool:
        """Whether the image is 8-bit colour, which is shown as it is."""
        return self.source.channels[:3] == ("R", "G", "B") and small.dtype == np.uint8

    def _colour(self, k: int, *, is_plain: bool) -> str:
        names = [name for name in self.source.channels if name != "A"]
        if len(names) == 1:
            return "#ffffff"
        if is_plain or names == ["R", "G", "B"]:
            return _RGB.get(names[k], "#ffffff")
        return _COLOURS[k % len(_COLOURS)]

    def _check(self, level: int, row: int, column: int) -> None:
        if not (0 <= level < self.n_levels and row >= 0 and column >= 0):
            expected = f"level 0 to {self.n_levels - 1}"
            raise UsageError("there is no such tile", got=f"level {level}, {row}, {column}", expected=expected)
        height, width = self.level_hw(level)
        if row * TILE >= height or column * TILE >= width:
            expected = f"inside {height} x {width} pixels of level {level}"
            raise UsageError("there is no such tile", got=f"row {row}, column {column}", expected=expected)

    def _read(self, level: int, row: int, column: int) -> np.ndarray:
        height, width = self.level_hw(level)
        y0, x0 = row * TILE, column * TILE
        h, w = min(TILE, height - y0), min(TILE, width - x0)
        if level in self._of_file:
            number = self._of_file[level]
            of_file_h, of_file_w = self.source.levels[number].image_hw
            inner = (min(h, of_file_h - y0), min(w, of_file_w - x0))
            if min(inner) > 0:
                pixels = self._decoded((y0, x0, *inner), number)
                if inner == (h, w):
                    return pixels
                return np.pad(pixels, ((0, h - inner[0]), (0, w - inner[1]), (0, 0)), mode="edge")
        return self._halved(level, row, column, (h, w))

    def _decoded(self, window: tuple[int, int, int, int], number: int) -> np.ndarray:
        """A window of a level of the file. Large files that are decoded as a whole are read few at a time."""
        if not self._is_whole:
            return self.source.read(*window, level=number).data
        with _WHOLE_FILES:
            return self.source.read(*window, level=number).data

    def _halved(self, level: int, row: int, column: int, hw: tuple[int, int]) -> np.ndarray:
        """A tile from four of the level before."""
        import cv2

        finer_h, finer_w = self.level_hw(level - 1)
        rows = []
        for i in (2 * row, 2 * row + 1):
            if i * TILE < finer_h:
                inside = [j for j in (2 * column, 2 * column + 1) if j * TILE < finer_w]
                rows.append(np.concatenate([self.raw(level - 1, i, j) for j in inside], axis=1))
        pixels = np.concatenate(rows)
        if pixels.shape[0] % 2 or pixels.shape[1] % 2:
            pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
        parts = [
            cv2.resize(np.ascontiguousarray(pixels[:, :, k]), hw[::-1], interpolation=cv2.INTER_AREA)
            for k in range(pixels.shape[2])
        ]
        return np.stack(parts, axis=2)


def _power(level: Any) -> int | None:
    """L of a level that is 2^L times smaller, if it is."""
    down = level.downsample
    power = round(float(np.log2(max(down[0], 1e-9))))
    return power if power > 0 and all(abs(d / 2**power - 1) < 0.004 for d in down) else None


@lru_cache(maxsize=64)
def parse_shown(text: str) -> tuple[Channel, ...]:
    """The channels that a request wants to see. Raises `UsageError` if it makes no sense."""
    try:
        shown = _SHOWN.validate_python(json.loads(text))
    except (ValidationError, ValueError, RecursionError) as error:
        expected = "a JSON list of channels with colour, low, high, gamma and invert"
        raise UsageError("invalid `show`", got=str(error)[:200], expected=expected) from error
    if len(shown) > 64:
        raise UsageError("invalid `show`", got=f"{len(shown)} channels", expected="at most 64")
    return shown


def rendered(raw: np.ndarray, channels: Sequence[Channel]) -> np.ndarray:
    """Values (h, w, C) as RGB (h, w, 3) uint8, or (h, w) where it is grey: the sum of the channels in their colours."""
    known = [channel for channel in channels if channel.channel < raw.shape[2]]
    if len(known) == 1 and known[0].colour.lower() == "#ffffff":
        return _shade(raw[:, :, known[0].channel], known[0])
    total = np.zeros((*raw.shape[:2], 3), np.uint16)
    for channel in known:
        shade = _shade(raw[:, :, channel.channel], channel)
        for k in range(3):
            weight = int(channel.colour[1 + 2 * k : 3 + 2 * k], 16)
            if weight:
                total[:, :, k] += shade if weight == 255 else (shade.astype(np.uint16) * weight + 127) // 255
    return np.minimum(total, 255).astype(np.uint8)


def _shade(values: np.ndarray, channel: Channel) -> np.ndarray:
    """Values as 0 to 255."""
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return _table(values.dtype.str, channel)[values]
    return _curve(np.nan_to_num(values.astype(np.float32), nan=0.0), channel)


@lru_cache(maxsize=128)
def _table(dtype: str, channel: Channel) -> np.ndarray:
    return _curve(np.arange(np.iinfo(np.dtype(dtype)).max + 1, dtype=np.float32), channel)


def _curve(values: np.ndarray, channel: Channel) -> np.ndarray:
    span = channel.high - channel.low
    with np.errstate(over="ignore", invalid="ignore"):  # of a file with values near the largest float
        share = (values - channel.low) / span if span > 0 else (values > channel.low).astype(np.float32)
    share = np.clip(np.nan_to_num(share, nan=0.0), 0, 1)
    if channel.gamma != 1:
        share = share**channel.gamma
    return np.round(255 * (1 - share if channel.invert else share)).astype(np.uint8)


def _channel_facts(name: str, values: np.ndarray, colour: str, *, is_plain: bool) -> ChannelFacts:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
    first, last = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    edges = (0.0, 255.0) if values.dtype == np.uint8 else (first, last if last > first else first + 1)
    histogram = np.histogram(finite, bins=_BINS, range=(edges[0], edges[1] + (values.dtype == np.uint8)))[0]
    low, high = (float(v) for v in np.percentile(finite, _PERCENTILES)) if finite.size else (0.0, 1.0)
    if not high > low:
        low, high = first, last if last > first else first + 1
    if is_plain:
        low, high = 0.0, 255.0
    return ChannelFacts(name, values.dtype.name, histogram.tolist(), edges, low, high, colour)


def _jpeg(picture: np.ndarray) -> bytes:
    """A picture, RGB (h, w, 3) or grey (h, w)."""
    import cv2

    ordered = np.ascontiguousarray(picture if picture.ndim == 2 else picture[:, :, ::-1])
    return cv2.imencode(".jpg", ordered, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()

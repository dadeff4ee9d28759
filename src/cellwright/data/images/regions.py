"""`ImageSource`: the facts of an image without its pixels, and regions of it on demand.

`RegionSource` is what the sources of this package share: checks, a bounded cache of decoded tiles, conversion to the
type of the source. Each kind of source decodes a window of a level (`decode`).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.core.files import unreadable
from cellwright.core.geometry import MAX_SIDE
from cellwright.core.image import Image, supported_dtype
from cellwright.core.notes import Note, with_where
from cellwright.core.public import public
from cellwright.core.text import count
from cellwright.data.images.planes import PlaneWindow

# Decoded pixels that a source keeps, so that neighbouring windows do not decode the same tiles again.
CACHE_BYTES = 64 << 20
# Strips of fewer bytes are decoded and kept several at a time.
_MIN_CELL_BYTES = 1 << 19
# Cells of so many bytes are decoded at once, where that is faster.
_BATCH_BYTES = 16 << 20
_DIGEST_BYTES = 16
_SAMPLE_BYTES = 1 << 16

Cell = tuple[int, int]
"""(row, column) of a cell."""
Box = tuple[int, int, int, int]
"""(first row, first column, end row, end column) of cells."""


@dataclass(frozen=True)
class Level:
    """One resolution of an image.

    downsample: (y, x) pixels of level 0 per pixel of this level; (1.0, 1.0) for level 0.
    """

    image_hw: tuple[int, int]
    downsample: tuple[float, float] = (1.0, 1.0)


@public
@runtime_checkable
class ImageSource(Protocol):
    """An image that is read by regions: the facts of an `Image` without its pixels.

    path: the file; None for an array. image_hw: (height, width) of level 0. channels: C names.
    dtype: of every region: uint8, uint16 or float32, decided by the type that the file stores, never by its values.
    pixel_size_um: (y, x) of level 0 in microns, or None. levels: the full size, then smaller copies.
    tile_hw: what the file stores in one piece; reads that are aligned to it are cheapest. notes: what was assumed.

    Sources can be pickled (a worker process opens the file again) and read from several threads. `open_image` makes
    them from files and arrays; any object with these attributes and methods is a source.

    >>> import cellwright as cw
    >>> source = cw.open_image(np.zeros((600, 800, 3), np.uint8), pixel_size=0.5)
    >>> isinstance(source, cw.ImageSource), source.image_hw, source.read(0, 0, 100, 200).image_hw
    (True, (600, 800), (100, 200))
    """

    @property
    def path(self) -> str | None: ...
    @property
    def image_hw(self) -> tuple[int, int]: ...
    @property
    def channels(self) -> tuple[str, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def pixel_size_um(self) -> tuple[float, float] | None: ...
    @property
    def levels(self) -> tuple[Level, ...]: ...
    @property
    def tile_hw(self) -> tuple[int, int]: ...
    @property
    def notes(self) -> tuple[Note, ...]: ...

    def read(self, y0: int, x0: int, h: int, w: int, level: int = 0) -> Image:
        """The pixels (h, w, C) of a window of a level, all channels: rows from ``y0``, columns from ``x0``."""
        ...

    def describe(self) -> str:
        """Size, channels, pixel size, levels and storage, a line each."""
        ...

    def fingerprint(self) -> str:
        """What changes when the content changes, without reading all of it."""
        ...


@dataclass(frozen=True)
class Facts:
    """What is known about an image before its pixels are read; see `ImageSource`.

    layout: how it is stored, such as "tiles of 256 x 256, JPEG".
    """

    path: str | None
    channels: tuple[str, ...]
    dtype: np.dtype
    levels: tuple[Level, ...]
    tile_hw: tuple[int, int]
    layout: str
    pixel_size_um: tuple[float, float] | None = None
    notes: tuple[Note, ...] = ()


class RegionSource:
    """An `ImageSource` whose windows are decoded by `decode`.

    cells: for each level (height, width) of the pieces that are decoded and kept together, or None if every window
    costs only its own pixels. batched: decoding several cells at once is faster than one after the other.
    """

    batched = False

    def __init__(self, facts: Facts, cells: Sequence[tuple[int, int] | None]) -> None:
        if not all(0 < side <= MAX_SIDE for side in facts.levels[0].image_hw):
            raise InputError(
                "images of this size cannot be read",
                where=facts.path,
                got=f"{_by(facts.levels[0].image_hw)} pixels",
                expected=f"1 to {MAX_SIDE} rows and columns",
            )
        self.facts = facts
        self._cells = tuple(cells)
        self._picked: tuple[int, ...] | None = None
        self._kept = _Kept(CACHE_BYTES)

    def decode(self, level: int, window: PlaneWindow) -> np.ndarray:
        """The pixels (h, w, C) of a window inside a level, in the type that the file stores."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """What changes when the content changes, without reading all of it."""
        raise NotImplementedError

    # --- facts ------------------------------------------------------------------------------------------------------

    @property
    def path(self) -> str | None:
        """The file; None for an array."""
        return self.facts.path

    @property
    def image_hw(self) -> tuple[int, int]:
        """(height, width) of level 0."""
        return self.facts.levels[0].image_hw

    @property
    def channels(self) -> tuple[str, ...]:
        """C names."""
        return self.facts.channels

    @property
    def dtype(self) -> np.dtype:
        """The type of every region."""
        return self.facts.dtype

    @property
    def pixel_size_um(self) -> tuple[float, float] | None:
        """(y, x) of level 0 in microns, or None."""
        return self.facts.pixel_size_um

    @property
    def levels(self) -> tuple[Level, ...]:
        """The full size, then smaller copies."""
        return self.facts.levels

    @property
    def tile_hw(self) -> tuple[int, int]:
        """What the file stores in one piece."""
        return self.facts.tile_hw

    @property
    def notes(self) -> tuple[Note, ...]:
        """What was assumed."""
        return self.facts.notes

    def describe(self) -> str:
        """Size, channels, pixel size, levels and storage, a line each."""
        return "\n".join(f"{name}: {value}" for name, value in describe_rows(self))

    def __repr__(self) -> str:
        height, width = self.image_hw
        text = f"{height} x {width}, {self.dtype}, {count(len(self.channels), 'channel')}"
        text += f", {count(len(self.levels), 'level')}, {self.facts.layout}"
        return f"{type(self).__name__}({text}{'' if self.path is None else f', {self.path}'})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._kept = _Kept(CACHE_BYTES)

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(self, y0: int, x0: int, h: int, w: int, level: int = 0) -> Image:
        """The pixels (h, w, C) of a window of a level, all channels: rows from ``y0``, columns from ``x0``.

        Raises `UsageError` for a window that is not inside the level, and `FormatError` that names a tile which cannot
        be decoded.
        """
        window = self._checked((y0, x0, h, w), level)
        cell = self._cells[level]
        data = self._decoded(level, window) if cell is None else self._from_cells(level, window, cell)
        data = data if self._picked is None else data[:, :, list(self._picked)]
        data, rounded = as_dtype(data, self.dtype, self.path)
        notes = (*self.notes, *with_where(rounded, self.path or ""))
        return Image(data, self.channels, self._pixel_size_of(level), self.path, notes)

    def with_channels(self, indices: Sequence[int], names: Sequence[str], notes: Sequence[Note] = ()) -> RegionSource:
        """This source with only the channels at these indices, in this order."""
        chosen = object.__new__(type(self))
        chosen.__setstate__(self.__getstate__())
        before = range(len(self.channels)) if self._picked is None else self._picked
        chosen._picked = tuple(before[k] for k in indices)
        chosen.facts = replace(self.facts, channels=tuple(names), notes=(*self.notes, *notes))
        return chosen

    def with_pixel_size(self, pixel_size_um: tuple[float, float] | None) -> RegionSource:
        """This source with another pixel size; itself for None."""
        if pixel_size_um is None:
            return self
        other = object.__new__(type(self))
        other.__setstate__(self.__getstate__())
        other.facts = replace(self.facts, pixel_size_um=pixel_size_um)
        return other

    def _pixel_size_of(self, level: int) -> tuple[float, float] | None:
        if self.pixel_size_um is None:
            return None
        (y, x), (down_y, down_x) = self.pixel_size_um, self.levels[level].downsample
        return (y * down_y, x * down_x)

    def _checked(self, window: PlaneWindow, level: int) -> PlaneWindow:
        if not 0 <= level < len(self.levels):
            expected = f"0 to {len(self.levels) - 1}" if len(self.levels) > 1 else "0: this image has one level"
            raise UsageError("no such level", where=self.path, got=f"level = {level}", expected=expected)
        y0, x0, h, w = (int(value) for value in window)
        height, width = self.levels[level].image_hw
        if y0 < 0 or x0 < 0 or h < 1 or w < 1 or y0 + h > height or x0 + w > width:
            raise UsageError(
                "this window is not inside the image",
                where=self.path,
                got=f"rows {y0} to {y0 + h}, columns {x0} to {x0 + w}",
                expected=f"rows 0 to {height}, columns 0 to {width}" + (f" of level {level}" if level else ""),
            )
        return y0, x0, h, w

    def _decoded(self, level: int, window: PlaneWindow) -> np.ndarray:
        y0, x0, h, w = window
        try:
            return self.decode(level, window)
        except (InputError, UsageError, MemoryError):
            raise
        except Exception as error:  # every codec raises its own classes
            raise FormatError(
                "a part of this image cannot be decoded",
                where=self.path,
                got=f"rows {y0} to {y0 + h - 1}, columns {x0} to {x0 + w - 1}"
                + (f" of level {level}" if level else "")
                + f": {type(error).__name__}: {error}",
                expected="complete image data",
                remedy="copy or download the file again, or remove it from the folder",
            ) from error

    # --- cells ------------------------------------------------------------------------------------------------------

    def _from_cells(self, level: int, window: PlaneWindow, cell_hw: tuple[int, int]) -> np.ndarray:
        """A window put together from cells, of which only those that are not kept are decoded."""
        y0, x0, h, w = window
        height, width = cell_hw
        pixels: np.ndarray | None = None
        missing = []
        for row in range(y0 // height, -(-(y0 + h) // height)):
            for column in range(x0 // width, -(-(x0 + w) // width)):
                cell = self._kept.get((level, row, column))
                if cell is None:
                    missing.append((row, column))
                else:
                    pixels = _pasted(cell, (row * height, column * width), window, pixels)
        most = max(_BATCH_BYTES // max(height * width * len(self.channels) * self.dtype.itemsize, 1), 1)
        for box in _rectangles(missing, most if self.batched else 1):
            for (row, column), cell in self._decoded_cells(level, box, cell_hw):
                pixels = _pasted(cell, (row * height, column * width), window, pixels)
        assert pixels is not None
        return pixels

    def _decoded_cells(self, level: int, box: Box, cell_hw: tuple[int, int]) -> Iterator[tuple[Cell, np.ndarray]]:
        """The cells of a box, decoded at once and kept."""
        (top, left, bottom, right), (height, width) = box, cell_hw
        image_h, image_w = self.levels[level].image_hw
        y0, x0 = top * height, left * width
        window = (y0, x0, min(bottom * height, image_h) - y0, min(right * width, image_w) - x0)
        cells = [(row, column) for row in range(top, bottom) for column in range(left, right)]
        try:
            pixels = self._decoded(level, window)
        except FormatError:
            if len(cells) == 1:
                raise
            for row, column in cells:  # to name the one that cannot be decoded
                yield from self._decoded_cells(level, (row, column, row + 1, column + 1), cell_hw)
            return
        for row, column in cells:
            part = pixels[(row - top) * height : (row - top + 1) * height]
            part = part[:, (column - left) * width : (column - left + 1) * width]
            part = part if len(cells) == 1 else part.copy()  # so that a part does not keep the whole
            self._kept.put((level, row, column), part)
            yield (row, column), part


def _pasted(cell: np.ndarray, place: tuple[int, int], window: PlaneWindow, pixels: np.ndarray | None) -> np.ndarray:
    """The pixels of a window, made if there are none, with those of a cell whose first pixel is at ``place``."""
    y0, x0, h, w = window
    if pixels is None:
        pixels = np.empty((h, w, cell.shape[2]), cell.dtype)
    top, left = place[0] - y0, place[1] - x0
    inside = pixels[max(top, 0) : top + cell.shape[0], max(left, 0) : left + cell.shape[1]]
    inside[:] = cell[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]]
    return pixels


class _Kept:
    """The most recently used arrays, up to a number of bytes; the last one always."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._n_bytes = max_bytes, 0
        self._arrays: OrderedDict[Any, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> np.ndarray | None:
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def put(self, key: Any, array: np.ndarray) -> None:
        with self._lock:
            before = self._arrays.pop(key, None)
            self._n_bytes += array.nbytes - (0 if before is None else before.nbytes)
            self._arrays[key] = array
            while self._n_bytes > self._max_bytes and len(self._arrays) > 1:
                self._n_bytes -= self._arrays.popitem(last=False)[1].nbytes


def _rectangles(cells: Iterable[Cell], most: int) -> list[Box]:
    """Boxes of at most so many cells that cover cells, which are sorted, each once.

    >>> cells = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)]
    >>> _rectangles(cells, 9), _rectangles(cells, 2)
    ([(0, 0, 2, 2), (2, 1, 3, 2)], [(0, 0, 1, 2), (1, 0, 2, 2), (2, 1, 3, 2)])
    """
    runs: list[Box] = []
    for row, column in cells:
        if runs and (runs[-1][0], runs[-1][3]) == (row, column) and column - runs[-1][1] < most:
            runs[-1] = (row, runs[-1][1], row + 1, column + 1)
        else:
            runs.append((row, column, row + 1, column + 1))
    boxes: dict[tuple[int, int], Box] = {}
    done = []
    for row, left, bottom, right in runs:
        above = boxes.get((left, right))
        if above is not None and above[2] == row and (bottom - above[0]) * (right - left) <= most:
            boxes[left, right] = (above[0], left, bottom, right)
        else:
            done += [] if above is None else [above]
            boxes[left, right] = (row, left, bottom, right)
    return sorted([*done, *boxes.values()])


def cell_of(tile_hw: tuple[int, int], image_hw: tuple[int, int], pixel_bytes: int) -> tuple[int, int]:
    """What is decoded and kept together: a tile or chunk, or as many strips or small tiles as make half a megabyte.

    >>> cell_of((256, 256), (9000, 8000), 3), cell_of((1, 8000), (9000, 8000), 3), cell_of((8, 90), (100, 90), 1)
    ((256, 256), (22, 8000), (104, 90))
    """
    height, width = min(tile_hw[0], image_hw[0]), min(tile_hw[1], image_hw[1])
    if width < image_hw[1]:
        return height, width
    needed = -(-_MIN_CELL_BYTES // max(height * width * pixel_bytes, 1))
    return height * min(needed, -(-image_hw[0] // height)), width


# --- facts of sources -----------------------------------------------------------------------------------------------


def describe_rows(source: ImageSource) -> list[tuple[str, str]]:
    """The facts of a source as names and values."""
    height, width = source.image_hw
    size = f"{height} x {width} px, {source.dtype}"
    rows = [("channels", f"{len(source.channels)} ({', '.join(source.channels)})")]
    if source.pixel_size_um is not None:
        y, x = source.pixel_size_um
        size += f", {height * y / 1000:.4g} x {width * x / 1000:.4g} mm"
        rows.append(("pixel size", f"{y:.6g} um" if y == x else f"{y:.6g} x {x:.6g} um (y x)"))
    else:
        rows.append(("pixel size", "unknown"))
    levels = "; ".join(_level_text(k, level) for k, level in enumerate(source.levels))
    layout = source.facts.layout if isinstance(source, RegionSource) else f"tiles of {_by(source.tile_hw)}"
    return [("size", size), *rows, ("levels", levels), ("stored as", layout)]


def _level_text(number: int, level: Level) -> str:
    y, x = level.downsample
    scale = f"{y:.4g}" if abs(y - x) < 1e-3 * y else f"{y:.4g} and {x:.4g}"
    return f"{number}: {_by(level.image_hw)}" + (f" (1/{scale})" if number else "")


def _by(hw: tuple[int, int]) -> str:
    return f"{hw[0]} x {hw[1]}"


def downsamples(sizes: Sequence[tuple[int, int]]) -> tuple[Level, ...]:
    """The levels of a pyramid whose sizes are known, from the largest.

    A level whose size is an integer fraction of the one before, rounded up or down, was made by that integer.

    >>> [level.downsample for level in downsamples([(263, 263), (131, 131), (65, 65)])]
    [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)]
    >>> downsamples([(300, 400), (200, 267)])[1].downsample
    (1.5, 1.4981273408239701)
    """
    levels = [Level(sizes[0])]
    for hw in sizes[1:]:
        before = levels[-1]
        factor = round((before.image_hw[0] / hw[0] + before.image_hw[1] / hw[1]) / 2)
        if all(abs(full / factor - part) < 1 for full, part in zip(before.image_hw, hw, strict=True)):
            down = (before.downsample[0] * factor, before.downsample[1] * factor)
        else:
            down = (sizes[0][0] / hw[0], sizes[0][1] / hw[1])
        levels.append(Level(hw, down))
    return tuple(levels)


def region_dtype(dtype: np.dtype) -> np.dtype:
    """The type of regions of an image that is stored as ``dtype``: uint8, uint16 or float32, which holds its values.

    Unlike `supported_dtype`, which takes uint16 for int16 without negative values, it does not look at values.

    >>> [region_dtype(np.dtype(name)).name for name in ("bool", "uint8", "uint16", "int16", "uint32", "float64")]
    ['uint8', 'uint8', 'uint16', 'float32', 'float32', 'float32']
    """
    if dtype.kind == "b" or dtype == np.uint8:
        return np.dtype(np.uint8)
    return np.dtype(np.uint16) if dtype == np.uint16 else np.dtype(np.float32)


def as_dtype(data: np.ndarray, dtype: np.dtype, where: str | None) -> tuple[np.ndarray, tuple[Note, ...]]:
    """Pixels in the type of their source, with the values that `supported_dtype` gives them, and its notes."""
    data, notes = supported_dtype(data, where)
    return np.ascontiguousarray(data, dtype), notes


# --- fingerprints ---------------------------------------------------------------------------------------------------


def file_fingerprint(path: Path | str, *facts: object) -> str:
    """Size, time of the last change, and a digest of the beginning, the end, a few places between, and ``facts``."""
    path = Path(path)
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=_DIGEST_BYTES)
    try:
        state = path.stat()
        with path.open("rb") as file:
            last = max(state.st_size - _SAMPLE_BYTES, 0)
            for place in sorted({last * k // 8 for k in range(9)}):
                file.seek(place)
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise unreadable(path, error, "image") from error
    return f"{state.st_size}:{state.st_mtime_ns}:{digest.hexdigest()}"


def state_of(path: Path | str) -> tuple[int, int]:
    """(size, time of the last change) of a file, by which a change while it is read is noticed."""
    try:
        state = Path(path).stat()
    except OSError as error:
        raise unreadable(path, error, "image") from error
    return state.st_size, state.st_mtime_ns


def check_unchanged(path: str, before: tuple[int, int]) -> None:
    """Raise `InputError` if a file is not as it was when it was opened."""
    if state_of(path) != before:
        raise InputError(
            "this image changed since it was opened",
            where=path,
            got=f"{state_of(path)[0]} bytes, written at another time",
            expected=f"{before[0]} bytes, unchanged",
            remedy="open it again",
        )

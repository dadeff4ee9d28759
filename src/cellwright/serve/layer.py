"""The label pixels of an image in chunks, and the table of its objects: memory does not grow with the image.

Chunks are kept compressed (about a hundredth of their pixels), and the most recently used ones also as arrays. Smaller
levels, for a view of the whole image, take every second pixel of the level before, and follow edits.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import imagecodecs
import numpy as np

from cellwright.core.geometry import Window

CHUNK = 512
_OPEN_BYTES = 64 << 20
_TYPE = np.dtype("<u4")


class Box(Window):
    """A window with what edits need; it is false if it is empty."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return self.y1 > self.y0 and self.x1 > self.x0

    def clipped(self, image_hw: tuple[int, int]) -> Box:
        """The part inside an image; empty if there is none."""
        y0, x0 = max(self.y0, 0), max(self.x0, 0)
        return Box(y0, x0, max(min(self.y1, image_hw[0]), y0), max(min(self.x1, image_hw[1]), x0))

    def grown(self, px: int) -> Box:
        return Box(self.y0 - px, self.x0 - px, self.y1 + px, self.x1 + px)

    def united(self, other: Box) -> Box:
        if not self or not other:
            return self or other
        low = min(self.y0, other.y0), min(self.x0, other.x0)
        return Box(*low, max(self.y1, other.y1), max(self.x1, other.x1))

    def meets(self, other: Box) -> bool:
        return self.y0 < other.y1 and other.y0 < self.y1 and self.x0 < other.x1 and other.x0 < self.x1

    def within(self, outer: Box) -> tuple[slice, slice]:
        """Where this box lies in an array of ``outer``."""
        rows = slice(self.y0 - outer.y0, self.y1 - outer.y0)
        return rows, slice(self.x0 - outer.x0, self.x1 - outer.x0)


class Chunks:
    """The label pixels, uint32. Not safe for threads: the owner locks.

    base: the pixels of a chunk of the full size that was not changed, by row and column; None for background.
    """

    def __init__(self, image_hw: tuple[int, int], base: Callable[[int, int], np.ndarray] | None = None) -> None:
        self.image_hw = image_hw
        self.n_levels = 1
        while max(self.level_hw(self.n_levels - 1)) > CHUNK:
            self.n_levels += 1
        self._base = base
        self._packed: dict[tuple[int, int, int], bytes] = {}
        self._open: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._unsaved: set[tuple[int, int, int]] = set()
        self._open_bytes = 0

    def level_hw(self, level: int) -> tuple[int, int]:
        """(height, width) of a level: halves, rounded up."""
        return -(-self.image_hw[0] >> level), -(-self.image_hw[1] >> level)

    def box_of(self, row: int, column: int, level: int = 0) -> Box:
        """The pixels of a chunk."""
        return Box(row * CHUNK, column * CHUNK, (row + 1) * CHUNK, (column + 1) * CHUNK).clipped(self.level_hw(level))

    def chunks_of(self, box: Box) -> Iterator[tuple[int, int]]:
        """The chunks that a box meets."""
        for row in range(box.y0 // CHUNK, -(-box.y1 // CHUNK)):
            for column in range(box.x0 // CHUNK, -(-box.x1 // CHUNK)):
                yield row, column

    def chunk(self, row: int, column: int, level: int = 0) -> np.ndarray:
        """The pixels of a chunk; do not change them."""
        return self._array((level, row, column))

    def packed_chunk(self, row: int, column: int, level: int = 0) -> bytes:
        """The pixels of a chunk as `packed` makes them."""
        key = (level, row, column)
        if key not in self._packed or key in self._unsaved:
            if level == 0 and self.is_blank(row, column):
                return packed(np.zeros(self.box_of(row, column).hw, np.uint32))
            self._packed[key] = packed(self._array(key))
            self._unsaved.discard(key)
        return self._packed[key]

    def prepare(self, row: int, column: int, level: int) -> Iterator[None]:
        """Make what a chunk of a smaller level is made of, one chunk at a time: between them, the owner can unlock."""
        for finer in range(1, level):
            step = level - finer
            height, width = self.level_hw(finer)
            for i in range(row << step, min((row + 1) << step, -(-height // CHUNK))):
                for j in range(column << step, min((column + 1) << step, -(-width // CHUNK))):
                    if (finer, i, j) not in self._open and (finer, i, j) not in self._packed:
                        self._array((finer, i, j))
                        yield

    def read(self, box: Box) -> np.ndarray:
        """A copy of the pixels of a box inside the image."""
        pixels = np.empty(box.hw, np.uint32)
        for row, column in self.chunks_of(box):
            of_chunk = self.box_of(row, column)
            part = Box(max(box.y0, of_chunk.y0), max(box.x0, of_chunk.x0), *of_chunk[2:]).clipped((box.y1, box.x1))
            pixels[part.within(box)] = self.chunk(row, column)[part.within(of_chunk)]
        return pixels

    def xor(self, box: Box, delta: np.ndarray) -> None:
        """Change the pixels of a box: each becomes itself XOR ``delta``."""
        for row, column in self.chunks_of(box):
            of_chunk = self.box_of(row, column)
            part = Box(max(box.y0, of_chunk.y0), max(box.x0, of_chunk.x0), *of_chunk[2:]).clipped((box.y1, box.x1))
            key = (0, row, column)
            pixels = self._array(key)
            pixels[part.within(of_chunk)] ^= delta[part.within(box)]
            self._unsaved.add(key)
            self._update_levels(row, column, part)

    def put_packed(self, row: int, column: int, packed: bytes) -> bool:
        """Take the pixels of a chunk as `packed` made them, if it is background; else False."""
        key = (0, row, column)
        if key in self._packed or key in self._open or self._base is not None:
            return False
        self._packed[key] = packed
        for level in range(1, self.n_levels):
            self._forget((level, row >> level, column >> level))
        return True

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """All chunks of the full size, row by row."""
        return self.chunks_of(Box(0, 0, *self.image_hw))

    def is_blank(self, row: int, column: int) -> bool:
        """Whether a chunk is known to be background without looking at its pixels."""
        key = (0, row, column)
        return self._base is None and key not in self._packed and key not in self._open

    def snapshot(self) -> Snapshot:
        """The pixels as they are now, for threads that do not lock; quick, for most of it is not copied."""
        parts: dict[tuple[int, int], bytes | np.ndarray] = {
            key[1:]: data for key, data in self._packed.items() if key[0] == 0 and key not in self._unsaved
        }
        parts |= {key[1:]: self._open[key].copy() for key in self._unsaved if key[0] == 0}
        return Snapshot(self.image_hw, parts, self._base)

    def _array(self, key: tuple[int, int, int]) -> np.ndarray:
        pixels = self._open.get(key)
        if pixels is not None:
            self._open.move_to_end(key)
            return pixels
        level, row, column = key
        box = self.box_of(row, column, level)
        if key in self._packed:
            pixels = unpacked(self._packed[key], box.hw)
        elif level:
            pixels = self._smaller(key, box)
            self._unsaved.add(key)
        elif self._base is not None:
            pixels = np.ascontiguousarray(self._base(row, column), np.uint32).copy()
        else:
            pixels = np.zeros(box.hw, np.uint32)
        self._open[key] = pixels
        self._open_bytes += pixels.nbytes
        while self._open_bytes > _OPEN_BYTES and len(self._open) > 8:
            old, array = self._open.popitem(last=False)
            self._open_bytes -= array.nbytes
            if old in self._unsaved:
                self._unsaved.discard(old)
                self._packed[old] = packed(array)
        return pixels

    def _smaller(self, key: tuple[int, int, int], box: Box) -> np.ndarray:
        level, row, column = key
        pixels = np.zeros(box.hw, np.uint32)
        finer_h, finer_w = self.level_hw(level - 1)
        for i in (2 * row, 2 * row + 1):
            for j in (2 * column, 2 * column + 1):
                if i * CHUNK < finer_h and j * CHUNK < finer_w:
                    if level == 1 and self.is_blank(i, j):
                        continue
                    half = self._array((level - 1, i, j))[::2, ::2]
                    top, left = (i - 2 * row) * CHUNK // 2, (j - 2 * column) * CHUNK // 2
                    pixels[top : top + half.shape[0], left : left + half.shape[1]] = half
        return pixels

    def _update_levels(self, row: int, column: int, part: Box) -> None:
        """Bring the smaller levels that are known up to date with a part of a chunk."""
        source, of_source = self._open[0, row, column], self.box_of(row, column)
        for level in range(1, self.n_levels):
            key = (level, row >> level, column >> level)
            if key not in self._open and key not in self._packed:
                return  # then no coarser one is known, or it is made from this one again
            step = 1 << level
            small = Box(-(-part.y0 >> level), -(-part.x0 >> level), -(-part.y1 >> level), -(-part.x1 >> level))
            if not small:
                return
            values = source[small.y0 * step - of_source.y0 :: step, small.x0 * step - of_source.x0 :: step]
            pixels = self._array(key)
            pixels[small.within(self.box_of(*key[1:], level))] = values[: small.hw[0], : small.hw[1]]
            self._unsaved.add(key)

    def _forget(self, key: tuple[int, int, int]) -> None:
        self._packed.pop(key, None)
        self._unsaved.discard(key)
        if (array := self._open.pop(key, None)) is not None:
            self._open_bytes -= array.nbytes


class Snapshot:
    """Label pixels that do not change any more; see `Chunks.snapshot`."""

    def __init__(
        self,
        image_hw: tuple[int, int],
        parts: Mapping[tuple[int, int], bytes | np.ndarray],
        base: Callable[[int, int], np.ndarray] | None,
    ) -> None:
        self.image_hw, self._parts, self._base = image_hw, parts, base
        self._grid = Chunks(image_hw)

    def __iter__(self) -> Iterator[tuple[Box, np.ndarray | None]]:
        """Each chunk, row by row: its box, and its pixels, or None for background."""
        for row, column in self._grid:
            box = self._grid.box_of(row, column)
            part = self._parts.get((row, column))
            if isinstance(part, bytes):
                yield box, unpacked(part, box.hw)
            elif part is not None or self._base is None:
                yield box, part
            else:
                yield box, np.ascontiguousarray(self._base(row, column), np.uint32)

    def packed(self, hidden: np.ndarray) -> Iterator[bytes]:
        """Each chunk as `packed` makes it, padded to its full size with background; without some objects."""
        blank = packed(np.zeros((CHUNK, CHUNK), np.uint32))
        for row, column in self._grid:
            box, part = self._grid.box_of(row, column), self._parts.get((row, column))
            if isinstance(part, bytes) and box.hw == (CHUNK, CHUNK) and not hidden.size:
                yield part
                continue
            if isinstance(part, bytes):
                part = unpacked(part, box.hw)
            elif part is None and self._base is not None:
                part = self._base(row, column)
            if part is None:
                yield blank
                continue
            tile = np.zeros((CHUNK, CHUNK), np.uint32)
            tile[: box.hw[0], : box.hw[1]] = part
            if hidden.size:
                tile[np.isin(tile, hidden)] = 0
            yield packed(tile)


def packed(pixels: np.ndarray) -> bytes:
    """Label pixels as bytes in the format of zlib; labels have long runs, so fast compression is enough."""
    data = np.ascontiguousarray(pixels, _TYPE).tobytes()
    return bytes(imagecodecs.zlibng_encode(data, level=2)) if imagecodecs.ZLIBNG.available else zlib.compress(data, 1)


def unpacked(data: bytes, hw: tuple[int, int]) -> np.ndarray:
    """Label pixels (h, w) uint32. Raises `ValueError` if there are more or fewer."""
    n_bytes = hw[0] * hw[1] * _TYPE.itemsize
    if imagecodecs.DEFLATE.available and n_bytes:
        try:
            raw = imagecodecs.deflate_decode(data, out=n_bytes)
        except imagecodecs.DeflateError as error:
            raise ValueError(f"damaged pixels ({error})") from error
    else:
        raw = zlib.decompressobj().decompress(data, n_bytes + 1)
    return np.frombuffer(raw, _TYPE).reshape(hw).astype(np.uint32)


class Row(NamedTuple):
    """An object: its box, area, score (None: drawn by hand), class, and whether it was drawn or changed by hand."""

    id: int
    y0: int
    x0: int
    y1: int
    x1: int
    area: int
    score: float | None
    class_id: int
    manual: bool

    @property
    def box(self) -> Box:
        return Box(self.y0, self.x0, self.y1, self.x1)


_COLUMNS: dict[str, Any] = {
    "id": np.int64,
    "y0": np.int32,
    "x0": np.int32,
    "y1": np.int32,
    "x1": np.int32,
    "area": np.int64,
    "score": np.float32,
    "class_id": np.int32,
    "manual": bool,
}


class Table:
    """The objects of an image by id: columns that do not change, and rows that take their place.

    columns: arrays (N,) by the names of `Row`; score is NaN where there is none.
    """

    def __init__(self, columns: dict[str, np.ndarray] | None = None) -> None:
        given = columns or {}
        arrays = {name: np.asarray(given.get(name, []), dtype) for name, dtype in _COLUMNS.items()}
        order = np.argsort(arrays["id"], kind="stable")
        self._columns = {name: values[order] for name, values in arrays.items()}
        self._changed: dict[int, Row | None] = {}
        self._n = len(order)
        self.next_id = int(self._columns["id"].max(initial=0)) + 1

    def __len__(self) -> int:
        return self._n

    def get(self, number: int) -> Row | None:
        """The object with this id."""
        if number in self._changed:
            return self._changed[number]
        place = self._place(number)
        return None if place is None else self._row(place)

    def put(self, number: int, row: Row | None) -> None:
        """Set the object with this id; None removes it."""
        self._n += (row is not None) - (self.get(number) is not None)
        self._changed[number] = row
        self.next_id = max(self.next_id, number + 1)
        if len(self._changed) > 2000 + self._n // 4:
            self._fold()

    def columns(self) -> dict[str, np.ndarray]:
        """All objects, sorted by id."""
        if self._changed:
            self._fold()
        return self._columns

    def meeting(self, box: Box) -> list[int]:
        """The ids of objects whose boxes meet a box."""
        c = self._columns
        meets = (c["y0"] < box.y1) & (box.y0 < c["y1"]) & (c["x0"] < box.x1) & (box.x0 < c["x1"])
        ids = [k for k in c["id"][meets].tolist() if k not in self._changed]
        return ids + [k for k, row in self._changed.items() if row is not None and row.box.meets(box)]

    def hidden(self, min_score: float, min_area: int) -> set[int]:
        """The ids of predicted objects with a lower score or a smaller area."""
        c = self._columns
        low = ~c["manual"] & ((c["score"] < min_score) | (c["area"] < min_area))
        ids = {k for k in c["id"][low].tolist() if k not in self._changed}
        changed = [row for row in self._changed.values() if row is not None]
        return ids | {row.id for row in changed if is_hidden(row, min_score, min_area)}

    def rows(self, ids: Iterable[int]) -> list[Row]:
        """The rows of those ids that exist."""
        return [row for row in map(self.get, ids) if row is not None]

    def all_rows(self) -> list[Row]:
        """The rows of all objects, by id."""
        values: list[Any] = [self.columns()[name].tolist() for name in _COLUMNS]
        values[6] = [None if score != score else score for score in values[6]]  # NaN  # noqa: PLR0124
        return [Row(*row) for row in zip(*values, strict=True)]

    def _place(self, number: int) -> int | None:
        ids = self._columns["id"]
        place = int(np.searchsorted(ids, number))
        return place if place < len(ids) and ids[place] == number else None

    def _row(self, place: int) -> Row:
        values: Any = [self._columns[name][place].item() for name in _COLUMNS]
        values[6] = None if np.isnan(values[6]) else values[6]
        return Row(*values)

    def _fold(self) -> None:
        """Take the changed rows into the columns."""
        gone = np.fromiter(self._changed, np.int64, len(self._changed))
        stays = ~np.isin(self._columns["id"], gone)
        rows = [row for row in self._changed.values() if row is not None]
        self._changed = {}
        self._columns = _merged({name: values[stays] for name, values in self._columns.items()}, rows)


def _merged(columns: dict[str, np.ndarray], rows: list[Row]) -> dict[str, np.ndarray]:
    more = columns_of(rows)
    joined = {name: np.concatenate([columns[name], more[name]]) for name in _COLUMNS}
    order = np.argsort(joined["id"], kind="stable")
    return {name: values[order] for name, values in joined.items()}


def columns_of(rows: list[Row]) -> dict[str, np.ndarray]:
    """The columns of some rows."""
    table: dict[str, np.ndarray] = {}
    for k, (name, dtype) in enumerate(_COLUMNS.items()):
        values: list[Any] = [row[k] for row in rows]
        table[name] = np.array([np.nan if value is None else value for value in values], dtype)
    return table


def is_hidden(row: Row, min_score: float, min_area: int) -> bool:
    """Whether a predicted object is left out by the limits."""
    below = row.score is not None and row.score < float(np.float32(min_score))
    return not row.manual and (below or row.area < min_area)

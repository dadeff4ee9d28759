"""One plane of an image as a file stores it: read whole, or only the strips or tiles that a window needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, Protocol

import numpy as np
import tifffile

from cellwright.core.errors import FormatError
from cellwright.core.files import unreadable
from cellwright.core.memory import check_memory

PAGE_AXES = ("YX", "YXS", "SYX")
# Compression tags of JPEG, whose decoders need the tables of the page.
_JPEG, _WITH_TABLES = 7, frozenset({6, 7, 34892, 33007})
_REMEDY = "copy or download the file again, or remove it from the folder"

PlaneWindow = tuple[int, int, int, int]
"""(y0, x0, height, width) of a part of a plane."""


class StoredPlane(Protocol):
    """The pixels of one plane as stored.

    tile_hw: what the file stores in one piece; None if every window costs only its own pixels.
    """

    @property
    def tile_hw(self) -> tuple[int, int] | None: ...

    def whole(self) -> np.ndarray:
        """All pixels (H, W, samples). The file that the plane comes from must be open."""
        ...

    def window(self, window: PlaneWindow) -> np.ndarray:
        """The pixels (h, w, samples) of a window inside the plane. The file need not be open."""
        ...


@dataclass(frozen=True)
class DecodedPlane:
    """A plane that can only be decoded whole."""

    decode: Callable[[], np.ndarray]

    @property
    def tile_hw(self) -> tuple[int, int] | None:
        """Never asked for: who reads windows keeps the whole image."""
        return None

    def whole(self) -> np.ndarray:
        """All pixels (H, W, samples)."""
        return self.decode()

    def window(self, window: PlaneWindow) -> np.ndarray:
        """A window of the decoded plane."""
        y0, x0, h, w = window
        return self.decode()[y0 : y0 + h, x0 : x0 + w]


@dataclass(frozen=True)
class MappedPlane:
    """A plane whose uncompressed values follow each other in the file.

    shape: of the array at ``offset``; index: where the plane is in it, with slices along ``axes`` (Y, X and maybe S).
    """

    path: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    index: tuple[int | slice, ...]
    axes: str

    @property
    def tile_hw(self) -> tuple[int, int] | None:
        """Every window costs only its own pixels."""
        return None

    def whole(self) -> np.ndarray:
        """All pixels (H, W, samples)."""
        return self._pixels(slice(None), slice(None))

    def window(self, window: PlaneWindow) -> np.ndarray:
        """The pixels of a window."""
        y0, x0, h, w = window
        return self._pixels(slice(y0, y0 + h), slice(x0, x0 + w))

    def _pixels(self, rows: slice, columns: slice) -> np.ndarray:
        at = iter(self.axes)
        chosen = {"Y": rows, "X": columns, "S": slice(None)}
        index = tuple(chosen[next(at)] if isinstance(part, slice) else part for part in self.index)
        # Mapped for this window only: pages of a mapping that stays count as memory of the process.
        pixels = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)[index]
        pixels = pixels.transpose([self.axes.index(axis) for axis in "YXS" if axis in self.axes])
        return np.array(pixels if "S" in self.axes else pixels[:, :, None], self.dtype.newbyteorder("="))


class PagePlane:
    """A page of a TIFF file."""

    def __init__(self, tif: tifffile.TiffFile, page: Any) -> None:
        self._tif, self.page = tif, page
        self._path = str(tif.filehandle.path)

    def whole(self) -> np.ndarray:
        """All pixels (H, W, samples). Raises `FormatError` if the page is truncated or not an image."""
        check_stored(self._tif, self.page)
        self._check_axes()
        pixels = self.page.asarray()
        axes = self.page.axes
        return pixels[:, :, None] if axes == "YX" else np.moveaxis(pixels, 0, 2) if axes == "SYX" else pixels

    def prepare(self) -> None:
        """Check the page, and read from the open file what `window` needs."""
        check_ends(self._tif, self.page)
        self._check_axes()
        height, width = self._tile_hw
        n_bytes = height * width * self._key.samplesperpixel * np.dtype(self._key.dtype).itemsize
        if self._mapped is None:
            check_memory(2 * n_bytes, "a strip or tile of this image", where=self._path)
        _ = self._decode, self.page.jpegtables, self._key.jpegheader

    @property
    def tile_hw(self) -> tuple[int, int] | None:
        """(height, width) of a strip or tile; None if the page is stored uncompressed in one piece."""
        return None if self._mapped is not None else self._tile_hw

    @property
    def layout(self) -> str:
        """``"tiles of 256 x 256, JPEG"``, ``"strips of 8 rows, LZW"`` or ``"rows, uncompressed"``."""
        codec = getattr(self._key.compression, "name", str(self._key.compression))
        codec = "uncompressed" if codec == "NONE" else codec.replace("_", " ")
        if self._mapped is not None:
            return "rows, uncompressed"
        height, width = self._tile_hw
        if self._key.is_tiled:
            return f"tiles of {height} x {width}, {codec}"
        rows = "one strip" if height >= self._key.imagelength else f"strips of {height} rows"
        return f"{rows}, {codec}"

    def window(self, window: PlaneWindow) -> np.ndarray:
        """The pixels of a window, from the strips or tiles that it needs.

        Raises `FormatError` that names a strip or tile which cannot be decoded.
        """
        if self._mapped is not None:
            return self._mapped.window(window)
        y0, x0, h, w = window
        key, n_planar = self._key, self._key.shaped[0]
        (tile_height, tile_width), (n_rows, n_columns) = self._tile_hw, self._grid
        numbers = [
            (sample * n_rows + row) * n_columns + column
            for sample in range(n_planar)
            for row in range(y0 // tile_height, -(-(y0 + h) // tile_height))
            for column in range(x0 // tile_width, -(-(x0 + w) // tile_width))
        ]
        segments = self._decoded(numbers)
        if len(segments) == 1 and segments[0] is not None and (y0 % tile_height, x0 % tile_width) == (0, 0):
            return segments[0][:h, :w].astype(key.dtype, copy=False)  # most often a whole tile
        pixels = np.empty((h, w, key.samplesperpixel), key.dtype)
        for number, segment in zip(numbers, segments, strict=True):
            sample, place = divmod(number, n_rows * n_columns)
            top, left = place // n_columns * tile_height - y0, place % n_columns * tile_width - x0
            inside = pixels[max(top, 0) : top + tile_height, max(left, 0) : left + tile_width]
            inside = inside if n_planar == 1 else inside[:, :, sample : sample + 1]
            if segment is None:
                inside[:] = key.nodata
                continue
            inside[:] = segment[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]]
        return pixels

    # --- segments ---------------------------------------------------------------------------------------------------

    @property
    def _key(self) -> tifffile.TiffPage:
        return self.page.keyframe

    @cached_property
    def _decode(self) -> Callable[..., Any]:
        return self._key.decode

    @cached_property
    def _mapped(self) -> MappedPlane | None:
        key = self._key
        if not key.is_final or key.dtype is None or key.imagedepth != 1:
            return None
        dtype = np.dtype(key.dtype).newbyteorder(self._tif.byteorder)
        n_planar, _, height, width, samples = key.shaped
        shape, offset = (n_planar, height, width, samples), int(self.page.dataoffsets[0])
        every = slice(None)
        if n_planar > 1:
            return MappedPlane(self._path, dtype, offset, shape, (every, every, every, 0), "SYX")
        return MappedPlane(self._path, dtype, offset, shape, (0, every, every, every), "YXS")

    @property
    def _tile_hw(self) -> tuple[int, int]:
        key = self._key
        if key.is_tiled:
            return key.tilelength, key.tilewidth
        return min(key.rowsperstrip, key.imagelength), key.imagewidth

    @property
    def _grid(self) -> tuple[int, int]:
        (height, width), key = self._tile_hw, self._key
        return -(-key.imagelength // height), -(-key.imagewidth // width)

    def _decoded(self, numbers: list[int]) -> list[np.ndarray | None]:
        """The pixels (h, w, samples) of strips or tiles, None where they are not stored."""
        try:
            with open(self._path, "rb") as file:  # noqa: PTH123 - also what tifffile opens
                stored = [self._bytes_of(number, file) for number in numbers]
        except OSError as error:
            raise unreadable(self._path, error, "image") from error
        return [self._segment(number, data) for number, data in zip(numbers, stored, strict=True)]

    def _bytes_of(self, number: int, file: BinaryIO) -> bytes | None:
        start, size = int(self.page.dataoffsets[number]), int(self.page.databytecounts[number])
        if not start or not size:
            return None
        file.seek(start)
        return file.read(size)

    def _segment(self, number: int, stored: bytes | None) -> np.ndarray | None:
        if stored is None:
            return None
        tables = {}
        if int(self._key.compression) in _WITH_TABLES:
            tables = {"jpegtables": self.page.jpegtables, "jpegheader": self._key.jpegheader}
        try:
            if len(stored) < int(self.page.databytecounts[number]):
                raise ValueError("the file ends before it")
            if int(self._key.compression) == _JPEG and not _has_jpeg_end(stored[-64:]):
                raise ValueError("JPEG data without its end")
            segment, _, _ = self._decode(stored, number, **tables)
        except MemoryError:
            raise
        except Exception as error:  # tifffile and its codecs raise many types for damaged data
            raise self._undecodable(number, error) from error
        return segment[0]

    def _undecodable(self, number: int, error: Exception) -> FormatError:
        (height, width), (n_rows, n_columns) = self._tile_hw, self._grid
        place = number % (n_rows * n_columns)
        y0, x0 = place // n_columns * height, place % n_columns * width
        y1, x1 = min(y0 + height, self._key.imagelength), min(x0 + width, self._key.imagewidth)
        kind = "tile" if self._key.is_tiled else "strip"
        return FormatError(
            f"a {kind} of this image cannot be decoded",
            where=self._path,
            got=f"{kind} {number} (rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1} of "
            f"{self._key.imagelength} x {self._key.imagewidth}): {type(error).__name__}: {error}",
            expected="complete image data",
            remedy=_REMEDY,
        )

    def _check_axes(self) -> None:
        if self.page.axes not in PAGE_AXES:
            raise FormatError(
                "a page of this TIFF is not an image",
                where=self._path,
                got=f"axes {self.page.axes}",
                expected="Y, X and samples",
            )


def check_stored(tif: tifffile.TiffFile, page: Any) -> None:
    """Raise `FormatError` if strips or tiles of a page lie beyond the end of the file or are cut short.

    JPEG decoders fill what is missing with grey, so the end of each JPEG strip is looked for.
    """
    check_ends(tif, page)
    if page.compression != _JPEG:
        return
    file = tif.filehandle
    for number, (start, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        file.seek(int(start) + max(int(size) - 64, 0))
        if size and not _has_jpeg_end(file.read(min(int(size), 64))):
            raise FormatError(
                "this image is truncated",
                where=file.path,
                got=f"JPEG strip or tile {number} without its end",
                expected="a complete file",
                remedy=_REMEDY,
            )


def check_ends(tif: tifffile.TiffFile, page: Any) -> None:
    """Raise `FormatError` if strips or tiles of a page lie beyond the end of the file, or are too few."""
    segments = [(int(start), int(size)) for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
    end = max((start + size for start, size in segments), default=0)
    if end > tif.filehandle.size or not any(size for _, size in segments):
        raise truncated(tif, max(end, tif.filehandle.size + 1))
    needed = math.prod(page.keyframe.chunked)
    if not page.keyframe.is_final and len(segments) < needed:
        got = f"{len(segments)} strips or tiles"
        where = tif.filehandle.path
        raise FormatError("this image is truncated", where=where, got=got, expected=f"{needed}", remedy=_REMEDY)


def truncated(tif: tifffile.TiffFile, end: int) -> FormatError:
    """The error for a file that ends before ``end``."""
    return FormatError(
        "this image is truncated",
        where=tif.filehandle.path,
        got=f"{tif.filehandle.size} bytes",
        expected=f"at least {end} bytes",
        remedy=_REMEDY,
    )


def _has_jpeg_end(last: bytes) -> bool:
    return last.rstrip(b"\0\xff").endswith(b"\xff\xd9")

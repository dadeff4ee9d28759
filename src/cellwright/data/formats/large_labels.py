"""Label images of any size, as objects: read part by part, so that memory follows the objects and not the image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import CellwrightError, FormatError, InputError, UsageError
from cellwright.core.files import unreadable
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat, join_extents, label_extents
from cellwright.core.memory import available_bytes
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.planes import check_stored
from cellwright.data.images.tiff import open_tiff

LARGE_PX = 40_000_000
# TIFF is read in bands of so many rows, or pieces of so many bytes where it is not compressed.
_BAND_PX, _READ_BYTES = 512, 1 << 24
# Zarr is read in parts of this size, many chunks at once.
_PART_HW = (2048, 8192)
# With so much memory, no part of a label image that is as it should be lacks any.
_MUCH_MEMORY = 1 << 31
_AGAIN = "save it again, in the program that wrote it"
Part = tuple[int, int, np.ndarray]
"""y0, x0 and the labels (h, w) there."""


@dataclass(frozen=True)
class LargeLabels:
    """A label TIFF or an OME-Zarr label image of any size; a `Sample.load` for the objects in it."""

    path: Path
    image_hw: tuple[int, int]

    def __call__(self) -> Instances:
        """The objects, one for each label."""
        masks, ids = read_large_labels(self.path, self.image_hw)
        return Instances.from_masks(masks, ids=ids)

    def bands(self, height: int) -> Iterator[np.ndarray]:
        """The labels in bands (height, W) from the top, the last one as high as what is left; each is read once.

        Raises `FormatError` if the file is damaged or is not a label image of this size.
        """
        for _, _, band in _checked(self.path, _bands(self.path, self.image_hw, height)):
            yield band

    def count(self, track: Track = no_progress) -> int:
        """The number of objects."""
        bands = track(self.bands(_BAND_PX), f"reading {self.path.name}")
        return len(join_extents([label_extents(band) for band in bands])[0])


def read_large_labels(path: Path, image_hw: tuple[int, int], track: Track = no_progress) -> tuple[MaskSet, np.ndarray]:
    """The masks of a label TIFF or of an OME-Zarr label image, and their labels (N,) int64, ascending.

    Raises `FormatError` if the file is damaged or is not a label image of the size ``image_hw``.
    """
    parts, labels = [MaskSet.empty(image_hw)], [np.zeros(0, np.int64)]
    blocks = _zarr_parts(path, image_hw) if path.is_dir() else _bands(path, image_hw, _BAND_PX)
    for y0, x0, block in track(_checked(path, blocks), f"reading {path.name}"):
        masks, values = MaskSet.from_label_map(block)
        parts.append(masks.shift(y0, x0, image_hw))
        labels.append(values)
    together = np.concatenate(labels)
    return concat(parts).union(together), np.unique(together)


def _checked(path: Path, parts: Iterator[Part]) -> Iterator[Part]:
    """The parts; what readers raise becomes an error of ours."""
    try:
        yield from parts
    except CellwrightError:
        raise
    except OSError as error:
        raise unreadable(path, error, "label image") from error
    except MemoryError as error:
        if available_bytes() < _MUCH_MEMORY:
            raise
        raise _damaged(path, error) from error  # a part claims to be larger than any is
    except Exception as error:  # on damaged files, decoders raise whatever their codecs raise
        raise _damaged(path, error) from error


def large_label_hw(path: Path) -> tuple[int, int] | None:
    """(H, W) of a TIFF of one page of integers that is larger than what is read at once; None for any other file."""
    if not path.name.lower().endswith((".tif", ".tiff")):
        return None
    try:
        with open_tiff(path) as tif:
            page: Any = tif.pages.first
            is_large = page.dtype is not None and page.dtype.kind == "u" and len(page.shape) == 2
            is_large = is_large and math.prod(page.shape) > LARGE_PX and len(tif.pages) == 1
            return (int(page.shape[0]), int(page.shape[1])) if is_large else None
    except CellwrightError:
        raise
    except Exception as error:  # on damaged files, decoders raise whatever their codecs raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> FormatError:
    got = f"{type(error).__name__}: {error}"[:200]
    return FormatError("this label image is damaged", where=path, got=got, remedy=_AGAIN)


def read_centre(path: Path, image_hw: tuple[int, int], side_px: int) -> np.ndarray:
    """The labels in the middle of a large label TIFF, at most ``side_px`` high and wide."""
    (top, left), (height, width) = (max(0, (side - side_px) // 2) for side in image_hw), image_hw
    bottom, right = min(top + side_px, height), min(left + side_px, width)
    bands = [
        band[max(top - y0, 0) : bottom - y0, left:right].copy()
        for y0, _, band in _checked(path, _tiff_parts(path, image_hw, (top, bottom)))
    ]
    return np.concatenate(bands)


def _bands(path: Path, image_hw: tuple[int, int], height: int) -> Iterator[Part]:
    """The labels in bands of the whole width, all but the last of the same height."""
    parts = _zarr_parts(path, image_hw, whole_width=True) if path.is_dir() else _tiff_parts(path, image_hw)
    band: np.ndarray | None = None
    top = 0
    for y0, _, part in parts:
        taken = 0
        while taken < len(part):
            row = y0 + taken - top
            if band is None:
                band = np.empty((min(height, image_hw[0] - top), image_hw[1]), part.dtype)
            n = min(len(band) - row, len(part) - taken)
            band[row : row + n] = part[taken : taken + n]
            taken += n
            if row + n == len(band):
                yield top, 0, band
                band, top = None, top + len(band)


def _tiff_parts(path: Path, image_hw: tuple[int, int], rows: tuple[int, int] | None = None) -> Iterator[Part]:
    """Bands of the first page, as high as its tiles or strips. rows: only those that have some of these."""
    with open_tiff(path) as tif:
        page: Any = tif.pages.first
        _check(path, page.shape, page.dtype, image_hw)
        check_stored(tif, page)
        first, last = rows or (0, image_hw[0])
        if page.is_contiguous and page.fillorder == 1:
            yield from _plain_parts(tif, page, first, last)
            return
        tile_h = page.tilelength if page.is_tiled else page.rowsperstrip
        per_row = -(-image_hw[1] // page.tilewidth) if page.is_tiled else 1
        for row in range(first // tile_h, -(-last // tile_h)):
            top = row * tile_h
            band = np.zeros((min(tile_h, image_hw[0] - top), image_hw[1]), page.dtype)
            for index in range(row * per_row, (row + 1) * per_row):
                values = tile_labels(tif, page, index)
                if values is not None:
                    x = (index - row * per_row) * page.tilewidth
                    h, w = min(values.shape[0], len(band)), min(values.shape[1], image_hw[1] - x)
                    band[:h, x : x + w] = values[:h, :w]
            yield top, 0, band


def _plain_parts(tif: Any, page: Any, first: int, last: int) -> Iterator[Part]:
    """Rows of a page that is stored as it is, a few at a time, for it may be one strip."""
    width, stored = page.shape[1], np.dtype(page.dtype).newbyteorder(tif.byteorder)
    n = max(_READ_BYTES // (width * stored.itemsize), 1)
    for top in range(first, last, n):
        count = min(n, last - top)
        offset = page.dataoffsets[0] + top * width * stored.itemsize
        values = tif.filehandle.read_array(stored, count * width, offset=offset)
        yield top, 0, values.reshape(count, width).astype(page.dtype, copy=False)


def tile_labels(tif: Any, page: Any, index: int) -> np.ndarray | None:
    """A tile or strip (h, w) of a page with one channel; None for a tile of zeros that is not stored."""
    if not page.databytecounts[index]:
        return None
    tif.filehandle.seek(page.dataoffsets[index])
    stored = tif.filehandle.read(page.databytecounts[index])
    values = page.decode(stored, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
    return values.reshape(values.shape[-3:-1])


def _zarr_parts(path: Path, image_hw: tuple[int, int], *, whole_width: bool = False) -> Iterator[Part]:
    """Parts of the largest level, row by row."""
    try:
        import zarr
    except ImportError as error:
        remedy = 'pip install "cellwright[zarr]"'
        raise UsageError("OME-Zarr needs another package", where=path, got=f"no {error.name}", remedy=remedy) from error
    array = level_of(zarr.open_group(path, mode="r"))
    _check(path, array.shape, array.dtype, image_hw)
    height, width = _PART_HW
    if whole_width:
        stored = (getattr(array, "shards", None) or array.chunks)[0]
        height, width = stored if stored * image_hw[1] <= math.prod(_PART_HW) else _BAND_PX, image_hw[1]
    for y in range(0, image_hw[0], height):
        for x in range(0, image_hw[1], width):
            yield y, x, np.asarray(array[y : y + height, x : x + width])


def level_of(group: Any) -> Any:
    """The largest array of an OME-Zarr image. Raises `KeyError` and the like for another group."""
    attributes = dict(group.attrs)
    multiscales = attributes.get("ome", attributes)["multiscales"]
    return group[multiscales[0]["datasets"][0]["path"]]


def _check(path: Path, shape: tuple[int, ...], dtype: np.dtype, image_hw: tuple[int, int]) -> None:
    if dtype.kind not in "iu":
        raise FormatError(
            "this is not a label image", where=path, got=str(dtype), expected="integers, 0 for background"
        )
    if tuple(shape) != tuple(image_hw):
        raise InputError(
            "this label image has another size than its image",
            where=path,
            got=" x ".join(map(str, shape)),
            expected=f"{image_hw[0]} x {image_hw[1]} (height x width)",
            remedy="save it at full size, without cropping or scaling",
        )

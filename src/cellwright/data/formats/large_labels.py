"""Label images of any size, as objects: read part by part, so that memory follows the objects and not the image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import CellwrightError, FormatError, InputError, UsageError
from cellwright.core.files import unreadable
from cellwright.core.masks import MaskSet, concat
from cellwright.core.memory import available_bytes
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.planes import check_stored
from cellwright.data.images.tiff import open_tiff

LARGE_PX = 40_000_000
# Zarr is read in parts of this size, many chunks at once.
_PART_HW = (2048, 8192)
# With so much memory, no part of a label image that is as it should be lacks any.
_MUCH_MEMORY = 1 << 31
_AGAIN = "save it again, in the program that wrote it"
Part = tuple[int, int, np.ndarray]
"""y0, x0 and the labels (h, w) there."""


def read_large_labels(path: Path, image_hw: tuple[int, int], track: Track = no_progress) -> tuple[MaskSet, np.ndarray]:
    """The masks of a label TIFF or of an OME-Zarr label image, and their labels (N,) int64, ascending.

    Raises `FormatError` if the file is damaged or is not a label image of the size ``image_hw``.
    """
    parts, labels = [MaskSet.empty(image_hw)], [np.zeros(0, np.int64)]
    read = _zarr_parts if path.is_dir() else _tiff_parts
    try:
        for y0, x0, block in track(read(path, image_hw), f"reading {path.name}"):
            masks, values = MaskSet.from_label_map(block)
            parts.append(masks.shift(y0, x0, image_hw))
            labels.append(values)
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
    together = np.concatenate(labels)
    return concat(parts).union(together), np.unique(together)


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
    try:
        bands = [
            band[max(top - y0, 0) : bottom - y0, left:right].copy()
            for y0, _, band in _tiff_parts(path, image_hw)
            if y0 < bottom and y0 + len(band) > top
        ]
    except CellwrightError:
        raise
    except Exception as error:  # as above
        raise _damaged(path, error) from error
    return np.concatenate(bands)


def _tiff_parts(path: Path, image_hw: tuple[int, int]) -> Iterator[Part]:
    """Bands of the first page, as high as its tiles or strips."""
    with open_tiff(path) as tif:
        page: Any = tif.pages.first
        _check(path, page.shape, page.dtype, image_hw)
        check_stored(tif, page)
        band: np.ndarray | None = None
        top = 0
        for values, (*_, y, x, _), shape in page.segments():
            if band is not None and y != top:
                yield top, 0, band
                band = None
            height = min(page.tilelength if page.is_tiled else page.rowsperstrip, image_hw[0] - y)
            if band is None:
                band, top = np.zeros((height, image_hw[1]), page.dtype), y
            if values is not None:  # a tile of zeros need not be stored
                h, w = min(shape[1], height), min(shape[2], image_hw[1] - x)
                band[:h, x : x + w] = values[0, :h, :w, 0]
        if band is not None:
            yield top, 0, band


def _zarr_parts(path: Path, image_hw: tuple[int, int]) -> Iterator[Part]:
    """Parts of the largest level."""
    try:
        import zarr
    except ImportError as error:
        remedy = 'pip install "cellwright[zarr]"'
        raise UsageError("OME-Zarr needs another package", where=path, got=f"no {error.name}", remedy=remedy) from error
    array = level_of(zarr.open_group(path, mode="r"))
    _check(path, array.shape, array.dtype, image_hw)
    for y in range(0, image_hw[0], _PART_HW[0]):
        for x in range(0, image_hw[1], _PART_HW[1]):
            yield y, x, np.asarray(array[y : y + _PART_HW[0], x : x + _PART_HW[1]])


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

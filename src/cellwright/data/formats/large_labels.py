"""Label images of any size, as objects: read part by part, so that memory follows the objects and not the image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.core.files import is_zarr_folder, unreadable
from cellwright.core.masks import MaskSet, concat
from cellwright.core.progress import Track, no_progress

# Zarr is read in parts of this size, many chunks at once.
_PART_HW = (2048, 8192)
_AGAIN = "save it again, in the program that wrote it"
Part = tuple[int, int, np.ndarray]
"""y0, x0 and the labels (h, w) there."""


def read_large_labels(path: Path, image_hw: tuple[int, int], track: Track = no_progress) -> tuple[MaskSet, np.ndarray]:
    """The masks of a label TIFF or of an OME-Zarr label image, and their labels (N,) int64, ascending.

    Raises `FormatError` if the file is damaged or is not a label image of the size ``image_hw``.
    """
    parts, labels = [MaskSet.empty(image_hw)], [np.zeros(0, np.int64)]
    read = _zarr_parts if is_zarr_folder(path) else _tiff_parts
    try:
        for y0, x0, block in track(read(path, image_hw), f"reading {path.name}"):
            masks, values = MaskSet.from_label_map(block)
            parts.append(masks.shift(y0, x0, image_hw))
            labels.append(values)
    except OSError as error:
        raise unreadable(path, error, "label image") from error
    together = np.concatenate(labels)
    return concat(parts).union(together), np.unique(together)


def _tiff_parts(path: Path, image_hw: tuple[int, int]) -> Iterator[Part]:
    """Bands of the first page, as high as its tiles or strips."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tif:
            page: Any = tif.pages.first
            _check(path, page.shape, page.dtype, image_hw)
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
    except (tifffile.TiffFileError, ValueError, IndexError, KeyError, TypeError, RuntimeError) as error:
        raise FormatError("this label image is damaged", where=path, got=str(error), remedy=_AGAIN) from error


def _zarr_parts(path: Path, image_hw: tuple[int, int]) -> Iterator[Part]:
    """Parts of the largest level."""
    try:
        import zarr
    except ImportError as error:
        remedy = 'pip install "cellwright[zarr]"'
        raise UsageError("OME-Zarr needs another package", where=path, got=f"no {error.name}", remedy=remedy) from error
    try:
        array = level_of(zarr.open_group(path, mode="r"))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise FormatError("this is not an OME-Zarr image", where=path, got=str(error), remedy=_AGAIN) from error
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

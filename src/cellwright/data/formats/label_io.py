"""Read and write a label map: an image file whose pixel values are object ids. Shared by several formats."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError, InputError, OutputError
from cellwright.core.files import atomic_path
from cellwright.core.instances import Instances
from cellwright.core.text import count
from cellwright.data.images.tiff import check_directories, check_plausible

_log = logging.getLogger(__name__)

LABEL_SUFFIXES = (".tif", ".tiff", ".png")
_MAX_LABEL = 2**32 - 1


def read_label_map(path: Path) -> np.ndarray:
    """The labels (H, W) of a TIFF or PNG, uint8, uint16 or uint32; 0 is background.

    The file may contain integers of 8 to 64 bits, bool, or floats that are whole numbers. Raises `FormatError` for
    several channels or pages, fractions, negative labels, labels of 2**32 or more, and damaged files.
    """
    raw = _decode(path)
    if raw.ndim != 2 or raw.size == 0:
        raise FormatError(
            "not a label image",
            where=path,
            got=f"an image of shape {raw.shape}",
            expected="one channel and one page: (height, width)",
            remedy="save the labels as a single-channel 2-D image",
        )
    if raw.dtype.kind == "b":
        return raw.astype(np.uint8)
    if raw.dtype.kind not in "iuf":
        raise FormatError("not a label image", where=path, got=f"pixels of type {raw.dtype}", expected="numbers")
    if raw.dtype.kind == "f":
        _check_whole(raw, path)
    lowest, highest = raw.min(), raw.max()
    if lowest < 0 or highest > _MAX_LABEL:
        got = lowest if lowest < 0 else highest
        raise FormatError("a label is out of range", where=path, got=f"{got:g}", expected=f"0 to {_MAX_LABEL}")
    if raw.dtype in (np.uint8, np.uint16, np.uint32):
        return np.ascontiguousarray(raw, raw.dtype.newbyteorder("="))
    return raw.astype(np.uint32)


def _check_whole(raw: np.ndarray, path: Path) -> None:
    with np.errstate(invalid="ignore"):
        wrong = ~(raw == np.floor(raw)) | ~np.isfinite(raw)
    if wrong.any():
        y, x = (int(value[0]) for value in np.nonzero(wrong))
        raise FormatError(
            "a label is not a whole number",
            where=f"{path}, pixel x {x}, y {y}",
            got=f"{raw[y, x]:g}",
            expected="whole numbers: 0 for background, then object ids",
            remedy="use the label image, not a probability or intensity image",
        )


def _decode(path: Path) -> np.ndarray:
    try:
        return _decode_tiff(path) if path.suffix.lower() in (".tif", ".tiff") else _decode_png(path)
    except InputError:
        raise
    except OSError as error:
        got = error.strerror or str(error)[:200]
        raise InputError(
            "cannot read this label image",
            where=path,
            got=got,
            remedy="open it in another program and save it again as PNG or TIFF",
        ) from error
    except Exception as error:  # on damaged files, decoders raise whatever their codecs raise
        got = f"{type(error).__name__}: {error}"[:200]
        raise FormatError(
            "this label image is damaged", where=path, got=got, remedy="get a fresh copy of it"
        ) from error


def _decode_tiff(path: Path) -> np.ndarray:
    import tifffile

    size = path.stat().st_size
    check_directories(path)
    with tifffile.TiffFile(path) as tif:
        if not tif.series:
            raise FormatError("this label image has no pixels", where=path, remedy="save it again, or remove it")
        series = tif.series[0]
        shape = tuple(int(side) for side in series.shape if side != 1)
        if len(tif.series) > 1 or len(shape) > 2:
            raise FormatError(
                "not a label image",
                where=path,
                got=f"{count(len(tif.series), 'image')}, the first of shape {series.shape} ({series.axes})",
                expected="one 2-D image",
                remedy="save the labels as a single-channel 2-D image",
            )
        check_plausible(math.prod(series.shape) * series.dtype.itemsize, path)
        pages: Any = series.pages
        for page in pages:
            ends = [
                int(offset) + int(count) for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
            ]
            if max(ends, default=0) > size:
                raise FormatError(
                    "this label image is truncated", where=path, got=f"{size} bytes", expected=f"{max(ends)} bytes"
                )
        return series.asarray().reshape(_sides(series.shape))


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a 2-D image that has additional axes of length 1 (a 1 x 5 image keeps its own)."""
    real = [int(side) for side in shape]
    while len(real) > 2:
        real.remove(1)
    return real[0], real[1] if len(real) > 1 else 1


def _decode_png(path: Path) -> np.ndarray:
    from PIL import Image as PillowImage

    with path.open("rb") as file:
        header = file.read(33)
    if header[:8] != b"\x89PNG\r\n\x1a\n" or len(header) < 33:
        raise FormatError(
            "this label image is not a PNG file",
            where=path,
            got=repr(header[:8]),
            remedy="save it again as PNG or TIFF",
        )
    width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
    check_plausible(float(width) * height * (2 if header[24] == 16 else 1), path)
    if header[25] not in (0, 3):
        raise FormatError(
            "not a label image",
            where=path,
            got="a colour image",
            expected="one channel of label numbers",
            remedy="save the labels themselves, not their colours",
        )
    if header[25] == 3 or header[24] < 8:  # for palettes and packed bits, Pillow keeps the numbers
        with PillowImage.open(path) as image:
            return np.array(image)
    import imagecodecs

    return imagecodecs.png_decode(path.read_bytes())


def looks_labelled(path: Path) -> bool | None:
    """Whether an image file looks like a label map, that is, has few more connected regions than distinct values.

    None for an image without objects, which could be anything. False for photographs, foreground masks and files that
    cannot be read. Never raises.
    """
    from skimage.measure import label

    try:
        labels = read_label_map(path)
    except InputError:
        return False
    n_values = np.unique(labels[labels > 0]).size
    regions: Any = label(labels, connectivity=2, background=0)
    n_regions = int(regions.max())
    return n_regions <= 2.5 * n_values if n_values else None


def flat_labels(instances: Instances, where: object) -> np.ndarray:
    """Labels (H, W) uint32 of the objects by their ids, for files in which a pixel belongs to one object at most.

    Shared pixels go to the object with the higher score, or to the first in order if there are no scores; a warning
    says how many. Raises `OutputError` for an id above 2**32 - 1.
    """
    if len(instances) and int(instances.ids.max()) > _MAX_LABEL:
        got = int(instances.ids.max())
        raise OutputError(
            "an object id is too large for a label image", where=where, got=got, expected=f"at most {_MAX_LABEL}"
        )
    ranked = instances.by_score()
    labels = ranked.masks.to_label_map(ranked.ids)
    lost = int(ranked.masks.areas.sum()) - int(np.count_nonzero(labels))
    if lost:
        hidden = len(instances) - np.unique(labels[labels > 0]).size
        _log.warning(
            "%s: objects overlap, which a label image cannot store: %d px went to the object with the higher score "
            "(or the first in order), %s lost all pixels; to keep overlaps, write coco or geojson",
            where, lost, count(hidden, "object"),
        )  # fmt: skip
    return labels


def write_label_map(path: Path, labels: np.ndarray) -> None:
    """Write labels (H, W) as a uint32 TIFF with deflate compression, atomically."""
    import tifffile

    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary, labels.astype(np.uint32), compression="zlib", photometric="minisblack", metadata=None
        )

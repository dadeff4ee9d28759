"""One label map: an image file whose pixel values are object ids. Shared by the formats that consist of them."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError, InputError, OutputError
from cellwright.core.files import atomic_path
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.images.tiff import check_directories, check_plausible

_log = logging.getLogger(__name__)

LABEL_SUFFIXES = (".tif", ".tiff", ".png")
_MAX_LABEL = 2**32 - 1


def read_label_map(path: Path) -> np.ndarray:
    """The labels (H, W) of a TIFF or PNG, uint8, uint16 or uint32; 0 is background.

    8 to 64 bit integers, bool and float files whose values are whole numbers are read. `FormatError` names the file for
    several channels or pages, fractions, negative labels, labels of 2**32 and more, and broken files.
    """
    raw = _decode(path)
    if raw.ndim != 2 or raw.size == 0:
        raise FormatError(
            "this is not a label image",
            where=path,
            got=f"an image of shape {raw.shape}",
            expected="one channel and one page: (height, width)",
            remedy="save the labels as a single-channel 2-D image",
        )
    if raw.dtype.kind == "b":
        return raw.astype(np.uint8)
    if raw.dtype.kind not in "iuf":
        raise FormatError(
            "this is not a label image", where=path, got=f"pixels of type {raw.dtype}", expected="numbers"
        )
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
            remedy="give the label image, not a probability or intensity image",
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
    except Exception as error:  # decoders of damaged files raise whatever their codecs raise
        got = f"{type(error).__name__}: {error}"[:200]
        raise FormatError("this label image is broken", where=path, got=got, remedy="get a fresh copy of it") from error


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
                "this is not a label image",
                where=path,
                got=f"{len(tif.series)} image(s), the first of shape {series.shape} ({series.axes})",
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
                    "this label image is cut short", where=path, got=f"{size} bytes", expected=f"{max(ends)} bytes"
                )
        return series.asarray().reshape(_sides(series.shape))


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a 2-D image with singleton axes anywhere (a 1 x 5 image keeps its axis of 1)."""
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
            "this label image is no PNG file", where=path, got=repr(header[:8]), remedy="save it again as PNG or TIFF"
        )
    width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
    check_plausible(float(width) * height * (2 if header[24] == 16 else 1), path)
    if header[25] not in (0, 3):
        raise FormatError(
            "this is not a label image",
            where=path,
            got="a colour picture",
            expected="one channel of label numbers",
            remedy="save the labels themselves, not their colours",
        )
    if header[25] == 3 or header[24] < 8:  # palettes and packed bits: Pillow keeps the numbers
        with PillowImage.open(path) as image:
            return np.array(image)
    import imagecodecs

    return imagecodecs.png_decode(path.read_bytes())


def looks_labelled(path: Path) -> bool | None:
    """Whether an image file looks like a label map: hardly more connected areas of one value than values.

    None for one without any object, which tells nothing; False for photographs, foreground masks and what cannot be
    read. Never raises.
    """
    from skimage.measure import label

    try:
        labels = read_label_map(path)
    except InputError:
        return False
    n_values = np.unique(labels[labels > 0]).size
    areas: Any = label(labels, connectivity=2, background=0)
    n_areas = int(areas.max())
    return n_areas <= 2.5 * n_values if n_values else None


def flat_labels(instances: Instances, where: object) -> np.ndarray:
    """Labels (H, W) uint32 of objects by their ids, for files that give a pixel to one object.

    Where objects overlap, the one of higher score wins, without scores the first in order; how many pixels were taken
    from others is said in a notice. `OutputError` for an id above 2**32 - 1.
    """
    if len(instances) and int(instances.ids.max()) > _MAX_LABEL:
        got = int(instances.ids.max())
        raise OutputError(
            "an object's id does not fit a label image", where=where, got=got, expected=f"at most {_MAX_LABEL}"
        )
    ranked = instances.by_score()
    labels = ranked.masks.to_label_map(ranked.ids)
    lost = int(ranked.masks.areas.sum()) - int(np.count_nonzero(labels))
    if lost:
        hidden = len(instances) - np.unique(labels[labels > 0]).size
        _log.warning(
            "%s: objects overlap and a label image gives a pixel to one: %d px went to the object of higher score "
            "(or first in order), %d object(s) have no pixel left; to keep overlaps, write coco or geojson",
            where, lost, hidden,
        )  # fmt: skip
    return labels


def write_label_map(path: Path, labels: np.ndarray) -> None:
    """Labels (H, W) as a deflated uint32 TIFF, atomically."""
    import tifffile

    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary, labels.astype(np.uint32), compression="zlib", photometric="minisblack", metadata=None
        )


def instances_of(labels: np.ndarray) -> Instances:
    """The objects of a label map (H, W), ids as labelled, class 0."""
    masks, ids = MaskSet.from_label_map(labels)
    return Instances.from_masks(masks, ids=ids)

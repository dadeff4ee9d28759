"""Read and write label images: image files whose pixel values are object ids. Shared by several formats.

What the numbers mean (object ids, a foreground mask, classes, a picture) is decided by `label_kinds`.
"""

from __future__ import annotations

import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cellwright.core.errors import FormatError, InputError, OutputError
from cellwright.core.files import atomic_path, plain_suffix
from cellwright.core.instances import Instances
from cellwright.core.text import count
from cellwright.core.unpickle import read_npy_object
from cellwright.data.images.planes import check_stored
from cellwright.data.images.raster import decode_png, open_pillow, read_file
from cellwright.data.images.tiff import PLANE_BY_PLANE, check_claim, open_tiff

_log = logging.getLogger(__name__)

LABEL_SUFFIXES = (".tif", ".tiff", ".png", ".bmp")
LOSSY_SUFFIXES = (".jpg", ".jpeg")  # of masks only: they change the numbers of labels
_MAX_LABEL = 2**32 - 1

Encoding = Literal["numbers", "grey", "colours"]


@dataclass(frozen=True, eq=False)
class Raster:
    """The pixel values of a label image, before it is decided what they mean.

    values: (H, W) of an integer dtype; negative numbers are possible. Colours are packed as 0xRRGGBB (8 bits per
        channel; 48 bits for 16); transparent pixels are 0.
    encoding: "numbers" in one channel, "grey" for numbers in three equal channels, or "colours".
    largest: the largest number of the pixel type (255 for 8 bits, 1 for bool), or 0 for types without such a limit.
    """

    values: np.ndarray
    encoding: Encoding = "numbers"
    largest: int = 0


def read_raster(path: Path) -> Raster:
    """The values of a TIFF, PNG, BMP or JPEG with one page: numbers in one channel, or colours.

    The file may contain integers of 8 to 64 bits, bool, or floats that are whole numbers. Raises `FormatError` for
    several pages, fractions, numbers of 2**32 or more, and damaged files.
    """
    return as_raster(_decode(path), path)


def read_label_map(path: Path) -> np.ndarray:
    """The labels (H, W) of a file that is known to be a label image, such as an output of ours; 0 is background.

    Raises `FormatError` as `read_raster`, and for colours and negative labels.
    """
    raster = read_raster(path)
    if raster.encoding == "colours" or raster.values.min() < 0:
        got = "colours" if raster.encoding == "colours" else f"the label {raster.values.min()}"
        raise FormatError("not a label image", where=path, got=got, expected="labels in one channel, 0 for background")
    return raster.values


def read_labels(path: Path) -> Raster:
    """The values of a label image, or of the masks in a Cellpose ``_seg.npy``."""
    return _read_seg(path) if path.suffix == ".npy" else read_raster(path)


def _read_seg(path: Path) -> Raster:
    """A ``_seg.npy`` is a pickled dictionary, read by the restricted `read_npy_object`."""
    content: Any = read_npy_object(path)
    masks = content.get("masks") if isinstance(content, dict) else None
    if (
        not isinstance(masks, np.ndarray)
        or masks.dtype.kind not in "iub"
        or masks.squeeze().ndim != 2
        or not masks.size
    ):
        got = f"{masks.dtype} of shape {masks.shape}" if isinstance(masks, np.ndarray) else type(masks).__name__
        raise FormatError(
            "not a 2-D Cellpose segmentation",
            where=f"{path}, entry 'masks'",
            got=got,
            expected="a label array (height, width)",
            remedy="save each plane of a stack separately",
        )
    return as_raster(masks.squeeze(), f"{path}, entry 'masks'")


def as_raster(raw: np.ndarray, where: object) -> Raster:
    """As `read_raster`, from an array (H, W), or (H, W, C) with 2 (grey and alpha), 3 or 4 channels."""
    if raw.size == 0 or not (raw.ndim == 2 or (raw.ndim == 3 and raw.shape[2] in (2, 3, 4))):
        raise FormatError(
            "not a label image",
            where=where,
            got=f"an image of shape {raw.shape}",
            expected="one page of numbers (height, width) or colours",
            remedy="save the labels as a single-channel 2-D image",
        )
    if raw.dtype.kind not in "biuf":
        raise FormatError("not a label image", where=where, got=f"pixels of type {raw.dtype}", expected="numbers")
    largest = {"b": 1, "u": {1: 255, 2: 65535}.get(raw.dtype.itemsize, 0)}.get(raw.dtype.kind, 0)
    raw = raw.astype(np.uint8) if raw.dtype.kind == "b" else raw
    encoding: Encoding = "numbers"
    if raw.ndim == 3:
        raw, encoding = _one_channel(raw, where)
    if raw.dtype.kind == "f":
        _check_whole(raw, where)
    lowest, highest = raw.min(), raw.max()
    if encoding != "colours" and (lowest < -_MAX_LABEL or highest > _MAX_LABEL):
        got = lowest if lowest < 0 else highest
        raise FormatError(
            "a label is out of range",
            where=where,
            got=f"{got:g}",
            expected=f"0 to {_MAX_LABEL}",
            remedy="number the objects from 1",
        )
    if raw.dtype not in (np.uint8, np.uint16, np.uint32):
        raw = raw.astype(np.int64 if lowest < 0 or highest > _MAX_LABEL else np.uint32)
    return Raster(np.ascontiguousarray(raw, raw.dtype.newbyteorder("=")), encoding, largest)


def _one_channel(raw: np.ndarray, where: object) -> tuple[np.ndarray, Encoding]:
    """Grey numbers or packed colours (H, W) of (H, W, C), where the last of two or four channels is alpha."""
    alpha = raw[:, :, -1] if raw.shape[2] in (2, 4) else None
    colours = raw if alpha is None else raw[:, :, :-1]
    has_transparency = alpha is not None and not (alpha == alpha[0, 0]).all()
    if (colours == colours[:, :, :1]).all():
        numbers, encoding = colours[:, :, 0], "grey" if colours.shape[2] > 1 else "numbers"
        if alpha is not None and has_transparency and (numbers == numbers[0, 0]).all():
            return alpha, "numbers"  # a drawing in one colour on a transparent ground
    elif raw.dtype.kind == "u" and raw.dtype.itemsize <= 2:
        bits = 8 * raw.dtype.itemsize
        red, green, blue = (colours[:, :, k].astype(np.int64) for k in range(3))
        numbers, encoding = (red << 2 * bits) | (green << bits) | blue, "colours"
    else:
        raise FormatError(
            "not a label image",
            where=where,
            got=f"three different channels of type {raw.dtype}",
            expected="one channel of label numbers, or colours of 8 or 16 bits",
            remedy="save the labels as a single-channel 2-D image",
        )
    if alpha is not None and has_transparency:
        numbers = np.where(alpha > alpha.max() / 2, numbers, 0).astype(numbers.dtype)
    return numbers, encoding


def _check_whole(raw: np.ndarray, where: object) -> None:
    with np.errstate(invalid="ignore"):
        wrong = ~(raw == np.floor(raw)) | ~np.isfinite(raw)
    if wrong.any():
        y, x = (int(value[0]) for value in np.nonzero(wrong))
        raise FormatError(
            "a label is not a whole number",
            where=f"{where}, pixel x {x}, y {y}",
            got=f"{raw[y, x]:g}",
            expected="whole numbers: 0 for background, then object ids",
            remedy="use the label image, not a probability or intensity image",
        )


def _decode(path: Path) -> np.ndarray:
    try:
        suffix = plain_suffix(path)
        if suffix in (".tif", ".tiff"):
            return _decode_tiff(path)
        return _decode_png(path) if suffix == ".png" else _decode_other(path)
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
    with open_tiff(path) as tif:
        if not tif.series:
            raise FormatError("this label image has no pixels", where=path, remedy="save it again, or remove it")
        series = tif.series[0]
        axes = series.axes.upper()
        colours = [k for k, axis in enumerate(axes) if axis == "S" and series.shape[k] in (3, 4)]
        shape = tuple(int(side) for k, side in enumerate(series.shape) if side != 1 and k not in colours)
        if len(tif.series) > 1 or len(shape) > 2:
            raise FormatError(
                "not a label image",
                where=path,
                got=f"{count(len(tif.series), 'image')}, the first of shape {series.shape} ({series.axes})",
                expected="one 2-D image",
                remedy="save the labels as a single-channel 2-D image",
            )
        check_claim(math.prod(series.shape) * series.dtype.itemsize, path)
        for page in series.pages:
            check_stored(tif, page)
        data = series.asarray()
        if not colours:
            return data.reshape(_sides(series.shape))
        if tif.pages.first.planarconfig == PLANE_BY_PLANE and (data != data.take([0], colours[0])).any():
            # tifffile declares any array (3, H, W) as RGB; no program stores the colours of labels plane by plane.
            raise FormatError(
                "not a label image",
                where=path,
                got=f"{series.shape[colours[0]]} planes that differ, of shape {series.shape} ({series.axes})",
                expected="one 2-D image",
                remedy="save the labels of each plane as an image of its own",
            )
        data = np.moveaxis(data, colours[0], -1)
        return data.reshape(*_sides(data.shape[:-1]), data.shape[-1])


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a 2-D image that has additional axes of length 1 (a 1 x 5 image keeps its own)."""
    real = [int(side) for side in shape]
    while len(real) > 2:
        real.remove(1)
    return real[0], real[1] if len(real) > 1 else 1


def _decode_png(path: Path) -> np.ndarray:
    data = read_file(path)
    header = data[:33]
    if header[:8] != b"\x89PNG\r\n\x1a\n" or len(header) < 33:
        raise FormatError(
            "this label image is not a PNG file",
            where=path,
            got=repr(header[:8]),
            remedy="save it again as PNG or TIFF",
        )
    width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
    if header[25] == 3 or header[24] < 8:  # for palettes and packed bits, Pillow keeps the numbers
        check_claim(float(width) * height, path)
        return np.array(open_pillow(path, io.BytesIO(data)))
    return decode_png(data, path)


def _decode_other(path: Path) -> np.ndarray:
    """BMP, or JPEG, which can store a foreground mask but changes the numbers of labels."""
    image = open_pillow(path, io.BytesIO(read_file(path)))
    check_claim(float(image.width) * image.height, path)
    return np.array(image if image.mode in ("1", "L", "P", "RGB") else image.convert("RGB"))


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

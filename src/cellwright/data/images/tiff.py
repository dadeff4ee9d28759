"""Read TIFF, OME-TIFF and ImageJ TIFF: the axes of the file become one image (H, W, C)."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias
from xml.etree import ElementTree

import numpy as np

from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.core.files import unreadable
from cellwright.core.image import CHANNEL_NAMES

if TYPE_CHECKING:
    import tifffile

# Limits of a valid file: pages per file, and bytes of decoded pixels per byte of the file.
MAX_DIRECTORIES = 100_000
MAX_CODEC_RATIO = 20_000

# The letters that tifffile gives to unnamed axes; an unnamed stack of pages is read as a z stack.
UNNAMED_AXES = "QI"

# Microns per unit, with the unit names of OME and ImageJ.
MICRONS = {"um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}


Plane: TypeAlias = int | Literal["max", "mean"]
"""A 0-based plane of a stack, or a projection of all planes."""


@dataclass(frozen=True)
class TiffHeader:
    """Axes, shape, dtype, channel names and pixel size of the first series of a file, before decoding."""

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype
    channel_names: tuple[str, ...]
    pixel_size_um: tuple[float, float] | None

    def extent(self, axis: str) -> int:
        """Length along ``axis``; 1 if the file has no such axis."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def image_hw(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.extent("Y"), self.extent("X")

    def describe(self) -> str:
        """``"CYX uint16 (3, 512, 512), channels DAPI, actin, tubulin"``."""
        names = f", channels {', '.join(self.channel_names)}" if len(self.channel_names) > 1 else ""
        return f"{self.axes} {self.dtype} {self.shape}{names}"


def read_tiff_header(path: Path | str) -> TiffHeader:
    """The header of the first series. Raises `FormatError` if the file is not a readable TIFF."""
    with _open(path) as tif:
        return _header(tif, path)


def read_tiff(
    path: Path | str, *, z: Plane | None = None, t: int | None = None, series: int | str | None = None
) -> tuple[np.ndarray, tuple[str, ...], tuple[float, float] | None]:
    """Data (H, W, C) in the dtype of the file, C channel names, and the pixel size (y, x) in microns or None.

    z, t, series: see `read_image`; where a choice is missing, `InputError` lists all of them.
    """
    with _open(path) as tif:
        header = _header(tif, path)
        check_plausible(math.prod(header.shape) * header.dtype.itemsize, path)
        _check_choices(header, z, t, path)
        try:
            data = tif.series[0].asarray()
            if data.shape != header.shape:
                raise ValueError(f"pixels of shape {data.shape}, but a header of {header.shape}")
        except Exception as error:  # tifffile and its codecs raise many types for damaged files
            raise damaged_image(path, error) from error
    axes = header.axes
    for axis in [a for a in axes if a not in "YXSC"]:
        data = _along(data, axes.index(axis), t if axis == "T" else z)
        axes = axes.replace(axis, "")
    data, names = _channel_last(data, axes, header)
    return data, names, header.pixel_size_um


def _open(path: Path | str) -> tifffile.TiffFile:
    import tifffile

    try:
        check_directories(path)
        return tifffile.TiffFile(path)
    except InputError:
        raise
    except OSError as error:
        raise unreadable(path, error, "image") from error
    except Exception as error:  # a damaged header raises TiffFileError, struct.error, ValueError, ...
        raise damaged_image(path, error) from error


def check_directories(path: Path | str) -> None:
    """Raise `FormatError` for a TIFF whose directories link in a circle, which a reader would follow forever."""
    with Path(path).open("rb") as file:
        head = file.read(16)
        order, big = ("<" if head[:2] == b"II" else ">"), head[2:4] in (b"+\0", b"\0+")
        counts, offsets, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
        word = struct.calcsize(offsets)
        link = head[8:16] if big else head[4:8]
        visited: set[int] = set()
        while len(link) == word:
            (start,) = struct.unpack(order + offsets, link)
            if start in visited or len(visited) > MAX_DIRECTORIES:
                raise damaged_image(path, ValueError("its directories link in a circle"))
            visited.add(start)
            file.seek(min(start, 1 << 60))
            n_entries = file.read(struct.calcsize(counts))
            if not start or len(n_entries) < struct.calcsize(counts):
                return
            file.seek(min(entry * struct.unpack(order + counts, n_entries)[0], 1 << 40), 1)
            link = file.read(word)


def check_plausible(decoded_bytes: float, path: Path | str) -> None:
    """Raise `FormatError` for a file that claims more pixels than any codec compresses to its size."""
    size = Path(path).stat().st_size
    if decoded_bytes > MAX_CODEC_RATIO * size:
        raise damaged_image(path, ValueError(f"{decoded_bytes:.3g} bytes of pixels in a file of {size} bytes"))


def damaged_image(path: Path | str, error: Exception) -> FormatError:
    """The error for a file that is truncated, damaged or not an image."""
    return FormatError(
        "this image cannot be decoded",
        where=path,
        got=f"{type(error).__name__}: {error}",
        expected="a complete image file",
        remedy="copy or download the file again, or remove it from the folder",
    )


def _header(tif: tifffile.TiffFile, path: Path | str) -> TiffHeader:
    try:
        series = tif.series[0]
        axes, shape = series.axes, tuple(int(n) for n in series.shape)
        dtype = np.dtype(series.dtype)
        names, pixel_size = _metadata(tif)
    except Exception as error:  # a damaged directory raises IndexError, struct.error, ValueError, ...
        raise damaged_image(path, error) from error
    if "Y" not in axes or "X" not in axes:
        raise FormatError("this TIFF has no image plane", where=path, got=f"axes {axes}", expected="axes Y and X")
    if 0 in shape:
        raise FormatError(
            "this TIFF has no pixels", where=path, got=f"axes {axes} of {shape}", remedy="save it again, or remove it"
        )
    n_channels = shape[axes.index("C")] if "C" in axes else 1
    if len(names) != n_channels:
        names = tuple(str(i) for i in range(n_channels)) if n_channels > 1 else ("grey",)
    return TiffHeader(axes, shape, dtype, names, pixel_size)


def _metadata(tif: tifffile.TiffFile) -> tuple[tuple[str, ...], tuple[float, float] | None]:
    if tif.is_ome and tif.ome_metadata:
        return _ome_metadata(tif.ome_metadata)
    if tif.is_imagej and tif.imagej_metadata:
        unit = str(tif.imagej_metadata.get("unit", "")).encode().decode("unicode_escape")
        return (), _resolution(tif, MICRONS.get(unit))
    return (), None


def _ome_metadata(xml: str) -> tuple[tuple[str, ...], tuple[float, float] | None]:
    pixels = next((e for e in ElementTree.fromstring(xml).iter() if e.tag.endswith("}Pixels")), None)
    if pixels is None:
        return (), None
    channels = [e for e in pixels if e.tag.endswith("}Channel")]
    names = tuple(e.get("Name") or str(i) for i, e in enumerate(channels))
    sizes = []
    for axis in "YX":
        size, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        sizes.append(float(size) * MICRONS[unit] if size and unit in MICRONS else None)
    y, x = sizes
    return names, (y, x) if y and x else None


def _resolution(tif: tifffile.TiffFile, microns_per_unit: float | None) -> tuple[float, float] | None:
    """Pixel size of an ImageJ file, whose resolution tags are in pixels per unit of the metadata."""
    tags = tif.pages.first.tags
    if microns_per_unit is None or "XResolution" not in tags or "YResolution" not in tags:
        return None
    sizes = []
    for name in ("YResolution", "XResolution"):
        pixels, units = tags[name].value
        sizes.append(units / pixels * microns_per_unit if pixels else 0.0)
    return (sizes[0], sizes[1]) if all(sizes) else None


def _check_choices(header: TiffHeader, z: Plane | None, t: int | None, path: Path | str) -> None:
    """Raise `InputError` that asks for every choice that is missing, and `UsageError` for one that does not exist."""
    chosen = {axis: t if axis == "T" else z for axis in header.axes if axis not in "YXSC" and header.extent(axis) > 1}
    missing = [f"`{'t' if axis == 'T' else 'z'}`" for axis, choice in chosen.items() if choice is None]
    if missing:
        raise InputError(
            "this file is a stack, and no plane was chosen",
            where=path,
            got=header.describe(),
            remedy=f"choose {' and '.join(missing)}",
        )
    for axis, choice in chosen.items():
        if isinstance(choice, int) and not 0 <= choice < header.extent(axis):
            name = "t" if axis == "T" else "z"
            expected = f"0 to {header.extent(axis) - 1} ({header.describe()})"
            raise UsageError("no such plane", where=path, got=f"{name} = {choice}", expected=expected)


def _along(data: np.ndarray, axis: int, choice: Plane | None) -> np.ndarray:
    """One plane along an axis, or the projection of all."""
    if choice == "max":
        return data.max(axis=axis)
    if choice == "mean":
        return data.mean(axis=axis, dtype=np.float32)
    return np.take(data, choice or 0, axis=axis)


def _channel_last(data: np.ndarray, axes: str, header: TiffHeader) -> tuple[np.ndarray, tuple[str, ...]]:
    """Data (H, W, C) and its channel names, from the axes Y, X, C and S (samples per pixel: RGB)."""
    order = [axes.index(a) for a in "YXCS" if a in axes]
    data = data.transpose(order)
    height, width = data.shape[:2]
    data = data.reshape(height, width, -1)
    samples, channels = header.extent("S"), header.extent("C")
    if samples == 1:
        return data, header.channel_names
    if channels == 1:
        return data, CHANNEL_NAMES.get(samples, tuple(str(i) for i in range(samples)))
    return data, tuple(f"{name}.{s}" for name in header.channel_names for s in range(samples))

"""`open_image`: an image of any size as an `ImageSource`, from a file or an array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import UsageError
from cellwright.core.files import plain_suffix
from cellwright.core.image import CHANNEL_NAMES, Image
from cellwright.core.memory import check_memory
from cellwright.data.images.array_source import WholeSource, array_source, image_source
from cellwright.data.images.calibration import as_pixel_size
from cellwright.data.images.channels import ChannelChoice, select_channels
from cellwright.data.images.level_source import LevelSource
from cellwright.data.images.names import IMAGE_SUFFIXES, TIFF_SUFFIXES
from cellwright.data.images.plane_source import open_tiff_source, whole_source
from cellwright.data.images.raster import RASTER_SUFFIXES, not_an_image, raster_header, read_raster
from cellwright.data.images.regions import Facts, ImageSource, Level, RegionSource
from cellwright.data.images.slide import SLIDE_SUFFIXES, SlideSource
from cellwright.data.images.tiff import AnyPlane, AnyTime, Choice
from cellwright.data.images.vendor import PLUGINS, chosen_scene, read_vendor
from cellwright.data.images.zarr import is_zarr, open_zarr_source

__all__ = ["ImageSource", "Level", "RegionSource", "check_no_stack", "open_image"]

SOURCES = "a path, an array of NumPy, Dask, Zarr or HDF5, an Image, or an ImageSource"


def open_image(
    what: Any,
    *,
    channel: ChannelChoice | None = None,
    z: AnyPlane | None = None,
    t: AnyTime | None = None,
    series: int | str | None = None,
    pixel_size: float | Sequence[float] | None = None,
    level: int | None = None,
    keep_channels: bool = False,
) -> ImageSource:
    """An image as a source of regions; nothing is decoded yet.

    what: a path, an array (H, W) or (H, W, C) of NumPy, Dask, Zarr or HDF5, an `Image`, or a source, which is returned
    as it is. The other parameters are those of `read_image`, with the same notes and errors, and choices that do not
    apply to an array are refused.
    """
    size = as_pixel_size(pixel_size)
    choice = Choice(z, t, series, channel is not None)
    if isinstance(what, str | os.PathLike):
        source: ImageSource = _open_file(Path(what), choice)
    else:
        check_no_stack(None, choice)
        source = _open_array(what)
    if size is not None:
        source = _regions(source).with_pixel_size(size)
    if level:
        source = LevelSource(source, level)
    return source if channel is None or keep_channels else _with_channels(_regions(source), channel)


def read_whole(source: ImageSource, level: int = 0) -> Image:
    """All pixels of a level. Raises `InputError` if they need more memory than there is."""
    if not 0 <= level < len(source.levels):
        source.read(0, 0, 1, 1, level)  # raises
    height, width = source.levels[level].image_hw
    n_bytes = height * width * len(source.channels) * source.dtype.itemsize
    smaller = [
        f"`level={k}` ({other.image_hw[0]} x {other.image_hw[1]})" for k, other in enumerate(source.levels) if k > level
    ]
    remedy = "read regions of it with cellwright.open_image" + (f", or a smaller copy: {smaller[0]}" if smaller else "")
    check_memory(2 * n_bytes, f"this image of {height} x {width} pixels", where=source.path, remedy=remedy)
    return source.read(0, 0, height, width, level)


def _open_file(path: Path, choice: Choice) -> RegionSource:
    suffix = plain_suffix(path)
    if is_zarr(path):
        return open_zarr_source(path, choice)
    if suffix in SLIDE_SUFFIXES:
        check_no_stack(path, choice)
        return SlideSource(path)
    if suffix in TIFF_SUFFIXES:
        return open_tiff_source(path, choice)
    if suffix in RASTER_SUFFIXES:
        check_no_stack(path, choice)
        return _open_raster(path)
    if suffix in PLUGINS:
        return whole_source(chosen_scene(path, choice), partial(read_vendor, path, choice))
    raise not_an_image(path, IMAGE_SUFFIXES)


def _open_array(what: Any) -> ImageSource:
    if isinstance(what, Image):
        return image_source(what)
    if isinstance(what, ImageSource):
        return what
    if all(hasattr(what, name) for name in ("shape", "dtype", "__getitem__")):
        try:
            np.dtype(what.dtype)
        except TypeError:
            pass
        else:
            return array_source(what)
    raise UsageError("not an image", got=type(what).__name__, expected=SOURCES)


def _open_raster(path: Path) -> WholeSource:
    header = raster_header(path)
    names = ("grey", "A") if header.n_channels == 2 else CHANNEL_NAMES[header.n_channels]
    dtype = np.dtype(np.uint8 if header.bits <= 8 else np.uint16)
    facts = Facts(str(path), names, dtype, (Level(header.image_hw),), header.image_hw, "one piece", notes=header.notes)
    return WholeSource(facts, partial(read_raster, path))


def _regions(source: ImageSource) -> RegionSource:
    if isinstance(source, RegionSource):
        return source
    raise UsageError(
        "`channel` and `pixel_size` cannot be changed in a source of another kind",
        got=type(source).__name__,
        expected=SOURCES,
    )


def _with_channels(source: RegionSource, channel: ChannelChoice) -> RegionSource:
    """Only the channels that `select_channels` would keep, found with an image of their numbers."""
    numbers = np.arange(len(source.channels), dtype=np.uint16)[None, None]
    chosen = select_channels(Image(numbers, source.channels, path=source.path), channel)
    return source.with_channels(chosen.data[0, 0].tolist(), chosen.channels, chosen.notes)


def check_no_stack(path: Path | None, choice: Choice) -> None:
    """Raise `UsageError` if a plane, time point or series is chosen of an image that is not a stack."""
    for name, value in (("z", choice.z), ("t", choice.t), ("series", choice.series)):
        if value not in (None, 0, "0", "max", "mean", "all"):
            raise UsageError("this image is not a stack", where=path, got=f"{name} = {value}", remedy=f"omit `{name}`")

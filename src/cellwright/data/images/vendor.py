"""Images of microscope vendors (.czi, .lif, .nd2, ...), read through ``bioio`` where it is installed.

``pip install 'cellwright[bioio]'`` installs bioio itself; it reads each format with a plugin, such as bioio-czi.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import CHANNEL_NAMES, Image
from cellwright.data.images.calibration import length
from cellwright.data.images.planes import DecodedPlane
from cellwright.data.images.slide import INSTALL_SLIDES, SLIDE_SUFFIXES, has_openslide
from cellwright.data.images.tiff import Choice, Chosen, Meaning, TiffHeader, choose, read_chosen
from cellwright.data.images.tiff_images import TiffImage
from cellwright.data.images.zarr import INSTALL_ZARR, has_zarr, is_zarr_name

BIOFORMATS = "bioio-bioformats"
# The bioio plugin for each suffix.
PLUGINS = {
    ".czi": "bioio-czi", ".lif": "bioio-lif", ".nd2": "bioio-nd2", ".dv": "bioio-dv", ".r3d": "bioio-dv",
    ".sldy": "bioio-sldy", ".lsm": "bioio-tifffile", ".oib": BIOFORMATS, ".oif": BIOFORMATS, ".ims": BIOFORMATS,
    ".vsi": BIOFORMATS, ".stk": BIOFORMATS, ".flex": BIOFORMATS, ".lof": BIOFORMATS, ".xlef": BIOFORMATS,
    ".ipl": BIOFORMATS, ".dm3": BIOFORMATS, ".dm4": BIOFORMATS,
}  # fmt: skip
UNREADABLE_SLIDES = frozenset({".qptiff", ".dcm"})
_EXPORT_REGIONS = "export regions as OME-TIFF, for example with QuPath"
CONVERTED = {
    ".heic": "save it as PNG",
    ".gif": "save it as PNG",
    ".avif": "save it as PNG",
    ".jp2": "save it as TIFF or PNG",
    ".raw": "save it as TIFF",
}


def has_bioio() -> bool:
    """Whether bioio is installed."""
    return "bioio" in sys.modules or importlib.util.find_spec("bioio") is not None


def advice(suffix: str) -> str:
    """How to read a file with this suffix (lower case), which is not one of the image formats; "" if it is no image.

    >>> advice(".svs")
    'pip install "cellwright[slides]", or export regions as OME-TIFF, for example with QuPath'
    """
    if suffix in SLIDE_SUFFIXES:
        return f"{INSTALL_SLIDES}, or {_EXPORT_REGIONS}"
    if suffix in UNREADABLE_SLIDES:
        return _EXPORT_REGIONS
    if is_zarr_name(suffix):
        return f"{INSTALL_ZARR}, or save the image as OME-TIFF"
    if suffix in PLUGINS:
        plugin = PLUGINS[suffix]
        return f"pip install 'cellwright[bioio]' {plugin}, or save as OME-TIFF with Fiji"
    return CONVERTED.get(suffix, "")


def is_readable(name: str) -> bool:
    """Whether a name is that of a vendor's image, slide or Zarr, and the package that reads it is installed."""
    suffix = Path(name).suffix.lower()
    return (
        (suffix in PLUGINS and has_bioio())
        or (suffix in SLIDE_SUFFIXES and has_openslide())
        or (is_zarr_name(name) and has_zarr())
    )


def read_vendor(path: Path, choice: Choice) -> Image:
    """The image with all channels. Raises as `read_tiff`, and `InputError` if bioio cannot read the file."""
    return read_chosen(scenes_of(path), choice, path, _meaning)


def _meaning(image: TiffImage) -> Meaning:
    return Meaning("", CHANNEL_NAMES[3 if image.samples > 1 else 1])


def chosen_scene(path: Path, choice: Choice) -> Chosen:
    """The scene and the planes that are meant; nothing is decoded yet."""
    return choose(scenes_of(path), choice, path, _meaning)


def read_vendor_header(path: Path, choice: Choice) -> TiffHeader:
    """The header of an image."""
    from cellwright.data.images.tiff import chosen_image

    image, _ = chosen_image(scenes_of(path), choice, path)
    return TiffHeader(image.image_hw, image.extent("C") * image.samples, 8 * image.dtype.itemsize)


def scenes_of(path: Path) -> list[TiffImage]:
    """The scenes of a file as images. Nothing is decoded yet."""
    plugin = PLUGINS[path.suffix.lower()]
    if not path.exists():
        raise InputError("no such file or folder", where=path, remedy="check the path")
    if not has_bioio():
        remedy = advice(path.suffix.lower())
        raise InputError(
            "this vendor's format is read through bioio, which is not installed", where=path, remedy=remedy
        )
    import bioio  # type: ignore[import-not-found]

    try:
        opened = bioio.BioImage(path)
        return [_scene(opened, scene) for scene in opened.scenes]
    except (InputError, UsageError):
        raise
    except Exception as error:  # every plugin raises its own classes
        raise InputError(
            "bioio cannot read this file",
            where=path,
            got=f"{type(error).__name__}: {error}"[:300],
            remedy=f"install its plugin: pip install {plugin}, or save the image as OME-TIFF",
        ) from error


def _scene(opened: Any, scene: str) -> TiffImage:
    opened.set_scene(scene)
    dims = opened.dims
    has_samples = "S" in dims.order

    def decode(at: Mapping[str, int]) -> np.ndarray:
        opened.set_scene(scene)
        order = "YXS" if has_samples else "YX"
        chosen = {axis: at.get(axis, 0) for axis in "TCZ" if axis in dims.order}
        pixels = np.asarray(opened.get_image_data(order, **chosen))
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    size = opened.physical_pixel_sizes
    known = size is not None and size.Y and size.X
    extents = {axis: int(getattr(dims, axis)) for axis in "TCZ" if axis in dims.order}
    names = tuple(map(str, opened.channel_names or range(extents.get("C", 1))))
    return TiffImage(
        name=str(scene),
        image_hw=(int(dims.Y), int(dims.X)),
        dtype=np.dtype(opened.dtype),
        samples=int(dims.S) if has_samples else 1,
        numbers={axis: range(n) for axis, n in extents.items()},
        plane=lambda at: DecodedPlane(lambda: decode(at)),
        keyframe=None,  # type: ignore[arg-type] - no tags say what the numbers mean
        channels=names,
        pixel_size_um=(float(size.Y), float(size.X)) if size is not None and known else None,
        z_step_um=length(float(size.Z)) if size is not None and size.Z else None,
    )

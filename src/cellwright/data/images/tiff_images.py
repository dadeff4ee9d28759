"""The images of a TIFF file before decoding: what `read_tiff` chooses from.

What belongs together is taken from the file: OME-XML, ImageJ's and tifffile's descriptions, else pages of one size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import tifffile

from cellwright.core.errors import FormatError, InputError
from cellwright.core.files import read_plain
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.images.calibration import LARGEST_TAGGED_UM, PixelSize, length, microns_per, size_from_tags
from cellwright.data.images.ome import OmeImage, metadata_file, ome_images, uuid_of
from cellwright.data.images.planes import (
    PAGE_AXES,
    DecodedPlane,
    MappedPlane,
    PagePlane,
    StoredPlane,
    check_stored,
    truncated,
)

# Letters that tifffile gives to unnamed axes; here they are all "Q".
UNNAMED_AXES = "QI"
# A last axis up to this length is that of channels if the two before it have at least so many pixels.
MAX_LAST_CHANNELS, MIN_SIDE_PX = 8, 16
_THUMBNAIL = re.compile(r"thumb|^label( image)?$|macro|overview|preview", re.IGNORECASE)

At = Mapping[str, int]
"""The number of a plane along each axis."""


@dataclass(frozen=True)
class TiffImage:
    """One image of a TIFF file, before decoding.

    name: "" if the file gives none. image_hw, dtype: of a plane as stored. samples: values per pixel of a plane.
    numbers: the planes that the file holds along T, C, Z and Q (unnamed pages).
    plane: a plane as stored; None if the file does not hold it.
    keyframe: the page whose tags say what the numbers mean. channels: names along C.
    elsewhere: other files that hold planes of this image. other_axes: axes that cannot be read, such as "H" (lifetime).
    reduced: makes smaller copies of the image that the file declares as such.
    z_step_um: distance of two planes in microns; None if unknown.
    """

    name: str
    image_hw: tuple[int, int]
    dtype: np.dtype
    samples: int
    numbers: Mapping[str, Sequence[int]]
    plane: Callable[[At], StoredPlane | None]
    keyframe: tifffile.TiffPage
    channels: tuple[str, ...] = ()
    pixel_size_um: PixelSize | None = None
    is_thumbnail: bool = False
    elsewhere: tuple[str, ...] = ()
    other_axes: str = ""
    notes: tuple[Note, ...] = ()
    reduced: Callable[[], Sequence[TiffImage]] = tuple
    z_step_um: float | None = None

    @property
    def stack_axis(self) -> Literal["Q", "Z"]:
        """The axis of the planes of a stack: unnamed pages are planes."""
        return "Q" if self.extent("Q") > 1 else "Z"

    def extent(self, axis: str) -> int:
        """Number of planes along ``axis``."""
        return len(self.numbers.get(axis, (0,)))

    @property
    def n_planes(self) -> int:
        """Number of planes of all axes."""
        return int(np.prod([len(numbers) for numbers in self.numbers.values()], dtype=np.int64))

    def describe(self) -> str:
        """``"2 channels (0: actin, 1: DAPI), 3 planes, 2 time points, 96 x 128, uint8"``."""
        parts = []
        if self.extent("C") > 1:
            names = [name if name == str(k) else f"{k}: {name}" for k, name in enumerate(self.channels)]
            parts.append(f"{count(self.extent('C'), 'channel')} ({', '.join(names)})")
        for axis, noun in (("Z", "plane"), ("Q", "unnamed page"), ("T", "time point")):
            parts += [count(self.extent(axis), noun)] if self.extent(axis) > 1 else []
        parts += [f"an axis {axis}" for axis in self.other_axes]
        return ", ".join([*parts, f"{self.image_hw[0]} x {self.image_hw[1]}", str(self.dtype)])


def images_of(tif: tifffile.TiffFile, path: Path, *, merge_pages: bool = True) -> list[TiffImage]:
    """The images of an open file, in order.

    merge_pages: single pages of one size and type that the file does not connect are unnamed pages of one image,
    instead of images of their own.
    """
    notes: tuple[Note, ...] = ()
    first = tif.pages.first
    if first.is_ome:
        images, notes = _from_ome(tif, path, first.description)
        if images:
            return images
    images = [image for number, series in enumerate(tif.series) for image in _from_series(tif, series, number)]
    images = [image for image in images if 0 not in image.image_hw]
    if merge_pages:
        images = _merged(images)
    return [replace(image, notes=(*image.notes, *notes)) for image in images]


def tagged_pixel_size(tif: tifffile.TiffFile, keyframe: tifffile.TiffPage) -> PixelSize | None:
    """The pixel size from the resolution tags, in the unit of ImageJ or of the tag; None if it is a print setting."""
    tags = keyframe.tags
    if "XResolution" not in tags or "YResolution" not in tags:
        return None
    resolutions = tags["XResolution"].value, tags["YResolution"].value
    unit = str((tif.imagej_metadata or {}).get("unit", "")) if tif.is_imagej else ""
    if (microns := microns_per(unit)) is not None and unit not in ("inch", "cm"):
        return size_from_tags(*resolutions, microns)
    tag = int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 1
    microns = {2: 25400.0, 3: 10000.0}.get(tag, microns if tif.is_imagej else None)
    size = None if microns is None else size_from_tags(*resolutions, microns)
    return size if size is not None and max(size) <= LARGEST_TAGGED_UM else None


def _z_step(tif: tifffile.TiffFile) -> float | None:
    """The distance of planes that ImageJ recorded, in microns."""
    metadata = (tif.imagej_metadata or {}) if tif.is_imagej else {}
    microns, spacing = microns_per(str(metadata.get("unit", ""))), metadata.get("spacing")
    if microns is None or not isinstance(spacing, int | float):
        return None
    return length(abs(spacing) * microns)


# --- OME-TIFF -------------------------------------------------------------------------------------------------------


def _from_ome(tif: tifffile.TiffFile, path: Path, xml: str) -> tuple[list[TiffImage], tuple[Note, ...]]:
    """The images of the OME-XML that are in this file, or none and why the pages are read without it."""
    ignored = "the OME metadata was ignored"
    try:
        own_uuid, companion = uuid_of(xml), metadata_file(xml)
        if companion is not None:
            if not (path.parent / companion).is_file():
                text = f"its metadata are in {companion}, which is missing: the names of its channels are unknown"
                return [], (Note("the file with the OME metadata is missing", text),)
            xml = read_plain(path.parent / companion).decode("utf-8", "replace")
        described = ome_images(xml, path.name, len(tif.pages), own_uuid)
    except (ElementTree.ParseError, ValueError, KeyError, InputError) as error:
        return [], (Note(ignored, f"its OME metadata cannot be read and was ignored: {error}"),)
    if not described:
        return [], (Note(ignored, "its OME metadata describes other files and was ignored"),)
    images = [_ome_image(tif, one) for one in described]
    if any(image is None for image in images):
        return [], (Note(ignored, "its OME metadata does not match its pages and was ignored"),)
    return [image for image in images if image is not None], ()


def _ome_image(tif: tifffile.TiffFile, ome: OmeImage) -> TiffImage | None:
    keyframe = tif.pages[min(ome.planes.values())]
    assert isinstance(keyframe, tifffile.TiffPage)
    if (keyframe.imagelength, keyframe.imagewidth) != ome.image_hw:
        return None
    numbers = {axis: sorted({index[k] for index in ome.planes}) for k, axis in enumerate("TCZ")}

    def plane(at: At) -> StoredPlane | None:
        page = ome.planes.get((at["T"], at["C"], at["Z"]))
        return None if page is None else PagePlane(tif, tif.pages[page])

    notes = []
    if ome.elsewhere:
        files = count(len(ome.elsewhere) + 1, "file")
        text = f"it is one of a set of {files}; only the planes in this file were read"
        notes.append(Note("one file of a set of OME-TIFF files was read by itself", text))
    if ome.unknown_size:
        text = f"its pixel size is {ome.unknown_size}, so it is treated as unknown"
        notes.append(Note("the stated pixel size cannot be used", text))
    return TiffImage(
        ome.name,
        ome.image_hw,
        np.dtype(keyframe.dtype),
        keyframe.samplesperpixel,
        numbers,
        plane,
        keyframe,
        tuple(ome.channel_names[c] for c in numbers["C"]),
        ome.pixel_size_um,
        _is_thumbnail(keyframe, ome.name),
        ome.elsewhere,
        notes=tuple(notes),
        z_step_um=ome.z_step_um,
    )


# --- other TIFF -----------------------------------------------------------------------------------------------------


def _from_series(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, number: int) -> list[TiffImage]:
    """A series of tifffile as an image; several positions in one series are images of their own."""
    axes, shape = series.axes, tuple(int(n) for n in series.shape)
    notes: tuple[Note, ...] = ()
    if _ends_with_channels(axes, shape):
        *rest, _ = axes
        axes = "".join(rest[:-2]) + "YXC"
        text = f"its last axis of length {shape[-1]} was treated as the channels"
        notes = (Note("a last axis was treated as the channels", text),)
    axes = "".join("Q" if axis in UNNAMED_AXES else axis for axis in axes)
    if "Y" not in axes or "X" not in axes:
        raise FormatError(
            "this TIFF has no image plane",
            where=tif.filehandle.path,
            got=f"axes {series.axes}",
            expected="axes Y and X",
        )
    lead = [k for k, axis in enumerate(axes) if axis not in "YXS"]
    position = next((k for k in lead if axes[k] in "RP" and shape[k] > 1), None)
    other = [k for k in lead if shape[k] > 1 and k != position and (axes[k] not in "TCZQ" or axes.index(axes[k]) != k)]
    stored = _planes(tif, series, axes, shape)

    def reduced(at_position: int | None) -> list[TiffImage]:
        copies = (_from_series(tif, level, number) for level in series.levels[1:])
        return [copy[at_position or 0] for copy in copies if len(copy) > (at_position or 0)]

    def image(at_position: int | None) -> TiffImage:
        def plane(at: At) -> StoredPlane | None:
            return stored([at_position or 0 if k == position else at.get(axes[k], 0) for k in lead])

        def extent(axis: str) -> int:
            return shape[axes.index(axis)] if axis in axes else 1

        keyframe = series.keyframe
        name = series.name or ""
        return TiffImage(
            name if at_position is None else f"{name} position {at_position}".strip(),
            (extent("Y"), extent("X")),
            np.dtype(series.dtype),
            extent("S"),
            {axis: range(shape[axes.index(axis)]) for axis in "TCZQ" if axis in axes},
            plane,
            keyframe,
            _channel_names(tif, number, extent("C"), extent("T") * extent("Z") == 1),
            tagged_pixel_size(tif, keyframe),
            _is_thumbnail(keyframe, name),
            other_axes="".join(axes[k] for k in other),
            notes=notes,
            reduced=lambda: reduced(at_position),
            z_step_um=_z_step(tif),
        )

    return [image(None)] if position is None else [image(k) for k in range(shape[position])]


def _ends_with_channels(axes: str, shape: tuple[int, ...]) -> bool:
    """Whether the last axis can only be that of channels: (rows, columns, 2) written as 2 pixels wide pages."""
    if len(axes) < 3 or axes[-2:] != "YX" or axes[-3] not in "QIZTC":
        return False
    return shape[-1] <= MAX_LAST_CHANNELS and min(shape[-3:-1]) >= MIN_SIDE_PX


def _planes(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, axes: str, shape: tuple[int, ...]
) -> Callable[[list[int]], StoredPlane]:
    """A function from the numbers along the axes other than Y, X and S to the plane."""
    lead = [k for k, axis in enumerate(axes) if axis not in "YXS"]
    lead_shape = tuple(shape[k] for k in lead)
    left = "".join(axis for axis in axes if axis in "YXS")
    whole: list[np.ndarray] = []

    def index_of(at: list[int]) -> tuple[int | slice, ...]:
        index: list[int | slice] = [slice(None)] * len(axes)
        for k, number in zip(lead, at, strict=True):
            index[k] = number
        return tuple(index)

    def of_page(at: list[int]) -> StoredPlane:
        number = int(np.ravel_multi_index(at, lead_shape)) if at else 0
        return PagePlane(tif, series.pages[number])

    def of_map(at: list[int]) -> StoredPlane:
        dtype, offset = np.dtype(series.dtype).newbyteorder(tif.byteorder), series.dataoffset
        assert offset is not None
        end = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if end > tif.filehandle.size:
            raise truncated(tif, end)
        return MappedPlane(str(tif.filehandle.path), dtype, offset, shape, index_of(at), left)

    def of_series(at: list[int]) -> StoredPlane:
        def decode() -> np.ndarray:
            if not whole:
                for page in series.pages:
                    check_stored(tif, page)
                whole.append(np.asarray(series.asarray()).reshape(shape))
            pixels = whole[0][index_of(at)].transpose([left.index(axis) for axis in "YXS" if axis in left])
            return pixels if "S" in left else pixels[:, :, None]

        return DecodedPlane(decode)

    if series.dataoffset is not None and tif.filehandle.is_file:
        return of_map
    page_axes = series.keyframe.axes
    is_paged = page_axes in PAGE_AXES and axes.endswith(page_axes)
    return of_page if is_paged and len(series.pages) == int(np.prod(lead_shape, dtype=np.int64)) else of_series


def reduced_copies(tif: tifffile.TiffFile, image: TiffImage) -> list[TiffImage]:
    """The smaller copies of an image that the file declares: levels of a series, or directories below its pages."""
    return [*image.reduced(), *_below_pages(tif, image)]


def _below_pages(tif: tifffile.TiffFile, image: TiffImage) -> list[TiffImage]:
    """The copies in directories below each page (SubIFDs)."""
    key = image.keyframe

    def below(at: At, level: int, level_key: tifffile.TiffPage) -> StoredPlane | None:
        plane = image.plane(at)
        page = plane.page if isinstance(plane, PagePlane) else None
        if page is key:
            return PagePlane(tif, level_key)
        if page is None or page.subifds is None or len(page.subifds) <= level:
            return None
        offset = page.subifds[level]
        return PagePlane(tif, tifffile.TiffFrame(tif, (page.index, level + 1), offset=offset, keyframe=level_key))

    copies = []
    for level, offset in enumerate(key.subifds or ()):
        tif.filehandle.seek(offset)
        level_key = tifffile.TiffPage(tif, (key.index, level + 1))
        if level_key.dtype is None or int(level_key.subfiletype) & 4:  # a mask
            continue
        copies.append(
            replace(
                image,
                image_hw=(level_key.imagelength, level_key.imagewidth),
                dtype=np.dtype(level_key.dtype),
                samples=level_key.samplesperpixel,
                keyframe=level_key,
                plane=lambda at, level=level, key=level_key: below(at, level, key),
                reduced=tuple,
            )
        )
    return copies


def _merged(images: list[TiffImage]) -> list[TiffImage]:
    """Images of one plane and the same size and type as unnamed pages of one image, if no file says what they are."""
    pages = [image for image in images if not image.is_thumbnail]
    kinds = {(im.image_hw, im.dtype, im.samples, im.n_planes, im.name, im.keyframe.photometric) for im in pages}
    if len(pages) < 2 or len(kinds) > 1 or pages[0].n_planes > 1 or pages[0].name:
        return images
    first = replace(pages[0], numbers={"Q": range(len(pages))}, plane=lambda at: pages[at["Q"]].plane({}), channels=())
    return [first, *(image for image in images if image.is_thumbnail)]


def _channel_names(tif: tifffile.TiffFile, number: int, n_channels: int, is_single: bool) -> tuple[str, ...]:
    """Names along C: from tifffile's description, or the slice labels of ImageJ where a slice is a channel."""
    names: Any = None
    if tif.is_shaped and tif.shaped_metadata and number < len(tif.shaped_metadata):
        channel = tif.shaped_metadata[number].get("Channel")
        names = channel.get("Name") if isinstance(channel, dict) else None
    elif tif.is_imagej and tif.imagej_metadata and is_single:
        names = tif.imagej_metadata.get("Labels")
        if isinstance(names, list) and any(re.match(r"[czt]:\d+/\d+", str(name)) for name in names):
            names = None
    if isinstance(names, list | tuple) and len(names) == n_channels and all(names) and len(set(names)) == n_channels:
        return tuple(map(str, names))
    return tuple(map(str, range(n_channels)))


def _is_thumbnail(page: tifffile.TiffPage, name: str) -> bool:
    return bool(int(page.subfiletype) & 5) or is_name_of_thumbnail(name)  # a reduced image or a mask


def is_name_of_thumbnail(name: str) -> bool:
    """Whether an image is a thumbnail, label or overview by its name."""
    return _THUMBNAIL.search(name) is not None

"""The OME-XML of a TIFF file: which images it describes, and which of their planes are in this file.

A set of OME-TIFF files shares one description. Each file is read for itself: what other files hold is not opened, so a
file is never another one's image and a missing file is never read as zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from xml.etree import ElementTree

from cellwright.core.geometry import MAX_SIDE
from cellwright.data.images.calibration import PixelSize, length, microns_per, pixel_size

Index = tuple[int, int, int]
"""(t, c, z) of a plane."""


@dataclass(frozen=True)
class OmeImage:
    """One image of an OME description, as far as it is in this file.

    channel_names: by the number of the channel. planes: page number in this file by (t, c, z).
    elsewhere: names of other files that hold planes of this image.
    unknown_size: why its pixel size is not known although one is stated, after "its pixel size is", else "".
    z_step_um: distance of two planes.
    """

    name: str
    image_hw: tuple[int, int]
    channel_names: dict[int, str]
    pixel_size_um: PixelSize | None
    planes: dict[Index, int]
    sizes: Index
    elsewhere: tuple[str, ...] = ()
    unknown_size: str = ""
    z_step_um: float | None = None


def metadata_file(xml: str) -> str | None:
    """The name of the file that holds the description, for a file that only refers to it (``BinaryOnly``)."""
    for element in _parsed(xml):
        if _tag(element) == "BinaryOnly":
            return PurePath(element.get("MetadataFile", "")).name or None
    return None


def ome_images(xml: str, file_name: str, n_pages: int, own_uuid: str | None = None) -> list[OmeImage]:
    """The images with planes in the file ``file_name`` of ``n_pages`` pages, in order; empty if it is not described.

    own_uuid: of the file, if ``xml`` comes from another file. Raises `ValueError` or `ElementTree.ParseError` for
    metadata that cannot be understood.
    """
    root = _parsed(xml)
    own_uuid = own_uuid or root.get("UUID")
    images = [image for image in root if _tag(image) == "Image"]
    files = {_file(data) for image in images for pixels in image for data in pixels if _tag(data) == "TiffData"}
    files.discard(None)

    def is_here(data: ElementTree.Element) -> bool:
        file = _file(data)
        if file is None or (own_uuid is not None and file[0] == own_uuid):
            return True
        # A file that was renamed is still the only one.
        return file[1].casefold() == file_name.casefold() or len(files) == 1

    described = []
    for number, image in enumerate(images):
        for pixels in image:
            if _tag(pixels) == "Pixels":
                described.append(_image(image.get("Name") or f"image {number}", pixels, is_here, n_pages))
    return [image for image in described if image.planes]


def uuid_of(xml: str) -> str | None:
    """The UUID of the file that ``xml`` was stored in."""
    return _parsed(xml).get("UUID")


def _parsed(xml: str) -> ElementTree.Element:
    if "<!DOCTYPE" in xml:
        raise ValueError("a document type, which may declare entities, is not read")
    return ElementTree.fromstring(xml)


def _image(name: str, pixels: ElementTree.Element, is_here, n_pages: int) -> OmeImage:
    channels = [element for element in pixels if _tag(element) == "Channel"]
    samples = {_number(channel, "SamplesPerPixel", 1, lowest=1) for channel in channels} or {1}
    if len(samples) > 1:
        raise ValueError("channels with different numbers of samples per pixel")
    size = {axis: _number(pixels, f"Size{axis}", 1, lowest=1) for axis in "XYZCT"}
    size["C"] = max(size["C"] // samples.pop(), 1)
    order = pixels.get("DimensionOrder", "XYZCT")[2:]
    if sorted(order) != sorted("ZCT"):
        raise ValueError(f"the order {order!r} of the axes")
    planes: dict[Index, int] = {}
    elsewhere: dict[str, None] = {}
    for data in pixels:
        if _tag(data) != "TiffData":
            continue
        if not is_here(data):
            file = _file(data)
            elsewhere[file[1] if file else ""] = None
            continue
        for index, page in zip(_indices(data, size, order), _pages(data, size, n_pages), strict=False):
            planes[index] = page
    names = {c: str(c) for _, c, _ in planes}
    names |= {c: channel.get("Name") or str(c) for c, channel in enumerate(channels) if c in names}
    size_um, unknown_size = _pixel_size(pixels)
    return OmeImage(
        name,
        (size["Y"], size["X"]),
        names,
        size_um,
        planes,
        (size["T"], size["C"], size["Z"]),
        tuple(elsewhere),
        unknown_size,
        _length(pixels, "Z"),
    )


def _indices(data: ElementTree.Element, size: dict[str, int], order: str) -> Iterator[Index]:
    """(t, c, z) of the planes that follow the first one of a ``TiffData`` element."""
    first = {axis: _number(data, f"First{axis}", 0) for axis in order}
    start, step = 0, 1
    for axis in order:  # the first axis runs fastest
        start, step = start + first[axis] * step, step * size[axis]
    for number in range(start, step):
        at, rest = {}, number
        for axis in order:
            rest, at[axis] = divmod(rest, size[axis])
        yield at["T"], at["C"], at["Z"]


def _pages(data: ElementTree.Element, size: dict[str, int], n_pages: int) -> Iterator[int]:
    """The pages of a ``TiffData`` element; without numbers it means all pages."""
    start = _number(data, "IFD", 0)
    every = math.prod(size[axis] for axis in "ZCT")
    n_planes = _number(data, "PlaneCount", 0) or _number(data, "NumPlanes", 1 if "IFD" in data.attrib else every)
    yield from range(start, min(start + n_planes, n_pages))


def _number(element: ElementTree.Element, name: str, default: int, *, lowest: int = 0) -> int:
    text = element.get(name)
    number = default if text is None else int(text)
    if not lowest <= number <= MAX_SIDE:
        raise ValueError(f"{name} {number}")
    return number


def _file(data: ElementTree.Element) -> tuple[str, str] | None:
    """(UUID, file name) of the file that holds planes; None for the file itself."""
    for element in data:
        if _tag(element) == "UUID":
            return (element.text or "").strip(), PurePath(element.get("FileName", "")).name
    return None


def _pixel_size(pixels: ElementTree.Element) -> tuple[PixelSize | None, str]:
    """(y, x) in microns, and why it is not known although it is stated."""
    sizes, stated, unknown = [], [], ""
    for axis in "YX":
        size, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        microns = microns_per(unit)
        if size and microns is None:
            unknown = f"in the unit {unit!r}, which is not a length"
        stated += [f"{size} {unit}"] if size else []
        try:
            sizes.append(float(size) * microns if size and microns is not None else None)
        except ValueError:
            sizes.append(None)
    size_um = pixel_size(*sizes)
    if stated and size_um is None and not unknown:
        unknown = f"stated as {' x '.join(stated)}, which cannot be true"
    return size_um, unknown


def _length(pixels: ElementTree.Element, axis: str) -> float | None:
    """The size along an axis in microns; None if it is not stated, has no unit of length, or cannot be true."""
    size, microns = pixels.get(f"PhysicalSize{axis}"), microns_per(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    try:
        return None if size is None or microns is None else length(float(size) * microns)
    except ValueError:
        return None


def _tag(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]

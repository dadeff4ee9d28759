"""From a file to an `Image`: decode in the file's own dtype, and say what was read."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.errors import FormatError, InputError
from cellwright.core.files import unreadable
from cellwright.core.image import Image
from cellwright.data.images.tiff import RGB_NAMES, pick_channel, read_tiff, read_tiff_header

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
IMAGE_SUFFIXES = TIFF_SUFFIXES | {".png", ".jpg", ".jpeg", ".bmp", ".webp"}

# What our own commands leave beside or among images; a verb never takes its own outputs for inputs.
OUTPUT_ENDINGS = ("_masks.tif", "_overlay.png")
OUTPUT_NAMES = frozenset({"contact_sheet.png"})

CHANNEL_NAMES = {1: ("grey",), 2: ("grey", "A"), **RGB_NAMES}
# A byte of a deflate stream gives at most 1032 (RFC 1951); a file that claims more pixels is damaged or hostile, and
# decoding it would reserve the claimed memory first.
MAX_DEFLATE_RATIO = 1100
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Channels by the colour type in a PNG's header: grey, RGB, palette (decoded to RGB), grey + alpha, RGBA.
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}


@dataclass(frozen=True)
class ImageHeader:
    """What an image file says about itself before anything is decoded."""

    image_hw: tuple[int, int]
    n_channels: int
    bits: int


def read_image(path: Path | str, *, channel: str | int | None = None, z: int | None = None) -> Image:
    """Read PNG, JPEG, BMP, WebP, TIFF or OME-TIFF as it is: own dtype, RGBA kept as R, G, B, A.

    channel: name or 0-based index of the one channel to keep; needed where there are several that are not RGB.
    z: 0-based plane of a stack; needed where there are several planes.
    Raises `InputError` for an absent file or an open choice (listing what was found), `FormatError` naming a file
    that is truncated or damaged. EXIF rotation is not applied: annotations are drawn on the stored pixels.
    """
    path = Path(path)
    if path.suffix.lower() in TIFF_SUFFIXES:
        data, names, pixel_size_um = read_tiff(path, channel=channel, z=z)
        return Image(_own_dtype(data, path), names, pixel_size_um, str(path))
    data = _decode(path)
    data = data[:, :, None] if data.ndim == 2 else data
    names = CHANNEL_NAMES[data.shape[2]]
    if z not in (None, 0):
        raise InputError("this image is not a stack", where=path, got=f"z = {z}", remedy="leave --z out")
    if channel is not None:
        keep = pick_channel(names, channel, path)
        data, names = data[:, :, keep : keep + 1], names[keep : keep + 1]
    return Image(data, names, None, str(path))


def image_header(path: Path | str) -> ImageHeader:
    """Size, channels and bit depth from the header. `InputError` or `FormatError` names the file."""
    path = Path(path)
    if path.suffix.lower() in TIFF_SUFFIXES:
        header = read_tiff_header(path)
        return ImageHeader(header.image_hw, header.extent("C") * header.extent("S"), 8 * header.dtype.itemsize)
    if path.suffix.lower() == ".png":
        return _png_header(path)
    with _open_pillow(path) as opened:
        return ImageHeader((opened.height, opened.width), len(opened.getbands()), 8)


def image_hw_of(path: Path | str) -> tuple[int, int]:
    """(height, width) from the header alone."""
    return image_header(path).image_hw


def decode_png(data: bytes, path: Path | str) -> np.ndarray:
    """Pixels (H, W) or (H, W, C) of a PNG held in memory, palettes resolved; `FormatError` where it is damaged."""
    import imagecodecs

    try:
        width, height, bits, colour = struct.unpack(">IIBB", data[16:26])
        if height * (width * bits * PNG_CHANNELS.get(colour, 1) // 8) > MAX_DEFLATE_RATIO * len(data):
            raise ValueError(f"{height} x {width} pixels in {len(data)} bytes")
        return imagecodecs.png_decode(data)
    except Exception as error:  # the codec raises its own classes and plain ValueError
        raise damaged_image(path, error) from error


def damaged_image(path: Path | str, error: Exception) -> FormatError:
    """The error for a file that is truncated or not an image."""
    return FormatError(
        "this image cannot be decoded",
        where=path,
        got=f"{type(error).__name__}: {error}",
        expected="a whole image file",
        remedy="copy or download the file again, or take it out of the folder",
    )


def read_file(path: Path | str) -> bytes:
    """All bytes of a file; `InputError` naming it where it is absent or not readable."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error, "image") from error


def find_images(path: Path | str) -> list[Path]:
    """The image files at ``path``: itself, or everything below a folder, sorted; never empty.

    Hidden files and folders (such as ``.ipynb_checkpoints``) and this tool's own outputs are passed over.
    """
    path = Path(path)
    if path.is_file():
        if not is_image_name(path.name):
            known = ", ".join(sorted(IMAGE_SUFFIXES))
            raise InputError("this is not an image file", where=path, got=path.suffix or "no suffix", expected=known)
        return [path]
    if not path.is_dir():
        raise InputError("no such file or folder", where=path, remedy="check the path")
    found = sorted(file for file in walk_visible(path) if is_image_name(file.name) and not is_own_output(file.name))
    if not found:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError("this folder holds no image", where=path, expected=f"files ending in {known}")
    return found


def walk_visible(root: Path) -> Iterator[Path]:
    """Every file below ``root`` that is not hidden and not in a hidden folder."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def is_image_name(name: str) -> bool:
    """Whether a file name ends as an image does."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def is_own_output(name: str) -> bool:
    """Whether a file name is one that `predict` or `data show` leaves."""
    return name in OUTPUT_NAMES or name.endswith(OUTPUT_ENDINGS)


def _decode(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".png":
        return decode_png(read_file(path), path)
    with _open_pillow(path) as opened:
        try:
            # A palette or a bilevel image is not pixels yet; every other mode keeps its channels.
            plain = opened.convert("RGB") if opened.mode in ("P", "CMYK", "YCbCr") else opened
            return np.asarray(plain.convert("L") if plain.mode == "1" else plain)
        except (OSError, ValueError, SyntaxError) as error:
            raise damaged_image(path, error) from error


def _open_pillow(path: Path) -> PillowImage:
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    if path.suffix.lower() not in IMAGE_SUFFIXES:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError("this is not an image file", where=path, got=path.suffix or "no suffix", expected=known)
    try:
        return Pillow.open(path)
    except UnidentifiedImageError as error:
        raise damaged_image(path, error) from error
    except OSError as error:
        raise unreadable(path, error, "image") from error


def _png_header(path: Path) -> ImageHeader:
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError as error:
        raise unreadable(path, error, "image") from error
    if len(head) < 26 or head[:8] != PNG_SIGNATURE or head[12:16] != b"IHDR" or head[25] not in PNG_CHANNELS:
        raise damaged_image(path, ValueError("no PNG header"))
    width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
    if not width or not height:
        raise damaged_image(path, ValueError(f"{height} x {width} pixels"))
    return ImageHeader((height, width), PNG_CHANNELS[colour], max(bits, 8))


def _own_dtype(data: np.ndarray, path: Path) -> np.ndarray:
    """8- and 16-bit and float32 stay; wider integers that hold an image do not exist, so they are refused."""
    if data.dtype in (np.uint8, np.uint16, np.float32):
        return data
    if data.dtype == bool:
        return data.astype(np.uint8) * np.uint8(255)
    if data.dtype in (np.float64, np.float16):
        return data.astype(np.float32)
    raise InputError(
        "this pixel type is not supported",
        where=path,
        got=data.dtype,
        expected="uint8, uint16 or float",
        remedy="if these are labels, give the file as masks; else save the image as 16-bit",
    )

"""Find image files and read them as `Image`: pixels in the dtype of the file, named channels, pixel size.

PNG, JPEG, BMP and WebP are decoded here, TIFF in `cellwright.data.images.tiff`. Nothing is converted on reading: an
image of three channels stays as it is, and `cellwright.data.network_input` fits it to a network.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.errors import InputError, UsageError
from cellwright.core.files import unreadable
from cellwright.core.image import CHANNEL_NAMES, Image
from cellwright.data.images.channels import ChannelChoice, select_channels
from cellwright.data.images.tiff import Plane, damaged_image, read_tiff, read_tiff_header

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
IMAGE_SUFFIXES = TIFF_SUFFIXES | {".png", ".jpg", ".jpeg", ".bmp", ".webp"}

# Files that cellwright writes beside images; they are never used as input images.
OUTPUT_ENDINGS = ("_masks.tif", "_overlay.png")
OUTPUT_NAMES = frozenset({"contact_sheet.png"})

# A deflate stream expands by a factor of at most 1032 (RFC 1951). A file that claims more pixels is damaged or
# malicious, and decoding it would allocate the claimed memory first.
MAX_DEFLATE_RATIO = 1100
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Number of channels by the colour type in a PNG header: grey, RGB, palette (decoded to RGB), grey and alpha, RGBA.
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}


@dataclass(frozen=True)
class ImageHeader:
    """The facts in the header of an image file: size, number of channels, and bits per channel."""

    image_hw: tuple[int, int]
    n_channels: int
    bits: int


# --- reading --------------------------------------------------------------------------------------------------------


def read_image(
    path: Path | str,
    *,
    channel: ChannelChoice | None = None,
    z: Plane | None = None,
    t: int | None = None,
    series: int | str | None = None,
) -> Image:
    """Read a PNG, JPEG, BMP, WebP, TIFF or OME-TIFF file in its own dtype, with all channels.

    channel: the channels to keep (see `select_channels`); None keeps all.
    z: 0-based plane of a z stack, or "max" or "mean" of all planes. t: 0-based time point. series: the number or the
    name of one image in a file of several.

    Raises `InputError` if the file does not exist, or if a required choice is missing (it lists all choices), and
    `FormatError` if the file is truncated or damaged. EXIF rotation is not applied, because annotations refer to the
    stored pixels.
    """
    path = Path(path)
    if path.suffix.lower() in TIFF_SUFFIXES:
        data, names, pixel_size_um = read_tiff(path, z=z, t=t, series=series)
        image = Image(_supported_dtype(data, path), names, pixel_size_um, str(path))
    else:
        data = _decode(path)
        data = data[:, :, None] if data.ndim == 2 else data
        names = ("grey", "A") if data.shape[2] == 2 else CHANNEL_NAMES[data.shape[2]]
        for name, choice in (("z", z), ("t", t), ("series", series)):
            if choice not in (None, 0, "max", "mean"):
                raise UsageError(
                    "this image is not a stack", where=path, got=f"{name} = {choice}", remedy=f"omit `{name}`"
                )
        image = Image(data, names, None, str(path))
    return image if channel is None else select_channels(image, channel)


def image_header(path: Path | str) -> ImageHeader:
    """Size, channels and bit depth from the header of a file. Raises `InputError` or `FormatError` that names it."""
    path = Path(path)
    if path.suffix.lower() in TIFF_SUFFIXES:
        header = read_tiff_header(path)
        return ImageHeader(header.image_hw, header.extent("C") * header.extent("S"), 8 * header.dtype.itemsize)
    if path.suffix.lower() == ".png":
        return _png_header(path)
    with _open_pillow(path) as opened:
        return ImageHeader((opened.height, opened.width), len(opened.getbands()), 8)


def image_hw_of(path: Path | str) -> tuple[int, int]:
    """(height, width) from the header of a file."""
    return image_header(path).image_hw


def decode_png(data: bytes, path: Path | str) -> np.ndarray:
    """Pixels (H, W) or (H, W, C) of a PNG in memory, with palettes resolved. Raises `FormatError` if it is damaged."""
    import imagecodecs

    try:
        width, height, bits, colour = struct.unpack(">IIBB", data[16:26])
        if height * (width * bits * PNG_CHANNELS.get(colour, 1) // 8) > MAX_DEFLATE_RATIO * len(data):
            raise ValueError(f"{height} x {width} pixels in {len(data)} bytes")
        return imagecodecs.png_decode(data)
    except Exception as error:  # the codec raises its own classes and plain ValueError
        raise damaged_image(path, error) from error


def read_file(path: Path | str) -> bytes:
    """The content of a file. Raises `InputError` if it does not exist or cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error, "image") from error


def _decode(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".png":
        return decode_png(read_file(path), path)
    with _open_pillow(path) as opened:
        try:
            # Convert palettes and colour spaces other than RGB; all other modes keep their channels.
            plain = opened.convert("RGB") if opened.mode in ("P", "CMYK", "YCbCr") else opened
            return np.asarray(plain.convert("L") if plain.mode == "1" else plain)
        except (OSError, ValueError, SyntaxError) as error:
            raise damaged_image(path, error) from error


def _open_pillow(path: Path) -> PillowImage:
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise _not_an_image(path)
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


def _supported_dtype(data: np.ndarray, path: Path) -> np.ndarray:
    """Keep uint8, uint16 and float32, convert bool and other floats; refuse wider integers, which are labels."""
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
        remedy="if these are labels, use the file as masks; otherwise save the image as 16-bit",
    )


# --- finding files --------------------------------------------------------------------------------------------------


def find_images(path: Path | str) -> list[Path]:
    """The image file at ``path``, or all image files below a folder, sorted; never empty.

    Hidden files and folders (such as ``.ipynb_checkpoints``) and outputs of cellwright are skipped. Raises `InputError`
    if there is no image.
    """
    path = Path(path)
    if path.is_file():
        if not is_image_name(path.name):
            raise _not_an_image(path)
        return [path]
    if not path.is_dir():
        raise InputError("no such file or folder", where=path, remedy="check the path")
    images = sorted(file for file in walk_visible(path) if is_image_name(file.name) and not is_own_output(file.name))
    if not images:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError("this folder has no images", where=path, expected=f"files ending in {known}")
    return images


def walk_visible(root: Path) -> Iterator[Path]:
    """All files below ``root`` that are not hidden and not in a hidden folder."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def is_own_output(name: str) -> bool:
    """Whether a file name is that of an output of cellwright."""
    return name in OUTPUT_NAMES or name.endswith(OUTPUT_ENDINGS)


def _not_an_image(path: Path) -> InputError:
    known = ", ".join(sorted(IMAGE_SUFFIXES))
    return InputError("this is not an image file", where=path, got=path.suffix or "no suffix", expected=known)

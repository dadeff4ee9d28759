"""Decode PNG, JPEG, BMP and WebP.

Pictures of cameras may be stored turned, with an EXIF orientation that says how viewers turn them upright. They are
read upright, because annotations are drawn on what viewers show.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellwright.core.errors import InputError
from cellwright.core.files import is_gzip, plain_suffix, read_plain, require_regular, unreadable
from cellwright.core.image import CHANNEL_NAMES, Image, supported_dtype
from cellwright.core.memory import check_memory
from cellwright.core.notes import Note
from cellwright.data.images.pixels import apply_palette, shows_colours
from cellwright.data.images.tiff import check_claim, check_plausible, damaged_image

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

RASTER_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})

# A deflate stream expands by a factor of at most 1032 (RFC 1951). A file that claims more pixels is damaged or
# malicious, and decoding it would allocate the claimed memory first.
MAX_DEFLATE_RATIO = 1100
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Number of channels by the colour type in a PNG header: grey, RGB, palette (decoded to RGB), grey and alpha, RGBA.
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
PNG_PALETTE = 3
ORIENTATION_TAG = 274
# What viewers do for each EXIF orientation: (flip left and right, then quarter turns counter-clockwise).
TURNS = {
    1: (False, 0),
    2: (True, 0),
    3: (False, 2),
    4: (True, 2),
    5: (True, 1),
    6: (False, 3),
    7: (True, 3),
    8: (False, 1),
}


@dataclass(frozen=True)
class RasterHeader:
    """Size (upright), number of channels, bits per value, the EXIF orientation (1: stored upright), and notes."""

    image_hw: tuple[int, int]
    n_channels: int
    bits: int
    orientation: int = 1
    notes: tuple[Note, ...] = ()


def read_raster(path: Path) -> Image:
    """The image, upright, with all channels and notes. Raises `InputError`, or `FormatError` if it is damaged."""
    content = read_file(path)
    if plain_suffix(path) == ".png":
        header, chunks = _png_header(path, io.BytesIO(content))
        data = _decode_png(content, path, chunks)
    else:
        opened = open_pillow(path, io.BytesIO(content))
        header = _pillow_header(opened, path)
        if opened.format in ("JPEG", "MPO") and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
            raise damaged_image(path, ValueError("the end of the JPEG data is missing"))
        check_claim(_decoded_bytes(opened), path, max_ratio=math.inf)
        data = _decode_pillow(opened, path)
    data = data[:, :, None] if data.ndim == 2 else data
    data, more = supported_dtype(data, path)
    names = ("grey", "A") if data.shape[2] == 2 else CHANNEL_NAMES[data.shape[2]]
    return Image(upright(data, header.orientation), names, None, str(path), (*header.notes, *more))


def raster_header(path: Path) -> RasterHeader:
    """The header, without decoding. Raises `InputError`, or `FormatError` if it is damaged."""
    require_regular(path)
    try:
        with io.BytesIO(read_file(path)) if is_gzip(path) else path.open("rb") as file:
            if plain_suffix(path) == ".png":
                return _png_header(path, file)[0]
            return _pillow_header(open_pillow(path, file), path)
    except OSError as error:
        raise unreadable(path, error, "image") from error


# --- EXIF orientation -----------------------------------------------------------------------------------------------


def upright(data: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, C) as viewers show them, for an EXIF orientation of 1 to 8.

    >>> upright(np.arange(6).reshape(2, 3, 1), 6)[:, :, 0].tolist()
    [[3, 0], [4, 1], [5, 2]]
    """
    flip, quarter_turns = TURNS[orientation]
    return np.ascontiguousarray(np.rot90(data[:, ::-1] if flip else data, quarter_turns))


def orientation_notes(orientation: int, stored_hw: tuple[int, ...], path: Path) -> tuple[Note, ...]:
    """What is assumed about an image that was turned upright."""
    if orientation == 1:
        return ()
    height, width = stored_hw
    turned = _upright_hw((height, width), orientation)
    sizes = (
        f"stored as {height} x {width}, read as {turned[0]} x {turned[1]}"
        if turned != (height, width)
        else (f"{height} x {width} either way, so sizes do not tell whether annotations were")
    )
    text = f"turned upright as its EXIF orientation says ({sizes}); annotations are assumed to match it upright"
    return (Note("the EXIF orientation of an image was applied", text, str(path)),)


def _upright_hw(stored_hw: tuple[int, int], orientation: int) -> tuple[int, int]:
    height, width = stored_hw
    return (width, height) if orientation >= 5 else (height, width)


def _orientation(read_exif: Callable[[], Any]) -> int:
    try:
        with warnings.catch_warnings(action="ignore"):
            value = read_exif().get(ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - EXIF that cannot be read says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


# --- decoding -------------------------------------------------------------------------------------------------------


def decode_png(data: bytes, path: Path | str) -> np.ndarray:
    """Pixels (H, W) or (H, W, C) of a PNG in memory, with palettes resolved. Raises `FormatError` if it is damaged."""
    import imagecodecs

    try:
        width, height, bits, colour = struct.unpack(">IIBB", data[16:26])
        decoded_bytes = height * (width * bits * PNG_CHANNELS.get(colour, 1) // 8)
        if decoded_bytes > MAX_DEFLATE_RATIO * len(data):
            raise ValueError(f"{height} x {width} pixels in {len(data)} bytes")
        check_memory(2 * decoded_bytes, "this image", where=path)
        return imagecodecs.png_decode(data)
    except InputError:
        raise
    except Exception as error:  # the codec raises its own classes and plain ValueError
        raise damaged_image(path, error) from error


def read_file(path: Path | str) -> bytes:
    """The content of a file, decompressed. Raises `InputError` if it does not exist or cannot be read."""
    return read_plain(path, "image")


def not_an_image(path: Path, known: frozenset[str]) -> InputError:
    """The error for a file that has not the suffix of an image."""
    expected = ", ".join(sorted(known))
    from cellwright.data.images.vendor import advice

    remedy = advice(plain_suffix(path)) or None
    got = path.suffix or "no suffix"
    return InputError("this is not an image file", where=path, got=got, expected=expected, remedy=remedy)


def _decode_png(content: bytes, path: Path, chunks: dict[bytes, bytes]) -> np.ndarray:
    decoded = decode_png(content, path)
    if content[25] != PNG_PALETTE or shows_colours(_png_palette(chunks)):
        return decoded
    return _decode_pillow(open_pillow(path, io.BytesIO(content)), path)


@contextmanager
def _damage_is_told(path: Path) -> Iterator[None]:
    """Whatever Pillow raises becomes an error about the file; its decoders raise errors of many classes."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise damaged_image(path, error) from error


def _decoded_bytes(opened: PillowImage) -> float:
    return float(opened.width) * opened.height * len(opened.getbands())


def _decode_pillow(opened: PillowImage, path: Path) -> np.ndarray:
    with _damage_is_told(path):
        if opened.mode == "P":
            return apply_palette(np.asarray(opened), _palette(opened))[0]
        shown = opened if opened.mode in ("L", "LA", "RGB", "RGBA") else opened.convert("".join(_shown_bands(opened)))
        return np.asarray(shown)


def _pillow_header(opened: PillowImage, path: Path) -> RasterHeader:
    orientation, stored_hw = _orientation(opened.getexif), (opened.height, opened.width)
    if opened.format != "WEBP":  # in which a solid colour takes no space, whatever its size
        check_plausible(_decoded_bytes(opened), path)
    with _damage_is_told(path):
        n_channels = len(_shown_bands(opened))
        palette_notes = _palette_notes(_palette(opened) if opened.mode == "P" else None)
    notes = (*palette_notes, *orientation_notes(orientation, stored_hw, path))
    return RasterHeader(_upright_hw(stored_hw, orientation), n_channels, 8, orientation, notes)


def _palette_notes(colours: np.ndarray | None) -> tuple[Note, ...]:
    """What is assumed about an image with a palette."""
    return () if colours is None else apply_palette(np.zeros((1, 1), np.uint8), colours)[1]


def _shown_bands(opened: PillowImage) -> tuple[str, ...]:
    """The bands after decoding: palettes, ink and other colour spaces become grey or RGB."""
    if opened.mode == "P":
        return ("R", "G", "B") if shows_colours(_palette(opened)) else ("L",)
    if opened.mode in ("L", "LA", "RGB", "RGBA"):
        return opened.getbands()
    return {"1": ("L",), "PA": tuple("RGBA"), "La": ("L", "A"), "RGBa": tuple("RGBA")}.get(opened.mode, tuple("RGB"))


def _palette(opened: PillowImage) -> np.ndarray:
    return np.array(opened.getpalette("RGB"), np.uint8).reshape(-1, 3)


def _png_palette(chunks: dict[bytes, bytes]) -> np.ndarray:
    content = chunks.get(b"PLTE", b"")
    return np.frombuffer(content[: len(content) // 3 * 3], np.uint8).reshape(-1, 3)


def open_pillow(path: Path, file: Any) -> PillowImage:
    """A picture of one of the formats listed here, of any size, before decoding.

    `PIL.Image.open` tries every format that Pillow knows, some of which start other programs, and refuses pictures
    above 179 megapixels.
    """
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    formats = {
        b"\xff\xd8\xff": JpegImagePlugin.jpeg_factory,  # which also opens MPO
        PNG_SIGNATURE: PngImagePlugin.PngImageFile,
        b"BM": BmpImagePlugin.BmpImageFile,
        b"RIFF": WebPImagePlugin.WebPImageFile,
    }
    start = file.read(len(PNG_SIGNATURE))
    file.seek(0)
    with _damage_is_told(path), warnings.catch_warnings(action="ignore"):  # about EXIF that cannot be read
        for signature, opened in formats.items():
            if start.startswith(signature):
                return opened(file)
        raise ValueError(f"starts with {start!r}, which is not JPEG, PNG, BMP or WebP")


def _png_header(path: Path, file: Any) -> tuple[RasterHeader, dict[bytes, bytes]]:
    """The header, and the content of the chunks before the pixels that say how to show them."""
    head = file.read(33)
    if len(head) < 33 or head[:8] != PNG_SIGNATURE or head[12:16] != b"IHDR" or head[25] not in PNG_CHANNELS:
        raise damaged_image(path, ValueError("no PNG header"))
    width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
    if not width or not height:
        raise damaged_image(path, ValueError(f"{height} x {width} pixels"))
    check_plausible(height * (width * bits * PNG_CHANNELS[colour] // 8), path, max_ratio=MAX_DEFLATE_RATIO)
    chunks: dict[bytes, bytes] = {}
    while len(start := file.read(8)) == 8 and start[4:] not in (b"IDAT", b"IEND"):
        length = int.from_bytes(start[:4], "big")
        if start[4:] in (b"PLTE", b"eXIf", b"tRNS"):
            chunks[start[4:]] = file.read(length)
            length = 0
        file.seek(length + 4, 1)
    orientation = _png_orientation(chunks.get(b"eXIf", b""))
    n_channels = PNG_CHANNELS[colour]
    if colour == PNG_PALETTE and not shows_colours(_png_palette(chunks)):
        n_channels = 1
    elif b"tRNS" in chunks and colour in (0, 2, 3):
        n_channels += 1
    palette = _png_palette(chunks) if colour == PNG_PALETTE else np.zeros((0, 3), np.uint8)
    notes = (*_palette_notes(palette if len(palette) else None), *orientation_notes(orientation, (height, width), path))
    return RasterHeader(_upright_hw((height, width), orientation), n_channels, max(bits, 8), orientation, notes), chunks


def _png_orientation(exif: bytes) -> int:
    from PIL import Image as Pillow

    def read() -> Any:
        tags = Pillow.Exif()
        tags.load(b"Exif\0\0" + exif)
        return tags

    return _orientation(read) if exif else 1

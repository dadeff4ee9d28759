"""Read the foreground of one mask file, cropped to its box right away, so that full masks do not accumulate in memory.

The mask of one nucleus in a 1000 x 1000 image consists of a million zeros and a few hundred ones, and a dataset has
tens of thousands of them, so that decoding takes nearly all the time of a conversion. PNG allows a shortcut. Scanlines
are stored as residuals of a filter that refers to the pixels to the left and above (PNG specification, section 9). As
long as all residuals are zero the pixels are zero, whatever the filter. Therefore only the scanlines between the first
and the last nonzero residual are passed to the decoder, as a PNG file of their own. If the shortcut does not apply
(palette, interlacing, damage), the whole file is decoded.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from cellwright.core.errors import FormatError
from cellwright.core.files import plain_suffix
from cellwright.core.text import count
from cellwright.data.formats.label_kinds import is_smooth
from cellwright.data.images.raster import MAX_DEFLATE_RATIO, PNG_SIGNATURE, decode_png, read_file
from cellwright.data.images.read import read_image

BoxAndCrop = tuple[tuple[int, int, int, int], np.ndarray]

MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg"})

# Bytes per pixel by (colour type, bit depth): the kinds of whole bytes without a palette.
PIXEL_BYTES = {(0, 8): 1, (2, 8): 3, (4, 8): 2, (6, 8): 4, (0, 16): 2, (2, 16): 6, (4, 16): 4, (6, 16): 8}


class MaskReader:
    """Reads the masks of one image one after the other. It reuses a buffer, so use one reader per thread."""

    def __init__(self) -> None:
        self._buffer = np.zeros(0, np.uint8)

    def read(self, path: Path, image_hw: tuple[int, int]) -> BoxAndCrop:
        """Tight box x0, y0, x1, y1 and crop (h, w) bool of the object; see `foreground`.

        Box and crop are empty if no pixel is set. Raises `FormatError` for a mask of another size than its image, for a
        file that cannot be decoded, and for a file that is not the mask of one object.
        """
        if plain_suffix(path) != ".png":
            return tight_crop(foreground(read_image(path).data, path), path, image_hw)
        data = read_file(path)
        band = self._png_band(data)
        if band is None:
            return tight_crop(foreground(decode_png(data, path), path), path, image_hw)
        top, height, width, png = band
        if (height, width) != image_hw:
            raise _other_size(path, (height, width), image_hw)
        if png is None:
            return (0, 0, 0, 0), np.zeros((0, 0), bool)
        pixels = foreground(decode_png(png, path), path)
        if not pixels.any() or (pixels[-1].any() and top + len(pixels) < height):
            # Zero residuals may also mean a repetition of the scanline above; and without the other rows, alpha that is
            # 0 only there seems to be the same everywhere.
            return tight_crop(foreground(decode_png(data, path), path), path, image_hw)
        (x0, y0, x1, y1), crop = tight_crop(pixels, path, pixels.shape)
        return (x0, y0 + top, x1, y1 + top), crop

    def _png_band(self, data: bytes) -> tuple[int, int, int, bytes | None] | None:
        """First row, height, width, and a PNG of the rows that may contain foreground (None if there are none).

        None instead of the tuple if the shortcut does not apply; the decoder then reports what is wrong, if anything.
        """
        import imagecodecs

        chunks = _png_chunks(data)
        if chunks is None:
            return None
        header, compressed = chunks
        width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
        pixel_bytes = PIXEL_BYTES.get((colour, depth))
        if pixel_bytes is None or interlace or not width or not height:
            return None
        stride = 1 + width * pixel_bytes
        if height * stride > MAX_DEFLATE_RATIO * len(compressed):
            return None  # the header claims more than the stream can contain; the decoder reports that
        if self._buffer.size != height * stride:
            self._buffer = np.zeros(height * stride, np.uint8)
        try:
            inflated = imagecodecs.deflate_decode(compressed, out=self._buffer.data, raw=False)
        except (
            imagecodecs.DeflateError
        ):  # not a complete stream of this size; the decoder reports that with the file name
            return None
        if len(inflated) != self._buffer.size:
            return None
        rows = self._buffer.reshape(height, stride)
        used = np.flatnonzero(rows[:, 1:].any(axis=1))
        if not used.size:
            return 0, height, width, None
        # One more scanline: if it decodes to black, so does everything below it.
        top, bottom = int(used[0]), min(int(used[-1]) + 2, height)
        return top, height, width, _png_file(header, width, rows[top:bottom])


def foreground(pixels: np.ndarray, where: object) -> np.ndarray:
    """Bool (H, W): the object in the mask (H, W) or (H, W, C), the pixels above half of the maximum.

    Of two or four channels, the last is alpha: transparent pixels are background, and if only alpha varies, it is the
    mask. Raises `FormatError` for a picture or a label image, that is, for intermediate values not only along an edge,
    and for a black object on white.
    """
    values = _one_channel(pixels)
    highest = values.max(initial=0)
    mask = values > highest / 2
    if ((values > 0) & (values < highest)).any() and not is_smooth(values):
        raise FormatError(
            "this is not the mask of one object",
            where=where,
            got=f"{count(np.unique(values).size, 'value')} from {values.min():g} to {highest:g}",
            expected="0 and one other value, with intermediate values along the edge of the object only",
            remedy="if it is a label image, give it the name of its image; if it is a picture, remove it",
        )
    corners = mask[:: max(len(mask) - 1, 1), :: max(mask.shape[1] - 1, 1)]
    if corners.all() and mask.size > mask.sum() > mask.size / 2:
        raise FormatError(
            "the object in this mask seems to be black on white",
            where=where,
            got=f"{mask.mean():.0%} of the pixels are not black, among them all corners",
            expected="an object that is not black on a black background",
            remedy="invert the masks",
        )
    return mask


def _one_channel(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] not in (2, 4):
        return pixels.max(axis=2)
    colours, alpha = pixels[:, :, :-1].max(axis=2), pixels[:, :, -1]
    if (alpha == alpha[0, 0]).all():
        return colours
    if (colours == colours[0, 0]).all():
        return alpha
    return np.where(alpha > alpha.max() / 2, colours, 0)


def tight_crop(pixels: np.ndarray, path: Path, image_hw: tuple[int, int]) -> BoxAndCrop:
    """Tight box and a copy of the crop of a bool mask (H, W); `FormatError` if its size is not ``image_hw``."""
    if pixels.shape != tuple(image_hw):
        raise _other_size(path, pixels.shape, image_hw)
    ys, xs = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not ys.size:
        return (0, 0, 0, 0), np.zeros((0, 0), bool)
    box = int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
    return box, pixels[box[1] : box[3], box[0] : box[2]].copy()


def _other_size(path: Path, got_hw: tuple[int, ...], image_hw: tuple[int, int]) -> FormatError:
    return FormatError(
        "a mask and its image differ in size",
        where=path,
        got=f"{got_hw[0]} x {got_hw[1]} (height x width)",
        expected=f"{image_hw[0]} x {image_hw[1]}",
        remedy="save the mask at the size of the image, or move it to the image it belongs to",
    )


def _png_chunks(data: bytes) -> tuple[bytes, bytes] | None:
    """The bytes of the header and of the joined image data; None if a chunk is incomplete or fails its checksum."""
    if data[:8] != PNG_SIGNATURE:
        return None
    at, header, parts = 8, b"", []
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, body, end = data[at + 4 : at + 8], data[at + 8 : at + 8 + length], at + 12 + length
        if end > len(data) or zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(data[end - 4 : end], "big"):
            return None
        if kind == b"IEND":
            return (header, b"".join(parts)) if len(header) == 13 and parts else None
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            parts.append(body)
        elif kind == b"tRNS":
            return None
        at = end
    return None


def _png_file(header: bytes, width: int, rows: np.ndarray) -> bytes:
    """A PNG of some scanlines (n, 1 + bytes per row), stored without compression."""
    ihdr = struct.pack(">II", width, len(rows)) + header[8:]
    idat = zlib.compress(rows.tobytes(), 0)
    return PNG_SIGNATURE + b"".join(_chunk(*c) for c in ((b"IHDR", ihdr), (b"IDAT", idat), (b"IEND", b"")))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))

"""One field of nine nuclei, written in every way that image files are written.

`FIELDS` are files that show this field without a question; each must give the same nine nuclei.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image as Pillow

HEIGHT, WIDTH = 96, 128
CENTRES_YX = [(18, 20), (20, 62), (17, 104), (48, 24), (50, 66), (47, 108), (77, 19), (78, 60), (76, 102)]
RADII = [(9, 11), (10, 9), (8, 10), (11, 9), (9, 9), (10, 8), (9, 10), (8, 9), (10, 10)]
ORIENTATION = 274


def truth() -> np.ndarray:
    """Labels (H, W) uint16 of the nine nuclei."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    for number, ((cy, cx), (ry, rx)) in enumerate(zip(CENTRES_YX, RADII, strict=True), start=1):
        labels[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1] = number
    return labels


def _share() -> np.ndarray:
    """(H, W) float, 0 background to 1 nucleus, blurred."""
    return cv2.GaussianBlur((truth() > 0).astype(np.float32), (0, 0), 0.8)


def grey() -> np.ndarray:
    """Fluorescence (H, W) uint8."""
    noise = np.random.default_rng(0).normal(0, 3, (HEIGHT, WIDTH))
    return np.clip(18 + 140 * _share() + noise, 0, 255).astype(np.uint8)


def he() -> np.ndarray:
    """H&E (H, W, 3) uint8."""
    noise = np.random.default_rng(1).normal(0, 2, (HEIGHT, WIDTH, 3))
    pink, purple = np.array([234, 188, 214]), np.array([98, 66, 142])
    return np.clip(pink + _share()[:, :, None] * (purple - pink) + noise, 0, 255).astype(np.uint8)


def blank() -> np.ndarray:
    """A field without nuclei (H, W) uint8."""
    return np.random.default_rng(2).normal(18, 3, (HEIGHT, WIDTH)).clip(0, 255).astype(np.uint8)


GREY, HE, BLANK = grey(), he(), blank()
FIRE = np.stack([np.arange(256), np.arange(256) // 2, 255 - np.arange(256)], axis=1).astype(np.uint8)


def tiff(data: np.ndarray, **options: object) -> Callable[[Path], None]:
    """A writer of one TIFF with tifffile."""
    return lambda path: tifffile.imwrite(path, data, **options)  # type: ignore[arg-type]


def pillow(image: Pillow.Image, **options: object) -> Callable[[Path], None]:
    """A writer with Pillow; the suffix of the path is the format."""
    return lambda path: image.save(path, **options)  # type: ignore[arg-type]


def pages(*planes: np.ndarray, **options: object) -> Callable[[Path], None]:
    """A writer of pages one by one, as in a loop of ``TiffWriter.write``."""

    def write(path: Path) -> None:
        with tifffile.TiffWriter(path) as tif:
            for plane in planes:
                tif.write(plane, **options)  # type: ignore[arg-type]

    return write


def appended(*planes: np.ndarray) -> Callable[[Path], None]:
    """A writer of pages with ``append=True``."""

    def write(path: Path) -> None:
        for plane in planes:
            tifffile.imwrite(path, plane, append=True)

    return write


def quantised(mode: str, colours: int = 64) -> Pillow.Image:
    """The H&E picture in a few colours."""
    return Pillow.fromarray(HE).quantize(colours, Pillow.Quantize[mode])


def with_lookup_table(data: np.ndarray, table: np.ndarray) -> Pillow.Image:
    """A grey image in palette form."""
    image = Pillow.fromarray(data, "L").convert("P")
    image.putdata(data.ravel().tolist())
    image.putpalette(table.ravel().tolist())
    return image


def jpeg_turned(data: np.ndarray, orientation: int) -> Callable[[Path], None]:
    """A writer of a picture that is stored turned, so that viewers show ``data``."""
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    methods = list(Pillow.Transpose)
    shown = Pillow.fromarray(data)
    stored = shown if orientation == 1 else shown.transpose(methods[inverse[orientation]])

    def write(path: Path) -> None:
        exif = Pillow.Exif()
        exif[ORIENTATION] = orientation
        stored.save(path, exif=exif, quality=95)

    return write


def reduced_first(path: Path) -> None:
    """A thumbnail that is marked as such, then the image."""
    with tifffile.TiffWriter(path) as tif:
        tif.write(np.ascontiguousarray(GREY[::4, ::4]), subfiletype=1, metadata=None)
        tif.write(GREY, metadata=None)


def pyramid_pages(path: Path) -> None:
    """The image, then a copy of half the size."""
    with tifffile.TiffWriter(path) as tif:
        tif.write(GREY, metadata=None, tile=(64, 64))
        tif.write(np.ascontiguousarray(GREY[::2, ::2]), metadata=None, subfiletype=1, tile=(64, 64))


def pyramid_subifd(path: Path) -> None:
    """An OME-TIFF with a level of half the size below its page."""
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(GREY, subifds=1, tile=(64, 64), metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5})
        tif.write(np.ascontiguousarray(GREY[::2, ::2]), subfiletype=1, tile=(64, 64))


def _floats(scale: float, dtype: type = np.float32) -> np.ndarray:
    return (GREY.astype(np.float64) / 255 * scale).astype(dtype)


def _holed(value: float, part: tuple[slice, slice]) -> np.ndarray:
    data = _floats(1.0)
    data[part] = value
    return data


_PIXEL = (slice(3, 4), slice(5, 6))
_CORNER = (slice(0, 8), slice(0, 12))  # holds no nucleus
_WIDE = GREY.astype(np.uint16) * 16

FIELDS: dict[str, Callable[[Path], None]] = {
    "00_plain.tif": tiff(GREY),
    "06_cmyk.tif": pillow(Pillow.fromarray(HE).convert("CMYK"), compression="tiff_lzw"),
    "06_cmyk.jpg": pillow(Pillow.fromarray(HE).convert("CMYK"), quality=95),
    "06_cmyk_16.tif": tiff(
        np.asarray(Pillow.fromarray(HE).convert("CMYK")).astype(np.uint16) * 257, photometric="separated"
    ),
    "07_int16.tif": tiff(GREY.astype(np.int16) * 16),
    "07_negative.tif": tiff(GREY.astype(np.int16) * 16 - 300),
    "07_uint32.tif": tiff(GREY.astype(np.uint32) * 16),
    "07_int64.tif": tiff(GREY.astype(np.int64) * 1000),
    "07_int8.tif": tiff((GREY // 2).astype(np.int8)),
    "08_f01.tif": tiff(_floats(1)),
    "08_f4095.tif": tiff(_floats(4095)),
    "08_f16.tif": tiff(_floats(1, np.float16)),
    "08_f64.tif": tiff(_floats(255, np.float64)),
    "08_nan_one.tif": tiff(_holed(np.nan, _PIXEL)),
    "08_inf_one.tif": tiff(_holed(np.inf, _PIXEL)),
    "08_nan_corner.tif": tiff(_holed(np.nan, _CORNER)),
    "08_minus_inf.tif": tiff(_holed(-np.inf, _CORNER)),
    "09_12bit.tif": tiff(_WIDE),
    "09_10bit.tif": tiff(GREY.astype(np.uint16) * 4),
    "10_rgba.png": pillow(Pillow.fromarray(HE).convert("RGBA")),
    "10_rgba.tif": pillow(Pillow.fromarray(HE).convert("RGBA")),
    "10_undeclared_alpha.tif": tiff(np.dstack([HE, np.full_like(GREY, 255)]), photometric="rgb", extrasamples=[0]),
    "10_la.png": pillow(Pillow.merge("LA", [Pillow.fromarray(GREY), Pillow.fromarray(255 - GREY)])),
    "10_la.tif": tiff(np.dstack([GREY, 255 - GREY]), photometric="minisblack", planarconfig="contig", extrasamples=[2]),
    "10_trns.png": pillow(Pillow.fromarray(GREY), transparency=20),
    "11_he.png": pillow(quantised("MEDIANCUT")),
    "11_he_256.png": pillow(quantised("MEDIANCUT", 256)),
    "11_he.tif": pillow(quantised("MEDIANCUT")),
    "11_he_octree.tif": pillow(quantised("FASTOCTREE", 200)),
    "11_he.bmp": pillow(quantised("MEDIANCUT")),
    "11_lut.tif": tiff(GREY, photometric="palette", colormap=(FIRE.T.astype(np.uint16) * 257)),
    "11_lut.png": pillow(with_lookup_table(GREY, FIRE)),
    "11_onebit.png": pillow(Pillow.fromarray(GREY > 90)),
    "11_onebit.tif": pillow(Pillow.fromarray(GREY > 90)),
    "11_g4.tif": pillow(Pillow.fromarray(GREY > 90), compression="group4"),
    "11_inverted.tif": tiff(255 - GREY, photometric="miniswhite"),
    "11_inverted_16.tif": tiff(65535 - _WIDE, photometric="miniswhite"),
    "13_turned.jpg": jpeg_turned(GREY, 3),
    "14_bigendian.tif": tiff(_WIDE, byteorder=">"),
    "14_bigtiff.tif": tiff(GREY, bigtiff=True),
    "14_deflate.tif": tiff(GREY, compression="deflate"),
    "14_jp2k.tif": tiff(GREY, compression="jpeg2000"),
    "14_jpeg_ycbcr.tif": tiff(HE, photometric="rgb", compression="jpeg"),
    "14_packbits.tif": tiff(GREY, compression="packbits"),
    "14_planar.tif": tiff(HE.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
    "14_pyramid_pages.tif": pyramid_pages,
    "14_pyramid_subifd.ome.tif": pyramid_subifd,
    "14_rgb16.tif": tiff(HE.astype(np.uint16) * 257, photometric="rgb", compression="deflate"),
    "14_thumbnail_first.tif": reduced_first,
    "14_tiled_lzw_pred.tif": tiff(_WIDE, tile=(64, 64), compression="lzw", predictor=True),
    "14_zstd.tif": tiff(GREY, compression="zstd"),
    "16_BILD.PNG": pillow(Pillow.fromarray(GREY), format="PNG"),
    "16_BILD2.JPG": pillow(Pillow.fromarray(GREY), format="JPEG", quality=95),
    "16_Bild 1 (neu).TIF": tiff(GREY),
    "16_Zellko\u0308rper.tif": tiff(GREY),
    "16_Zellk\u00f6rper.tiff": tiff(GREY),
    "16_100% #2.tif": tiff(GREY),
    "16_a.b.ome.TIFF": tiff(GREY, ome=True),
    "16_it's.tif": tiff(GREY),
    "16_\u65e5\u672c\u8a9e.Tif": tiff(GREY),
    "-dash.tif": tiff(GREY),
}

"""The shortcut for mask PNGs gives the same as decoding them completely, for all filters, depths and channel counts."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from cellwright.core.errors import FormatError
from cellwright.data.formats.mask_png import MaskReader, foreground, tight_crop

HW = (24, 17)
NONE, SUB, UP, AVERAGE, PAETH = range(5)


def paeth(a: int, b: int, c: int) -> int:
    """The predictor of the PNG specification, 9.4."""
    distances = {abs(b - c): a, abs(a - c): b, abs(a + b - 2 * c): c}
    nearest = min(distances)
    return a if abs(b - c) <= nearest else b if abs(a - c) <= nearest else c


def encode_png(pixels: np.ndarray, filters: list[int]) -> bytes:
    """A PNG of (H, W, C) uint8 or uint16 with the given filter for each row; written from the specification."""
    height, width, channels = pixels.shape
    step = channels * pixels.itemsize
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    stride = width * step
    raw, above = bytearray(), bytes(stride)
    for y in range(height):
        row = rows[y * stride : (y + 1) * stride]
        raw.append(filters[y])
        for x in range(stride):
            a, b = row[x - step] if x >= step else 0, above[x]
            c = above[x - step] if x >= step else 0
            guess = (0, a, b, (a + b) // 2, paeth(a, b, c))[filters[y]]
            raw.append((row[x] - guess) % 256)
        above = row
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(raw))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def draw(box: tuple[int, int, int, int], hole: bool) -> np.ndarray:
    y0, x0, y1, x1 = box
    mask = np.zeros(HW, bool)
    mask[min(y0, y1) : max(y0, y1) + 1, min(x0, x1) : max(x0, x1) + 1] = True
    if hole:
        mask[(y0 + y1) // 2, (x0 + x1) // 2] = False
    return mask


@given(
    box=st.tuples(st.integers(0, 23), st.integers(0, 16), st.integers(0, 23), st.integers(0, 16)),
    hole=st.booleans(),
    filters=st.lists(st.integers(0, 4), min_size=24, max_size=24),
    channels=st.integers(1, 4),
    wide=st.booleans(),
)
def test_the_shortcut_equals_complete_decoding(
    tmp_path_factory: pytest.TempPathFactory, box: tuple, hole: bool, filters: list[int], channels: int, wide: bool
) -> None:
    mask = draw(box, hole)
    dtype = np.uint16 if wide else np.uint8
    pixels = np.repeat(mask[:, :, None] * dtype(65535 if wide else 255), channels, axis=2).astype(dtype)
    if channels in (2, 4):
        pixels[:, :, -1] = np.iinfo(dtype).max  # opaque everywhere: alpha does not count as foreground
    path = tmp_path_factory.mktemp("png") / "mask.png"
    path.write_bytes(encode_png(pixels, filters))
    expected_box, expected_crop = tight_crop(mask, path, HW)
    got_box, got_crop = MaskReader().read(path, HW)
    assert got_box == expected_box
    np.testing.assert_array_equal(got_crop, expected_crop)


def test_rows_that_repeat_the_one_above_with_zero_residuals(tmp_path: Path) -> None:
    mask = np.zeros(HW, bool)
    mask[5:20, 3:9] = True
    (tmp_path / "m.png").write_bytes(encode_png(mask[:, :, None] * np.uint8(255), [UP] * 24))
    box, crop = MaskReader().read(tmp_path / "m.png", HW)
    assert box == (3, 5, 9, 20)
    assert crop.all()


@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.bmp"])
@pytest.mark.parametrize("mode", ["1", "P", "L", "RGB"])
def test_other_files_are_decoded_completely(tmp_path: Path, name: str, mode: str) -> None:
    if name == "m.tif" and mode in ("1", "P"):
        pytest.skip("such masks do not occur")
    mask = draw((4, 2, 9, 12), hole=True)
    Pillow.fromarray(mask.astype(np.uint8) * 255).convert(mode).save(tmp_path / name)
    box, crop = MaskReader().read(tmp_path / name, HW)
    assert box == (2, 4, 13, 10)
    np.testing.assert_array_equal(crop, mask[4:10, 2:13])


def test_a_reader_can_be_reused_for_other_sizes(tmp_path: Path) -> None:
    reader = MaskReader()
    for k, shape in enumerate([(9, 30), (24, 17), (9, 30), (40, 40)]):
        pixels = np.zeros(shape, np.uint8)
        if k % 2 == 0:
            pixels[k, k + 1] = 1
        Pillow.fromarray(pixels).save(tmp_path / "m.png")
        box, crop = reader.read(tmp_path / "m.png", shape)
        assert box == ((k + 1, k, k + 2, k + 1) if k % 2 == 0 else (0, 0, 0, 0))
        assert crop.size == (1 if k % 2 == 0 else 0)


@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_masks_of_another_size_raise_an_error(tmp_path: Path, name: str) -> None:
    Pillow.fromarray(np.full((9, 30), 255, np.uint8)).save(tmp_path / name)
    expected = (
        rf"a mask and its image differ in size\n  where: .*{name}\n  got: 9 x 30 .*\n  expected: 24 x 17\n  fix: save"
    )
    with pytest.raises(FormatError, match=expected):
        MaskReader().read(tmp_path / name, HW)


@pytest.mark.parametrize("cut", [40, 60, -1, -20])
def test_truncated_masks_raise_an_error(tmp_path: Path, cut: int) -> None:
    rng = np.random.default_rng(0)
    Pillow.fromarray(rng.integers(0, 2, HW).astype(np.uint8) * 255).save(tmp_path / "m.png")
    (tmp_path / "m.png").write_bytes((tmp_path / "m.png").read_bytes()[:cut])
    if cut == -1:  # only the last byte of the checksum is missing: all pixels are there
        MaskReader().read(tmp_path / "m.png", HW)
        return
    with pytest.raises(FormatError, match=r"cannot be decoded\n  where: .*m\.png"):
        MaskReader().read(tmp_path / "m.png", HW)


def test_foreground_of_colours_and_alpha() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, 1, 2] = 1
    assert foreground(pixels, "m.png").tolist() == [[False, True, False]]
    pixels[:, :2, 3] = 255  # transparent pixels are background, whatever their colour
    pixels[0, 2, 0] = 255
    assert foreground(pixels, "m.png").tolist() == [[False, True, False]]
    black = np.zeros((1, 3, 4), np.uint8)
    black[0, 0, 3] = 255
    assert foreground(black, "m.png").tolist() == [[True, False, False]]

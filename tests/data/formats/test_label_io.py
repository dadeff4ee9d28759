"""Reading label maps of all pixel types, and errors for files that are not label maps."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from cellwright.core.errors import FormatError
from cellwright.data.formats.label_io import read_raster
from cellwright.testing.objects import draw_objects

LABELS = draw_objects(1, overlaps=False, scored=False).masks.to_label_map()


def save(path, array):
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(array))
    else:
        tifffile.imwrite(path, array)
    return path


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.int64, np.float32, np.float64])
def test_pixel_types(suffix, dtype, tmp_path):
    if suffix == ".png" and dtype not in (np.uint8, np.uint16):
        pytest.skip("PNG has 8 or 16 bits")
    path = save(tmp_path / f"x{suffix}", LABELS.astype(dtype))
    assert read_raster(path).values.dtype in (np.uint8, np.uint16, np.uint32)
    np.testing.assert_array_equal(read_raster(path).values, LABELS)


def test_a_palette_keeps_its_numbers(tmp_path):
    image = Pillow.fromarray(LABELS.astype(np.uint8))
    image.putpalette(list(np.random.default_rng(1).integers(0, 255, 768)))
    image.save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_raster(tmp_path / "x.png").values, LABELS)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_images_of_one_row_or_column(shape, tmp_path):
    path = save(tmp_path / "x.tif", np.ones(shape, np.uint16))
    assert read_raster(path).values.shape == shape


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((4, 5), 0.5), ["whole number", "x 0, y 0", "0.5"]),
        (np.full((4, 5), np.nan), ["whole number"]),
        (np.full((4, 5), 2.0**33), ["out of range"]),
        (np.full((4, 5), -(2.0**33)), ["out of range"]),
        (np.zeros((6, 4, 5), np.uint16), ["not a label image", "(6, 4, 5)"]),
    ],
)
def test_errors_name_files_that_are_not_label_images(array, words, tmp_path):
    path = save(tmp_path / "x_masks.tif", array)
    with pytest.raises(FormatError) as caught:
        read_raster(path)
    for word in [*words, "x_masks.tif"]:
        assert word in str(caught.value)


def test_negative_numbers_and_colours_are_kept(tmp_path):
    assert read_raster(save(tmp_path / "x.tif", np.full((4, 5), -1, np.int16))).values.tolist() == [[-1] * 5] * 4
    colours = np.zeros((1, 3, 3), np.uint8)
    colours[0, 0], colours[0, 1] = (255, 0, 0), (1, 2, 3)
    for name in ("x.png", "y.tif", "z.bmp"):
        if name == "z.bmp":
            Pillow.fromarray(colours).save(tmp_path / name)
        else:
            save(tmp_path / name, colours)
        raster = read_raster(tmp_path / name)
        assert (raster.encoding, raster.values.tolist()) == ("colours", [[0xFF0000, 0x010203, 0]]), name


def test_alpha_is_the_background_where_it_varies(tmp_path):
    grey = np.array([[[7, 255], [7, 0], [9, 255]]], np.uint8)
    assert read_raster(save(tmp_path / "grey.png", grey)).values.tolist() == [[7, 0, 9]]
    black = np.zeros((1, 3, 4), np.uint8)
    assert read_raster(save(tmp_path / "black.png", black + np.array([0, 0, 0, 255], np.uint8))).values.tolist() == [
        [0] * 3
    ]
    black[0, 1, 3] = 255
    assert read_raster(save(tmp_path / "alpha.png", black)).values.tolist() == [[0, 255, 0]]
    red = black.copy()
    red[0, 1, 0] = red[0, 2, 0] = 255
    assert read_raster(save(tmp_path / "red.png", red)).values.tolist() == [[0, 0xFF0000, 0]]


def test_a_file_that_claims_to_be_huge_raises_an_error_before_decoding(tmp_path):
    path = save(tmp_path / "x.png", LABELS.astype(np.uint8))
    data = bytearray(path.read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    path.write_bytes(data)
    with pytest.raises(FormatError, match="pixels in"):
        read_raster(path)


def test_a_tiff_with_circular_directories_raises_an_error(tmp_path):
    path = save(tmp_path / "x.tif", LABELS)
    data = bytearray(path.read_bytes())
    first = int.from_bytes(data[4:8], "little")
    end = first + 2 + 12 * int.from_bytes(data[first : first + 2], "little")
    data[end : end + 4] = data[4:8]
    path.write_bytes(data)
    with pytest.raises(FormatError, match="form a loop"):
        read_raster(path)

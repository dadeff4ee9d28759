"""Reading images: dtypes, channel names, and error messages that name the file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.data.images.read import find_images, image_header, image_hw_of, read_image

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (20, 30), np.uint8)
RGB8 = RNG.integers(0, 256, (20, 30, 3), np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pixels_equal_those_of_pillow(tmp_path: Path, mode: str, suffix: str) -> None:
    if suffix == ".tif" and mode in ("LA", "P", "1"):
        pytest.skip("TIFF files do not use this mode")
    picture = Pillow.fromarray(RGB8).convert(mode)
    path = tmp_path / f"a{suffix}"
    picture.save(path)
    image = read_image(path)
    expected = np.asarray(picture.convert({"P": "RGB", "1": "L"}.get(mode, mode)))
    np.testing.assert_array_equal(image.data, expected.reshape(20, 30, -1))
    assert image.channels == {"L": ("grey",), "1": ("grey",), "LA": ("grey", "A"), "RGBA": (*"RGBA",)}.get(
        mode, (*"RGB",)
    )
    assert image_hw_of(path) == (20, 30)
    assert image_header(path).n_channels == image.n_channels


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_16_bit_png_keeps_every_value(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = RNG.integers(0, 65536, shape).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "a.png"), pixels if len(shape) == 2 else pixels[:, :, ::-1])
    image = read_image(tmp_path / "a.png")
    assert image.data.dtype == np.uint16
    np.testing.assert_array_equal(image.data.squeeze(), pixels)
    assert image_header(tmp_path / "a.png").bits == 16


def test_jpeg_equals_pillow(tmp_path: Path) -> None:
    Pillow.fromarray(RGB8).save(tmp_path / "a.JPG", "JPEG")
    np.testing.assert_array_equal(read_image(tmp_path / "a.JPG").data, np.asarray(Pillow.open(tmp_path / "a.JPG")))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Pillow.fromarray(RGB8).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(
        FormatError, match=r"(cannot be decoded|truncated)(.|\n)*where: .*a\.(.|\n)*fix: copy or download"
    ) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_file_that_is_not_an_image_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this is not an image, whatever its name says")
    for read in (read_image, image_header):
        with pytest.raises(FormatError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    for read in (read_image, image_header):
        with pytest.raises(InputError, match=rf"where: .*{name}\n  got: No such file"):
            read(tmp_path / name)


def test_ome_tiff_has_channels_and_pixel_size(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    planes = RNG.integers(0, 65536, (2, 20, 30)).astype(np.uint16)
    metadata = {
        "axes": "CYX",
        "Channel": {"Name": ["DAPI", "actin"]},
        "PhysicalSizeX": 325.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.65,
        "PhysicalSizeYUnit": "µm",
    }
    tifffile.imwrite(path, planes, photometric="minisblack", metadata=metadata)
    image = read_image(path)
    assert image.channels == ("DAPI", "actin")
    np.testing.assert_array_equal(image.data, planes.transpose(1, 2, 0))
    for channel in ("actin", "1", 1):
        image = read_image(path, channel=channel)
        np.testing.assert_array_equal(image.data[:, :, 0], planes[1])
        assert image.channels == ("actin",)
        assert image.pixel_size_um == pytest.approx((0.65, 0.325))
    with pytest.raises(UsageError, match=r"got: GFP\n  expected: DAPI, actin \(or 0 to 1\)"):
        read_image(path, channel="GFP")


def test_a_stack_needs_a_plane(tmp_path: Path) -> None:
    planes = RNG.integers(0, 256, (5, 20, 30), np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, planes, imagej=True, metadata={"axes": "ZYX", "unit": "um"}, resolution=(4.0, 2.0))
    with pytest.raises(InputError, match=r"planes(.|\n)*choose `z` \(0 to 4, "):
        read_image(path)
    with pytest.raises(UsageError, match=r"got: z = 5\n  expected: 0 to 4"):
        read_image(path, z=5)
    image = read_image(path, z=3)
    np.testing.assert_array_equal(image.data[:, :, 0], planes[3])
    assert image.pixel_size_um == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_rgb_tiff_in_either_layout(tmp_path: Path, planar: str) -> None:
    stored = RGB8 if planar == "contig" else RGB8.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.data, RGB8)
    assert image.channels == ("R", "G", "B")


def test_a_time_series_needs_a_time_point(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "t.tif", np.zeros((3, 8, 9), np.uint8), imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(InputError, match=r"planes(.|\n)*choose `t` \(0 to 2; .all. predicts each\)"):
        read_image(tmp_path / "t.tif")


def test_find_images_skips_hidden_files_and_own_outputs(tmp_path: Path) -> None:
    for name in (
        "b.png",
        "sub/a.tif",
        ".ipynb_checkpoints/b-checkpoint.png",
        "b_overlay.png",
        "sub/a_masks.tif",
        "notes.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == [tmp_path / "b.png", tmp_path / "sub/a.tif"]
    assert find_images(tmp_path / "b.png") == [tmp_path / "b.png"]


def test_find_images_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no images"):
        find_images(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        find_images(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"not an image file(.|\n)*got: \.txt"):
        find_images(tmp_path / "notes.txt")


def test_real_rgba_tiff(samples_root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(samples_root / "nycu2025_sample.zip") as archive:
        name = next(name for name in archive.namelist() if name.endswith("image.tif"))
        archive.extract(name, tmp_path)
    image = read_image(tmp_path / name)
    assert image.describe() == "397 x 482, uint8, 4 channels (R, G, B, A)"

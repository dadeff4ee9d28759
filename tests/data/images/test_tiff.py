"""TIFF files that hold more than one picture, or whose numbers are not plain grey or RGB."""

from __future__ import annotations

import re
from pathlib import Path

import drawn_images as drawn
import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.data.images.read import image_header, read_image

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 256, (3, 20, 30), np.uint8)
GREY = STACK[0]


def kinds(path: Path, **choices: object) -> list[str]:
    """The kinds of the notes about an image."""
    return [note.kind for note in read_image(path, **choices).notes]  # type: ignore[arg-type]


def pixels(path: Path, **choices: object) -> np.ndarray:
    """(H, W) of an image of one channel."""
    image = read_image(path, **choices)  # type: ignore[arg-type]
    assert image.n_channels == 1
    return image.data[:, :, 0]


# --- several pictures in one file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stack", "one by one", "appended", "pillow"])
def test_unnamed_pages_are_asked_for(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.tif"
    writers = {
        "stack": drawn.tiff(STACK, photometric="minisblack"),
        "one by one": drawn.pages(*STACK),
        "appended": drawn.appended(*STACK),
        "pillow": drawn.pillow(
            Pillow.fromarray(STACK[0]), save_all=True, append_images=[Pillow.fromarray(plane) for plane in STACK[1:]]
        ),
    }
    writers[name](path)
    with pytest.raises(
        InputError, match=r'3 unnamed pages, 20 x 30(.|\n)*`z` \(0 to 2, "max" or "mean"; "all" predicts each\)'
    ):
        read_image(path)
    for z in range(3):
        np.testing.assert_array_equal(pixels(path, z=z), STACK[z])
    np.testing.assert_array_equal(pixels(path, z="max"), STACK.max(axis=0))
    np.testing.assert_allclose(pixels(path, z="mean"), STACK.mean(axis=0), rtol=1e-6)
    with pytest.raises(UsageError, match="no such plane"):
        read_image(path, z=3)
    if name in ("one by one", "appended"):  # to tifffile these are images of their own
        np.testing.assert_array_equal(pixels(path, series=2), STACK[2])
    assert image_header(path).image_hw == (20, 30)


def test_unnamed_pages_are_channels_if_channels_are_chosen(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack")
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif", channel=1), STACK[1])
    image = read_image(tmp_path / "a.tif", channel=[2, "0"])
    np.testing.assert_array_equal(image.data, STACK[[2, 0]].transpose(1, 2, 0))
    assert [note.kind for note in image.notes] == ["unnamed pages were treated as channels"]
    image = read_image(tmp_path / "a.tif", channel=1, keep_channels=True)
    assert image.channels == ("0", "1", "2")


def test_all_choices_are_asked_for_at_once(tmp_path: Path) -> None:
    data = RNG.integers(0, 256, (2, 3, 2, 20, 30), np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, imagej=True, metadata={"axes": "TZCYX"})
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert "2 channels (0, 1), 3 planes, 2 time points" in str(caught.value)
    z, t = '`z` (0 to 2, "max" or "mean"; "all" predicts each)', '`t` (0 to 1; "all" predicts each)'
    assert f"choose `channel`, {z} and {t}" in str(caught.value)
    with pytest.raises(InputError, match=rf"choose {re.escape(t)}$"):
        read_image(path, channel=0, z=1)
    image = read_image(path, z=1, t=1)
    np.testing.assert_array_equal(image.data, data[1, 1].transpose(1, 2, 0))
    np.testing.assert_array_equal(pixels(path, channel=1, z="max", t=0), data[0, :, 1].max(axis=0))
    with pytest.raises(UsageError, match=r"got: t = 2\n  expected: 0 to 1"):
        read_image(path, z=0, t=2)


def test_the_channel_is_not_asked_for_if_its_name_means_nuclei(tmp_path: Path) -> None:
    metadata = {"axes": "ZCYX", "Channel": {"Name": ["actin", "DAPI"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", RNG.integers(0, 256, (3, 2, 20, 30), np.uint8), metadata=metadata)
    with pytest.raises(InputError, match=r"2 channels \(0: actin, 1: DAPI\), 3 planes(.|\n)*choose `z`"):
        read_image(tmp_path / "a.ome.tif")


@pytest.mark.parametrize("shape", [(20, 30, 2), (40, 30, 5)])
@pytest.mark.parametrize("imagej", [False, True])
def test_a_tiny_last_axis_is_that_of_channels(tmp_path: Path, shape: tuple[int, ...], imagej: bool) -> None:
    data = RNG.integers(0, 256, shape, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", imagej=imagej, metadata=None if imagej else {})
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.data, data)
    assert image.channels == tuple(map(str, range(shape[2])))
    assert kinds(tmp_path / "a.tif") == ["a last axis was treated as the channels"]
    assert image_header(tmp_path / "a.tif").n_channels == shape[2]


def test_a_stack_with_the_channels_last(tmp_path: Path) -> None:
    data = RNG.integers(0, 256, (4, 20, 30, 2), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", data)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", z=2).data, data[2])


def test_axes_in_another_order(tmp_path: Path) -> None:
    data = RNG.integers(0, 256, (20, 30, 9), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", data, metadata={"axes": "YXC"}, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").data, data)


def test_a_plane_of_a_large_stack_is_read_by_itself(tmp_path: Path) -> None:
    data = RNG.integers(0, 65536, (5, 20, 30)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "ZYX"})
    image = read_image(tmp_path / "a.tif", z=3)
    np.testing.assert_array_equal(image.data[:, :, 0], data[3])
    assert not isinstance(image.data, np.memmap)
    assert image.data.base is None or not isinstance(image.data.base, np.memmap)
    assert image.data.dtype.isnative


def test_two_unnamed_axes_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RNG.integers(0, 256, (2, 3, 20, 30), np.uint8), photometric="minisblack")
    with pytest.raises(InputError, match=r"more axes than can be read(.|\n)*metadata=\{'axes': 'TZCYX'\}"):
        read_image(tmp_path / "a.tif", z=0)


def test_images_of_other_sizes_are_listed(tmp_path: Path) -> None:
    other = RNG.integers(0, 256, (40, 50), np.uint8)
    drawn.pages(GREY, other, metadata=None)(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"2 images \(0: 20 x 30, uint8; 1: 40 x 50, uint8\)(.|\n)*`series` \(0 to 1"):
        read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif", series=1), other)
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif", series="0"), GREY)
    with pytest.raises(UsageError, match=r"no such series(.|\n)*series = 2"):
        read_image(tmp_path / "a.tif", series=2)


@pytest.mark.parametrize("marked", [True, False])
def test_a_thumbnail_before_the_image_is_passed_over(tmp_path: Path, marked: bool) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(np.ascontiguousarray(drawn.GREY[::4, ::4]), subfiletype=int(marked), metadata=None)
        tif.write(drawn.GREY, metadata=None)
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), drawn.GREY)
    (note,) = read_image(tmp_path / "a.tif").notes
    assert note.text == "of the 2 images in the file, the one of 96 x 128 was read, not 24 x 32"
    assert image_header(tmp_path / "a.tif").image_hw == (96, 128)


def test_names_of_channels_from_other_descriptions(tmp_path: Path) -> None:
    metadata = {"axes": "CYX", "Channel": {"Name": ["a", "b", "c"]}}
    tifffile.imwrite(tmp_path / "a.tif", STACK, metadata=metadata, photometric="minisblack")
    assert read_image(tmp_path / "a.tif").channels == ("a", "b", "c")
    labels = {"axes": "CYX", "Labels": ["DAPI", "GFP", "RFP"]}
    tifffile.imwrite(tmp_path / "b.tif", STACK, imagej=True, metadata=labels)
    assert read_image(tmp_path / "b.tif").channels == ("DAPI", "GFP", "RFP")


# --- what the numbers mean ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "names"),
    [([0, 0], ("0", "1", "2")), ([0, 0, 0], ("0", "1", "2", "3")), ([2], ("grey", "A")), ([0], ("0", "1"))],
)
def test_samples_that_are_not_rgb(tmp_path: Path, extra: list[int], names: tuple[str, ...]) -> None:
    data = RNG.integers(0, 256, (20, 30, len(names)), np.uint8)
    options = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": extra}
    tifffile.imwrite(tmp_path / "a.tif", data, **options)
    image = read_image(tmp_path / "a.tif")
    assert image.channels == names
    np.testing.assert_array_equal(image.data, data)


@pytest.mark.parametrize(
    ("extra", "names", "noted"),
    [([2], tuple("RGBA"), 0), ([1], tuple("RGBA"), 0), ([0], tuple("RGBA"), 1), ([0, 0], ("R", "G", "B", "3", "4"), 0)],
)
def test_samples_beside_rgb(tmp_path: Path, extra: list[int], names: tuple[str, ...], noted: int) -> None:
    data = RNG.integers(0, 256, (20, 30, len(names)), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", extrasamples=extra)
    image = read_image(tmp_path / "a.tif")
    assert image.channels == names
    assert len(image.notes) == noted


@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_is_light_not_ink(tmp_path: Path, bits: int) -> None:
    ink = RNG.integers(0, 256, (20, 30, 4), np.uint8)
    expected = np.asarray(Pillow.fromarray(ink, "CMYK").convert("RGB"))
    stored = ink if bits == 8 else ink.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="separated")
    image = read_image(tmp_path / "a.tif")
    assert image.channels == ("R", "G", "B")
    scale = 1 if bits == 8 else 257
    assert np.abs(image.data / scale - expected).max() <= 1


def test_min_is_white_is_turned_round(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="miniswhite")
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), 255 - GREY)
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), np.asarray(Pillow.open(tmp_path / "a.tif")))
    tifffile.imwrite(tmp_path / "b.tif", STACK, photometric="miniswhite")
    np.testing.assert_array_equal(pixels(tmp_path / "b.tif", z="max"), 255 - STACK.min(axis=0))
    # ImageJ writes this for an inverting lookup table, which changes the display and not the numbers.
    with tifffile.TiffWriter(tmp_path / "c.tif", imagej=True) as tif:
        tif.write(GREY, photometric="miniswhite")
    np.testing.assert_array_equal(pixels(tmp_path / "c.tif"), GREY)


@pytest.mark.parametrize("suffix", [".tif", ".png", ".bmp"])
def test_palettes_are_colours_unless_they_are_lookup_tables(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    picture = drawn.quantised("MEDIANCUT", 256)
    picture.save(path)
    image = read_image(path)
    np.testing.assert_array_equal(image.data, np.asarray(picture.convert("RGB")))
    assert image.channels == ("R", "G", "B")
    ramp = np.arange(256, dtype=np.uint8)
    # ImageJ's fire, in steps; blue, as for DAPI; and one that runs backwards.
    red = np.interp(ramp, [0, 60, 140, 255], [0, 120, 250, 255])
    fire = np.stack([red, ramp, np.interp(ramp, [0, 70, 140, 255], [60, 220, 30, 255])], axis=1).astype(np.uint8)
    for table in (fire, np.stack([0 * ramp, 0 * ramp, ramp], axis=1), np.stack([255 - ramp, ramp, 0 * ramp], axis=1)):
        drawn.with_lookup_table(drawn.GREY, table).save(path)
        np.testing.assert_array_equal(pixels(path), drawn.GREY)
        assert kinds(path) == ["the colours of a lookup table were ignored"]
        assert image_header(path).n_channels == 1


def test_a_grey_palette_is_applied(tmp_path: Path) -> None:
    table = np.repeat(255 - np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    for name in ("a.tif", "a.png", "a.bmp"):
        drawn.with_lookup_table(drawn.GREY, table).save(tmp_path / name)
        np.testing.assert_array_equal(pixels(tmp_path / name), 255 - drawn.GREY)
        assert image_header(tmp_path / name).n_channels == 1


@pytest.mark.parametrize("photometric", ["cielab", "ycbcr"])
def test_colour_spaces_that_cannot_be_read_are_refused(tmp_path: Path, photometric: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RNG.integers(0, 256, (20, 30, 3), np.uint8), photometric=photometric)
    with pytest.raises(FormatError, match=r"colour space cannot be read(.|\n)*fix: save the image as RGB"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "int64", "float16", "float64", "bool"])
def test_other_number_types_keep_their_values(tmp_path: Path, dtype: str) -> None:
    data = (RNG.integers(0, 2 if dtype == "bool" else 100, (20, 30))).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", data)
    image = read_image(tmp_path / "a.tif")
    assert image.data.dtype in (np.uint8, np.uint16, np.float32)
    np.testing.assert_array_equal(image.data[:, :, 0].astype(np.float64), data * 255.0 if dtype == "bool" else data)
    if dtype.startswith("int"):
        tifffile.imwrite(tmp_path / "b.tif", data - 50)
        assert read_image(tmp_path / "b.tif").data.dtype == np.float32
        np.testing.assert_array_equal(pixels(tmp_path / "b.tif"), data - 50)


def test_large_integers_are_rounded_with_a_note(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((20, 30), 2**31 + 1, np.uint32))
    assert kinds(tmp_path / "a.tif") == ["large values were rounded to 24 bits"]
    tifffile.imwrite(tmp_path / "b.tif", np.full((20, 30), 2**24, np.uint32))
    assert kinds(tmp_path / "b.tif") == []


@pytest.mark.parametrize(("data", "message"), [(1e300, "too large"), (1j, "pixel type is not supported")])
def test_numbers_that_cannot_be_kept_are_refused(tmp_path: Path, data: complex, message: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((20, 30), data))
    with pytest.raises(InputError, match=message):
        read_image(tmp_path / "a.tif")


def test_an_orientation_tag_is_not_applied(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, extratags=[(274, "H", 1, 6, True)])
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), GREY)
    assert kinds(tmp_path / "a.tif") == ["the orientation tag of a TIFF was not applied"]


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["jpeg", "lzw", "deflate", "zstd", "packbits", "jpeg2000", None])
@pytest.mark.parametrize("tiled", [True, False])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, compression: str | None, tiled: bool) -> None:
    path = tmp_path / "a.tif"
    layout = {"tile": (32, 32)} if tiled else {"rowsperstrip": 16}
    tifffile.imwrite(path, drawn.HE, photometric="rgb", compression=compression, **layout)
    whole = path.read_bytes()
    for share in (0.97, 0.8, 0.5):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(FormatError, match=r"truncated|cannot be decoded"):
            read_image(path)


def test_a_jpeg_strip_without_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, drawn.HE, photometric="rgb", compression="jpeg", rowsperstrip=32)
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        start, size = page.dataoffsets[1], page.databytecounts[1]
    content = bytearray(path.read_bytes())
    content[start + size // 2 : start + size] = bytes(size - size // 2)
    path.write_bytes(content)
    with pytest.raises(FormatError, match="JPEG strip or tile 1 without its end"):
        read_image(path)


def test_a_plane_beyond_the_end_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "ZYX"})
    whole = path.read_bytes()
    path.write_bytes(whole[:-300])
    with pytest.raises(FormatError, match=r"truncated|cannot be decoded"):
        read_image(path, z=0)


def test_a_file_without_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        at = tif.pages.first.tags["ImageLength"].valueoffset
    content[at : at + 2] = b"\0\0"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"no pixels|cannot be decoded"):
        read_image(path)

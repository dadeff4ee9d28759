"""PNG, JPEG, BMP and WebP: EXIF orientation, damage, and transparency."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import drawn_images as drawn
import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import FormatError, InputError
from cellwright.core.instances import Instances
from cellwright.data.formats import read_dataset
from cellwright.data.formats.label_io import read_raster as read_label_raster
from cellwright.data.formats.orientation import follow_orientation
from cellwright.data.images.read import image_header, image_hw_of, read_image

SUFFIXES = (".jpg", ".png", ".webp")


def save_turned(path: Path, pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Write pixels as they are stored, with an EXIF orientation; returns what viewers show (as Pillow does)."""
    exif = Pillow.Exif()
    exif[drawn.ORIENTATION] = orientation
    Pillow.fromarray(pixels).save(path, exif=exif, **({"lossless": True} if path.suffix == ".webp" else {}))
    return np.asarray(ImageOps.exif_transpose(Pillow.open(path)))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_read_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a{suffix}"
    shown = save_turned(path, drawn.HE, orientation)
    image = read_image(path)
    np.testing.assert_array_equal(image.data, shown)
    assert image_hw_of(path) == image.image_hw
    assert image_header(path).orientation == orientation
    assert len(image.notes) == (orientation != 1)
    if orientation == 6:
        assert "stored as 96 x 128, read as 128 x 96" in image.notes[0].text
    if orientation == 3:
        assert "sizes do not tell" in image.notes[0].text


@pytest.mark.parametrize("orientation", range(2, 9))
def test_annotations_of_the_stored_pixels_are_turned_with_the_image(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.png"
    stored = drawn.truth()
    shown = save_turned(path, stored.astype(np.uint8), orientation)
    sample = Sample("a", path, stored.shape, Loaded(Instances.from_label_map(stored)))  # type: ignore[arg-type]
    dataset = follow_orientation(Dataset((sample,), ("nucleus",)))
    objects = dataset[0].read_instances()
    assert len(dataset.notes) == 1
    if orientation >= 5:
        assert dataset[0].image_hw == objects.image_hw == (128, 96)
        np.testing.assert_array_equal(objects.masks.to_label_map(objects.ids), shown)
        np.testing.assert_array_equal(objects.boxes_xyxy, objects.masks.boxes)
    else:  # the size does not tell: taken as drawn on the upright image
        assert objects.image_hw == (96, 128)
        np.testing.assert_array_equal(objects.masks.to_label_map(objects.ids), stored)
        assert "assumed" in dataset.notes[0].text


def test_annotations_of_the_upright_image_stay(tmp_path: Path) -> None:
    shown = save_turned(tmp_path / "a.jpg", drawn.GREY, 6)
    sample = Sample("a", tmp_path / "a.jpg", shown.shape, Loaded(Instances.empty(shown.shape)))  # type: ignore[arg-type]
    dataset = Dataset((sample,), ("nucleus",))
    assert follow_orientation(dataset) is dataset


def test_a_square_image_says_what_was_assumed(tmp_path: Path) -> None:
    save_turned(tmp_path / "a.jpg", drawn.GREY[:, :96], 8)
    sample = Sample("a", tmp_path / "a.jpg", (96, 96), Loaded(Instances.empty((96, 96))))
    dataset = Dataset((sample,), ("nucleus",))
    assert [note.where for note in follow_orientation(dataset).notes] == [str(tmp_path / "a.jpg")]
    assert follow_orientation(dataset, quiet=True) is dataset


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
def test_files_that_are_cut_short_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Pillow.fromarray(drawn.HE).save(path)
    whole = path.read_bytes()
    for missing in (40, len(whole) // 10, len(whole) // 2):
        path.write_bytes(whole[:-missing])
        with pytest.raises(FormatError, match="cannot be decoded"):
            read_image(path)


def test_a_jpeg_without_its_last_bytes_is_refused(tmp_path: Path) -> None:
    Pillow.fromarray(drawn.HE).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[:-2])
    with pytest.raises(FormatError, match="end of the JPEG data is missing"):
        read_image(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(content + b"appended by a camera")
    assert read_image(tmp_path / "a.jpg").image_hw == (96, 128)


@pytest.mark.parametrize("colour", ["grey", "rgb"])
def test_a_transparent_value_becomes_alpha(tmp_path: Path, colour: str) -> None:
    pixels, value = (drawn.GREY, 20) if colour == "grey" else (drawn.HE, tuple(drawn.HE[0, 0].tolist()))
    Pillow.fromarray(pixels).save(tmp_path / "a.png", transparency=value)
    image = read_image(tmp_path / "a.png")
    assert image.channels == (("grey", "A") if colour == "grey" else tuple("RGBA"))
    np.testing.assert_array_equal(image.without_alpha().data.squeeze(), pixels)
    assert image_header(tmp_path / "a.png").n_channels == image.n_channels


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_use_the_full_range(tmp_path: Path, bits: int) -> None:
    levels = drawn.GREY >> (8 - bits)
    packed = np.packbits(np.unpackbits(levels[..., None], axis=2)[:, :, -bits:].reshape(96, -1), axis=1)
    (tmp_path / "a.png").write_bytes(_png(packed, 128, bits))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").data[:, :, 0], levels * (255 // (2**bits - 1)))


def _png(packed: np.ndarray, width: int, bits: int) -> bytes:
    """A grey PNG from packed rows (H, bytes)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, len(packed), bits, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("layout", ["label image", "mask folder"])
@pytest.mark.parametrize("drawn_on", ["shown", "stored"])
def test_masks_of_a_turned_picture(tmp_path: Path, layout: str, drawn_on: str) -> None:
    labels = drawn.truth()
    root = tmp_path / "in"
    masks = labels if drawn_on == "stored" else np.rot90(labels, -1)
    if layout == "label image":
        root.mkdir()
        image = root / "a.jpg"
        Pillow.fromarray(masks.astype(np.uint8)).save(root / "a_masks.png")
    else:
        (root / "a" / "images").mkdir(parents=True)
        (root / "a" / "masks").mkdir()
        image = root / "a" / "images" / "a.jpg"
        for number in range(1, 10):
            Pillow.fromarray(((masks == number) * 255).astype(np.uint8)).save(root / "a" / "masks" / f"{number}.png")
    save_turned(image, drawn.GREY, 6)
    dataset = read_dataset(root)
    objects = dataset[0].read_instances()
    assert dataset[0].image_hw == objects.image_hw == (128, 96)
    np.testing.assert_array_equal(objects.masks.foreground(), np.rot90(labels, -1) > 0)
    assert len(dataset.notes) == (drawn_on == "stored")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 40\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["photo.jpg", "photo.bmp", "photo.webp"])
def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / name).write_bytes(EPS)
    for read in (read_image, image_header, read_label_raster):
        with pytest.raises(FormatError, match="cannot be decoded"):
            read(tmp_path / name)
    assert not (tmp_path / "started").exists()


def claim(path: Path, offset: int, *sides: bytes) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:offset] + b"".join(sides) + content[offset + sum(map(len, sides)) :])


def test_pictures_that_claim_more_than_they_hold_are_refused_before_decoding(tmp_path: Path) -> None:
    grey = np.zeros((16, 16), np.uint8)
    for suffix in ("jpg", "bmp", "png"):
        Pillow.fromarray(grey).save(tmp_path / f"a.{suffix}")
    start = (tmp_path / "a.jpg").read_bytes().index(b"\xff\xc0") + 5
    claim(tmp_path / "a.jpg", start, b"\xff\x00", b"\xff\x00")
    claim(tmp_path / "a.bmp", 18, b"\x00\x00\x01\x00", b"\x00\x00\x01\x00")
    claim(tmp_path / "a.png", 16, b"\x00\x01\x00\x00", b"\x00\x01\x00\x00")
    for suffix in ("jpg", "bmp", "png"):
        with pytest.raises(FormatError, match="pixels in"):
            read_image(tmp_path / f"a.{suffix}")


def test_honest_giants_are_read_where_there_is_memory_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Pillow.fromarray(np.zeros((9000, 9000), np.uint8)).save(path)
    assert read_image(path).data.shape == (9000, 9000, 1)
    monkeypatch.setenv("CELLWRIGHT_MEMORY_GB", "0.1")
    with pytest.raises(InputError, match=r"more memory than there is\n  where: .*a.png(.|\n)*CELLWRIGHT_MEMORY_GB"):
        read_image(path)


def test_a_header_that_claims_a_huge_picture_is_damage(tmp_path: Path) -> None:
    """Whatever Pillow raises: a palette is read by decoding the pixels, and WebP has a limit of its own."""
    bmp, webp = tmp_path / "a.bmp", tmp_path / "a.webp"
    Pillow.fromarray(np.zeros((8, 8), np.uint8)).convert("P").save(bmp)
    content = bytearray(bmp.read_bytes())
    content[18:22] = (2**31 - 1).to_bytes(4, "little")
    bmp.write_bytes(content)
    Pillow.fromarray(np.zeros((8, 8, 3), np.uint8)).save(webp, lossless=True)
    content = bytearray(webp.read_bytes())
    content[21:25] = ((16382 << 14) | 16382).to_bytes(4, "little")
    webp.write_bytes(content)
    for path in (bmp, webp):
        for read in (image_header, read_image):
            with pytest.raises(FormatError, match="cannot be decoded"):
                read(path)

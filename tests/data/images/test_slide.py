"""Slides through OpenSlide: against its own whole reads, on real slides and on drawn tiled TIFF files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_array_equal

import cellwright as cw
from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.data.images.read import find_images, image_header, read_image
from cellwright.data.images.source import open_image

openslide = pytest.importorskip("openslide")
RNG = np.random.default_rng(0)
SMOOTH = np.kron(RNG.integers(0, 256, (40, 50, 3)), np.ones((16, 16, 1))).astype(np.uint8)  # 640 x 800


def draw(path: Path, *sizes: tuple[int, int], missing: bool = False) -> Path:
    """A tiled pyramid, which OpenSlide reads as such under any name."""
    with tifffile.TiffWriter(path) as tif:
        for number, (height, width) in enumerate(((640, 800), *sizes)):
            rows = np.arange(height) * 640 // height
            columns = np.arange(width) * 800 // width
            pixels = np.ascontiguousarray(SMOOTH[rows][:, columns])
            tif.write(pixels, tile=(128, 128), photometric="rgb", subfiletype=int(number > 0), compression="deflate", metadata=None)  # fmt: skip # noqa: E501
    if missing:
        with tifffile.TiffFile(path, mode="r+") as tif:
            for name in ("TileByteCounts", "TileOffsets"):
                tag = tif.pages[0].tags[name]
                tag.overwrite([0, *tag.value[1:]])
    return path


def whole(path: Path, level: int) -> np.ndarray:
    """(H, W, 4) of a level as OpenSlide reads it at once."""
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))


def test_real_slides(readers_root: Path) -> None:
    rng = np.random.default_rng(0)
    n_levels = []
    for path in find_images(readers_root / "slides"):
        source = pickle.loads(pickle.dumps(open_image(path)))
        n_levels.append(len(source.levels))
        assert source.channels == ("R", "G", "B")
        with openslide.OpenSlide(path) as slide:
            assert source.pixel_size_um == tuple(float(slide.properties[f"openslide.mpp-{axis}"]) for axis in "yx")
            assert [level.downsample[0] for level in source.levels] == list(slide.level_downsamples)
        for level, (height, width) in enumerate(level.image_hw for level in source.levels):
            if height * width > 1e7:  # tens of seconds on a slow machine
                continue
            pixels = whole(path, level)[:, :, :3]
            for _ in range(3):
                y0, y1 = sorted(rng.choice(height + 1, 2, replace=False).tolist())
                x0, x1 = sorted(rng.choice(width + 1, 2, replace=False).tolist())
                assert_array_equal(source.read(y0, x0, y1 - y0, x1 - x0, level).data, pixels[y0:y1, x0:x1])
        assert image_header(path).image_hw == source.image_hw
        assert source.fingerprint() == open_image(path).fingerprint()
    assert n_levels == [1, 7]


def test_levels_of_any_scale_do_not_depend_on_the_window(tmp_path: Path) -> None:
    path = draw(tmp_path / "a.svs", (320, 400), (213, 267))
    source = open_image(path)
    assert [level.image_hw for level in source.levels] == [(640, 800), (320, 400), (213, 267)]
    assert source.levels[2].downsample[0] == pytest.approx(3.0, abs=0.01)
    assert source.levels[2].downsample[0] != 3
    for level, (height, width) in enumerate(level.image_hw for level in source.levels):
        at_once = source.read(0, 0, height, width, level).data
        for y0, x0, h, w in ((0, 0, 100, 90), (37, 101, 66, 150), (height - 5, width - 3, 5, 3)):
            fresh = open_image(path).read(y0, x0, h, w, level).data
            assert_array_equal(fresh, at_once[y0 : y0 + h, x0 : x0 + w])
        close = np.abs(at_once.astype(int) - whole(path, level)[:, :, :3]) <= (0 if level < 2 else 40)
        assert close.mean() > (0.97 if level == 2 else 0.9999)
    assert_array_equal(read_image(path, level=1).data, whole(path, 1)[:, :, :3])


def test_what_was_not_scanned_has_the_background_colour(tmp_path: Path) -> None:
    path = draw(tmp_path / "a.svs", missing=True)
    assert not whole(path, 0)[:128, :128, 3].any()
    pixels = open_image(path).read(0, 0, 200, 300).data
    assert (pixels[:128, :128] == 255).all()
    assert_array_equal(pixels[128:], SMOOTH[128:200, :300])


def test_slides_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.svs").write_text("no slide")
    for name in ("text.svs", "nowhere.ndpi"):
        with pytest.raises(InputError, match=rf"where: .*{name}"):
            open_image(tmp_path / name)
    path = draw(tmp_path / "a.svs")
    with tifffile.TiffFile(path) as tif:
        start, size = tif.pages[0].dataoffsets[8], tif.pages[0].databytecounts[8]
    content = bytearray(path.read_bytes())
    content[start : start + size] = b"\x55" * size
    path.write_bytes(content)
    source = open_image(path)
    assert source.read(0, 0, 128, 128).image_hw == (128, 128)
    with pytest.raises(
        FormatError, match=r"tile of this slide(.|\n)*a\.svs\n  got: rows 128 to 255, columns 128 to 255"
    ):
        source.read(0, 0, 640, 800)
    assert_array_equal(source.read(0, 0, 128, 800).data, SMOOTH[:128, :800])  # opened again after the error
    with pytest.raises(UsageError, match="not a stack"):
        open_image(path, z=1)
    monkeypatch.setenv("CELLWRIGHT_MEMORY_GB", "0.001")
    monkeypatch.setattr("cellwright.core.memory._SMALL", 0)
    with pytest.raises(InputError, match=r"640 x 800 pixels needs more memory(.|\n)*open_image"):
        cw.read_image(path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "cellwright\[slides\]"'):
        open_image(path)


def test_the_pictures_of_a_vms_slide_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "a.vms").write_text(
        "[Virtual Microscope Specimen]\nImageFile=a.jpg\nImageFile(1,0)=a(1,0).JPG\nMapFile=a_map2.jpg\n"
    )
    for name in ("a.jpg", "a(1,0).JPG", "a_map2.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_images(tmp_path)] == ["a.vms", "b.jpg"]

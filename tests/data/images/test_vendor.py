"""Vendors' formats through bioio, replaced by a small module of the same interface; and files that are not read."""

from __future__ import annotations

import sys
import types
from collections import namedtuple
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from cellwright.core.errors import InputError, UsageError
from cellwright.data.images.passed_over import files_passed_over, passed_over_note, vendor_kinds
from cellwright.data.images.read import find_images, image_header, read_image
from cellwright.data.images.vendor import PLUGINS, advice

Sizes = namedtuple("Sizes", "Z Y X")
ARRAYS = {
    "one": np.arange(2 * 6 * 7, dtype=np.uint16).reshape(1, 2, 1, 6, 7),
    "stack": np.random.default_rng(0).integers(0, 255, (1, 2, 3, 6, 7)).astype(np.uint8),
    "rgb": np.random.default_rng(1).integers(0, 255, (1, 1, 1, 6, 7, 3)).astype(np.uint8),
}


class FakeImage:
    """The part of ``bioio.BioImage`` that is used: arrays TCZYX or TCZYXS, one per scene, by the name of the file."""

    def __init__(self, path: Path) -> None:
        name = Path(path).stem
        if name == "broken":
            raise RuntimeError("no plugin")
        self._arrays = {"s0": ARRAYS["one"], "s1": ARRAYS["one"] + 1} if name == "scenes" else {"s0": ARRAYS[name]}
        self.scenes, self.physical_pixel_sizes = tuple(self._arrays), Sizes(1.0, 0.5, 0.25)
        self.set_scene("s0")

    def set_scene(self, scene: str) -> None:
        self._array = self._arrays[scene]
        order = "TCZYXS"[: self._array.ndim]
        self.dims = types.SimpleNamespace(order=order, **dict(zip(order, self._array.shape, strict=True)))
        self.dtype = self._array.dtype
        self.channel_names = ["DAPI", "actin"][: self._array.shape[1]]

    def get_image_data(self, order: str, T: int = 0, C: int = 0, Z: int = 0) -> np.ndarray:
        assert order in ("YX", "YXS")
        return self._array[T, C, Z]


@pytest.fixture
def bioio(monkeypatch):
    module = types.ModuleType("bioio")
    module.BioImage = FakeImage  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bioio", module)


@pytest.fixture
def no_bioio(monkeypatch):
    monkeypatch.delitem(sys.modules, "bioio", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(np.zeros((6, 7), np.uint8)))


def test_channels_and_pixel_size(bioio, tmp_path):
    path = touch(tmp_path, "one.czi") / "one.czi"
    image = read_image(path)
    np.testing.assert_array_equal(image.data, np.moveaxis(ARRAYS["one"][0, :, 0], 0, -1))
    assert (image.channels, image.pixel_size_um) == (("DAPI", "actin"), (0.5, 0.25))
    assert read_image(path, channel="actin").channels == ("actin",)
    header = image_header(path)
    assert (header.image_hw, header.n_channels, header.bits) == ((6, 7), 2, 16)


def test_planes_scenes_and_colours(bioio, tmp_path):
    touch(tmp_path, "stack.nd2", "scenes.lif", "rgb.czi")
    with pytest.raises(InputError, match=r"choose `z` \(0 to 2"):
        read_image(tmp_path / "stack.nd2")
    image = read_image(tmp_path / "stack.nd2", z="max")
    np.testing.assert_array_equal(image.data, np.moveaxis(ARRAYS["stack"][0].max(1), 0, -1))
    with pytest.raises(InputError, match=r"choose `series` \(0 to 1, or a name\)"):
        read_image(tmp_path / "scenes.lif")
    assert read_image(tmp_path / "scenes.lif", series="s1").data[0, 0, 0] == 1
    with pytest.raises(UsageError, match="no such series"):
        read_image(tmp_path / "scenes.lif", series=7)
    colours = read_image(tmp_path / "rgb.czi")
    np.testing.assert_array_equal(colours.data, ARRAYS["rgb"][0, 0, 0])
    assert colours.channels == ("R", "G", "B")


def test_a_plugin_that_is_missing_is_named(bioio, tmp_path):
    touch(tmp_path, "broken.czi")
    with pytest.raises(InputError, match=r"no plugin(.|\n)*pip install bioio-czi"):
        read_image(tmp_path / "broken.czi")


def test_folders_contain_vendors_images_where_bioio_is_installed(bioio, tmp_path):
    touch(tmp_path, "one.czi", "a.qptiff")
    assert [file.name for file in find_images(tmp_path)] == ["one.czi"]
    assert files_passed_over(tmp_path) == {tmp_path / "a.qptiff": ".qptiff"}


def test_without_bioio_the_extra_is_named(no_bioio, tmp_path):
    touch(tmp_path, "one.czi", "b.svs")
    with pytest.raises(InputError, match=r"not installed(.|\n)*cellwright\[bioio\]' bioio-czi"):
        read_image(tmp_path / "one.czi")
    with pytest.raises(InputError, match=r"has no images(.|\n)*2 files were not read: 1 \.czi, 1 \.svs; for"):
        find_images(tmp_path)
    with pytest.raises(InputError, match=r"not an image file(.|\n)*cellwright\[bioio\]"):
        find_images(tmp_path / "one.czi")


def test_files_that_are_not_read_are_counted(no_bioio, tmp_path):
    touch(tmp_path, "a.czi", "b.CZI", "sub/c.lif", "d.qptiff", "f.zarr/0/0", "notes.xlsx", ".DS_Store", "._x.png")
    for name in ("x.png", "my_overlay.png", ".hidden.png", ".ipynb_checkpoints/x.png"):
        save(tmp_path / name)
    touch(tmp_path, "predictions/predictions.json", "predictions/y.czi")
    counted = {file.relative_to(tmp_path).as_posix(): why for file, why in files_passed_over(tmp_path).items()}
    assert counted == {
        "a.czi": ".czi", "b.CZI": ".czi", "sub/c.lif": ".lif", "d.qptiff": ".qptiff", "f.zarr": ".zarr",
        "my_overlay.png": "named like an output of cellwright", ".hidden.png": "hidden",
    }  # fmt: skip
    note = passed_over_note(tmp_path)
    assert note is not None
    assert note.text.startswith(
        "7 files were not read: 2 .czi, 1 .lif, 1 .qptiff, 1 .zarr, 1 hidden (.hidden.png), 1 named"
    )
    assert note.text.endswith("see docs/formats.md")
    assert "for .qptiff: export regions as OME-TIFF" in note.text
    only_vendors = passed_over_note(tmp_path, vendor_kinds())
    assert only_vendors is not None
    assert only_vendors.text.startswith("5 files")


def test_nothing_to_say(tmp_path):
    save(tmp_path / "x.png")
    assert passed_over_note(tmp_path) is None


@pytest.mark.parametrize("suffix", [*PLUGINS, ".svs", ".zarr", ".heic"])
def test_every_suffix_has_advice(suffix):
    assert advice(suffix)

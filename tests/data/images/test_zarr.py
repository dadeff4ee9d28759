"""OME-Zarr 0.1 to 0.5, plain Zarr arrays, zipped stores and plates."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from drawn_zarr import write
from numpy.testing import assert_array_equal

import cellwright as cw
from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.data.images.read import find_images, image_header, read_image
from cellwright.data.images.source import open_image

zarr = pytest.importorskip("zarr")
RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 60000, (2, 3, 4, 70, 90)).astype(np.uint16)  # T, C, Z, Y, X


DAPI = [{"label": "DAPI", "color": "0000FF"}, {"label": "actin", "color": "00FF00"}, {"label": "tubulin"}]


@pytest.mark.parametrize("version", ["0.1", "0.3", "0.4", "0.5"])
def test_versions(tmp_path: Path, version: str) -> None:
    path = write(tmp_path / "a.ome.zarr", STACK, "tczyx", version=version, channels=DAPI)
    with pytest.raises(InputError) as missing:
        open_image(path)
    assert "3 channels (0: DAPI, 1: actin, 2: tubulin), 4 planes, 2 time points, 70 x 90, uint16" in str(missing.value)
    source = pickle.loads(pickle.dumps(open_image(path, z=1, t=1)))
    assert (source.image_hw, source.channels, source.dtype) == ((70, 90), ("DAPI", "actin", "tubulin"), np.uint16)
    assert source.pixel_size_um == ((0.5, 0.5) if version in ("0.4", "0.5") else None)
    assert [(level.image_hw, level.downsample) for level in source.levels] == [((70, 90), (1, 1)), ((35, 45), (2, 2))]
    expected = STACK[1, :, 1].transpose(1, 2, 0)
    assert_array_equal(source.read(20, 30, 40, 50).data, expected[20:60, 30:80])
    assert_array_equal(source.read(20, 30, 10, 15, level=1).data, expected[::2, ::2][20:30, 30:45])
    image = read_image(path, z="max", t=0, channel="actin")
    assert_array_equal(image.data[:, :, 0], STACK[0, 1].max(axis=0))
    assert_array_equal(read_image(path, z=0, t=0, level=1).data, STACK[0, :, 0, ::2, ::2].transpose(1, 2, 0))
    header = image_header(path)
    assert (header.image_hw, header.n_channels, header.bits) == ((70, 90), 3, 16)


@pytest.mark.parametrize("chunks", [(1, 1, 1, 32, 40), (1, 3, 1, 32, 40), (1, 3, 4, 70, 90), (2, 1, 3, 20, 64)])
@pytest.mark.parametrize("z", [2, "max", "mean"])
def test_projections_of_any_chunks(tmp_path: Path, chunks: tuple[int, ...], z: int | str) -> None:
    path = write(tmp_path / "a.zarr", STACK, "tczyx", chunks=chunks, n_levels=1)
    planes = STACK[1].astype(np.float64)
    whole = {"max": planes.max(axis=1), "mean": planes.mean(axis=1)}.get(str(z), planes[:, 2])
    source = open_image(path, z=z, t=1)  # type: ignore[arg-type]
    for y0, x0, h, w in ((0, 0, 70, 90), (31, 39, 2, 2), (5, 50, 60, 7)):
        expected = whole[:, y0 : y0 + h, x0 : x0 + w].transpose(1, 2, 0).astype(np.float32)
        assert_array_equal(source.read(y0, x0, h, w).data, expected)


def test_names_of_channels(tmp_path: Path) -> None:
    def names(*channels: tuple[str, str], dtype: type = np.uint8) -> tuple[str, ...]:
        data = np.zeros((len(channels), 20, 30), dtype)
        listed = [{"label": label, "color": colour} for label, colour in channels]
        source = open_image(write(tmp_path / "a.zarr", data, "cyx", channels=listed))
        kinds.append([note.kind for note in source.notes])
        return source.channels

    kinds: list[list[str]] = []
    colours = ("FF0000", "00FF00", "0000FF")
    assert names(*zip(("Channel 0", "Channel 1", "Channel 2"), colours, strict=True)) == ("R", "G", "B")
    assert names(*zip(("red", "Green", "BLUE"), colours, strict=True)) == ("R", "G", "B")
    assert kinds == [["unnamed channels were treated as R, G, B"], []]
    assert names(*zip(("0", "1", "2"), colours, strict=True), dtype=np.uint16) == ("0", "1", "2")
    assert names(*zip(("Cy5", "FITC", "DAPI"), colours, strict=True)) == ("Cy5", "FITC", "DAPI")
    assert names(("a", ""), ("a", "")) == ("0 a", "1 a")
    assert names(("Channel 0", "808080")) == ("grey",)
    assert names(("DAPI", "808080")) == ("DAPI",)
    assert open_image(write(tmp_path / "a.zarr", STACK[0, :, 0], "cyx")).channels == ("0", "1", "2")


def test_units_of_pixels(tmp_path: Path) -> None:
    data = STACK[0, 0, 0]
    assert open_image(write(tmp_path / "a.zarr", data, "yx", unit="nanometer")).pixel_size_um == (0.0005, 0.0005)
    source = open_image(write(tmp_path / "a.zarr", data, "yx", unit="furlong"))
    assert source.pixel_size_um is None
    assert "the unit 'furlong', which is not a length" in source.notes[0].text
    assert "no unit" in open_image(write(tmp_path / "a.zarr", data, "yx", unit=None)).notes[0].text
    assert open_image(tmp_path / "a.zarr", pixel_size=2).read(0, 0, 9, 9, level=1).pixel_size_um == (4.0, 4.0)


@pytest.mark.parametrize("nested", [False, True])
def test_zipped_stores(tmp_path: Path, nested: bool) -> None:
    folder = write(tmp_path / "a.ome.zarr", STACK[0, 0, 0], "yx", version="0.5")
    path = tmp_path / "b.ome.zarr.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                packed.write(file, file.relative_to(tmp_path if nested else folder))
    source = pickle.loads(pickle.dumps(open_image(path)))
    assert_array_equal(source.read(3, 4, 50, 60).data[:, :, 0], STACK[0, 0, 0, 3:53, 4:64])
    assert source.fingerprint() == open_image(path).fingerprint()
    assert find_images(tmp_path) == [folder, path]


def test_plates_and_collections(tmp_path: Path) -> None:
    plate = zarr.open_group(tmp_path / "plate.zarr", mode="w", zarr_format=2)
    plate.attrs["plate"] = {"wells": [{"path": "A/1"}, {"path": "B/2"}]}
    for number, well in enumerate(("A/1", "B/2")):
        plate.create_group(well).attrs["well"] = {"images": [{"path": "0"}, {"path": "1"}]}
        for field in (0, 1):
            write(tmp_path / "plate.zarr" / well / str(field), STACK[0, 0, 2 * number + field], "yx")
    with pytest.raises(InputError, match=r"a plate of several images(.|\n)*4 images \(A/1/0, A/1/1, B/2/0, B/2/1\)"):
        open_image(tmp_path / "plate.zarr")
    for series in ("B/2/0", 2, "2"):
        source = pickle.loads(pickle.dumps(open_image(tmp_path / "plate.zarr", series=series)))
        assert_array_equal(source.read(0, 0, 70, 90).data[:, :, 0], STACK[0, 0, 2])
    with pytest.raises(UsageError, match="no such image in this plate"):
        open_image(tmp_path / "plate.zarr", series="C/1/0")
    assert_array_equal(read_image(tmp_path / "plate.zarr" / "A" / "1" / "1").data[:, :, 0], STACK[0, 0, 1])

    zarr.open_group(tmp_path / "several.zarr", mode="w", zarr_format=2).attrs["bioformats2raw.layout"] = 3
    for number in range(2):
        write(tmp_path / "several.zarr" / str(number), STACK[0, 0, number], "yx")
    with pytest.raises(InputError, match=r"2 images \(0: 0, 70 x 90, uint16; 1: 1, 70 x 90, uint16\)"):
        open_image(tmp_path / "several.zarr")
    assert_array_equal(read_image(tmp_path / "several.zarr", series=1).data[:, :, 0], STACK[0, 0, 1])


def test_plain_arrays(tmp_path: Path) -> None:
    data = STACK[0, :, 0]
    array = zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(1, 32, 32), dimension_names=("c", "y", "x"))
    last = zarr.create_array(tmp_path / "b.zarr", data=data.transpose(1, 2, 0), chunks=(32, 32, 3), shards=(64, 64, 3))
    zarr.create_group(tmp_path / "c.zarr").create_array("x", data=data[0])
    for what in (array, last, tmp_path / "a.zarr", tmp_path / "b.zarr"):
        source = pickle.loads(pickle.dumps(cw.open_image(what)))
        assert source.tile_hw == (32, 32)
        assert_array_equal(source.read(5, 6, 60, 70).data, data[:, 5:65, 6:76].transpose(1, 2, 0))
    with pytest.raises(FormatError, match=r"no OME-Zarr image(.|\n)*got: arrays x(.|\n)*fix: .*c\.zarr/x"):
        open_image(tmp_path / "c.zarr")
    assert open_image(tmp_path / "c.zarr" / "x").image_hw == (70, 90)
    with pytest.raises(UsageError, match="not a stack"):
        open_image(tmp_path / "a.zarr", z=2)
    zarr.create_array(tmp_path / "d.zarr", data=np.zeros((20, 30), complex))
    with pytest.raises(InputError, match="pixel type is not supported"):
        open_image(tmp_path / "d.zarr")


def test_damage_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", STACK[0, 0, 0], "yx", version="0.5")
    (path / "0" / "c" / "1" / "1").write_bytes(b"no chunk")
    source = open_image(path)
    assert source.read(0, 0, 32, 90).image_hw == (32, 90)
    with pytest.raises(FormatError, match=r"where: .*a\.zarr\n  got: rows 32 to 63, columns 40 to 79: "):
        source.read(0, 0, 70, 90)
    zarr.create_array(tmp_path / "b.zarr", shape=(1 << 20, 1 << 20), chunks=(1 << 20, 1 << 20), dtype=np.uint8)
    with pytest.raises(InputError, match="a chunk of this image needs more memory"):
        open_image(tmp_path / "b.zarr")
    metadata = json.loads((path / "zarr.json").read_text())
    for spoil in ("axes", "datasets"):
        broken = json.loads(json.dumps(metadata))
        broken["attributes"]["ome"]["multiscales"][0][spoil] = [{"name": "x"}]
        (path / "zarr.json").write_text(json.dumps(broken))
        with pytest.raises(FormatError, match=r"cannot be decoded(.|\n)*a\.zarr"):
            open_image(path)
    (path / "zarr.json").unlink()
    with pytest.raises(FormatError, match=r"not a Zarr store(.|\n)*a\.zarr"):
        read_image(path)


def test_fingerprint_of_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", STACK[0, 0, 0], "yx")
    first = open_image(path).fingerprint()
    shutil.copytree(path, tmp_path / "b.zarr")
    shutil.copystat(path, tmp_path / "b.zarr")
    assert open_image(path).fingerprint() == first == open_image(tmp_path / "b.zarr").fingerprint()
    zarr.open_array(path / "0", mode="r+")[0, 0] = 7
    assert open_image(path).fingerprint() != first


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.zarr", STACK[0, 0, 0], "yx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for read in (read_image, open_image, find_images):
        with pytest.raises(InputError, match=r'pip install "cellwright\[zarr\]"'):
            read(path)
    with pytest.raises(InputError, match=r"1 \.zarr; for \.zarr: pip install"):
        find_images(tmp_path)

"""Sources of regions: every window equals the same window of the whole image, and costs only the tiles it needs."""

from __future__ import annotations

import itertools
import pickle
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import drawn_images as drawn
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import cellwright as cw
from cellwright.api.inputs import as_image
from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.data.images.planes import PagePlane
from cellwright.data.images.read import read_image
from cellwright.data.images.regions import CACHE_BYTES, RegionSource
from cellwright.data.images.source import open_image

RNG = np.random.default_rng(0)
BIG = RNG.integers(0, 256, (300, 400, 3), np.uint8)


def windows(image_hw: tuple[int, int], n: int, seed: int = 0) -> Iterator[tuple[int, int, int, int]]:
    """Windows at random, and the whole image."""
    rng, (height, width) = np.random.default_rng(seed), image_hw
    for _ in range(n):
        y0, y1 = sorted(rng.choice(height + 1, 2, replace=False).tolist())
        x0, x1 = sorted(rng.choice(width + 1, 2, replace=False).tolist())
        yield y0, x0, y1 - y0, x1 - x0
    yield 0, 0, height, width


def check_equal(source: cw.ImageSource, image: cw.Image, n: int = 3) -> None:
    """The facts of a source, and windows of it, are those of an image that was read whole."""
    assert (source.image_hw, source.channels, source.pixel_size_um) == (
        image.image_hw,
        image.channels,
        image.pixel_size_um,
    )
    assert source.notes == image.notes
    for y0, x0, h, w in windows(image.image_hw, n):
        region = source.read(y0, x0, h, w)
        assert region.data.dtype == source.dtype
        assert_array_equal(region.data, image.data[y0 : y0 + h, x0 : x0 + w])
        assert (region.notes, region.channels, region.path) == (image.notes, image.channels, image.path)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Receives the number of every strip or tile of a TIFF that is decoded."""
    numbers: list[int] = []
    segment = PagePlane._segment

    def counted(self: PagePlane, number: int, stored: bytes | None) -> np.ndarray | None:
        numbers.append(number)
        return segment(self, number, stored)

    monkeypatch.setattr(PagePlane, "_segment", counted)
    return numbers


# --- windows equal the whole ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", drawn.FIELDS)
def test_windows_of_every_drawn_file(tmp_path: Path, name: str) -> None:
    drawn.FIELDS[name](tmp_path / name)
    source = open_image(tmp_path / name)
    check_equal(pickle.loads(pickle.dumps(source)), read_image(tmp_path / name))


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, object]:
    """Options of `tifffile.imwrite` for an image (rows, columns, 3)."""
    codec = draw(st.sampled_from(["", "lzw", "deflate", "zstd", "packbits", "jpeg", "jpeg2000"]))
    dtype = np.uint8 if codec == "jpeg" else draw(st.sampled_from([np.uint8, np.uint16, np.float32, np.int16]))
    dtype = np.uint16 if codec == "jpeg2000" and dtype != np.uint8 else dtype
    planar = draw(st.booleans())
    rows, columns = draw(st.integers(17, 90)), draw(st.integers(17, 90))
    data = np.random.default_rng(rows * columns).normal(100, 40, (rows, columns, 3)).clip(0, 255).astype(dtype)
    options: dict[str, object] = {"photometric": "rgb", "compression": codec or None}
    if draw(st.booleans()):
        options["tile"] = (draw(st.sampled_from([16, 32])), draw(st.sampled_from([16, 48])))
    else:
        options["rowsperstrip"] = draw(st.sampled_from([1, 8, 16, 1000]))
    if codec in ("lzw", "deflate", "zstd"):
        options["predictor"] = draw(st.booleans())
    if codec not in ("jpeg", "jpeg2000"):
        options |= {"byteorder": draw(st.sampled_from("<>")), "bigtiff": draw(st.booleans())}
    options |= {"planarconfig": "separate" if planar else "contig"}
    return options | {"data": data.transpose(2, 0, 1) if planar else data}


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(0, 1000))
def test_windows_of_any_layout(tmp_path_factory: pytest.TempPathFactory, layout: dict[str, object], seed: int) -> None:
    path = tmp_path_factory.getbasetemp() / "layout.tif"
    tifffile.imwrite(path, **layout)  # type: ignore[arg-type]
    whole, source = tifffile.imread(path), open_image(path)
    whole = whole if whole.shape[2] == 3 else whole.transpose(1, 2, 0)
    for y0, x0, h, w in windows(source.image_hw, 4, seed):
        assert_array_equal(source.read(y0, x0, h, w).data, whole[y0 : y0 + h, x0 : x0 + w])


@pytest.mark.parametrize("kind", ["palette", "lookup table", "inverted", "cmyk", "bits", "rgba"])
def test_tiles_of_every_meaning(tmp_path: Path, kind: str) -> None:
    colours = RNG.integers(0, 65536, (3, 256)).astype(np.uint16)
    forms: dict[str, dict[str, object]] = {
        "palette": {"data": BIG[:, :, 0], "photometric": "palette", "colormap": colours},
        "lookup table": {
            "data": BIG[:, :, 0],
            "photometric": "palette",
            "colormap": drawn.FIRE.T.astype(np.uint16) * 257,
        },
        "inverted": {"data": BIG[:, :, 0], "photometric": "miniswhite"},
        "cmyk": {"data": np.dstack([BIG, BIG[:, :, 0]]), "photometric": "separated"},
        "bits": {"data": BIG[:, :, 0] > 99, "photometric": "minisblack"},
        "rgba": {"data": np.dstack([BIG, BIG[:, :, 0]]), "photometric": "rgb", "extrasamples": ["unassalpha"]},
    }
    tifffile.imwrite(tmp_path / "a.tif", **forms[kind], tile=(48, 64), compression="deflate", metadata=None)  # type: ignore[arg-type]
    check_equal(open_image(tmp_path / "a.tif"), read_image(tmp_path / "a.tif"))


STACK = RNG.integers(0, 60000, (2, 3, 2, 70, 90)).astype(np.uint16)  # T, Z, C


@pytest.mark.parametrize("form", ["ome", "imagej", "ome tiled", "ome lzw"])
@pytest.mark.parametrize("z", [1, "max", "mean"])
def test_stacks_and_projections(tmp_path: Path, form: str, z: int | str) -> None:
    path = tmp_path / ("a.tif" if form == "imagej" else "a.ome.tif")
    options = {
        "imagej": {"imagej": True},
        "ome tiled": {"tile": (32, 48), "compression": "deflate"},
        "ome lzw": {"compression": "lzw"},
    }
    tifffile.imwrite(path, STACK, metadata={"axes": "TZCYX"}, photometric="minisblack", **options.get(form, {}))
    source = open_image(path, z=z, t=1)  # type: ignore[arg-type]
    check_equal(source, read_image(path, z=z, t=1))  # type: ignore[arg-type]
    planes = STACK[1].astype(np.float64)
    expected = {"max": planes.max(axis=0), "mean": planes.mean(axis=0)}.get(str(z), planes[1])
    expected = expected.transpose(1, 2, 0).astype(np.float32)
    assert_array_equal(source.read(5, 6, 40, 50).data, expected[5:45, 6:56])
    one = open_image(path, channel=1, z=z, t=1)  # type: ignore[arg-type]
    assert_array_equal(pickle.loads(pickle.dumps(one)).read(5, 6, 40, 50).data[:, :, 0], expected[5:45, 6:56, 1])


def test_choices_are_asked_for_and_refused_as_by_read_image(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK[0], imagej=True, metadata={"axes": "ZCYX"})
    drawn.pages(drawn.GREY, drawn.BLANK)(tmp_path / "b.tif")
    tifffile.imwrite(tmp_path / "c.tif", BIG.astype(np.complex64)[:, :, 0])
    cases = ["a.tif", {}], ["a.tif", {"z": 9}], ["b.tif", {}], ["b.tif", {"series": 5}], ["c.tif", {}]
    for name, choices in cases:
        with pytest.raises((InputError, UsageError)) as one:
            read_image(tmp_path / name, **choices)  # type: ignore[arg-type]
        with pytest.raises((InputError, UsageError)) as other:
            open_image(tmp_path / name, **choices)  # type: ignore[arg-type]
        assert (type(one.value), str(one.value)) == (type(other.value), str(other.value)), (name, choices)
    assert_array_equal(open_image(tmp_path / "b.tif", series=1).read(0, 0, 96, 128).data[:, :, 0], drawn.BLANK)
    assert open_image(tmp_path / "b.tif", channel=1).channels == ("1",)
    with pytest.raises(UsageError, match="no such channel"):
        open_image(tmp_path / "b.tif", channel=7)


def test_an_image_whose_planes_are_not_pages_is_decoded_whole(tmp_path: Path) -> None:
    data = RNG.integers(0, 256, (40, 60, 2), np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", data, compression="deflate", photometric="minisblack", metadata={"axes": "YXC"}
    )
    check_equal(open_image(tmp_path / "a.tif"), read_image(tmp_path / "a.tif"))


def test_windows_of_files_of_other_programs(readers_root: Path) -> None:
    choices = {
        "cells-2t.ome.tif": {"t": 1}, "cells-2z.ome.tif": {"z": "max"}, "multiseries.ome.tiff": {"series": 2},
        "xyz_8bit__mitotic_plate_calibrated.tiff": {"z": "mean"}, "input9.tiff": {"z": 0},
    }  # fmt: skip
    n_levels = {}
    for path in sorted((readers_root / "ome_tiff").rglob("*.*")):
        if path.suffix in (".tif", ".tiff", ".png", ".jpg"):
            options = choices.get(path.name, {})
            source = open_image(path, **options)  # type: ignore[arg-type]
            check_equal(source, read_image(path, **options))  # type: ignore[arg-type]
            n_levels[path.name] = len(source.levels)
    assert {name: n for name, n in n_levels.items() if n > 1} == {"res.ome.tiff": 4}


# --- levels ---------------------------------------------------------------------------------------------------------


def halved(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[::2, ::2])


@pytest.mark.parametrize("form", ["SubIFDs", "OME SubIFDs", "pages", "images"])
def test_levels(tmp_path: Path, form: str) -> None:
    path = tmp_path / ("a.ome.tif" if "OME" in form else "a.tif")
    sizes = [BIG, halved(BIG), halved(halved(BIG))]
    with tifffile.TiffWriter(path, ome="OME" in form) as tif:
        for number, pixels in enumerate(sizes):
            options = {"tile": (64, 48), "compression": "deflate", "photometric": "rgb", "resolution": (20000, 20000)}
            options |= {"resolutionunit": "centimeter"} | ({} if "OME" in form else {"metadata": None})
            if "SubIFDs" in form:
                options |= {"subfiletype": 1} if number else {"subifds": 2}
            elif form == "pages" and number:
                options |= {"subfiletype": 1}
            if "OME" in form and not number:
                options["metadata"] = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
            tif.write(pixels, **options)  # type: ignore[arg-type]
    source = pickle.loads(pickle.dumps(open_image(path)))
    assert [level.image_hw for level in source.levels] == [(300, 400), (150, 200), (75, 100)]
    assert [level.downsample for level in source.levels] == [(1, 1), (2, 2), (4, 4)]
    for level, pixels in enumerate(sizes):
        for y0, x0, h, w in windows(pixels.shape[:2], 3):
            assert_array_equal(source.read(y0, x0, h, w, level).data, pixels[y0 : y0 + h, x0 : x0 + w])
    assert source.read(0, 0, 10, 10, 2).pixel_size_um == (2.0, 2.0)
    assert_array_equal(read_image(path, level=1).data, sizes[1])
    assert_array_equal(read_image(path).data, BIG)
    for read in (lambda: read_image(path, level=3), lambda: source.read(0, 0, 1, 1, 3)):
        with pytest.raises(UsageError, match=r"no such level(.|\n)*0 to 2"):
            read()
    with pytest.raises(UsageError, match=r"not inside the image(.|\n)*rows 0 to 150, columns 0 to 200 of level 1"):
        source.read(100, 0, 51, 10, 1)


def test_a_copy_of_a_stack_has_the_planes_of_the_stack(tmp_path: Path) -> None:
    stack = RNG.integers(0, 256, (3, 64, 80), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tif:
        tif.write(stack, subifds=1, tile=(32, 32), metadata={"axes": "ZYX"})
        tif.write(stack[:, ::2, ::2], subfiletype=1, tile=(32, 32))
    source = open_image(tmp_path / "a.ome.tif", z="max")
    assert_array_equal(source.read(3, 4, 20, 30, 1).data[:, :, 0], stack.max(axis=0)[::2, ::2][3:23, 4:34])


def test_other_pictures_in_a_file_are_no_levels(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(drawn.GREY, metadata=None)
        tif.write(drawn.GREY[:60, :80], metadata=None)  # of the same proportions
        tif.write(drawn.GREY[:60, :60], metadata=None)
    assert len(open_image(tmp_path / "a.tif", series=0).levels) == 1


# --- cost -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TIFF of 20,000 x 20,000 pixels in JPEG tiles of 256 x 256 (1.2 GB of pixels)."""
    tile = np.zeros((256, 256, 3), np.uint8)
    tile[40:80, 50:90] = 200
    with tifffile.TiffWriter(tmp_path_factory.mktemp("huge") / "one.tif") as tif:
        tif.write(tile, tile=(256, 256), compression="jpeg", photometric="rgb", metadata=None)
    with tifffile.TiffFile(tif._fh.path) as written:
        page = written.pages[0]
        written.filehandle.seek(page.dataoffsets[0])
        encoded, tables = written.filehandle.read(page.databytecounts[0]), page.jpegtables
    path = tif._fh.path.replace("one.tif", "huge.tif")
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        tif.write(
            itertools.repeat(encoded, 79 * 79), shape=(20000, 20000, 3), dtype=np.uint8, tile=(256, 256),
            compression="jpeg", photometric="rgb", jpegtables=tables, metadata=None,
        )  # fmt: skip
    return Path(path)


def test_a_window_of_a_huge_image_costs_a_few_tiles(huge: Path, decoded: list[int]) -> None:
    tracemalloc.start()
    try:
        source = open_image(huge)
        assert source.image_hw == (20000, 20000)
        region = source.read(10000, 7000, 1024, 1024)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(decoded) == 5 * 5
    assert peak < 25e6, f"{peak / 1e6:.0f} MB for a window of 3 MB in an image of 1,200 MB"
    y, x = np.mgrid[10000:11024, 7000:8024] % 256
    inside = (y >= 48) & (y < 72) & (x >= 58) & (x < 82)
    assert region.data[inside].min() > 180
    assert region.data[(y > 100) | (x > 120)].max() < 20


def test_an_image_that_does_not_fit_is_not_read_whole(huge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLWRIGHT_MEMORY_GB", "1")
    with pytest.raises(
        InputError, match=r"20000 x 20000 pixels needs more memory(.|\n)*regions of it with .*open_image"
    ):
        as_image(open_image(huge))


def test_neighbouring_windows_share_tiles_and_the_cache_is_bounded(huge: Path, decoded: list[int]) -> None:
    source = open_image(huge)
    assert isinstance(source, RegionSource)
    for y0, x0 in itertools.product(range(0, 2048, 512), range(0, 2048, 512)):
        source.read(y0, x0, 768, 768)
    assert sorted(decoded) == sorted(set(decoded))
    for x0 in range(0, 20000 - 1024, 1024):
        source.read(0, x0, 1024, 1024)
    kept = sum(array.nbytes for array in source._kept._arrays.values())
    assert CACHE_BYTES // 2 < kept <= CACHE_BYTES


def test_strips_are_decoded_once_for_a_row_of_windows(tmp_path: Path, decoded: list[int]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", BIG, photometric="rgb", compression="deflate", rowsperstrip=4)
    source = open_image(tmp_path / "a.tif")
    assert source.tile_hw == (4, 400)
    for x0 in range(0, 400, 100):
        source.read(0, x0, 64, 100)
    assert sorted(decoded) == sorted(set(decoded))


def test_uncompressed_rows_are_not_kept_in_memory(tmp_path: Path) -> None:
    data = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (6000, 5000))
    data[1234, 4321] = 99
    tifffile.imwrite(tmp_path / "a.tif", data)
    for what in (tmp_path / "a.tif", np.load(tmp_path / "a.npy", mmap_mode="r")):
        source = open_image(what)
        tracemalloc.start()
        try:
            region = source.read(1000, 4000, 500, 600)
            assert tracemalloc.get_traced_memory()[1] < 2e6
        finally:
            tracemalloc.stop()
        assert region.data[234, 321] == 99
        state = pickle.dumps(source)
        assert len(state) < 10_000
        assert pickle.loads(state).read(1234, 4321, 1, 1).data.item() == 99


def test_threads_read_the_same(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", BIG, photometric="rgb", compression="deflate", tile=(32, 32))
    source, places = pickle.loads(pickle.dumps(open_image(tmp_path / "a.tif"))), list(windows((300, 400), 40))
    with ThreadPoolExecutor(4) as pool:
        regions = list(pool.map(lambda window: source.read(*window).data, places))
    for (y0, x0, h, w), region in zip(places, regions, strict=True):
        assert_array_equal(region, BIG[y0 : y0 + h, x0 : x0 + w])


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["deflate", "lzw", "jpeg", "jpeg2000", "zstd"])
def test_a_tile_that_cannot_be_decoded_is_named(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, BIG, photometric="rgb", compression=codec, tile=(64, 64), metadata=None)
    with tifffile.TiffFile(path) as tif:
        start, size = tif.pages[0].dataoffsets[9], tif.pages[0].databytecounts[9]
    content = bytearray(path.read_bytes())
    content[start : start + size] = b"\x55" * size
    path.write_bytes(content)
    source = open_image(path)
    assert source.read(0, 0, 64, 128).image_hw == (64, 128)
    named = r"tile 9 \(rows 64 to 127, columns 128 to 191 of 300 x 400\)"
    with pytest.raises(FormatError, match=rf"where: .*a\.tif(.|\n)*{named}"):
        source.read(0, 0, 300, 400)
    with pytest.raises(FormatError):
        read_image(path)


def test_a_file_that_is_cut_or_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for options in ({"tile": (64, 64), "compression": "deflate"}, {}):
        tifffile.imwrite(path, BIG, photometric="rgb", **options)
        source = pickle.loads(pickle.dumps(open_image(path)))
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(InputError, match=r"changed since it was opened(.|\n)*open it again"):
            source.read(0, 0, 10, 10)
        with pytest.raises(FormatError, match="truncated"):
            open_image(path)
    with pytest.raises(InputError, match="No such file"):
        open_image(tmp_path / "nowhere.tif")


def test_tiles_that_are_not_stored_are_zero_with_a_note(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", BIG[:, :, 0], tile=(64, 64), compression="deflate", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tif:
        counts = list(tif.pages[0].databytecounts)
        tif.pages[0].tags["TileByteCounts"].overwrite([0, *counts[1:]])
    source = open_image(tmp_path / "a.tif")
    check_equal(source, read_image(tmp_path / "a.tif"))
    assert "not stored" in source.notes[0].text
    assert not source.read(0, 0, 64, 64).data.any()


# --- arrays ---------------------------------------------------------------------------------------------------------


def test_arrays_of_numpy() -> None:
    for data, image in ((BIG, BIG), (BIG.transpose(2, 0, 1), BIG), (BIG[:, :, 0], BIG[:, :, :1])):
        source = cw.open_image(data, pixel_size=0.5)
        check_equal(source, cw.Image.from_array(image, pixel_size_um=(0.5, 0.5)))
    image = cw.Image(BIG, ("a", "b", "c"), (0.5, 0.25))
    check_equal(cw.open_image(image), image)
    cw.open_image(image).read(0, 0, 300, 400).data[:] = 0
    assert image.data.any()
    assert cw.open_image(cw.open_image(image), pixel_size=2).pixel_size_um == (2.0, 2.0)
    assert cw.open_image(image, channel="b").read(1, 2, 3, 4).data.ravel().tolist() == BIG[1:4, 2:6, 1].ravel().tolist()
    for name in ("int16", "uint32", "float64", "bool"):
        source, whole = cw.open_image(BIG.astype(name)), cw.Image.from_array(BIG.astype(name))
        assert_array_equal(source.read(5, 6, 7, 8).data, whole.data[5:12, 6:14])
        assert source.dtype == (np.uint8 if name == "bool" else np.float32)
    for data in (np.zeros((2, 3, 4, 5)), np.zeros((0, 5)), np.zeros((5, 5), complex)):
        with pytest.raises(InputError):
            cw.open_image(data)
    with pytest.raises(UsageError, match=r"not an image(.|\n)*got: int(.|\n)*a path, an array"):
        cw.open_image(5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not a stack"):
        cw.open_image(BIG, z=3)


def test_lazy_arrays(tmp_path: Path) -> None:
    dask = pytest.importorskip("dask.array")
    h5py = pytest.importorskip("h5py")
    computed = []

    def block(part: np.ndarray) -> np.ndarray:
        computed.append(part.shape)
        return part

    lazy = dask.from_array(BIG, chunks=(50, 40, 3)).map_blocks(
        block, dtype=np.uint8, meta=np.zeros((0, 0, 0), np.uint8)
    )
    source = cw.open_image(lazy)
    assert source.tile_hw == (50, 40)
    for x0 in (0, 20):
        assert_array_equal(source.read(30, x0, 60, 60).data, BIG[30:90, x0 : x0 + 60])
    assert len(computed) == 4
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=BIG.transpose(2, 0, 1), chunks=(1, 64, 64))
        check_equal(cw.open_image(file["a"]), cw.Image.from_array(BIG))


def test_fingerprints_change_with_the_content(tmp_path: Path) -> None:
    def prints() -> list[str]:
        return [open_image(tmp_path / name).fingerprint() for name in ("a.tif", "a.png")]

    for name, write in (("a.tif", drawn.tiff(BIG, tile=(64, 64))), ("a.png", drawn.FIELDS["10_rgba.png"])):
        write(tmp_path / name)
    first = prints()
    assert first == prints()
    drawn.tiff(255 - BIG, tile=(64, 64))(tmp_path / "a.tif")
    drawn.FIELDS["11_he.png"](tmp_path / "a.png")
    assert all(one != other for one, other in zip(first, prints(), strict=True))
    changed = BIG.copy()
    changed[-1, -1, -1] += 1
    assert open_image(BIG).fingerprint() == open_image(BIG.copy()).fingerprint() != open_image(changed).fingerprint()


def test_a_description(tmp_path: Path) -> None:
    drawn.FIELDS["14_pyramid_subifd.ome.tif"](tmp_path / "a.ome.tif")
    assert open_image(tmp_path / "a.ome.tif").describe().splitlines() == [
        "size: 96 x 128 px, uint8, 0.048 x 0.064 mm",
        "channels: 1 (grey)",
        "pixel size: 0.5 um",
        "levels: 0: 96 x 128; 1: 48 x 64 (1/2)",
        "stored as: tiles of 64 x 64, uncompressed",
    ]
    assert "2 levels, tiles of 64 x 64" in repr(open_image(tmp_path / "a.ome.tif"))

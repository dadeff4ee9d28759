"""OME-TIFF: positions, sets of files, missing companions, and images beside the one that is meant."""

from __future__ import annotations

import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellwright.core.errors import InputError, UsageError
from cellwright.data.images.read import image_header, read_image

RNG = np.random.default_rng(0)
OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{uuid}">{images}</OME>'


def plane_xml(file: str, *, c: int = 0, z: int = 0, t: int = 0, ifd: int = 0) -> str:
    """A plane in a file; the UUID of a file is its name."""
    uuid = f'<UUID FileName="{file}">urn:uuid:{file}</UUID>'
    return f'<TiffData FirstC="{c}" FirstZ="{z}" FirstT="{t}" IFD="{ifd}" PlaneCount="1">{uuid}</TiffData>'


def image_xml(
    number: int, planes: str, *, name: str = "", size_czt: tuple[int, int, int] = (1, 1, 1), names: tuple[str, ...] = ()
) -> str:
    """An image of 20 x 30."""
    c, z, t = size_czt
    channels = "".join(
        f'<Channel ID="Channel:{number}:{k}" SamplesPerPixel="1" Name="{names[k] if names else k}"/>' for k in range(c)
    )
    return (
        f'<Image ID="Image:{number}" Name="{name}"><Pixels ID="Pixels:{number}" DimensionOrder="XYCZT" Type="uint8" '
        f'SizeX="30" SizeY="20" SizeC="{c}" SizeZ="{z}" SizeT="{t}" PhysicalSizeX="0.5" PhysicalSizeY="0.25">'
        f"{channels}{planes}</Pixels></Image>"
    )


def write(path: Path, images: str, *pages: np.ndarray) -> None:
    """A file of a set with the description of the whole set."""
    with tifffile.TiffWriter(path) as tif:
        for k, page in enumerate(pages):
            xml = OME.format(uuid=path.name, images=images) if k == 0 else None
            tif.write(page, description=xml, metadata=None, software="drawn", contiguous=False)


def drawn(n: int) -> list[np.ndarray]:
    """Pages of 20 x 30."""
    return [RNG.integers(0, 256, (20, 30), np.uint8) for _ in range(n)]


def test_positions_in_one_file(tmp_path: Path) -> None:
    path, pages = tmp_path / "a.ome.tif", drawn(2)
    with tifffile.TiffWriter(path, ome=True) as tif:
        for k, page in enumerate(pages):
            tif.write(page, metadata={"Name": f"Pos{k}", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5})
    with pytest.raises(InputError, match=r"2 images \(0: Pos0, 20 x 30, uint8; 1: Pos1(.|\n)*`series` \(0 to 1"):
        read_image(path)
    for series in (1, "1", "Pos1", "pos1"):
        np.testing.assert_array_equal(read_image(path, series=series).data[:, :, 0], pages[1])
    with pytest.raises(UsageError, match="no such series"):
        read_image(path, series="Pos2")


def test_each_file_of_a_set_of_positions_gives_its_own_image(tmp_path: Path) -> None:
    files, pages = ["p0.ome.tif", "p1.ome.tif", "p2.ome.tif"], drawn(3)
    images = "".join(image_xml(k, plane_xml(file), name=f"Pos{k}") for k, file in enumerate(files))
    for file, page in zip(files, pages, strict=True):
        write(tmp_path / file, images, page)
    for file, page in zip(files, pages, strict=True):
        image = read_image(tmp_path / file)
        np.testing.assert_array_equal(image.data[:, :, 0], page)
        assert image.pixel_size_um == (0.25, 0.5)
        assert not image.notes
    # Renamed, and without its companions: the UUID of the file still tells which image it holds.
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / files[1]).rename(alone / "renamed.ome.tif")
    np.testing.assert_array_equal(read_image(alone / "renamed.ome.tif").data[:, :, 0], pages[1])


def test_a_file_with_some_channels_of_its_set(tmp_path: Path) -> None:
    planes = plane_xml("dapi.ome.tif", c=0) + plane_xml("rest.ome.tif", c=1) + plane_xml("rest.ome.tif", c=2, ifd=1)
    images, pages = image_xml(0, planes, size_czt=(3, 1, 1), names=("DAPI", "GFP", "RFP")), drawn(3)
    write(tmp_path / "dapi.ome.tif", images, pages[0])
    write(tmp_path / "rest.ome.tif", images, *pages[1:])
    image = read_image(tmp_path / "dapi.ome.tif")
    assert image.channels == ("DAPI",)
    assert [note.kind for note in image.notes] == ["one file of a set of OME-TIFF files was read by itself"]
    (tmp_path / "dapi.ome.tif").unlink()
    image = read_image(tmp_path / "rest.ome.tif")
    assert image.channels == ("GFP", "RFP")
    np.testing.assert_array_equal(image.data, np.stack(pages[1:], axis=2))


def test_a_stack_that_is_spread_over_files(tmp_path: Path) -> None:
    files, pages = [f"z{k}.ome.tif" for k in range(3)], drawn(3)
    images = image_xml(0, "".join(plane_xml(file, z=k) for k, file in enumerate(files)), size_czt=(1, 3, 1))
    for file, page in zip(files, pages, strict=True):
        write(tmp_path / file, images, page)
    for z in (None, 1):
        np.testing.assert_array_equal(read_image(tmp_path / "z1.ome.tif", z=z).data[:, :, 0], pages[1])
    with pytest.raises(UsageError, match=r"got: z = 0\n  expected: 1"):
        read_image(tmp_path / "z1.ome.tif", z=0)
    for z in ("max", "all"):
        with pytest.raises(InputError, match=r"in several files(.|\n)*z0\.ome\.tif, z2\.ome\.tif"):
            read_image(tmp_path / "z1.ome.tif", z=z)


def test_planes_that_were_never_written_are_not_zeros(tmp_path: Path) -> None:
    planes = "".join(plane_xml("a.ome.tif", z=z, ifd=z) for z in range(4))
    pages = drawn(2)
    write(tmp_path / "a.ome.tif", image_xml(0, planes, size_czt=(1, 4, 1)), *pages)
    np.testing.assert_array_equal(read_image(tmp_path / "a.ome.tif", z=1).data[:, :, 0], pages[1])
    with pytest.raises(UsageError, match="no such plane"):
        read_image(tmp_path / "a.ome.tif", z=2)
    planes = plane_xml("b.ome.tif", z=0) + plane_xml("b.ome.tif", z=1, c=1, ifd=1)
    write(tmp_path / "b.ome.tif", image_xml(0, planes, size_czt=(2, 2, 1)), *pages)
    with pytest.raises(InputError, match="a plane of this image is not in the file"):
        read_image(tmp_path / "b.ome.tif", z=0)


@pytest.mark.parametrize("name", ["label image", "macro image", "Thumbnail", "overview"])
def test_the_label_of_a_slide_is_passed_over(tmp_path: Path, name: str) -> None:
    pages = drawn(2)
    images = image_xml(0, plane_xml("a.ome.tif"), name=name) + image_xml(1, plane_xml("a.ome.tif", ifd=1), name="scan")
    write(tmp_path / "a.ome.tif", images, *pages)
    image = read_image(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(image.data[:, :, 0], pages[1])
    assert len(image.notes) == 1


def test_metadata_in_a_companion_file(tmp_path: Path) -> None:
    (page,) = drawn(1)
    reference = '<BinaryOnly MetadataFile="set.companion.ome" UUID="urn:uuid:companion"/>'
    write(tmp_path / "b.ome.tif", reference, page)
    image = read_image(tmp_path / "b.ome.tif")
    np.testing.assert_array_equal(image.data[:, :, 0], page)
    assert [note.kind for note in image.notes] == ["the file with the OME metadata is missing"]
    planes = plane_xml("a.ome.tif", c=0) + plane_xml("b.ome.tif", c=1)
    companion = OME.format(uuid="companion", images=image_xml(0, planes, size_czt=(2, 1, 1), names=("GFP", "DAPI")))
    (tmp_path / "set.companion.ome").write_text(companion)
    image = read_image(tmp_path / "b.ome.tif")
    assert image.channels == ("DAPI",)
    assert image.pixel_size_um == (0.25, 0.5)


def test_metadata_that_do_not_describe_the_file(tmp_path: Path) -> None:
    (page,) = drawn(1)
    images = image_xml(0, plane_xml("x.ome.tif")) + image_xml(1, plane_xml("y.ome.tif"))
    write(tmp_path / "a.ome.tif", images, page)
    assert [note.text for note in read_image(tmp_path / "a.ome.tif").notes] == [
        "its OME metadata describes other files and was ignored"
    ]
    write(tmp_path / "b.ome.tif", image_xml(0, plane_xml("b.ome.tif")), page[:10])  # cropped after the fact
    image = read_image(tmp_path / "b.ome.tif")
    assert image.image_hw == (10, 30)
    assert "does not match its pages" in image.notes[0].text
    content = OME.format(uuid="c", images=image_xml(0, "")).replace("</Image>", "</Imag>")
    tifffile.imwrite(tmp_path / "c.ome.tif", page, description=content, metadata=None)
    image = read_image(tmp_path / "c.ome.tif")
    np.testing.assert_array_equal(image.data[:, :, 0], page)
    assert "cannot be read and was ignored" in image.notes[0].text


@pytest.mark.parametrize("order", ["XYZCT", "XYCZT", "XYTCZ"])
def test_planes_without_numbers_follow_the_order_of_dimensions(tmp_path: Path, order: str) -> None:
    data = RNG.integers(0, 256, (2, 3, 2, 20, 30), np.uint8)  # t, c, z
    axes = [" TCZ".index(axis) - 1 for axis in reversed(order[2:])]
    pages = data.transpose(*axes, 3, 4).reshape(-1, 20, 30)
    images = image_xml(0, "<TiffData/>", size_czt=(3, 2, 2)).replace("XYCZT", order)
    write(tmp_path / "a.ome.tif", images, *pages)
    np.testing.assert_array_equal(read_image(tmp_path / "a.ome.tif", t=1, z=0).data, data[1, :, 0].transpose(1, 2, 0))
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tif:  # the same as tifffile reads
        series = tif.series[0]
        arranged = np.moveaxis(series.asarray(), [series.axes.index(axis) for axis in "TCZ"], [0, 1, 2])
    np.testing.assert_array_equal(arranged, data)


@pytest.mark.parametrize(("unit", "scale"), [("nm", 1e-3), ("mm", 1e3), ("µm", 1), ("μm", 1), ("cm", 1e4), ("m", 1e6)])
def test_units_of_the_pixel_size(tmp_path: Path, unit: str, scale: float) -> None:
    metadata = {"PhysicalSizeX": 0.5 / scale, "PhysicalSizeXUnit": unit, "PhysicalSizeY": 0.25, "axes": "YX"}
    tifffile.imwrite(tmp_path / "a.ome.tif", drawn(1)[0], metadata=metadata)
    assert read_image(tmp_path / "a.ome.tif").pixel_size_um == pytest.approx((0.25, 0.5))


def test_a_unit_that_is_no_length(tmp_path: Path) -> None:
    metadata = {"axes": "YX"} | {f"PhysicalSize{axis}": 1.0 for axis in "XY"}
    metadata |= {f"PhysicalSize{axis}Unit": "pixel" for axis in "XY"}
    tifffile.imwrite(tmp_path / "a.ome.tif", drawn(1)[0], metadata=metadata)
    image = read_image(tmp_path / "a.ome.tif")
    assert image.pixel_size_um is None
    assert [note.kind for note in image.notes] == ["the stated pixel size cannot be used"]
    tifffile.imwrite(tmp_path / "b.ome.tif", drawn(1)[0], metadata={"axes": "YX", "PhysicalSizeX": 0.5})
    assert read_image(tmp_path / "b.ome.tif").pixel_size_um == (0.5, 0.5)
    tifffile.imwrite(tmp_path / "c.ome.tif", drawn(1)[0], metadata={"axes": "YX", "PhysicalSizeX": 1e4})
    assert read_image(tmp_path / "c.ome.tif").pixel_size_um is None


def test_real_files_of_other_tools(readers_root: Path) -> None:
    folder = readers_root / "ome_tiff"
    described = {
        "viv/data/multi-channel.ome.tif": "167 x 439, float32, 3 channels (0, 1, 2)",
        "viv/data/multifile-Z3.ome.tiff": "24 x 18, uint8, 1 channel (grey), 1 um/px",
        "qupath/cells.ome.tif": "131 x 93, uint8, 3 channels (R, G, B), 0.25 um/px",
        "qupath/cells.tif": "131 x 93, uint8, 3 channels (R, G, B), 0.25 um/px",
        "qupath/cells-2c.ome.tif": "131 x 93, uint8, 2 channels (0, 1), 0.25 um/px",
        "qupath/cells-gray16.tif": "131 x 93, uint16, 1 channel (grey), 0.25 um/px",
        "galaxy/res.ome.tiff": "25 x 26, uint8, 4 channels (0, 1, 2, 3)",
    }
    for name, expected in described.items():
        assert read_image(folder / name).describe() == expected
        assert image_header(folder / name).image_hw == read_image(folder / name).image_hw
    for z in range(2):
        with tifffile.TiffFile(folder / "qupath/cells-2z.ome.tif") as tif:
            np.testing.assert_array_equal(
                read_image(folder / "qupath/cells-2z.ome.tif", z=z).data[:, :, 0], tif.pages[z].asarray()
            )
    asked = {
        "qupath/cells-2t.ome.tif": r"2 time points(.|\n)*`t` \(0 to 1; .all. predicts each\)",
        "galaxy/multiseries.ome.tiff": r"6 images \(0: Scan_20180705(.|\n)*`series` \(0 to 5, or a name\)",
        "galaxy/xyz_8bit__mitotic_plate_calibrated.tiff": r"6 planes(.|\n)*`z`",
    }
    for name, message in asked.items():
        with pytest.raises(InputError, match=message):
            read_image(folder / name)
    image = read_image(folder / "galaxy/multiseries.ome.tiff", series="Scan_20180705_135218_01x4x01271.rcpnl #843")
    with tifffile.TiffFile(folder / "galaxy/multiseries.ome.tiff") as tif:
        np.testing.assert_array_equal(image.data, tif.series[4].asarray().transpose(1, 2, 0))


def test_descriptions_of_other_tools_are_understood(readers_root: Path) -> None:
    from xml.etree import ElementTree

    from cellwright.data.images.ome import ome_images

    for path in sorted((readers_root / "ome_xml").glob("*.xml")):
        xml = path.read_text(encoding="utf-8")
        try:
            images = ome_images(xml, "none.tif", 1000)
        except (ValueError, ElementTree.ParseError):
            assert path.name == "bad.ome.xml", path.name
            continue
        expected = re.findall(r"<(?:ome:)?TiffData", xml)
        assert bool(images) <= bool(expected), path.name
        assert all(image.image_hw[0] > 0 and image.channel_names for image in images)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('SizeZ="1"', 'SizeZ="1000000000"'),
        ('SizeC="1"', 'SizeC="1000000000"'),
        ('SizeX="30"', 'SizeX="1000000000"'),
        ('FirstC="0"', 'FirstC="16000000"'),
        ('PlaneCount="1"', 'PlaneCount="16000000"'),
        ('SizeT="1"', 'SizeT="0"'),
        ('FirstZ="0"', 'FirstZ="-1"'),
        ('SizeY="20"', f'SizeY="{"9" * 5000}"'),
        ("XYCZT", "XYQQQ"),
        ("<OME ", '<!DOCTYPE a [<!ENTITY b "c">]><OME '),
    ],
)
def test_claims_of_a_description_cost_no_memory(tmp_path: Path, old: str, new: str) -> None:
    (pixels,) = drawn(1)
    xml = OME.format(uuid="a.ome.tif", images=image_xml(0, plane_xml("a.ome.tif")))
    assert old in xml
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, description=xml.replace(old, new), metadata=None)
    tracemalloc.start()
    image = read_image(tmp_path / "a.ome.tif")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(image.data[:, :, 0], pixels)
    assert peak < 20 << 20


def test_only_the_file_itself_is_opened(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    os.mkfifo(tmp_path / "set" / "b.ome.tif")
    os.mkfifo(tmp_path / "c.xml")
    images = image_xml(0, plane_xml("b.ome.tif") + plane_xml("/dev/zero", z=1), size_czt=(1, 2, 1))
    write(tmp_path / "set" / "a.ome.tif", images, *drawn(2))
    with pytest.raises(InputError, match="none was chosen"):  # two pages that the description does not know
        read_image(tmp_path / "set" / "a.ome.tif")
    companion = '<OME UUID="urn:uuid:x"><BinaryOnly MetadataFile="../c.xml" UUID="urn:uuid:x"/></OME>'
    tifffile.imwrite(tmp_path / "set" / "d.ome.tif", drawn(1)[0], description=companion, metadata=None)
    assert "c.xml, which is missing" in str(read_image(tmp_path / "set" / "d.ome.tif").notes)

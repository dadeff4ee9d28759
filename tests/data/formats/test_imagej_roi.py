"""ImageJ ROIs: roifile reads what is written, and ROIs of ImageJ are read."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import roifile
import tifffile
from shapely.geometry import Polygon

from cellwright.core.errors import FormatError, InputError
from cellwright.core.instances import Instances
from cellwright.data.formats import ReadOptions, imagej_roi, sniff
from cellwright.data.formats.imagej_roi import ImagejRois
from cellwright.testing.objects import CLASS_NAMES, draw_objects

HW = (41, 58)


def save_image(folder, name="x.png"):
    (folder / name).write_bytes(imagecodecs.png_encode(np.zeros(HW, np.uint8)))


def save(folder, *rois, name="x_rois.zip"):
    save_image(folder)
    with zipfile.ZipFile(folder / name, "w") as archive:
        for k, roi in enumerate(rois):
            archive.writestr(f"{roi.name or k}.roi", roi.tobytes())
    return folder / name


def dense(path):
    return ImagejRois().read(path, ReadOptions())[0].read_instances().masks.to_dense()


def make_roi(kind, **fields):
    return roifile.ImagejRoi(roitype=kind, **fields)


def test_roifile_reads_what_is_written(tmp_path):
    cells = draw_objects(1, overlaps=True, scored=True)
    (tmp_path / "a.zip").write_bytes(imagej_roi.zip_bytes(cells, CLASS_NAMES, image_name="a.png"))
    rois = roifile.roiread(tmp_path / "a.zip")
    assert [int(roi.name) for roi in rois] == cells.ids.tolist()
    for roi, area in zip(rois, cells.masks.areas, strict=True):
        rings = roi.coordinates(multi=True)
        covered = Polygon()
        for ring in rings:
            covered = covered.symmetric_difference(Polygon(ring))
        assert covered.area == area
        assert roi.group in (1, 2)
        assert (roi.roitype == roifile.ROI_TYPE.TRACED) == (len(rings) == 1)


def test_equal_objects_give_equal_bytes():
    cells = draw_objects(1, overlaps=True, scored=True)
    first = imagej_roi.zip_bytes(cells, CLASS_NAMES, image_name="a")
    assert first == imagej_roi.zip_bytes(cells, CLASS_NAMES, image_name="a")


def test_class_names_in_any_script_are_kept(tmp_path):
    name = '細胞 😀: "a"\\b\nc'
    cells = draw_objects(1, overlaps=False, scored=False, n_classes=1)
    save_image(tmp_path)
    (tmp_path / "x_rois.zip").write_bytes(imagej_roi.zip_bytes(cells, (name,), image_name="x.png"))
    assert ImagejRois().read(tmp_path, ReadOptions()).class_names == (name,)


def test_every_kind_of_roi_is_filled_as_imagej_does():
    """Random polygons, rectangles, ovals and composites, filled by ImageJ 1.53t: vertices on pixel corners and centres,
    outlines that cross themselves, subpixel coordinates."""
    cases = Path(__file__).parents[2] / "cases" / "vectors"
    lines = (cases / "imagej_1.53t_pixels.txt").read_text().splitlines()[1:]
    with zipfile.ZipFile(cases / "imagej_1.53t_rois.zip") as archive:
        entries = [imagej_roi.Entry(name[:-4], name, archive.read(name)) for name in archive.namelist()]
    rois = [roifile.ImagejRoi.frombytes(entry.data) for entry in entries]
    masks = imagej_roi.LoadRois((cases,), (120, 150), ("cell",)).masks(rois, entries)
    for entry, mask, line in zip(entries, masks.to_dense(), lines, strict=True):
        y, x = np.nonzero(mask)
        assert f"{entry.name} {len(x)} {x.sum()} {y.sum()}" == line


def test_a_pixel_centre_on_a_left_edge_is_outside_and_on_a_right_edge_inside(tmp_path):
    diamond = roifile.ImagejRoi.frompoints([[20, 10], [30, 20], [20, 30], [10, 20]])
    y, x = np.nonzero(dense(save(tmp_path, diamond))[0])
    assert len(x) == 200
    assert (x.mean(), y.mean()) == (20.0, 19.5)  # its centre (20, 20) lies at pixel 19.5, 19.5


def test_rectangles_and_ovals(tmp_path):
    rect = make_roi(roifile.ROI_TYPE.RECT, left=2, top=3, right=10, bottom=7)
    oval = make_roi(roifile.ROI_TYPE.OVAL, left=20, top=10, right=41, bottom=31)
    cut = make_roi(roifile.ROI_TYPE.OVAL, left=50, top=-10, right=70, bottom=10)
    masks = dense(save(tmp_path, rect, oval, cut))
    assert masks[0].sum() == 8 * 4
    assert masks[0][3:7, 2:10].all()
    y, x = np.mgrid[: HW[0], : HW[1]] + 0.5
    np.testing.assert_array_equal(masks[1], (x - 30.5) ** 2 + (y - 20.5) ** 2 <= 10.5**2)
    np.testing.assert_array_equal(masks[2], (x - 60) ** 2 + y**2 <= 100)


def test_rectangles_with_subpixel_resolution(tmp_path):
    options = roifile.ROI_OPTIONS.SUB_PIXEL_RESOLUTION
    rect = make_roi(roifile.ROI_TYPE.RECT, options=options, xd=2.4, yd=3.4, widthd=5.0, heightd=2.0)
    masks = dense(save(tmp_path, rect))
    assert masks[0][3:5, 2:7].all()
    assert masks[0].sum() == 10


def test_a_composite_is_even_odd(tmp_path):
    cells = draw_objects(5, overlaps=False, scored=False, n=12)
    many_rings = [k for k, polygons in enumerate(cells.masks.to_polygons()) if sum(map(len, polygons)) > 1]
    assert many_rings
    (tmp_path / "x_rois.zip").write_bytes(imagej_roi.zip_bytes(cells, CLASS_NAMES, image_name="x.png"))
    save_image(tmp_path)
    np.testing.assert_array_equal(dense(tmp_path / "x_rois.zip"), cells.masks.to_dense())


def test_without_class_names_groups_are_classes(tmp_path):
    rect = {"left": 2, "top": 3, "right": 10, "bottom": 7}
    path = save(
        tmp_path, make_roi(roifile.ROI_TYPE.RECT, group=3, **rect), make_roi(roifile.ROI_TYPE.RECT, name="b", **rect)
    )
    dataset = ImagejRois().read(path, ReadOptions())
    assert dataset.class_names == ("cell", "group 3")
    assert dataset[0].read_instances().class_ids.tolist() == [1, 0]


def test_single_rois_and_a_roi_set_belong_to_the_only_image(tmp_path):
    rect = make_roi(roifile.ROI_TYPE.RECT, left=2, top=3, right=10, bottom=7)
    save_image(tmp_path)
    rect.tofile(tmp_path / "0001-0002.roi")
    rect.tofile(tmp_path / "0003-0004.roi")
    dataset = ImagejRois().read(tmp_path, ReadOptions())
    assert [(sample.id, len(sample.read_instances())) for sample in dataset] == [("x", 2)]
    save_image(tmp_path, "0001-0002.png")
    assert ImagejRois().read(tmp_path / "0001-0002.roi", ReadOptions())[0].id == "0001-0002"
    other = tmp_path / "other"
    other.mkdir()
    save(other, rect, name="RoiSet.zip")
    assert sniff(other).name == "imagej_roi"
    assert [sample.id for sample in ImagejRois().read(other, ReadOptions())] == ["x"]


def test_the_zip_contains_the_image_size(tmp_path):
    cells = draw_objects(1, overlaps=False, scored=True)
    path = tmp_path / "x_rois.zip"
    path.write_bytes(imagej_roi.zip_bytes(cells, CLASS_NAMES, image_name="x.png"))
    assert json.loads(zipfile.ZipFile(path).comment)["image_hw"] == list(HW)
    assert ImagejRois().read(path, ReadOptions(require_images=False))[0].read_instances().masks == cells.masks
    with pytest.raises(InputError, match="cannot find the annotated image"):
        ImagejRois().read(path, ReadOptions())
    empty = Instances.empty(HW, scored=True)
    path.write_bytes(imagej_roi.zip_bytes(empty, CLASS_NAMES, image_name="x.png"))
    assert ImagejRois().read(path, ReadOptions(require_images=False))[0].read_instances().scores is not None


@pytest.mark.parametrize(
    "kind", [roifile.ROI_TYPE.LINE, roifile.ROI_TYPE.POINT, roifile.ROI_TYPE.POLYLINE, roifile.ROI_TYPE.ANGLE]
)
def test_rois_without_an_area_raise_an_error_that_names_them(kind, tmp_path):
    roi = roifile.ImagejRoi.frompoints([[3, 2], [20, 4], [15, 25]], name="scale bar")
    roi.roitype = kind
    with pytest.raises(FormatError, match="encloses no pixels") as caught:
        dense(save(tmp_path, roi))
    assert "scale bar.roi" in str(caught.value)
    with pytest.raises(FormatError, match="none of these 2 ROIs"):
        dense(save(tmp_path, roi, dataclasses.replace(roi, name="ruler")))


def test_several_slices_raise_an_error(tmp_path):
    rois = [roifile.ImagejRoi.frompoints([[3, 2], [20, 4], [15, 25]], name=f"{k}") for k in range(3)]
    for k, roi in enumerate(rois):
        roi.position = k
    with pytest.raises(FormatError, match="several slices") as caught:
        dense(save(tmp_path, *rois))
    assert "slice 1, 2" in str(caught.value)
    assert len(dense(save(tmp_path, *rois[:2]))) == 2  # position 0 is no slice in particular


@pytest.mark.parametrize("what", ["z_position", "t_position"])
def test_several_planes_of_a_hyperstack_raise_an_error(what, tmp_path):
    ring = [[3, 2], [20, 4], [15, 25]]
    rois = [roifile.ImagejRoi.frompoints(ring, c=k, name=f"{k}") for k in (1, 2)]
    assert len(dense(save(tmp_path, *rois))) == 2  # channels of one plane
    for k, roi in enumerate(rois):
        setattr(roi, what, k + 3)
    with pytest.raises(FormatError, match="several slices"):
        dense(save(tmp_path, *rois))


def test_points_and_lines_among_outlines_are_not_read(tmp_path):
    ring = [[3, 2], [20, 4], [15, 25]]
    line = roifile.ImagejRoi.frompoints(ring, name="scale bar")
    line.roitype = roifile.ROI_TYPE.POLYLINE
    text = make_roi(roifile.ROI_TYPE.RECT, subtype=roifile.ROI_SUBTYPE.TEXT, right=9, bottom=9, name="label")
    dataset = ImagejRois().read(save(tmp_path, roifile.ImagejRoi.frompoints(ring, name="a"), line, text), ReadOptions())
    assert len(dataset[0].read_instances()) == 1
    (note,) = dataset.notes
    assert (note.where, note.text) == (
        "x_rois.zip",
        "2 of 3 ROIs not read, because they enclose no pixels: polyline scale bar, ...",
    )


def test_splines_and_round_corners_raise_an_error(tmp_path):
    spline = roifile.ImagejRoi.frompoints([[3, 2], [20, 4], [15, 25]], name="a")
    spline.options = roifile.ROI_OPTIONS.SPLINE_FIT
    with pytest.raises(FormatError, match="does not contain the outline") as caught:
        dense(save(tmp_path, spline))
    assert "spline" in str(caught.value)
    assert "Interpolate" in str(caught.value)
    rounded = make_roi(roifile.ROI_TYPE.RECT, right=20, bottom=20, rounded_rect_arc_size=8)
    with pytest.raises(FormatError, match="round corners"):
        dense(save(tmp_path, rounded))


@pytest.mark.parametrize(
    "name",
    ["x_rois.zip", "x_RoiSet.zip", "RoiSet_x.zip", "x-ROI-set.zip", "x RoiSets.zip", "rois.zip", "RoiSet (1).zip"],
)
def test_names_of_roi_sets(name, tmp_path):
    path = save(tmp_path, make_roi(roifile.ROI_TYPE.RECT, right=9, bottom=9), name=name)
    (tmp_path / "x_overlay.png").write_bytes((tmp_path / "x.png").read_bytes())
    assert [sample.id for sample in ImagejRois().read(tmp_path, ReadOptions())] == ["x"]
    tifffile.imwrite(tmp_path / "RoiSet.ome.tif", np.zeros(HW, np.uint8))  # the name of an image counts first
    path.rename(tmp_path / "RoiSet.zip")
    assert [sample.image_path.name for sample in ImagejRois().read(tmp_path, ReadOptions())] == ["RoiSet.ome.tif"]


def test_two_zips_of_one_image_raise_an_error(tmp_path):
    for name in ("x_rois.zip", "x_RoiSet.zip"):
        save(tmp_path, make_roi(roifile.ROI_TYPE.RECT, right=9, bottom=9), name=name)
    with pytest.raises(InputError, match="several files have ROIs of one image") as caught:
        ImagejRois().read(tmp_path, ReadOptions())
    assert "x_RoiSet.zip, x_rois.zip" in str(caught.value)


def test_broken_files(tmp_path):
    path = save(tmp_path, roifile.ImagejRoi.frompoints([[3, 2], [20, 4], [15, 25]], name="a"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b.roi", b"Iout" + b"\0" * 20)
    with pytest.raises(FormatError, match="ROI is broken") as caught:
        dense(path)
    assert "x_rois.zip, b.roi" in str(caught.value)
    far = roifile.ImagejRoi.frompoints([[3, 2], [20, 4], [1500, 25]], name="far")
    with pytest.raises(FormatError, match="far outside"):
        dense(save(tmp_path, far))


def test_a_zip_bomb_raises_an_error(tmp_path):
    save_image(tmp_path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.roi", b"\0" * (1 << 26))
    (tmp_path / "x.zip").write_bytes(buffer.getvalue())
    with pytest.raises(FormatError, match="too large for ROIs"):
        dense(tmp_path / "x.zip")


def test_boxes_that_cover_the_image_many_times_raise_an_error(tmp_path):
    (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(np.zeros((1000, 1000), np.uint8)))
    rect = make_roi(roifile.ROI_TYPE.RECT, left=0, top=0, right=1000, bottom=1000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for k in range(200):
            archive.writestr(f"{k}.roi", rect.tobytes())
    with pytest.raises(FormatError, match="too many times"):
        dense(tmp_path / "x.zip")


@pytest.mark.parametrize("first", ["RoiSet/", "__MACOSX/RoiSet/._a.roi", "RoiSet/.DS_Store"])
def test_a_folder_that_macos_zipped_is_read(tmp_path, first):
    save_image(tmp_path)
    roi = make_roi(roifile.ROI_TYPE.RECT, top=2, left=3, bottom=12, right=13)
    with zipfile.ZipFile(tmp_path / "x_rois.zip", "w") as archive:
        archive.writestr(first, b"")
        archive.writestr("RoiSet/a.roi", roi.tobytes())
        archive.writestr("__MACOSX/RoiSet/._b.roi", b"\0\5\x16\7")
    assert sniff(tmp_path).name == "imagej_roi"
    assert dense(tmp_path).sum() == 100

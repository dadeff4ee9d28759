"""ImageJ ROIs: roifile reads what is written, and ROIs of ImageJ are read."""

from __future__ import annotations

import io
import json
import zipfile

import imagecodecs
import numpy as np
import pytest
import roifile
from shapely.geometry import Polygon

from cellwright.core.errors import FormatError, InputError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
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


def test_a_polygon_contains_the_pixels_whose_centres_are_inside(tmp_path):
    ring = np.array([[3.25, 2.5], [20.75, 4.0], [15.0, 25.5]], np.float32)
    whole = roifile.ImagejRoi.frompoints([[3, 2], [20, 4], [15, 25]])
    path = save(tmp_path, roifile.ImagejRoi.frompoints(ring, name="a"), whole)
    expected = MaskSet.from_polygons([[[ring]], [[np.array([[3, 2], [20, 4], [15, 25]])]]], HW)
    np.testing.assert_array_equal(dense(path), expected.to_dense())


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


def test_several_slices_raise_an_error(tmp_path):
    rois = [roifile.ImagejRoi.frompoints([[3, 2], [20, 4], [15, 25]], position=k, name=f"{k}") for k in range(3)]
    with pytest.raises(FormatError, match="several slices"):
        dense(save(tmp_path, *rois))


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

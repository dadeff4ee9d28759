"""Every format passes the conformance suite of `cellwright.testing`."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import conformance
import imagecodecs
import numpy as np
import pytest
import tifffile

from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data import formats
from cellwright.data.formats import FORMATS
from cellwright.testing import format_checks
from cellwright.testing.objects import CLASS_NAMES, draw_objects, save_dataset

WRITABLE = [name for name, format_ in FORMATS.items() if format_.is_writable]
CHECKS = [
    (name, check)
    for name in WRITABLE
    for check in format_checks(FORMATS[name], carries=conformance.CARRIES[name]).items()
]


def test_the_table_names_every_format_that_can_write():
    assert sorted(conformance.CARRIES) == sorted(WRITABLE)


@pytest.mark.parametrize("name", FORMATS)
def test_the_key_of_a_format_is_its_name(name):
    assert FORMATS[name].name == name


@pytest.mark.parametrize(("name", "check"), CHECKS, ids=[f"{name}-{check[0]}" for name, check in CHECKS])
def test_formats_that_write(name: str, check: tuple[str, Callable[[Path], None]], tmp_path: Path):
    check[1](tmp_path / "suite")


def write_label_folder(folder: Path) -> Path:
    labels = draw_objects(1, n=5, image_hw=(23, 31), overlaps=False, scored=False).masks.to_label_map()
    for name in ("x", "y"):
        tifffile.imwrite(folder / f"{name}.tif", labels.astype(np.uint16), compression="zlib")
    return folder


def write_xml_outlines(folder: Path) -> Path:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((1.5, 2.25), (9, 2), (8, 9.5)))
    region = f'<Region Id="1" Type="0"><Vertices>{vertices}</Vertices></Region>'
    (folder / "x.xml").write_text(f'<Annotations><Annotation Name="a">{region}</Annotation></Annotations>')
    (folder / "x.png").write_bytes(imagecodecs.png_encode(np.zeros((23, 31), np.uint8)))
    return folder / "x.xml"


def write_labelme(folder: Path) -> Path:
    points = [[1.5, 2.25], [9, 2], [8, 9.5]]
    shapes = [{"label": "a", "points": points, "group_id": None, "shape_type": "polygon"}]
    content = {"shapes": shapes, "imagePath": "x.png", "imageData": None, "imageHeight": 23, "imageWidth": 31}
    (folder / "x.json").write_text(json.dumps(content))
    (folder / "x.png").write_bytes(imagecodecs.png_encode(np.zeros((23, 31), np.uint8)))
    return folder / "x.json"


def write_case(case: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        source = Path(__file__).parents[2] / "cases" / "masks" / "49_other_layouts" / case
        shutil.copytree(source, folder / case)
        return folder / case

    return write


def write_voc(folder: Path) -> Path:
    labels = draw_objects(1, n=5, image_hw=(23, 31), overlaps=False, scored=False).masks.to_label_map()
    for name, array in (("SegmentationObject", labels), ("SegmentationClass", (labels > 0) * 3)):
        (folder / name).mkdir()
        (folder / name / "x.png").write_bytes(imagecodecs.png_encode(array.astype(np.uint8)))
    (folder / "JPEGImages").mkdir()
    (folder / "JPEGImages" / "x.png").write_bytes(imagecodecs.png_encode(np.zeros((23, 31), np.uint8)))
    return folder


def write_stacks(folder: Path) -> Path:
    labels = draw_objects(1, n=5, image_hw=(23, 31), overlaps=False, scored=False).masks.to_label_map()
    masks = np.zeros((2, 23, 31, 6))
    masks[0, :, :, 0], masks[1, :, :, 3] = labels, labels
    np.save(folder / "masks.npy", masks)
    np.save(folder / "images.npy", np.zeros((2, 23, 31, 3)))
    return folder


EXAMPLES = {
    "npy_stacks": write_stacks,
    "nuinsseg": write_case("nuinsseg"),
    "ctc": write_case("ctc"),
    "inst_maps": write_case("consep"),
    "voc": write_voc,
    "label_folder": write_label_folder,
    "xml_outlines": write_xml_outlines,
    "labelme": write_labelme,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_formats_that_only_read(name, tmp_path):
    (tmp_path / "example").mkdir()
    example = EXAMPLES[name](tmp_path / "example")
    for check_name, check in format_checks(FORMATS[name], example=example).items():
        check(tmp_path / check_name)


@pytest.mark.parametrize("name", [name for name in WRITABLE if name != "coco_results"])
def test_the_output_is_recognised(name, tmp_path):
    objects = {"a": conformance.draw(name, 12), "b": conformance.draw(name, 13)}
    dataset = save_dataset(tmp_path / "in", objects, conformance.class_names(name))
    assert formats.sniff(conformance.write(name, dataset, tmp_path)).name == name


@pytest.mark.parametrize("name", ["rle_csv", "dsb2018_csv", "rle_csv_submission", "geojson", "imagej_roi", "yolo_seg"])
def test_objects_without_a_pixel_are_dropped_with_a_warning(name, tmp_path, caplog):
    objects = conformance.draw(name, 16, n=3)
    boxes = np.vstack([objects.masks.boxes, np.zeros((1, 4), np.int32)])
    crops = [*(objects.masks.crop(k) for k in range(len(objects))), np.zeros((0, 0))]
    more = Instances.from_masks(MaskSet.from_crops(boxes, crops, objects.image_hw))
    dataset = save_dataset(tmp_path / "in", {"a": more}, CLASS_NAMES[:1])
    with caplog.at_level(logging.WARNING):
        again = conformance.read(name, conformance.write(name, dataset, tmp_path), dataset)
    assert "without a pixel" in caplog.text
    assert len(again[0].read_instances()) == len(objects)

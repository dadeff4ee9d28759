"""Regions that are not annotated, in every way of saying so, and the same regions after writing and reading."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import FormatError
from cellwright.core.ignored import with_regions
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import FORMATS, ReadOptions, WriteOptions, read_dataset
from cellwright.data.formats.regions import WithRegions, region_of, region_records
from cellwright.data.merge import keep_classes, map_classes

HW = (48, 64)
LABELS = np.zeros(HW, np.uint16)
LABELS[4:12, 4:12], LABELS[20:30, 40:52] = 3, 8
REGION = np.zeros(HW, bool)
REGION[:, 30:], REGION[10:20, 40:50] = True, False  # with a hole
BOX = {"box": [10, 5, 30, 20]}  # x, y, width, height


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "a.tif"
    path.parent.mkdir()
    tifffile.imwrite(path, np.zeros(HW, np.uint8))
    return path


def ignored(path: Path, **options: Any) -> np.ndarray:
    (sample,) = read_dataset(path, ReadOptions(**options))
    instances = sample.read_instances()
    assert instances.ids[~instances.ignore].tolist() == [3, 8]
    return instances.masks[instances.ignore].foreground().astype(bool)


def drawn(image: Path, region: np.ndarray = REGION) -> Dataset:
    instances = with_regions(Instances.from_label_map(LABELS), MaskSet.from_dense(region[None]))
    return Dataset((Sample("a", image, HW, Loaded(instances)),), ("cell",))


@pytest.mark.parametrize("name", ["coco", "geojson", "label_images", "imagej_roi"])
def test_a_region_is_the_same_after_writing_and_reading(image: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    out.mkdir()
    FORMATS[name].write(drawn(image), out, WriteOptions(copy_images=True))
    assert np.array_equal(ignored(out), REGION)


def test_qupath_gets_an_annotation_of_the_class_ignore(image: Path, tmp_path: Path) -> None:
    FORMATS["geojson"].write(drawn(image), tmp_path / "out", WriteOptions())
    *_, region = json.loads((tmp_path / "out" / "a.geojson").read_text())["features"]
    assert region["properties"]["objectType"] == "annotation"
    assert region["properties"]["classification"]["name"] == "Ignore*"


@pytest.mark.parametrize("name", ["Annotated", "Annotated*"])
def test_outside_of_qupaths_class_annotated_nothing_is_annotated(image: Path, name: str) -> None:
    FORMATS["geojson"].write(drawn(image, np.zeros(HW, bool)), image.parent, WriteOptions())
    path = image.parent / "a.geojson"
    content = json.loads(path.read_text())
    for x, y, w, h in ((0, 0, 20, 20), (36, 16, 20, 24)):
        ring = [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]
        properties = {"objectType": "annotation", "classification": {"name": name}}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        content["features"].append({"type": "Feature", "geometry": geometry, "properties": properties})
    path.write_text(json.dumps(content))
    expected = np.ones(HW, bool)
    expected[0:20, 0:20] = expected[16:40, 36:56] = False
    assert np.array_equal(ignored(path), expected)
    assert "2 annotations of the class Annotated: what lies outside is not annotated" in str(read_dataset(path).notes)


def coco_with(image: Path, regions: object) -> Path:
    FORMATS["coco"].write(drawn(image, np.zeros(HW, bool)), image.parent, WriteOptions())
    path = image.parent / "dataset.json"
    content = json.loads(path.read_text())
    content["info"]["regions"] = regions
    path.write_text(json.dumps(content))
    return image.parent


TRIANGLE = [[0, 0], [60, 0], [0, 40]]
FLAT = [[0, 0, 60, 0, 0, 40]]


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ([{"image_id": 1, "kind": "ignore", **BOX}], "box"),
        ([{"image_id": "a.tif", "kind": "annotated", **BOX}], "outside"),
        ([{"image_id": "1", "kind": "ignore", "polygon": TRIANGLE}], "triangle"),
        ([{"image_id": 1, "kind": "ignore", "polygon": FLAT}], "triangle"),
        ([{"image_id": 1, "kind": "annotated", **BOX}, {"image_id": 1, "kind": "ignore", "polygon": TRIANGLE}], "both"),
    ],
)
def test_regions_in_the_info_of_a_coco_file(image: Path, tmp_path: Path, regions: list[Any], expected: str) -> None:
    y, x = np.mgrid[: HW[0], : HW[1]] + 0.5
    box, triangle = np.zeros(HW, bool), x / 60 + y / 40 < 1
    box[5:25, 10:40] = True
    wanted = {"box": box, "outside": ~box, "triangle": triangle, "both": ~box | triangle}[expected]
    folder = coco_with(image, regions)
    assert np.array_equal(ignored(folder), wanted)
    again = tmp_path / "again"
    again.mkdir()
    FORMATS["coco"].write(read_dataset(folder), again, WriteOptions(place=again))
    content = json.loads((again / "dataset.json").read_text())
    assert {annotation["iscrowd"] for annotation in content["annotations"]} == {0}
    assert {record["kind"] for record in content["info"]["regions"]} == {"ignore"}
    assert np.array_equal(ignored(again), wanted)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"image_id": 7, "kind": "ignore", **BOX}, r"of no image.*info.regions\[0\]"),
        ({"image_id": 1, **BOX}, "has no kind"),
        ({"image_id": 1, "kind": "ignore"}, "needs one outline"),
        ({"image_id": 1, "kind": "ignore", "box": [1, 2, 0, 4]}, "box is malformed"),
        ({"image_id": 1, "kind": "ignore", "polygon": [[1, 2]]}, "polygon is malformed"),
        ("all", "region is malformed"),
    ],
)
def test_a_malformed_region_is_an_error(image: Path, region: object, message: str) -> None:
    with pytest.raises(FormatError, match=f"(?s){message}"):
        read_dataset(coco_with(image, [region]))


@pytest.mark.parametrize("place", ["beside the image", "beside the masks"])
def test_an_ignore_mask_beside_image_or_masks(image: Path, place: str) -> None:
    root = image.parent
    labels = root / "a_masks.tif"
    if place == "beside the masks":
        (root / "images").mkdir()
        (root / "masks").mkdir()
        image.rename(root / "images" / "a.tif")
        labels = root / "masks" / "a.tif"
    tifffile.imwrite(labels, LABELS)
    mask = labels.with_name("a_ignore.png")
    mask.write_bytes(imagecodecs.png_encode(REGION.astype(np.uint8) * 200))
    assert np.array_equal(ignored(root), REGION)
    assert len(read_dataset(root, ReadOptions(no_objects=True))) == 1  # the mask is no image
    assert "1 ignore mask read, such as a_ignore.png" in str(read_dataset(root).notes)
    mask.write_bytes(imagecodecs.png_encode(np.zeros((8, 8), np.uint8)))
    with pytest.raises(FormatError, match=r"(?s)ignore mask and its image differ in size.*8 x 8"):
        read_dataset(root)[0].read_instances()


@pytest.mark.parametrize("name", ["coco", "geojson", "imagej_roi"])
def test_crowds_and_regions_of_no_class_stay_apart(image: Path, tmp_path: Path, name: str) -> None:
    """They overlap; the region is of no class, and never of the last."""
    crowd = np.zeros(HW, bool)
    crowd[5:40, 20:50] = True
    masks = MaskSet.from_dense(np.stack([REGION, LABELS == 3, crowd, LABELS == 8]))
    instances = Instances.from_masks(
        masks, class_ids=[NO_CLASS, 1, 0, 1], ids=[9, 3, 4, 8], ignore=[True, False, True, False]
    )
    dataset = Dataset((Sample("a", image, HW, Loaded(instances)),), ("x", "y"))
    FORMATS[name].write(dataset, tmp_path / "out", WriteOptions(copy_images=True))
    (sample,) = again = read_dataset(tmp_path / "out")
    assert again.class_names == ("x", "y")
    found = sample.read_instances()
    found, expected = found[np.argsort(found.ids)], instances[np.argsort(instances.ids)]
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.class_ids.tolist() == expected.class_ids.tolist()
    assert found.ignore.tolist() == expected.ignore.tolist()
    assert found.masks == expected.masks
    (kept,) = keep_classes(again, ["y"])
    assert np.sort(kept.read_instances().class_ids).tolist() == [NO_CLASS, NO_CLASS, 0, 0]
    (renamed,) = map_classes(again, {"x": "z"}, ["y", "z"])
    assert np.sort(renamed.read_instances().class_ids).tolist() == [NO_CLASS, 0, 0, 1]


@pytest.mark.parametrize("name", ["class_masks", "yolo_seg", "rle_csv", "ctc"])
def test_other_formats_get_the_objects_only(image: Path, tmp_path: Path, name: str) -> None:
    dataset = drawn(image)
    dataset = replace(dataset, samples=(replace(dataset[0], id="01/t000"),)) if name == "ctc" else dataset
    FORMATS[name].write(dataset, tmp_path / "out", WriteOptions(copy_images=True))
    (sample,) = read_dataset(tmp_path / "out", ReadOptions(require_images=False), format=name)
    found = sample.read_instances()
    assert (len(found), found.ignore.any()) == (2, False)
    assert np.array_equal(found.masks.foreground(), LABELS > 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(0.2, 0.95))
def test_polygons_along_pixel_edges_are_exactly_the_region(height: int, width: int, seed: int, share: float) -> None:
    region = np.random.default_rng(seed).random((height, width)) < share
    cells = with_regions(Instances.empty((height, width)), MaskSet.from_dense(region[None]))
    records = region_records(cells, 1)
    assert bool(records) == region.any()
    for record in records:
        load = WithRegions(lambda: Instances.empty((height, width)), (region_of(("here", record), (height, width)),))
        assert load().masks == cells.masks


def test_a_region_stays_when_its_class_is_omitted(image: Path, tmp_path: Path) -> None:
    instances = Instances.from_masks(
        MaskSet.from_dense(np.stack([LABELS == 3, LABELS == 8, REGION])), class_ids=[1, 1, 0], ids=[3, 8, 9],
        ignore=[False, False, True],
    )  # fmt: skip
    dataset = Dataset((Sample("a", image, HW, Loaded(instances)),), ("x", "y"))
    kept = keep_classes(dataset, ["y"])[0].read_instances()
    assert (kept.class_ids.tolist(), kept.ignore.tolist()) == ([0, 0, NO_CLASS], [False, False, True])
    for name in ("coco", "geojson"):
        out = tmp_path / name
        out.mkdir()
        FORMATS[name].write(dataset, out, WriteOptions(copy_images=True))
        assert np.array_equal(ignored(out, class_names=("y",)), REGION)


def test_the_page_begins_with_the_same_region(image: Path) -> None:
    """The outline of a region with holes, filled again."""
    starts = pytest.importorskip("cellwright.serve.starts")
    region = np.ones(HW, bool)  # outside of two boxes, one of them with a part that is not annotated
    region[3:20, 5:30] = region[25:40, 20:60] = False
    region[30:34, 30:40] = True
    (sample,) = drawn(image, region)
    start = starts.start_from(sample.read_instances(), 0.0)
    rings = [[[[(x, y) for y, x in outline]]] for outline in start.state.regions]
    assert np.array_equal(MaskSet.from_polygons(rings, HW).foreground(), region)

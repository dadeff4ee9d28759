"""labelme: shapes of every kind, groups, images under other names, and what is refused."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from skimage.draw import disk, polygon2mask

from cellwright.core.errors import FormatError, InputError
from cellwright.data.formats import read_dataset, sniff
from cellwright.data.formats.contract import ReadOptions
from cellwright.data.formats.labelme import LabelMe

HW = (40, 50)
TRIANGLE = [[3.2, 2.1], [20.4, 5.3], [9.7, 30.6]]


def shape(kind: str = "polygon", points: Any = TRIANGLE, label: str = "cell", **fields: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}} | fields


def save(folder: Path, shapes: list[Any], name: str = "x", **changes: Any) -> Path:
    """``name.json`` and its image."""
    folder.mkdir(exist_ok=True, parents=True)
    image = imagecodecs.png_encode(np.zeros(HW, np.uint8))
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"{name}.png", "imageData": None}
    content |= {"imageHeight": HW[0], "imageWidth": HW[1]} | changes
    (folder / f"{name}.png").write_bytes(image)
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json"


def load(path: Path, **options: Any):
    return LabelMe().read(path, ReadOptions(**options))[0].read_instances()


def test_polygons_are_filled_at_pixel_centres(tmp_path):
    instances = load(save(tmp_path, [shape(), shape(points=[[x + 20, y] for x, y in TRIANGLE])]))
    # skimage tests whether the integer positions are inside, which are half a pixel from our centres
    expected = polygon2mask(HW, np.array(TRIANGLE)[:, ::-1] - 0.5)
    np.testing.assert_array_equal(instances.masks.to_dense()[0], expected)
    assert instances.masks.areas[1] == pytest.approx(expected.sum(), abs=3)
    assert instances.ids.tolist() == [1, 2]


def test_a_circle_is_filled(tmp_path):
    mask = load(save(tmp_path, [shape("circle", [[20.5, 18.5], [20.5, 26.5]])])).masks.to_dense()[0]
    expected = np.zeros(HW, bool)
    expected[disk((18, 20), 8, shape=HW)] = True
    assert (mask != expected).sum() <= 8  # the circle has 64 vertices, and ties lie on its border


def test_a_mask_is_placed_at_its_box_and_cut_at_the_border(tmp_path):
    pixels = np.random.default_rng(0).random((9, 7)) > 0.4
    png = base64.b64encode(imagecodecs.png_encode(pixels.astype(np.uint8) * 255)).decode()
    shapes = [shape("mask", [[4, 6], [10, 14]], mask=png), shape("mask", [[-3, -2], [3, 6]], mask=png)]
    masks = load(save(tmp_path, [*shapes, shape()])).masks.to_dense()
    np.testing.assert_array_equal(masks[0][6:15, 4:11], pixels)
    np.testing.assert_array_equal(masks[1][:7, :4], pixels[2:, 3:])
    assert masks[0].sum() == pixels.sum()
    assert masks[2].any()


def test_a_mask_of_another_size_than_its_box_is_refused(tmp_path):
    png = base64.b64encode(imagecodecs.png_encode(np.full(HW, 255, np.uint8))).decode()
    with pytest.raises(FormatError, match="the mask of a shape and its box differ in size"):
        load(save(tmp_path, [shape("mask", [[4, 6], [10, 14]], mask=png)]))


def test_a_group_is_one_object_in_several_parts(tmp_path):
    moved = [[x + 20, y] for x, y in TRIANGLE]
    shapes = [shape(group_id=1), shape(points=moved, group_id=1), shape(points=moved, group_id=1, label="other")]
    dataset = LabelMe().read(save(tmp_path, shapes), ReadOptions())
    instances = dataset[0].read_instances()
    assert dataset.class_names == ("cell", "other")
    assert instances.class_ids.tolist() == [0, 1]
    first, second = load(save(tmp_path / "apart", [shape(), shape(points=moved)])).masks.to_dense()
    np.testing.assert_array_equal(instances.masks.to_dense()[0], first | second)


def test_labels_of_labelme_for_background_and_regions_to_ignore(tmp_path):
    path = save(tmp_path, [shape(label="_background_"), shape(label="__ignore__"), shape(label="b")])
    dataset = LabelMe().read(path, ReadOptions())
    assert dataset.class_names == ("b",)
    assert dataset[0].read_instances().ignore.tolist() == [True, False]


def test_shapes_without_an_area_are_counted(tmp_path):
    box, line = [[1, 1], [9, 9]], [[1, 1], [9, 9], [3, 4]]
    shapes = [shape(), shape("rectangle", box), shape("point", [[3, 3]]), shape("linestrip", line), shape(points=box)]
    dataset = LabelMe().read(save(tmp_path, shapes), ReadOptions())
    assert len(dataset[0].read_instances()) == 1
    assert [note.text for note in dataset.notes] == [
        "skipped 1 rectangle, since the outline of a cell cannot be made from its box",
        "skipped 3 shapes without an area: 1 linestrip, 1 point, 1 polygon",
    ]


def test_rectangles_only_are_refused(tmp_path):
    with pytest.raises(FormatError, match=r"boxes without outlines(.|\n)*got: 2 rectangles"):
        LabelMe().read(save(tmp_path, [shape("rectangle", [[1, 1], [9, 9]])] * 2), ReadOptions())


@pytest.mark.parametrize("name", [r"..\pictures\other.png", "../pictures/other.png", r"C:\Users\me\other.png"])
def test_the_image_may_lie_elsewhere(name, tmp_path):
    path = save(tmp_path / "labels", [shape()], imagePath=name)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "labels" / "x.png").rename(tmp_path / "pictures" / "other.png")
    sample = LabelMe().read(path, ReadOptions())[0]
    assert sample.image_path is not None
    assert sample.image_path.samefile(tmp_path / "pictures" / "other.png")
    assert sample.id == "x"


def test_a_renamed_image_is_found_by_the_name_of_the_file(tmp_path):
    sample = LabelMe().read(save(tmp_path, [shape()], imagePath="before.jpg"), ReadOptions())[0]
    assert sample.image_path == tmp_path / "x.png"


def test_an_embedded_image_is_named_if_its_file_is_missing(tmp_path):
    path = save(tmp_path, [shape()], imageData="iVBORw0KGgo=")
    (tmp_path / "x.png").unlink()
    with pytest.raises(InputError, match=r"cannot find the annotated image(.|\n)*labelme_export_json"):
        LabelMe().read(path, ReadOptions())
    assert len(load(path, require_images=False)) == 1


def test_a_size_that_differs_is_refused(tmp_path):
    with pytest.raises(InputError, match="height and width are swapped"):
        LabelMe().read(save(tmp_path, [shape()], imageHeight=50, imageWidth=40), ReadOptions())


BAD = {
    "points": ([shape(points="0 0")], "points of a shape are malformed"),
    "nan": ([shape(points=[[1, 2], [float("nan"), 3], [4, 5]])], r"points of a shape are malformed\n.*shape 1"),
    "far away": ([shape(points=[[1, 2], [900, 3], [4, 5]])], "far outside its image"),
    "no label": ([{"points": TRIANGLE}], r"a shape has no label\n.*shape 1"),
    "no shape": ([7], r"a shape has no label\n.*shape 1\n  got: int"),
    "circle": ([shape("circle", [[1, 2]])], r"a circle is malformed(.|\n)*got: 1 point"),
    "mask": ([shape("mask", [[1, 2], [3, 4]], mask="??")], "mask of a shape is malformed"),
    "damaged mask": ([shape("mask", [[1, 2], [3, 4]], mask=base64.b64encode(b"x" * 40).decode())], "damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_shapes_are_named(case, tmp_path):
    shapes, message = BAD[case]
    with pytest.raises(FormatError, match=message):
        load(save(tmp_path, shapes))


def test_a_folder_is_recognised_with_splits_and_compression(tmp_path):
    save(tmp_path / "train", [shape()], "a")
    compressed = save(tmp_path / "val", [shape()], "b")
    compressed.with_name("b.json.gz").write_bytes(gzip.compress(compressed.read_bytes()))
    compressed.unlink()
    assert sniff(tmp_path).name == "labelme"
    dataset = read_dataset(tmp_path)
    assert [(sample.id, sample.split) for sample in dataset] == [("a", "train"), ("b", "val")]
    assert [len(sample.read_instances()) for sample in dataset] == [1, 1]

"""GeoJSON as written and read by QuPath."""

from __future__ import annotations

import gzip
import json
import uuid
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
import shapely
from shapely.geometry import shape

from cellwright.core.errors import FormatError, InputError
from cellwright.core.instances import Instances
from cellwright.data.formats import ReadOptions, geojson, sniff
from cellwright.data.formats.geojson import GeoJson
from cellwright.testing.objects import CLASS_NAMES, draw_objects

HW = (41, 58)
SQUARE = [[3, 2], [9, 2], [9, 8], [3, 8], [3, 2]]
SQUARE_RIGHT = [[x + 30, y] for x, y in SQUARE]


def collection(cells, sample_id="a"):
    return geojson.feature_collection(cells, CLASS_NAMES, sample_id=sample_id, image_name="a.png")


def save(folder, value, name="x.geojson"):
    (folder / "x.png").write_bytes(imagecodecs.png_encode(np.zeros(HW, np.uint8)))
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return folder / name


def feature(geometry=None, **properties):
    geometry = geometry or {"type": "Polygon", "coordinates": [SQUARE]}
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": properties}


def load(path):
    return GeoJson().read(path, ReadOptions())[0].read_instances()


@pytest.mark.parametrize("seed", range(6))
def test_every_polygon_is_valid_and_covers_its_mask(seed):
    cells = draw_objects(seed, overlaps=True, scored=True, n=20)
    features = collection(cells)["features"]
    for entry, area in zip(features, cells.masks.areas, strict=True):
        geometry = shape(entry["geometry"])
        assert geometry.is_valid, shapely.is_valid_reason(geometry)
        assert geometry.area == area
        for rings in entry["geometry"]["coordinates"]:
            for ring in rings if entry["geometry"]["type"] == "MultiPolygon" else [rings]:
                assert ring[0] == ring[-1]
                assert np.array(ring).min() >= 0
    assert {entry["geometry"]["type"] for entry in features} >= {"Polygon"}


def test_features_have_the_members_that_qupath_expects():
    cells = draw_objects(1, overlaps=False, scored=True)
    cells = replace(cells, columns={"Area um^2": np.where(np.arange(len(cells)) == 1, np.nan, 2.5)})
    value = collection(cells)
    assert value["type"] == "FeatureCollection"
    ids = [entry["id"] for entry in value["features"]]
    assert len(set(ids)) == len(cells)
    assert all(uuid.UUID(text).version == 5 for text in ids)
    assert ids == [entry["id"] for entry in collection(cells)["features"]]
    assert not set(ids) & {entry["id"] for entry in collection(cells, "b")["features"]}
    first, second = (entry["properties"] for entry in value["features"][:2])
    assert first["objectType"] == "detection"
    assert first["name"] == str(cells.ids[0])
    assert first["classification"]["name"] in CLASS_NAMES
    assert first["measurements"]["Area um^2"] == 2.5
    assert "Area um^2" not in second["measurements"]
    json.dumps(value, allow_nan=False)


def test_measurements_are_kept(tmp_path):
    cells = draw_objects(1, overlaps=False, scored=True)
    area = np.where(np.arange(len(cells)) == 1, np.nan, 2.5)
    again = load(save(tmp_path, collection(replace(cells, columns={"Area um^2": area}))))
    np.testing.assert_array_equal(again.columns["Area um^2"], area)
    assert again.scores is not None


QUPATH_05 = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "id": "0a9d5d5b-5a63-4f0b-8f2c-2a1c2f1e9d11",
            "geometry": {"type": "Polygon", "coordinates": [SQUARE, [[5, 4], [5, 6], [7, 6], [7, 4], [5, 4]]]},
            "nucleusGeometry": {"type": "Polygon", "coordinates": [SQUARE]},
            "properties": {
                "objectType": "cell",
                "classification": {"name": "Tumor: Positive", "color": [200, 0, 0]},
                "measurements": {"Nucleus: Area": 31.5, "Cell: DAB": "NaN"},
                "isLocked": True,
            },
        },
        {
            "type": "Feature",
            "id": "1a9d5d5b-5a63-4f0b-8f2c-2a1c2f1e9d11",
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [[[[20.5, 20.5], [25, 20.5], [25, 25], [20.5, 20.5]]], [SQUARE_RIGHT]],
            },
            "properties": {"objectType": "annotation", "classification": {"names": ["Tumor", "Negative"]}},
        },
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [SQUARE]}, "properties": {}},
    ],
}


def test_a_qupath_export(tmp_path):
    path = save(tmp_path, QUPATH_05)
    assert sniff(tmp_path).name == "geojson"
    dataset = GeoJson().read(path, ReadOptions())
    assert dataset.class_names == ("Tumor: Negative", "Tumor: Positive", "cell")
    cells = dataset[0].read_instances()
    assert cells.ids.tolist() == [1, 2, 3]
    assert cells.class_ids.tolist() == [1, 0, 2]
    assert cells.masks.areas[0] == 36 - 4
    assert cells.masks.areas[1] >= 36 + 6
    assert cells.columns["Nucleus: Area"][0] == 31.5
    assert np.isnan(cells.columns["Cell: DAB"]).all()
    assert cells.scores is None


def test_older_exports_are_lists(tmp_path):
    old = feature(classification={"name": "A", "colorRGB": -65536}, measurements=[{"name": "Area", "value": 3.5}])
    path = save(tmp_path, [old, old], name="x.json")
    assert sniff(path).name == "geojson"
    cells = load(path)
    assert len(cells) == 2
    assert cells.columns["Area"].tolist() == [3.5, 3.5]
    assert len(load(save(tmp_path, old))) == 1


def test_a_score_above_1_is_a_measurement(tmp_path):
    cells = load(save(tmp_path, [feature(measurements={"score": 17})]))
    assert cells.scores is None
    assert cells.columns["score"].tolist() == [17]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", ["line 1"]),
        ('{"type": "FeatureCollection"}', ["not a GeoJSON file of features"]),
        ("[1, 2]", ["not a GeoJSON file of features"]),
        ("[" + "1" * 5000 + "]", ["x.geojson"]),
        ("[" * 100_000, ["x.geojson"]),
        ([feature({"type": "Point", "coordinates": [1, 2]})], ["feature 0", "Point", "export outlines"]),
        ([feature(), feature({"type": "Polygon", "coordinates": [[[1, 2], [3]]]})], ["feature 1", "coordinates"]),
        ([feature({"type": "Polygon", "coordinates": [[[1, 2], [3, "x"], [4, 4]]]})], ["feature 0", "coordinates"]),
        ([feature({"type": "Polygon", "coordinates": 3})], ["feature 0", "coordinates"]),
        ([feature({"type": "Polygon", "coordinates": [[[1, 2], [10**400, 1], [4, 4]]]})], ["feature 0", "finite"]),
        ([feature({"type": "Polygon", "coordinates": [[[1, 2], [3e9, 1], [4, 4]]]})], ["far outside"]),
        (
            '[{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[1, NaN], [1, 2], [3, 4]]]}}]',
            ["finite"],
        ),
        ([{"type": "Feature", "geometry": None}], ["feature 0", "not an area"]),
        ([feature({"type": "GeometryCollection"})], ["feature 0", "not an area", "GeometryCollection"]),
        ([feature({"type": "MultiPolygon", "coordinates": [[]]})], ["feature 0", "coordinates"]),
        ([feature({"type": "Polygon", "coordinates": []})], ["feature 0", "coordinates"]),
        ([feature(classification={"name": 3})], ["feature 0", "classification"]),
        ([feature(measurements=[1])], ["feature 0", "measurements"]),
        ([{"type": "Feature", "properties": 3}], ["feature 0", "properties"]),
        ({"type": "FeatureCollection", "features": [], "cellwright": {"image_hw": [1, -2]}}, ["image_hw", "-2"]),
    ],
)
def test_errors_name_what_is_malformed(value, words, tmp_path):
    with pytest.raises(FormatError) as caught:
        load(save(tmp_path, value))
    for word in [*words, "x.geojson"]:
        assert word in str(caught.value)


def test_the_size_comes_from_the_image_or_the_file(tmp_path):
    value = collection(draw_objects(1, overlaps=False, scored=False))
    path = save(tmp_path, value)
    (tmp_path / "x.png").unlink()
    with pytest.raises(InputError, match="cannot find the annotated image"):
        GeoJson().read(path, ReadOptions())
    assert GeoJson().read(path, ReadOptions(require_images=False))[0].image_hw == HW
    del value["cellwright"]
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match="size of the annotated image is unknown"):
        GeoJson().read(path, ReadOptions(require_images=False))


def test_an_empty_prediction_is_still_a_prediction(tmp_path):
    assert load(save(tmp_path, collection(Instances.empty(HW, scored=True)))).scores is not None
    assert load(save(tmp_path, collection(Instances.empty(HW)))).scores is None


def polygon(x, y, size=6):
    """An octagon around (x, y)."""
    angle = np.linspace(0, 2 * np.pi, 9)
    return {
        "type": "Polygon",
        "coordinates": [np.stack([x + size / 2 * np.cos(angle), y + size / 2 * np.sin(angle)], 1).tolist()],
    }


RECTANGLE = {"type": "Polygon", "coordinates": [[[0, 0], [50, 0], [50, 40], [0, 40], [0, 0]]]}
DETECTION, ANNOTATION = {"objectType": "detection"}, {"objectType": "annotation"}


def read(folder, features):
    return GeoJson().read(save(folder, features), ReadOptions())


@pytest.mark.parametrize(
    ("features", "n_objects", "n_regions"),
    [
        pytest.param(
            [feature(RECTANGLE, **ANNOTATION), feature(polygon(9, 9), **DETECTION)], 1, 1, id="around detections"
        ),
        pytest.param(
            [feature(polygon(20, 20, 36), **ANNOTATION), feature(polygon(9, 19), objectType="cell")],
            1,
            1,
            id="around cells",
        ),
        pytest.param(
            [feature(RECTANGLE, **ANNOTATION), *(feature(polygon(x, 9), **ANNOTATION) for x in (9, 19))],
            2,
            1,
            id="rectangle around cells drawn by hand",
        ),
        pytest.param(
            [feature(polygon(20, 20, 36), **ANNOTATION), feature(polygon(9, 19), **ANNOTATION)],
            2,
            0,
            id="a nucleus in a cell",
        ),
        pytest.param(
            [feature(RECTANGLE, objectType="annotation", classification={"name": "Region*"})],
            0,
            1,
            id="a region without cells",
        ),
        pytest.param([feature(RECTANGLE, **ANNOTATION)], 1, 0, id="one rectangle alone"),
        pytest.param(
            [
                feature(RECTANGLE, objectType="tile"),
                feature(RECTANGLE, objectType="tma_core"),
                feature(RECTANGLE, objectType="root"),
                feature(polygon(9, 9), **DETECTION),
            ],
            1,
            0,
            id="tiles",
        ),
        pytest.param(
            [
                {**feature(RECTANGLE), "id": "PathTileObject"},
                {**feature(RECTANGLE), "id": "PathAnnotationObject"},
                {**feature(polygon(9, 9)), "id": "PathCellObject"},
            ],
            1,
            1,
            id="QuPath 0.2",
        ),
        pytest.param(
            [feature(RECTANGLE, object_type="annotation"), feature(polygon(9, 9), object_type="detection")],
            1,
            1,
            id="QuPath 0.3",
        ),
    ],
)
def test_containers_are_not_cells(features, n_objects, n_regions, tmp_path):
    dataset = read(tmp_path, features)
    assert len(dataset[0].read_instances()) == n_objects
    regions = dataset.info.get("qupath_regions", {}).get("x", [])
    assert len(regions) == n_regions
    assert all(region["polygons"] for region in regions)
    assert len(dataset.notes) == (n_regions > 0) + any("Tile" in str(f) or "tile" in str(f) for f in features)


def test_outlines_drawn_by_hand_around_detections_cannot_be_told_from_regions(tmp_path):
    pairs = [
        feature(polygon(x, 9, size), **kind) for x in (9, 19, 29) for size, kind in ((8, ANNOTATION), (6, DETECTION))
    ]
    with pytest.raises(FormatError, match="outline the same objects") as caught:
        read(tmp_path, pairs)
    assert "3 annotations with one detection inside each" in str(caught.value)


def test_only_containers_raise_an_error(tmp_path):
    with pytest.raises(FormatError, match="no objects") as caught:
        read(tmp_path, [feature(RECTANGLE, objectType="tile")] * 2)
    assert "2 tiles" in str(caught.value)


def test_an_empty_rectangle_beside_detections_is_a_region_if_it_is_large(tmp_path):
    large, small = ([[[x, 20], [x + w, 20], [x + w, 40], [x, 40], [x, 20]]] for x, w in ((0, 40), (50, 5)))
    rectangles = [feature({"type": "Polygon", "coordinates": ring}, **ANNOTATION) for ring in (large, small)]
    dataset = read(tmp_path, [feature(polygon(9, 9), **DETECTION), *rectangles])
    assert dataset[0].read_instances().masks.boxes[:, 0].tolist() == [6, 50]
    assert [len(region["polygons"]) for region in dataset.info["qupath_regions"]["x"]] == [1]


def test_annotations_beside_detections_are_read_and_said(tmp_path):
    dataset = read(tmp_path, [feature(polygon(9, 9), **DETECTION), feature(polygon(30, 9), **ANNOTATION)])
    assert len(dataset[0].read_instances()) == 2
    assert [note.text for note in dataset.notes] == ["1 annotation beside 1 detection read as objects too"]


@pytest.mark.parametrize("nothing", [None, {}, {"name": None}, {"colorRGB": -65536}, "", {"names": []}])
def test_objects_without_a_class_take_that_of_the_others(nothing, tmp_path):
    other, without = (
        feature(polygon(9, 9), classification={"name": "A"}),
        feature(polygon(29, 9), classification=nothing),
    )
    dataset = read(tmp_path, [other, without])
    assert (dataset.class_names, dataset[0].read_instances().class_ids.tolist()) == (("A",), [0, 0])
    assert [note.text for note in dataset.notes] == ["1 object without a class read as A, the class of all others"]
    dataset = read(tmp_path, [other, feature(polygon(9, 30), classification="B"), without])
    assert (dataset.class_names, dataset[0].read_instances().class_ids.tolist()) == (("A", "B", "cell"), [0, 1, 2])
    assert [note.text for note in dataset.notes] == ["1 object without a class read as cell, beside A, B"]
    dataset = read(tmp_path, [without])
    assert (dataset.class_names, dataset.notes) == (("cell",), ())


def test_objects_of_the_class_ignore_are_ignored(tmp_path):
    dataset = read(
        tmp_path,
        [
            feature(polygon(9, 9), classification={"name": "A"}),
            feature(polygon(29, 9), classification={"name": "Ignore*"}),
        ],
    )
    cells = dataset[0].read_instances()
    assert (dataset.class_names, cells.ignore.tolist(), cells.class_ids.tolist()) == (("A",), [False, True], [0, -1])


def in_plane(x, z, t=0):
    return feature({**polygon(x, 9), "plane": {"c": -1, "z": z, "t": t}})


def test_several_planes_raise_an_error(tmp_path):
    assert len(read(tmp_path, [in_plane(9, 3), in_plane(19, 3)])[0].read_instances()) == 2
    with pytest.raises(FormatError, match="several planes") as caught:
        read(tmp_path, [in_plane(9, 0), in_plane(19, 3), in_plane(29, 3)])
    assert "z 0, t 0: 1 object; z 3, t 0: 2 objects" in str(caught.value)
    with pytest.raises(FormatError, match="several planes"):
        read(tmp_path, [feature(polygon(9, 9)), in_plane(29, 0, t=1)])


def test_the_nucleus_of_a_cell(tmp_path):
    cell = feature(polygon(20, 20, 20), objectType="cell", classification={"name": "A"}) | {
        "nucleusGeometry": polygon(20, 20, 8)
    }
    bare = feature(polygon(40, 20, 6), objectType="cell")
    path = save(tmp_path, [cell, bare])
    dataset = GeoJson().read(path, ReadOptions())
    whole, _ = dataset[0].read_instances().masks.areas
    assert [note.text for note in dataset.notes if "nucleus" in note.text] == [
        "the nucleus of 1 cell was not read; to read it instead of the cell, use `nucleus=True`"
    ]
    dataset = GeoJson().read(path, ReadOptions(nucleus=True))
    (nucleus,) = dataset[0].read_instances().masks.areas
    assert nucleus < whole / 4
    assert [note.text for note in dataset.notes] == [
        "1 of 2 features not read, because they enclose no area: no geometry (1), as feature 1"
    ]
    with pytest.raises(InputError, match="no cell has a nucleus"):
        GeoJson().read(save(tmp_path, [bare]), ReadOptions(nucleus=True))


def test_a_feature_per_class_is_an_object_per_polygon(tmp_path):
    """CellViT writes all outlines of a class as one MultiPolygon, and their centres as one MultiPoint."""
    parts = [polygon(x, y, 4)["coordinates"] for y in (5, 15, 25) for x in range(5, 50, 9)]
    dataset = read(tmp_path, [feature({"type": "MultiPolygon", "coordinates": parts}, classification={"name": "A"})])
    assert len(dataset[0].read_instances()) == len(parts)
    assert [note.text for note in dataset.notes] == ["the 15 polygons of feature 0 were read as separate objects"]
    with pytest.raises(FormatError, match="not an area") as caught:
        read(tmp_path, [feature({"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]})])
    assert "CellViT writes outlines to cells.geojson" in str(caught.value)


@pytest.mark.parametrize("name", ["x.geojson", "x.json"])
def test_gzip(name, tmp_path):
    path = save(tmp_path, [feature(polygon(9, 9))], name)
    packed = path.with_name(f"{name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert sniff(tmp_path).name == "geojson"
    dataset = GeoJson().read(tmp_path, ReadOptions())
    assert (dataset[0].id, len(dataset[0].read_instances())) == ("x", 1)
    packed.write_bytes(packed.read_bytes()[:40])
    with pytest.raises(FormatError, match="gzip file is damaged"):
        GeoJson().read(packed, ReadOptions())


def test_bare_geometries(tmp_path):
    single, several = (
        polygon(9, 9),
        {"type": "MultiPolygon", "coordinates": [polygon(x, 9)["coordinates"] for x in (9, 29)]},
    )
    for value, n in (
        (single, 1),
        ([single, polygon(29, 9)], 2),
        ({"type": "GeometryCollection", "geometries": [single, polygon(29, 9)]}, 2),
        (several, 2),
        ([{"type": "FeatureCollection", "features": [feature(single)]}, feature(polygon(29, 9))], 2),
        (feature({"type": "GeometryCollection", "geometries": [single, polygon(29, 9), {"type": "Point"}]}), 1),
    ):
        path = save(tmp_path, value, "x.json")
        assert sniff(path).name == "geojson"
        assert len(load(path)) == n


@pytest.mark.parametrize(("names", "ids", "n_notes"), [("37", [3, 7], 0), ("33", [1, 2], 1), ("aa", [1, 2], 0)])
def test_names_that_repeat(names, ids, n_notes, tmp_path):
    dataset = read(tmp_path, [feature(polygon(10 * k, 0), name=name) for k, name in enumerate(names)])
    notes = [note.text for note in dataset.notes if "occurs 2 times" in note.text]
    assert len(notes) == n_notes
    assert dataset[0].read_instances().ids.tolist() == ids

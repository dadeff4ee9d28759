"""GeoJSON as written and read by QuPath."""

from __future__ import annotations

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
                "coordinates": [[[[20.5, 20.5], [25, 20.5], [25, 25], [20.5, 20.5]]], [SQUARE]],
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
        ([feature({"type": "Point", "coordinates": [1, 2]})], ["feature 0", "Point", "areas only"]),
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

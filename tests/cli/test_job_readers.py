"""The files of a tile job as other programs read them: zarr and the rules of OME-Zarr 0.5, QuPath, shapely, pandas."""

from __future__ import annotations

import gzip
import json
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
from shapely.geometry import shape

from cellwright.prediction.tiling.label_writers import CHUNK_PX, TOP_PX, write_label_zarr


@pytest.mark.parametrize("pixel_size_um", [None, (0.5, 0.25)])
def test_labels_follow_ome_zarr_0_5(pixel_size_um: tuple[float, float] | None, tmp_path: Path) -> None:
    """https://ngff.openmicroscopy.org/0.5: multiscales and image-label metadata."""
    zarr = pytest.importorskip("zarr")
    labels = np.kron(np.arange(139 * 81).reshape(139, 81), np.ones((8, 8), int))[:1103, :643].astype(np.uint32)
    write_label_zarr(tmp_path / "labels.zarr", labels.shape, lambda w: w.of(labels), pixel_size_um=pixel_size_um)
    group = zarr.open_group(tmp_path / "labels.zarr", mode="r")
    assert group.metadata.zarr_format == 3
    ome = dict(group.attrs)["ome"]
    assert ome["version"] == "0.5"
    assert isinstance(ome["image-label"], dict)
    (multiscale,) = ome["multiscales"]
    assert [(axis["name"], axis["type"]) for axis in multiscale["axes"]] == [("y", "space"), ("x", "space")]
    units = {axis.get("unit") for axis in multiscale["axes"]}
    assert units == ({None} if pixel_size_um is None else {"micrometer"})
    paths = [one["path"] for one in multiscale["datasets"]]
    assert set(paths) == set(group.array_keys())
    above = None
    for k, one in enumerate(multiscale["datasets"]):
        (scale,) = one["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": [size * 2**k for size in pixel_size_um or (1.0, 1.0)]}
        level = group[one["path"]]
        assert level.metadata.dimension_names == ("y", "x")
        assert (level.dtype, level.fill_value) == (np.uint32, 0)
        assert max(level.chunks) <= CHUNK_PX
        np.testing.assert_array_equal(level[:], labels if above is None else above[::2, ::2])
        above = level[:]
    assert above is not None
    assert max(above.shape) <= TOP_PX


def test_outlines_follow_the_rules_of_qupath(job: Path) -> None:
    """Distinct UUIDs, an object type and a class with a colour, numbers without NaN, closed and valid outlines."""
    labels = tifffile.imread(job / "labels.tif")
    text = gzip.decompress((job / "objects.geojson.gz").read_bytes()).decode("ascii")
    collection = json.loads(text, parse_constant=pytest.fail)
    features = collection["features"]
    assert collection["type"] == "FeatureCollection"
    assert len({uuid.UUID(feature["id"]) for feature in features}) == len(features) == labels.max()
    for feature in features:
        properties = feature["properties"]
        assert (feature["type"], properties["objectType"]) == ("Feature", "detection")
        assert properties["classification"]["name"] == "nucleus"
        assert all(0 <= value <= 255 for value in properties["classification"]["color"])
        assert all(np.isfinite(value) for value in properties["measurements"].values())
        outline = shape(feature["geometry"])
        assert outline.is_valid
        assert outline.area == (labels == int(properties["name"])).sum()
        for polygon in getattr(outline, "geoms", [outline]):
            assert all(ring.coords[0] == ring.coords[-1] for ring in (polygon.exterior, *polygon.interiors))
    x0, y0, x1, y1 = shapely.total_bounds([shape(feature["geometry"]) for feature in features])
    assert min(x0, y0) >= 0
    assert (y1 <= labels.shape[0], x1 <= labels.shape[1]) == (True, True)


def test_the_files_of_a_job_agree(job: Path) -> None:
    parquet = job / "objects.parquet"
    table = pd.read_parquet(parquet) if parquet.is_file() else pd.read_csv(job / "objects.csv.gz")
    with tifffile.TiffFile(job / "labels.tif") as tif:
        assert tif.is_bigtiff
        assert (tif.pages.first.is_tiled, tif.pages.first.dtype, len(tif.pages)) == (True, np.uint32, 1)
        labels = tif.asarray()
    assert table["label"].tolist() == list(range(1, int(labels.max()) + 1))
    assert np.array_equal(table["area_px"], np.bincount(labels.ravel())[1:])
    sides = table[["bbox_y0_px", "bbox_x0_px", "bbox_y1_px", "bbox_x1_px"]].astype(int).to_numpy()
    for label, box in zip(table["label"], sides.tolist(), strict=True):
        rows, columns = np.nonzero(labels == label)
        assert box == [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    assert pd.read_csv(job / "summary.csv")["objects"].item() == len(table)

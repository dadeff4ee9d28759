"""The objects of a tile job as a SpatialData store (container format 0.2, Zarr 3), which napari and scverse read.

labels/labels      the label image with its pyramid
shapes/outlines    GeoParquet: one polygon per object, in pixels; the index is the label
tables/objects     AnnData: measurements in X, class and score in obs, centroids in obsm; annotates the labels

Coordinate systems: "global", in pixels, and "micrometers" where the pixel size is known.
https://spatialdata.scverse.org/en/latest/design_doc.html
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import UsageError
from cellwright.core.instances import Instances
from cellwright.core.polygons import MultiPolygon
from cellwright.core.progress import Track, no_progress
from cellwright.prediction.tiling.finish import FinalTiles, LabelPainter
from cellwright.prediction.tiling.label_writers import write_label_zarr

LABELS, OUTLINES, OBJECTS = "labels", "outlines", "objects"
_REGION_KEY, _INSTANCE_KEY = "region", "label"
_ATTRS = "spatialdata_attrs"
_CENTROID = ("centroid_x_px", "centroid_y_px")
_ROWS_PER_CHUNK = 65_536
_FORMATS = {"container": "0.2", "raster": "0.3", "ome": "0.5-dev-spatialdata", "shapes": "0.3", "table": "0.2"}


def write_spatialdata(
    path: Path,
    final: FinalTiles,
    class_names: Sequence[str],
    image_hw: tuple[int, int],
    *,
    pixel_size_um: tuple[float, float] | None = None,
    track: Track = no_progress,
) -> None:
    """Write the store, tile by tile. Raises `UsageError` if a package is missing."""
    try:
        import pyarrow  # noqa: F401
        import zarr
    except ImportError as error:
        remedy = 'pip install "cellwright[zarr,pyarrow]"'
        raise UsageError("SpatialData needs other packages", got=f"no {error.name}", remedy=remedy) from error
    root = zarr.open_group(path, mode="a", zarr_format=3)
    root.attrs[_ATTRS] = {"version": _FORMATS["container"], "spatialdata_software_version": "cellwright"}
    labels = root.create_group("labels")
    labels.attrs["ome"] = {"labels": [LABELS]}
    write_label_zarr(path / "labels" / LABELS, image_hw, LabelPainter(final), track=track)
    _mark_labels(zarr.open_group(path / "labels" / LABELS, mode="r+"), pixel_size_um)
    shapes, tables = root.create_group("shapes"), root.create_group("tables")
    if final.n_objects:  # SpatialData has no empty outlines and tables
        _write_outlines(path / "shapes" / OUTLINES, shapes.create_group(OUTLINES), final, pixel_size_um, track)
        _write_table(tables.create_group(OBJECTS), final, class_names, track)
    with warnings.catch_warnings():  # some programs do not read it, and files that are not Zarr are not in it
        warnings.filterwarnings("ignore", "Consolidated metadata|Object at")
        zarr.consolidate_metadata(path)


def _transformations(axes: str, pixel_size_um: tuple[float, float] | None) -> list[dict[str, Any]]:
    """From pixels to each coordinate system. axes: "yx" or "xy", the order of the values."""

    def system(name: str) -> dict[str, Any]:
        return {"name": name, "axes": [{"name": axis, "type": "space", "unit": "unit"} for axis in axes]}

    found: list[dict[str, Any]] = [{"type": "identity", "input": system(axes), "output": system("global")}]
    if pixel_size_um is not None:
        scale = dict(zip("yx", pixel_size_um, strict=True))
        of_axes = [scale[axis] for axis in axes]
        found.append({"type": "scale", "scale": of_axes, "input": system(axes), "output": system("micrometers")})
    return found


def _mark_labels(group: Any, pixel_size_um: tuple[float, float] | None) -> None:
    ome = dict(group.attrs["ome"])
    multiscale = dict(ome["multiscales"][0]) | {"coordinateTransformations": _transformations("yx", pixel_size_um)}
    group.attrs["ome"] = ome | {"version": _FORMATS["ome"], "multiscales": [multiscale]}
    group.attrs[_ATTRS] = {"version": _FORMATS["raster"]}


# --- outlines -------------------------------------------------------------------------------------------------------


def _write_outlines(
    folder: Path, group: Any, final: FinalTiles, pixel_size_um: tuple[float, float] | None, track: Track
) -> None:
    """GeoParquet 1.1 with the labels as index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    group.attrs.update(
        {
            "encoding-type": "ngff:shapes",
            "axes": ["x", "y"],
            "coordinateTransformations": _transformations("xy", pixel_size_um),
            _ATTRS: {"version": _FORMATS["shapes"]},
        }
    )
    geometry = {"encoding": "WKB", "geometry_types": ["MultiPolygon", "Polygon"], "crs": None}
    index = {"name": _INSTANCE_KEY, "field_name": _INSTANCE_KEY, "pandas_type": "int64", "numpy_type": "int64"}
    metadata = {
        "geo": {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}},
        "pandas": {
            "index_columns": [_INSTANCE_KEY],
            "column_indexes": [],
            "columns": [
                {"name": "geometry", "field_name": "geometry", "pandas_type": "bytes", "numpy_type": "object"},
                index,
            ],
        },
    }
    encoded = {name: json.dumps(value) for name, value in metadata.items()}
    schema = pa.schema([("geometry", pa.binary()), (_INSTANCE_KEY, pa.int64())], metadata=encoded)
    with pq.ParquetWriter(folder / "shapes.parquet", schema, compression="zstd") as writer:
        for _, objects in track(final, "writing outlines", len(final.ledger.tiles)):
            if len(objects):
                columns = [pa.array(_wkb(objects), pa.binary()), pa.array(objects.ids, pa.int64())]
                writer.write_table(pa.table(columns, schema=schema))


def _wkb(objects: Instances) -> list[bytes]:
    import shapely

    def shape(polygons: MultiPolygon) -> Any:
        parts = [shapely.Polygon(rings[0], list(rings[1:])) for rings in polygons]
        return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)

    return list(shapely.to_wkb(np.array([shape(polygons) for polygons in objects.masks.to_polygons()], object)))


# --- the table ------------------------------------------------------------------------------------------------------


def _write_table(group: Any, final: FinalTiles, class_names: Sequence[str], track: Track) -> None:
    """AnnData as ``anndata.io.write_zarr`` writes it."""
    n = final.n_objects
    names = _measured(final)
    group.attrs.update(
        {
            "encoding-type": "anndata",
            "encoding-version": "0.1.0",
            "spatialdata-encoding-type": "ngff:regions_table",
            "region": LABELS,
            "region_key": _REGION_KEY,
            "instance_key": _INSTANCE_KEY,
            "version": _FORMATS["table"],
        }
    )
    for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
        _encode(group.create_group(name), "dict", "0.1.0")
    attrs = _encode(group["uns"].create_group(_ATTRS), "dict", "0.1.0")
    linked = {"region": LABELS, "region_key": _REGION_KEY, "instance_key": _INSTANCE_KEY}
    for name, value in linked.items():
        _scalar(attrs, name, value)
    var = _encode(group.create_group("var"), "dataframe", "0.2.0")
    var.attrs.update({"_index": "_index", "column-order": []})
    _strings(var, "_index", names)
    obs = _encode(group.create_group("obs"), "dataframe", "0.2.0")
    columns = [_REGION_KEY, _INSTANCE_KEY, "class", "score", "tile", "touches_border"]
    obs.attrs.update({"_index": "_index", "column-order": columns})
    x = _array(group, "X", (n, len(names)), "float32")
    spatial = _array(group["obsm"], "spatial", (n, 2), "float64")
    region = _categorical(obs, _REGION_KEY, n, [LABELS])
    class_codes = _categorical(obs, "class", n, list(class_names))
    label, score = _array(obs, _INSTANCE_KEY, (n,), "int64"), _array(obs, "score", (n,), "float32")
    tile, touches = _array(obs, "tile", (n,), "int32"), _array(obs, "touches_border", (n,), "bool")
    index = _array(obs, "_index", (n,), str)
    for start, rows in _chunks(final, names, track):
        part = slice(start, start + len(rows["label"]))
        x[part], spatial[part] = rows["x"], rows["spatial"]
        region[part], class_codes[part] = np.zeros(len(rows["label"])), rows["class"]
        label[part], score[part] = rows["label"], rows["score"]
        tile[part], touches[part] = rows["tile"], rows["touches_border"]
        index[part] = rows["label"].astype(str).astype(object)


def _measured(final: FinalTiles) -> list[str]:
    """The names of the measurements, without positions, which are in ``obsm``."""
    for _, objects in final:
        if len(objects):
            return [
                name for name in objects.columns if name not in _CENTROID and not name.startswith(("bbox_", "touch"))
            ]
    return []


def _chunks(final: FinalTiles, names: Sequence[str], track: Track) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The rows of all objects, as many at a time as a chunk holds, and the number of the first."""
    pending: list[dict[str, np.ndarray]] = []
    start = n_pending = 0
    for tile, objects in track(final, "writing the table", len(final.ledger.tiles)):
        if len(objects):
            pending.append(_rows(tile, objects, names))
            n_pending += len(objects)
        while n_pending >= _ROWS_PER_CHUNK:
            rows = {name: np.concatenate([part[name] for part in pending]) for name in pending[0]}
            yield start, {name: values[:_ROWS_PER_CHUNK] for name, values in rows.items()}
            pending = [{name: values[_ROWS_PER_CHUNK:] for name, values in rows.items()}]
            start, n_pending = start + _ROWS_PER_CHUNK, n_pending - _ROWS_PER_CHUNK
    if n_pending:
        yield start, {name: np.concatenate([part[name] for part in pending]) for name in pending[0]}


def _rows(tile: int, objects: Instances, names: Sequence[str]) -> dict[str, np.ndarray]:
    assert objects.scores is not None
    columns = objects.columns
    return {
        "x": np.column_stack([columns[name] for name in names]).astype(np.float32),
        "spatial": np.column_stack([columns[name] for name in _CENTROID]).astype(np.float64),
        "label": objects.ids.astype(np.int64),
        "class": objects.class_ids,
        "score": objects.scores,
        "tile": np.full(len(objects), tile, np.int32),
        "touches_border": columns["touches_border"].astype(bool),
    }


def _encode(node: Any, kind: str, version: str) -> Any:
    node.attrs.update({"encoding-type": kind, "encoding-version": version})
    return node


def _array(group: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    chunks = tuple(max(min(side, _ROWS_PER_CHUNK), 1) for side in shape)
    array = group.create_array(name, shape=shape, chunks=chunks, dtype=dtype)
    return _encode(array, "string-array" if dtype is str else "array", "0.2.0")


def _strings(group: Any, name: str, values: Sequence[str]) -> None:
    array = _array(group, name, (len(values),), str)
    if values:
        array[:] = np.array(values, object)


def _scalar(group: Any, name: str, value: str) -> None:
    array = _encode(group.create_array(name, shape=(), dtype=str), "string", "0.2.0")
    array[...] = value


def _categorical(group: Any, name: str, n: int, categories: Sequence[str]) -> Any:
    """A categorical column; returns its codes, to be filled."""
    column = _encode(group.create_group(name), "categorical", "0.2.0")
    column.attrs["ordered"] = False
    _strings(column, "categories", categories)
    return _array(column, "codes", (n,), "int8" if len(categories) < 128 else "int16")

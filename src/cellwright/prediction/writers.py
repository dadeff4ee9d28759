"""The files of one image in a prediction folder: label image, and outlines for QuPath and ImageJ.

Each function writes one file, completely or not at all. Raises `InputError` for an image of another size than the
objects. Without ``image``, measurements have no intensities.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellwright.core.files import atomic_path, write_bytes, write_json
from cellwright.core.image import Image
from cellwright.core.instances import Instances


def write_labels(path: Path, instances: Instances, pixel_size_um: tuple[float, float] | None = None) -> None:
    """A label image, uint32: each pixel has the id of its object; where objects overlap, the higher score wins."""
    import tifffile

    best_first = instances.by_score()
    labels = best_first.masks.to_label_map(best_first.ids)
    resolution: dict[str, Any] = {}
    if pixel_size_um is not None:
        y, x = pixel_size_um
        resolution = {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, labels, compression="zlib", photometric="minisblack", **resolution)


def write_geojson(
    path: Path,
    instances: Instances,
    image: Image | None,
    *,
    sample_id: str,
    class_names: Sequence[str],
    cells: Instances | None = None,
    plane: tuple[int, int] = (0, 0),
) -> None:
    """Outlines for QuPath, with class, score and measurements; with ``cells`` those of cells with their nuclei.

    plane: (z, t) of the image in its file.
    """
    from cellwright.data.formats.geojson import feature_collection
    from cellwright.measurement.table import with_measurements

    if cells is None:
        measured = with_measurements(instances, image)
    else:
        from cellwright.measurement.cells import same_ids, with_cell_measurements

        measured = with_cell_measurements(same_ids(instances, cells), image)
    names = {"sample_id": sample_id, "image_name": _file_name(image)}
    collection = feature_collection(measured, class_names, **names, cells=None if cells is None else cells.masks)
    if any(plane):
        for feature in collection["features"]:
            for name in {"geometry", "nucleusGeometry"} & feature.keys():
                feature[name] = feature[name] | {"plane": {"c": -1, "z": plane[0], "t": plane[1]}}
    write_json(path, collection, indent=None)


def write_rois(path: Path, instances: Instances, image: Image | None, *, class_names: Sequence[str]) -> None:
    """A zip of ImageJ ROIs."""
    from cellwright.data.formats.imagej_roi import zip_bytes

    write_bytes(path, zip_bytes(instances, class_names, image_name=_file_name(image)))


def _file_name(image: Image | None) -> str | None:
    return None if image is None or image.path is None else Path(image.path).name

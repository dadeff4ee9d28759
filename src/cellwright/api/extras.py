"""What may lie beside an image's label image: outlines for QuPath and ImageJ, and measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cellwright.core.files import write_bytes, write_json
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.measurement.table import with_measurements, write_measurements

Extra = Literal["geojson", "rois", "measurements"]


def write_extra(
    kind: Extra, path: Path, cells: Instances, image: Image | None, *, sample_id: str, class_names: Sequence[str]
) -> None:
    """Write one extra of one image, atomically; without ``image`` measurements hold no intensities.

    geojson: outlines with class, score and measurements. rois: a zip of ImageJ ROIs. measurements: a CSV table, whose
    first column is ``sample_id``. Raises `InputError` for an image of another size.
    """
    image_name = None if image is None or image.path is None else Path(image.path).name
    match kind:
        case "geojson":
            from cellwright.data.formats.geojson import feature_collection

            measured = with_measurements(cells, image)
            collection = feature_collection(measured, class_names, sample_id=sample_id, image_name=image_name)
            write_json(path, collection, indent=None)
        case "rois":
            from cellwright.data.formats.imagej_roi import zip_bytes

            write_bytes(path, zip_bytes(cells, class_names, image_name=image_name))
        case "measurements":
            write_measurements(cells, path, image_name=sample_id, image=image, class_names=class_names)

"""What a job can leave for each image beside its line in predictions.json."""

from __future__ import annotations

from typing import Literal

Save = Literal["masks", "overlay", "geojson", "rois", "measurements"]
# How the file of each ends; what stands before it is the image's own name.
ENDINGS: dict[Save, str] = {
    "masks": "_masks.tif",
    "overlay": "_overlay.png",
    "geojson": ".geojson",
    "rois": "_rois.zip",
    "measurements": "_measurements.csv",
}
SAVES: tuple[Save, ...] = tuple(ENDINGS)

"""Images and objects as layers of napari, and labels of napari as objects. napari itself is not imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cellwright.core.image import Image
from cellwright.core.instances import Instances

if TYPE_CHECKING:
    import pandas as pd

LayerData = tuple[Any, dict[str, Any], str]
RGB = ("R", "G", "B")
_COLOURS = ("gray", "green", "magenta", "cyan", "yellow", "red", "blue")


def image_layers(image: Image, name: str, *, visible: bool = True) -> list[LayerData]:
    """One layer for a grey or RGB image, otherwise one for each channel."""
    place = {**_place(image.pixel_size_um), "visible": visible}
    if image.channels[:3] == RGB and image.n_channels in (3, 4):
        return [(image.data, {"name": name, "rgb": True, **place}, "image")]
    if image.n_channels == 1:
        return [(image.data[:, :, 0], {"name": name, **place}, "image")]
    layers: list[LayerData] = []
    for k, channel in enumerate(image.channels):
        look = {"colormap": _COLOURS[k % len(_COLOURS)], "blending": "additive" if k else "translucent_no_depth"}
        layers.append((image.data[:, :, k], {"name": f"{name} {channel}", **look, **place}, "image"))
    return layers


def labels_layer(
    objects: Instances,
    name: str,
    features: pd.DataFrame,
    pixel_size_um: tuple[float, float] | None = None,
    *,
    visible: bool = True,
) -> LayerData:
    """The objects as labels; ``features`` as `features_of` returns them."""
    labels = objects.masks.to_label_map(objects.ids).astype(np.int32)
    return labels, {"name": name, "features": features, **_place(pixel_size_um), "visible": visible}, "labels"


def features_of(table: pd.DataFrame) -> pd.DataFrame:
    """A table of measurements as napari has it: the column ``index`` holds the labels."""
    table = table.reset_index() if table.index.name == "label" else table
    return table.rename(columns={"label": "index"}).drop(columns="image", errors="ignore")


def objects_of(labels: np.ndarray, features: Any) -> tuple[Instances, tuple[str, ...] | None]:
    """The labels of a layer as objects, with the classes and scores of its features; and the names of the classes.

    Objects that were drawn in napari have no features: the first class, and no scores then.
    """
    objects = Instances.from_label_map(labels)
    if features is None or "index" not in features or "class" not in features:
        return objects, None
    rows = features.drop_duplicates("index").set_index("index").reindex(objects.ids)
    names = tuple(dict.fromkeys(str(name) for name in features["class"].dropna()))
    numbers = {name: k for k, name in enumerate(names)}
    class_ids = [numbers.get(str(name), 0) for name in rows["class"]]
    scores = rows["score"].to_numpy(np.float32) if "score" in rows else np.full(len(rows), np.nan, np.float32)
    known = None if not len(rows) or np.isnan(scores).any() else scores
    return Instances.from_masks(objects.masks, ids=objects.ids, class_ids=class_ids, scores=known), names or None


def _place(pixel_size_um: tuple[float, float] | None) -> dict[str, Any]:
    """Where a layer lies: in microns, if the pixel size is known."""
    return {} if pixel_size_um is None else {"scale": pixel_size_um, "units": ("um", "um")}

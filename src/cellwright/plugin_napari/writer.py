"""The writer of the napari plugin: a labels layer as label image, QuPath GeoJSON, ImageJ ROIs or measurements."""

from __future__ import annotations

from typing import Any

import numpy as np

from cellwright.core.errors import InputError
from cellwright.plugin_napari.layers import objects_of


def write_labels(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Save a labels layer with `cellwright.save`: the suffix decides. Ids are kept; class and score are its features.

    Raises `InputError` for labels that are not two-dimensional, and what `cellwright.save` raises.
    """
    from cellwright.api.save import save

    labels = np.asarray(data)
    if labels.ndim != 2:
        got, remedy = f"{labels.ndim} dimensions", "save one plane: select it with `layer.data[k]`"
        raise InputError("only two-dimensional labels can be saved", got=got, remedy=remedy)
    objects, class_names = objects_of(labels, meta.get("features"))
    return [str(save(objects, path, class_names=class_names))]

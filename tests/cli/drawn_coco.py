"""The drawn field of tests/cases/json as other tools export it: 9 nuclei on 96 x 128 px, outlines and labels."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

FIELD = Path(__file__).parents[1] / "cases" / "json"
LABELS = tifffile.imread(FIELD / "labels.tif")
AREAS = np.bincount(LABELS.ravel())[1:].tolist()


def document(**changes: Any) -> dict[str, Any]:
    """The COCO file of the field, with other top-level sections where given."""
    return copy.deepcopy(json.loads((FIELD / "instances.json").read_text())) | changes


def outlines() -> list[list[float]]:
    """The outline of each nucleus as x, y, x, y, ..."""
    return [annotation["segmentation"][0] for annotation in document()["annotations"]]


def pairs(outline: list[float]) -> list[list[float]]:
    """The outline as [[x, y], ...]."""
    return [list(vertex) for vertex in zip(outline[::2], outline[1::2], strict=True)]


def counts_of(mask: np.ndarray) -> list[int]:
    """Uncompressed RLE of a mask, down columns, background first."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(int), [2]])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges])).tolist()


def each(change: dict[str, Any]) -> dict[str, Any]:
    """The COCO file with ``change`` in every annotation; None removes a field."""
    content = document()
    for annotation in content["annotations"]:
        annotation.update(change)
        for field in [name for name, value in change.items() if value == "REMOVE"]:
            del annotation[field]
    return content


def save(folder: Path, content: Any, name: str = "img.json", image: str | None = "img.png") -> Path:
    """Write a JSON file, and the image at the path ``image`` below ``folder``."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    if image is not None:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FIELD / "img.png", folder / image)
    return path

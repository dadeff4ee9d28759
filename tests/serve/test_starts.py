"""The objects with which a large image begins: those that the way for small images gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.masks import MaskSet
from cellwright.data.synthetic import FieldLook, draw_field

pytest.importorskip("fastapi")
from cellwright.data.formats.label_images import LoadLabels
from cellwright.data.formats.label_kinds import Meaning
from cellwright.data.formats.large_labels import LargeLabels
from cellwright.prediction.tiling.label_writers import write_label_zarr
from cellwright.serve.layer import Chunks
from cellwright.serve.project import Project
from cellwright.serve.starts import count_of, start_of

TIFFS: dict[str, dict[str, Any]] = {
    "strips": {"compression": "zlib", "rowsperstrip": 7, "predictor": 2},
    "tiles": {"compression": "zlib", "tile": (256, 768)},
    "plain": {},
    "big_endian": {"byteorder": ">"},
}


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Drawn nuclei, one of them in two parts far from each other, one with the largest id."""
    tile = draw_field(0, (475, 475), 120, FieldLook(overlap=0))[1].to_label_map()
    steps = np.arange(16, dtype=np.uint32).reshape(4, 4) * tile.max()
    labels = np.where(np.tile(tile, (4, 4)) > 0, np.tile(tile, (4, 4)) + np.kron(steps, np.ones_like(tile)), 0)
    labels[labels == labels.max()] = 1
    labels[labels == 2] = 2**32 - 1
    return labels.astype(np.uint32)


def test_large_label_images_begin_as_small_ones(
    labels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, ids = MaskSet.from_label_map(labels)
    monkeypatch.setattr("cellwright.data.formats.large_labels.LARGE_PX", 1000)
    monkeypatch.setattr("cellwright.data.formats.large_labels._READ_BYTES", 99_999)
    monkeypatch.setattr("cellwright.core.dataset.Sample.read_instances", None)  # no object is cut out
    loads: list[LoadLabels | LargeLabels] = []
    for kind, options in TIFFS.items():
        path = tmp_path / f"{kind}.tif"
        tifffile.imwrite(path, labels, photometric="minisblack", metadata=None, **options)
        loads.append(LoadLabels(path, labels.shape, Meaning()))
    write_label_zarr(tmp_path / "labels.zarr", labels.shape, lambda window: window.of(labels))
    loads.append(LargeLabels(tmp_path / "labels.zarr", labels.shape))
    for load in loads:
        shown: list[int] = []

        def track(bands: Any, _: Any, total: int | None = None, shown: Any = shown) -> Iterator[Any]:
            for band in bands:
                shown.append(total)
                yield band

        dataset = Dataset((Sample("a", tmp_path / "a.tif", labels.shape, load),), ("cell",))
        start = start_of(dataset.sample("a"), dataset, track)
        assert shown == [4] * 4
        columns = start.table.columns()
        assert columns["id"].tolist() == ids.tolist()
        sides = np.stack([columns[name] for name in ("x0", "y0", "x1", "y1")], axis=1)
        assert np.array_equal(sides, masks.boxes)
        assert np.array_equal(columns["area"], masks.areas)
        assert np.isnan(columns["score"]).all()
        assert not columns["class_id"].any()
        assert count_of(dataset, "a", tmp_path) == len(ids)
        chunks = Chunks(labels.shape)
        for place, data in start.chunks.items():
            chunks.put_packed(*place, data)
        assert np.array_equal(chunks.read(chunks.box_of(0, 0).united(chunks.box_of(3, 3))), labels)


def test_all_windows_are_told_how_much_of_a_large_image_is_open(
    labels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(labels.shape, np.uint8))
    tifffile.imwrite(tmp_path / "a_masks.tif", labels[:, ::-1].astype(np.uint16))
    for module, name in (("serve.project", "LARGE_PX"), ("data.formats.large_labels", "LARGE_PX")):
        monkeypatch.setattr(f"cellwright.{module}.{name}", 1000)
    monkeypatch.setattr("cellwright.serve.project._TELL_S", 0)
    project = Project(tmp_path / "project")
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(project.events, "publish", told.append)
    try:
        project.add(tmp_path)
        table = project.annotation("a").table
    finally:
        project.close()
    assert len(table) == project.image("a").n_objects > 1000
    opening = [event["done"] for event in told if event["kind"] == "opening"]
    assert opening == [0, 0.25, 0.5, 0.75]

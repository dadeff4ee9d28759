"""Regions that are not annotated (COCO's crowds) are no objects: not in tables, label images or counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from drawn import run

import cellwright as cw
from cellwright.api.read import read_dataset
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import FORMATS, WriteOptions


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    labels = np.zeros((40, 60), np.uint16)
    labels[5:15, 5:15], labels[20:30, 8:18], labels[:, 40:] = 1, 2, 3
    masks, ids = MaskSet.from_label_map(labels)
    tifffile.imwrite(tmp_path / "a.tif", labels.astype(np.uint8))
    objects = Instances.from_masks(masks, ids=ids, ignore=[False, False, True])
    folder = tmp_path / "data"
    folder.mkdir()
    sample = Sample("a", tmp_path / "a.tif", (40, 60), Loaded(objects))
    FORMATS["coco"].write(Dataset((sample,), ("cell",)), folder, WriteOptions())
    return folder


def test_measure_and_label_images_have_objects_only(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("measure", dataset, "--out", tmp_path / "table.csv") == 0
    (cells,) = (sample.read_instances() for sample in read_dataset(dataset))
    assert cw.measure(cells).index.tolist() == [1, 2]
    assert np.unique(tifffile.imread(cw.save(cells, tmp_path / "saved.tif"))).tolist() == [0, 1, 2]
    rows = (tmp_path / "table.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == ["1", "2"]
    assert run("export", dataset, "--to", "label_images", "--out", tmp_path / "labels") == 0
    out, err = capsys.readouterr()
    assert "with 2 objects in 1 image" in out
    assert "omitted" not in err
    assert (tmp_path / "labels/a_ignore.png").is_file()
    assert run("export", dataset, "--to", "yolo_seg", "--out", tmp_path / "lines") == 0
    assert "1 ignored region omitted: yolo_seg has no place for them" in capsys.readouterr().err
    assert np.unique(tifffile.imread(tmp_path / "labels/a_masks.tif")).tolist() == [0, 1, 2]


def test_outlines_keep_them_as_regions(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", dataset, "--to", "geojson", "--out", tmp_path / "outlines") == 0
    assert "with 2 objects in 1 image" in capsys.readouterr().out
    (sample,) = read_dataset(tmp_path / "outlines", require_images=False)
    assert sample.read_instances().ignore.tolist() == [False, False, True]

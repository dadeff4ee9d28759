"""`cellwright.save`: every suffix, what it accepts, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image as Pillow

import cellwright as cw
from cellwright.core.errors import InputError, UsageError

HW = (40, 50)
LABELS = np.zeros(HW, np.int32)
for number, (top, left) in enumerate([(0, 0), (0, 20), (20, 0), (20, 30)]):
    LABELS[top : top + 10, left : left + 12] = 5 * number + 3


@pytest.fixture
def cells() -> cw.Instances:
    masks, ids = cw.MaskSet.from_label_map(LABELS)
    return cw.Instances.from_masks(masks, ids=ids, scores=np.linspace(0.2, 0.9, 4))


@pytest.fixture
def image() -> cw.Image:
    return cw.Image(np.full((*HW, 1), 900, np.uint16), ("DAPI",), pixel_size_um=(0.5, 0.5), path="folder/a.ome.tif")


@pytest.mark.parametrize("suffix", [".geojson", ".json", ".zip"])
def test_formats_with_scores_keep_everything(cells: cw.Instances, image: cw.Image, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"b{suffix}"
    assert cw.save(cells, str(path), image=image) == path
    back = cw.read_instances(path)
    assert back.masks == cells.masks
    assert back.ids.tolist() == cells.ids.tolist()
    assert back.scores is not None
    assert cells.scores is not None
    assert back.scores.tolist() == pytest.approx(cells.scores.tolist(), abs=1e-6)


def test_label_images_pictures_and_tables(cells: cw.Instances, image: cw.Image, tmp_path: Path) -> None:
    labels = tifffile.imread(cw.save(cells, tmp_path / "b.tiff"))
    assert labels.dtype == np.uint32
    np.testing.assert_array_equal(labels, LABELS)
    with Pillow.open(cw.save(cells, tmp_path / "b.png", image=image)) as picture:
        assert picture.size[0] % HW[1] == 0  # small images are enlarged
    table = pd.read_csv(cw.save(cells, tmp_path / "b.csv", image=image))
    assert list(table)[:4] == ["image", "label", "class", "score"]
    assert (set(table["image"]), set(table["class"])) == ({"a"}, {"cell"})
    assert table.label.tolist() == cells.ids.tolist()
    assert table.intensity_mean_DAPI.tolist() == [900] * 4
    assert set(pd.read_csv(cw.save(cells, tmp_path / "c_measurements.csv"))["image"]) == {"c"}


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64"])
def test_label_arrays_and_paths_are_objects_too(dtype: str, tmp_path: Path) -> None:
    path = cw.save(LABELS.astype(dtype), tmp_path / "a.tif")
    np.testing.assert_array_equal(tifffile.imread(path), LABELS)
    picture = tmp_path / "image.png"
    Pillow.fromarray(np.full(HW, 7, np.uint8)).save(picture)
    table = pd.read_csv(cw.save(path, tmp_path / "a.csv", image=picture))
    assert table.label.tolist() == [3, 8, 13, 18]
    assert set(table["image"]) == {"image"}
    assert table.filter(like="intensity_mean").to_numpy().ravel().tolist() == [7] * 4


def test_what_cannot_be_saved_leaves_no_file(cells: cw.Instances, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs the image"):
        cw.save(cells, tmp_path / "b.png")
    with pytest.raises(UsageError, match="unknown file type") as caught:
        cw.save(cells, tmp_path / "b.docx")
    assert ".geojson" in str(caught.value)
    for name in ("b.csv", "b.geojson", "b.png"):
        with pytest.raises(InputError):
            cw.save(cells, tmp_path / name, image=np.zeros((5, 5), np.uint8))
    with pytest.raises(InputError, match="without a name"):
        cw.save(cells, tmp_path / "b.zip", class_names=[])
    with pytest.raises(UsageError, match="objects of one image"):
        cw.save([cells, cells], tmp_path / "b.tif")  # type: ignore[arg-type]
    for value in (None, 3, {"labels": LABELS}):
        with pytest.raises(UsageError, match=r"not the objects of an image[\s\S]*label array"):
            cw.save(value, tmp_path / "b.tif")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not a label array"):
        cw.save(LABELS / 2, tmp_path / "b.tif")
    assert list(tmp_path.iterdir()) == []


def test_class_names(cells: cw.Instances, tmp_path: Path) -> None:
    classed = cw.Instances.from_masks(cells.masks, class_ids=np.arange(4) % 2)
    path = cw.save(classed, tmp_path / "b.geojson", class_names=("live", "dead"))
    properties = [feature["properties"] for feature in json.loads(path.read_text())["features"]]
    assert [entry["classification"]["name"] for entry in properties] == ["live", "dead", "live", "dead"]
    assert properties[0]["measurements"]["area_px"] == 120
    assert set(pd.read_csv(cw.save(classed, tmp_path / "b.csv"))["class"]) == {"class0", "class1"}


def test_no_objects(tmp_path: Path) -> None:
    empty = np.zeros(HW, np.uint8)
    for suffix in (".geojson", ".zip", ".csv", ".tif", ".json", ".png"):
        cw.save(empty, tmp_path / f"{suffix[1:]}{suffix}", image=empty)
    assert pd.read_csv(tmp_path / "csv.csv").empty
    assert len(cw.read_instances(tmp_path / "geojson.geojson")) == 0

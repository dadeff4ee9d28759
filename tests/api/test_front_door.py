"""The Python example of the design, line by line, on small drawn images; and every suffix that `save` knows."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import tifffile
from matplotlib import pyplot
from matplotlib.axes import Axes
from PIL import Image as Pillow

import cellwright as cw
from cellwright.core.errors import InputError, UsageError
from cellwright.core.masks import MaskSet
from cellwright.data.formats import FORMATS, WriteOptions
from cellwright.data.synthetic import FieldLook, draw_field, write_demo_dataset

EXAMPLE = """
image  = cw.read_image("a.ome.tif", channel="DAPI")     # Image
model  = cw.load_model("nuclei", device="auto")         # name, run or model folder
cells  = model.predict(image)                           # Instances; an array or a path works; a list gives a list
labels = cells.to_label_map()                           # (H, W) uint32, 0 = background
table  = cw.measure(cells, image)                       # pandas, index "label"
cw.save(cells, "a.geojson", image=image)                # the suffix decides
cw.show(image, cells)                                   # matplotlib Axes
truth  = cw.read_instances("a_masks.tif")
report = cw.evaluate(cells, truth, metrics=["coco_ap", "aji", "pq"])  # one image, or lists
report["AP@all"], report["accuracy@0.5"], report.per_image
data   = cw.read_dataset("work/vrdl")
run    = cw.train("nuclei/finetune", data, out="runs/mine", max_minutes=5)
both   = cw.fuse([cells, run.model.predict(image)], method="wbf")
"""
GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
HW = (160, 192)
FLUORESCENCE = FieldLook(stain="fluorescence", bit_depth=16)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with what the example reads: an OME-TIFF of two channels, its labels, and a dataset."""
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    nuclei, truth = draw_field(3, HW, 20, FLUORESCENCE)
    stack = np.stack([np.full(HW, 900, np.uint16), nuclei.data[:, :, 0]])
    metadata = {
        "axes": "CYX",
        "Channel": {"Name": ["actin", "DAPI"]},
        **{f"PhysicalSize{axis}": 0.5 for axis in "XY"},
        **{f"PhysicalSize{axis}Unit": "µm" for axis in "XY"},
    }
    tifffile.imwrite("a.ome.tif", stack, metadata=metadata, photometric="minisblack")
    cw.save(truth, "a_masks.tif")
    demo = write_demo_dataset(tmp_path / "drawn", image_hw=(96, 128), n_objects=12, splits=(("train", 2), ("val", 1)))
    FORMATS["coco"].write(demo, Path("work/vrdl"), WriteOptions())
    return tmp_path


def lines_with(*words: str, without: tuple[str, ...] = ()) -> str:
    """The example's lines except those that contain one of ``without``; ``words`` are old, new, old, new, ..."""
    lines = [line for line in EXAMPLE.splitlines() if not any(word in line for word in without)]
    text = "\n".join(lines)
    for old, new in zip(words[::2], words[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    return text


def check(names: dict) -> None:
    """Check the results of all lines but the last two."""
    image, cells, labels, table = (names[name] for name in ("image", "cells", "labels", "table"))
    assert image.describe() == "160 x 192, uint16, 1 channel (DAPI), 0.5 um/px"
    assert len(cells) > 10
    assert cells.scores is not None
    assert labels.shape == HW
    assert labels.dtype == np.uint32
    assert table.index.name == "label"
    assert table.index.tolist() == cells.ids.tolist()
    assert {"area_um2", "intensity_mean_DAPI"} < set(table)
    assert table.area_um2.tolist() == (table.area_px / 4).tolist()
    assert cw.read_instances("a.geojson").masks == cells.masks
    report = names["report"]
    assert report["AP@all"] > 0.3
    assert report["accuracy@0.5"] > 0.5
    assert len(report.per_image) == 1
    assert {"pq", "aji"} < set(report.per_image)
    assert len(names["data"]) == 3


def test_the_guide_shows_this_example() -> None:
    """Compared line by line; ruff sets the spacing in the guide."""
    blocks = GUIDE.read_text().split("```")
    shown = [[line.split() for line in block.splitlines()[1:] if line] for block in blocks]
    assert [["import", "cellwright", "as", "cw"], *(line.split() for line in EXAMPLE.splitlines() if line)] in shown


def test_the_lines_that_need_no_trained_model(folder: Path) -> None:
    names = {"cw": cw}
    exec(lines_with('"nuclei"', '"classical"', without=("cw.train", "cw.fuse")), names)
    check(names)


def test_a_plain_array_works_and_a_list_gives_a_list(folder: Path) -> None:
    image, model = cw.read_image("a.ome.tif", channel="DAPI"), cw.load_model("classical")
    cells = model.predict(image)
    assert model.predict(image.data[:, :, 0]).masks == cells.masks
    several = model.predict([image, image.data])
    assert [one.masks == cells.masks for one in several] == [True, True]
    assert (
        cw.measure(cells, image.data).intensity_mean_grey.tolist()
        == cw.measure(cells, image).intensity_mean_DAPI.tolist()
    )
    axes = cw.show(image.data, cells)
    assert isinstance(axes, Axes)
    pyplot.close(axes.figure)
    with pytest.raises(InputError, match="actin, DAPI"):
        cw.read_image("a.ome.tif")


def test_the_suffix_decides(folder: Path) -> None:
    image, truth = cw.read_image("a.ome.tif", channel="DAPI"), cw.read_instances("a_masks.tif")
    cells = cw.Instances.from_masks(truth.masks, ids=truth.ids + 6, scores=np.linspace(0.2, 0.9, len(truth)))
    for name in ("b.geojson", "b.json", "b.zip"):
        assert cw.save(cells, name, image=image) == Path(name)
        back = cw.read_instances(name)
        assert back.masks == cells.masks
        assert back.ids.tolist() == cells.ids.tolist()
        assert back.scores is not None
        assert back.scores.tolist() == pytest.approx(cells.scores.tolist(), abs=1e-6)
    labels = tifffile.imread(cw.save(cells, "b.tiff"))
    assert labels.dtype == np.uint32
    assert set(np.unique(labels)) == {0, *cells.ids.tolist()}
    with Pillow.open(cw.save(cells, "b.png", image=image)) as picture:
        assert picture.size[0] == HW[1]
    table = pd.read_csv(cw.save(cells, "b.csv", image=image))
    assert list(table)[:4] == ["image", "label", "class", "score"]
    assert (set(table["image"]), set(table["class"])) == ({"a.ome"}, {"cell"})
    assert table.label.tolist() == cells.ids.tolist()
    assert table.intensity_mean_DAPI.min() > 0
    assert set(pd.read_csv(cw.save(cells, "c_measurements.csv"))["image"]) == {"c"}


def test_what_cannot_be_saved_leaves_nothing(folder: Path) -> None:
    cells = cw.read_instances("a_masks.tif")
    with pytest.raises(UsageError, match="needs the image"):
        cw.save(cells, "b.png")
    with pytest.raises(UsageError, match="unknown file type"):
        cw.save(cells, "b.docx")
    for name in ("b.csv", "b.geojson", "b.png"):
        with pytest.raises(InputError):
            cw.save(cells, name, image=np.zeros((5, 5), np.uint8))
    with pytest.raises(InputError, match="without a name"):
        cw.save(cells, "b.zip", class_names=[])
    assert not list(folder.glob("*b.*"))


def test_class_names_and_no_objects(folder: Path) -> None:
    truth = cw.read_instances("a_masks.tif")
    kinds = cw.Instances.from_masks(truth.masks, class_ids=np.arange(len(truth)) % 2)
    found = json.loads(cw.save(kinds, "b.geojson", class_names=("live", "dead")).read_text())
    properties = [feature["properties"] for feature in found["features"]]
    assert {one["classification"]["name"] for one in properties} == {"live", "dead"}
    assert properties[0]["measurements"]["area_px"] == truth.masks.areas[0]
    assert set(pd.read_csv(cw.save(kinds, "b.csv"))["class"]) == {"class0", "class1"}
    none = cw.Instances.from_masks(MaskSet.empty(HW))
    for name in ("m.geojson", "n.zip", "n.csv", "n.tif", "n.json", "n.png"):
        cw.save(none, name, image=np.zeros(HW, np.uint8))
    assert pd.read_csv("n.csv").empty
    assert len(cw.read_instances("m.geojson")) == 0

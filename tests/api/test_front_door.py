"""The Python example of the guide, line by line, on small drawn images."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import tifffile

import cellwright as cw
from cellwright.data.formats import FORMATS, WriteOptions
from cellwright.data.synthetic import FieldLook, draw_field, write_demo_dataset

EXAMPLE = """
image  = cw.read_image("a.ome.tif")                     # Image, all channels
model  = cw.load_model("nuclei", device="auto")         # name, run or model folder
cells  = model.predict(image, channel="DAPI")           # Instances; an array or a path works; a list gives a list
labels = cells.to_label_map()                           # (H, W) uint32, 0 = background
table  = cw.measure(cells, image)                       # pandas, index "label"; label arrays work everywhere
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
    sizes = {"image_hw": (96, 128), "n_objects": 12}
    # Of the same kind as the image, which the run's model is to predict.
    look = FieldLook(stain="fluorescence")
    demo = write_demo_dataset(tmp_path / "drawn", splits=(("train", 2), ("val", 1)), look=look, **sizes)
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
    assert image.describe() == "160 x 192, uint16, 2 channels (actin, DAPI), 0.5 um/px"
    assert len(cells) > 10
    assert cells.scores is not None
    assert labels.shape == HW
    assert labels.dtype == np.uint32
    assert table.index.name == "label"
    assert table.index.tolist() == cells.ids.tolist()
    assert {"area_um2", "intensity_mean_DAPI", "intensity_mean_actin"} < set(table)
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
    listed = model.predict([image, image.data])
    assert [prediction.masks == cells.masks for prediction in listed] == [True, True]
    both = cw.read_image("a.ome.tif")
    assert both.channels == ("actin", "DAPI")
    assert model.predict(both, channel="DAPI").masks == cells.masks


@pytest.mark.usefixtures("folder")
def test_every_line(tmp_path: Path) -> None:
    """The whole example with the bundled pretrained model and a very short training."""
    names = {"cw": cw}
    with pytest.warns(UserWarning, match="channel DAPI of actin, DAPI was assumed"):  # by the model of the run
        exec(lines_with("max_minutes=5", "max_minutes=0.02"), names)
    check(names)
    run, both = names["run"], names["both"]
    assert (tmp_path / "runs/mine/model/weights.safetensors").is_file()
    # As the weights that it starts from, `nuclei-fluorescence`.
    assert run.model.recipe.input.background == "dark"
    assert run.metrics["accuracy@0.5"] > 0
    assert len(both) > 10
    assert both.scores is not None
    assert both.masks.image_hw == names["image"].image_hw

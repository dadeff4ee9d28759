"""``predict --expand`` and ``measure --expand | --nuclei``: nuclei and cells in labels, tables and outlines."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
from drawn import run

import cellwright as cw
from cellwright.data.synthetic import draw_field


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``images/`` of two images with a pixel size of 0.5 um, and their nuclei and cells in ``pred/``."""
    root = tmp_path_factory.mktemp("cells")
    (root / "images").mkdir()
    resolution = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    for k, name in enumerate("ab"):
        tifffile.imwrite(root / "images" / f"{name}.tif", draw_field(k, (96, 128), 10)[0].data, **resolution)
    words = ("--model", "classical", "--expand", "2um", "--remove-border", "--out", root / "pred")
    assert run("predict", root / "images", *words) == 0
    return root


@pytest.fixture
def pred(made, tmp_path):
    return shutil.copytree(made, tmp_path / "made") / "pred"


def test_the_table_and_the_files_have_nuclei_and_cells_under_one_id(made, tmp_path, capsys):
    table = pd.read_csv(made / "pred" / "measurements.csv", index_col=["image", "label"])
    for name in "ab":
        nuclei = tifffile.imread(made / "pred" / f"{name}_masks.tif")
        cells = tifffile.imread(made / "pred" / f"{name}_cell_masks.tif")
        assert set(np.unique(nuclei)) == set(np.unique(cells))
        assert (cells[nuclei > 0] == nuclei[nuclei > 0]).all()
        for number, row in table.loc[name].iterrows():
            n_nucleus, n_cell = (nuclei == number).sum(), (cells == number).sum()
            assert row["cell_area_um2"] == n_cell / 4
            assert row["cytoplasm_area_px"] == n_cell - n_nucleus > 0
    capsys.readouterr()
    assert run("measure", made / "pred", "--out", tmp_path / "again.csv") == 0
    assert "cells: nuclei expanded by 2um, as predicted" in capsys.readouterr().err
    assert (tmp_path / "again.csv").read_text() == (made / "pred" / "measurements.csv").read_text()
    assert run("measure", made / "pred", "--expand", "0", "--out", tmp_path / "alone.csv") == 0
    alone = pd.read_csv(tmp_path / "alone.csv", index_col=["image", "label"])
    np.testing.assert_array_equal(alone["area_px"], table["nucleus_area_px"])
    assert "cell area" in (made / "pred" / "report.html").read_text()


def test_qupath_gets_cells_with_a_nucleus_and_their_measurements(pred, capsys):
    path = pred / "a.geojson"
    features = json.loads(path.read_text())
    for feature in features["features"]:
        assert feature["properties"]["objectType"] == "cell"
        assert feature["nucleusGeometry"]["type"] == "Polygon"
        assert feature["properties"]["measurements"]["cytoplasm_area_px"] > 0
    path.write_text(json.dumps(features, indent=1))  # saved again: no edit
    before = cw.read_dataset(pred).sample("a").read_instances()
    out = pred.parent / "t.csv"
    assert run("measure", pred, "--out", out) == 0
    assert "edited" not in capsys.readouterr().err
    cell = features["features"][0]["geometry"]
    features["features"][0]["geometry"] = features["features"][0]["nucleusGeometry"]
    path.write_text(json.dumps(features))
    assert run("measure", pred, "--out", out, "--overwrite") == 0
    assert "warning: the cells in a.geojson were edited, but not measured" in capsys.readouterr().err
    features["features"][0]["geometry"] = cell
    del features["features"][0]
    path.write_text(json.dumps(features))
    dataset = cw.read_dataset(pred)
    assert [note.text for note in dataset.notes] == ["a.geojson was edited, so its objects were read"]
    after = dataset.sample("a").read_instances()
    assert run("measure", pred, "--out", out, "--overwrite") == 0
    assert "nuclei were edited, so their cells were made again: a\n" in capsys.readouterr().err
    assert run("report", pred, "--out", pred.parent / "report.html") == 0
    assert "cell area" in (pred.parent / "report.html").read_text()
    kept = before[np.isin(before.ids, after.ids)]
    assert len(after) == len(features["features"])
    assert kept.masks == after[np.argsort(after.ids)].masks


def test_corrected_cells_are_measured(pred, capsys):
    path = pred / "a_cell_masks.tif"
    cells = tifffile.imread(path)
    first, second = np.unique(cells[cells > 0])[:2]
    cells[cells == first] = 0
    tifffile.imwrite(path, cells)
    assert run("measure", pred, "--out", pred.parent / "t.csv") == 0
    notes = capsys.readouterr().err
    assert "a_cell_masks.tif was edited, so its cells were measured" in notes
    assert "1 nucleus without a cell" in notes
    table = pd.read_csv(pred.parent / "t.csv", index_col=["image", "label"]).loc["a"]
    assert not table.loc[first, "has_cell"]
    assert np.isnan(table.loc[first, "cell_area_px"])
    assert table.loc[second, "cell_area_px"] == (cells == second).sum()


def test_files_beside_images_are_annotations_of_one_image(made, tmp_path, capsys):
    for name, patterns in (("nuclei", ("[ab]_masks.tif", "*cell_masks.tif")), ("cells", ("*cell_masks.tif",))):
        (tmp_path / name).mkdir()
        for file in [*made.glob("images/*"), *(file for one in patterns for file in made.glob(f"pred/{one}"))]:
            shutil.copy(file, tmp_path / name)
        read = cw.read_dataset(tmp_path / name)
        assert [sample.id for sample in read] == ["a", "b"]
        ending = "_masks.tif" if name == "nuclei" else "_cell_masks.tif"
        expected = tifffile.imread(made / "pred" / f"a{ending}")
        np.testing.assert_array_equal(read.sample("a").read_instances().to_label_map(), expected)
    assert run("measure", tmp_path / "cells", "--nuclei", tmp_path / "nuclei", "--out", tmp_path / "t.csv") == 0
    table, expected = pd.read_csv(tmp_path / "t.csv"), pd.read_csv(made / "pred" / "measurements.csv")
    assert (table["n_nuclei"] == 1).all()
    assert (table["nucleus_label"] == table["label"]).all()
    merged = table.merge(expected, on=["image", "label"], suffixes=("", "_expected"))
    assert len(merged) == len(expected) == len(table)
    np.testing.assert_array_equal(merged["cytoplasm_area_px"], merged["cytoplasm_area_px_expected"])
    (tmp_path / "nuclei" / "b_masks.tif").unlink()
    (tmp_path / "nuclei" / "b_cell_masks.tif").unlink()
    assert run("measure", tmp_path / "cells", "--nuclei", tmp_path / "nuclei", "--out", tmp_path / "u.csv") == 2
    assert "1 of 2 images have no nuclei" in capsys.readouterr().err


def test_microns_without_a_pixel_size_and_tiles_are_refused_with_what_to_do(made, tmp_path, capsys):
    image = tmp_path / "plain.tif"
    tifffile.imwrite(image, draw_field(0, (150, 250), 18)[0].data)
    words = ("predict", image, "--model", "classical", "--out", tmp_path / "pred")
    assert run(*words, "--expand", "2um") == 2
    assert "give the microns per pixel as --pixel-size" in capsys.readouterr().err
    assert not (tmp_path / "pred").exists()
    assert run(*words, "--expand", "4", "--tile", "128") == 2
    assert "omit --expand, and give it to `cellwright measure`" in capsys.readouterr().err
    assert run(*words, "--smooth", "--fill-holes", "--tile", "128") == 0
    whole = cw.load_model("classical").with_options(smooth=True, fill_holes=True).predict(image)
    job = cw.read_dataset(tmp_path / "pred")[0].read_instances()
    order = [np.lexsort(one.masks.boxes.T) for one in (job, whole)]
    assert job.masks[order[0]] == whole.masks[order[1]]
    assert run("measure", tmp_path / "pred", "--expand", "4", "--out", tmp_path / "t.csv") == 0
    table = pd.read_csv(tmp_path / "t.csv", index_col="label")
    expected = cw.measure(job, cw.read_image(image), expand=4)
    np.testing.assert_array_equal(table["cytoplasm_area_px"], expected["cytoplasm_area_px"])

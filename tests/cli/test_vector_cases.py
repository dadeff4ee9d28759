"""`data convert` of small files as QuPath, ImageJ, Cellpose and scripts write them; see tests/cases/vectors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from drawn import run

import cellwright as cw

CASES = Path(__file__).parents[1] / "cases" / "vectors"


@pytest.fixture
def convert(tmp_path, capsys):
    """Converts a case beside its image; returns the exit code, what was printed, and the dataset folder."""

    def convert(case: str, *options: str, image: str = "img.tif") -> tuple[int, str, Path]:
        folder = tmp_path / "case"
        shutil.copytree(CASES / case, folder)
        shutil.copy(CASES / "img.tif", folder / image)
        code = run("data", "convert", folder, "--out", tmp_path / "out", *options)
        printed = capsys.readouterr()
        return code, printed.out + printed.err, tmp_path / "out"

    return convert


@pytest.mark.parametrize(
    ("case", "n_objects", "class_name", "said"),
    [
        ("60_qupath_parent_annotation", 9, "Nucleus", "1 annotation read as a region"),
        ("61_null_class/empty", 9, "Nucleus", "1 object without a class read as Nucleus"),
        ("61_null_class/name_null", 9, "Nucleus", "1 object without a class read as Nucleus"),
        ("61_null_class/null", 9, "Nucleus", "1 object without a class read as Nucleus"),
        ("62_geometry_kinds/bare_list", 9, "cell", ""),
        ("62_geometry_kinds/bare_one", 1, "cell", ""),
        ("62_geometry_kinds/collection", 9, "Nucleus", ""),
        ("62_geometry_kinds/gcoll_top", 9, "cell", ""),
        ("62_geometry_kinds/gz", 9, "Nucleus", ""),
        ("62_geometry_kinds/hole", 9, "Nucleus", ""),
        ("62_geometry_kinds/multi", 8, "Nucleus", ""),
        ("64_points_among", 9, "Nucleus", "Point (1), as feature 9"),
        (
            "66_qupath_cells",
            9,
            "Nucleus",
            "the nucleus of 9 cells was not read; to read it instead of the cell, use --nucleus",
        ),
        ("70_roi_positions/mixed", 9, "cell", ""),
        ("71_roi_points_lines", 9, "cell", "1 of 10 ROIs not read, because they enclose no pixels: point ruler"),
    ],
)
def test_objects_and_what_is_said(case, n_objects, class_name, said, convert):
    code, printed, out = convert(case)
    assert code == 0, printed
    dataset = cw.read_dataset(out)
    assert dataset.class_names == (class_name,)
    assert [len(sample.read_instances()) for sample in dataset] == [n_objects]
    assert said in printed


@pytest.mark.parametrize("case", ["65_ome_stem/rois", "65_ome_stem/geojson"])
def test_ome_tif_is_one_suffix(case, convert):
    code, printed, out = convert(case, image="slide.ome.tif")
    assert code == 0, printed
    (sample,) = cw.read_dataset(out)
    assert (sample.id, len(sample.read_instances())) == ("slide", 9)


def test_nuclei_of_qupath_cells(convert):
    code, printed, out = convert("66_qupath_cells", "--nucleus")
    assert code == 0, printed
    assert "was not read" not in printed
    same_nuclei = CASES / "60_qupath_parent_annotation" / "img.geojson"
    shutil.copy(same_nuclei, out / "img.geojson")
    shutil.copy(CASES / "img.tif", out)
    expected = cw.read_instances(out / "img.geojson")
    assert cw.read_dataset(out)[0].read_instances().masks == expected.masks


def test_rois_on_several_slices_are_refused(convert):
    code, printed, out = convert("70_roi_positions/slices")
    assert code == 2
    assert "several slices" in printed
    assert not out.exists()


@pytest.mark.parametrize("case", ["80_roi_types", "81_roi_cellpose"])
def test_areas_of_imagej(case, convert):
    code, printed, out = convert(case)
    assert code == 0, printed
    lines = (CASES / case / "areas_imagej.txt").read_text().split()
    areas = cw.read_dataset(out)[0].read_instances().masks.areas
    assert areas.tolist() == list(map(int, lines[1::2]))

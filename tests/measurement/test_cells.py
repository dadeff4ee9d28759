"""Nuclei and cells in one table: the same as measured one by one, and what is said about those that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

import cellwright as cw
from cellwright.core.errors import InputError, UsageError
from cellwright.data.synthetic import draw_field
from cellwright.measurement.cells import cytoplasm_of, match, same_ids


@pytest.fixture(scope="module")
def field():
    image, truth = draw_field(3, (120, 140), 12)
    return image, cw.Instances.from_label_map(truth.masks.to_label_map())


def test_each_part_is_measured_as_it_is_alone(field):
    image, nuclei = field
    cells = nuclei.expand(4)
    table = cw.measure(nuclei, image, expand=4, ring=3, pixel_size=0.5)
    alone = cw.measure(nuclei, image, pixel_size=0.5), cw.measure(cells, image, ring=3, pixel_size=0.5)
    for part, expected in zip(("nucleus", "cell"), alone, strict=True):
        for name in expected.columns.drop(["class", "score"]):
            np.testing.assert_array_equal(table[f"{part}_{name}"], expected[name], err_msg=name)
    around = np.where(nuclei.to_label_map() > 0, 0, cells.to_label_map())
    channel = image.channels[0]
    means = ndimage.mean(image.data[:, :, 0], around, nuclei.ids)
    np.testing.assert_allclose(table[f"cytoplasm_intensity_mean_{channel}"], means)
    np.testing.assert_allclose(table["cytoplasm_area_um2"], 0.25 * (table["cell_area_px"] - table["nucleus_area_px"]))
    assert table.index.tolist() == nuclei.ids.tolist()
    assert "n_nuclei" not in table


@pytest.fixture
def two_sets():
    """Cell 3 with nucleus 1; cell 5 with 2 and the larger 9; cell 7 without; nucleus 3 without, and half of 4."""
    cells, nuclei = np.zeros((2, 60, 90), np.uint16)
    cells[5:25, 5:25], cells[5:25, 30:60], cells[35:55, 5:25], cells[35:55, 60:80] = 3, 5, 7, 8
    nuclei[10:15, 10:15], nuclei[10:16, 32:38], nuclei[10:20, 45:55], nuclei[40:48, 30:38] = 1, 2, 9, 3
    nuclei[40:44, 56:64] = 4
    nuclei[40:44, 25] = 6  # beside cell 7
    return cells, nuclei


def test_nuclei_and_cells_that_do_not_fit_are_kept_and_said(two_sets):
    cells, nuclei = two_sets
    table = cw.measure(cells, np.ones((60, 90), np.uint8), nuclei=nuclei)
    assert table.index.tolist() == [3, 5, 7, 8, 10, 6]  # nucleus 3 has the id of a cell
    assert table["n_nuclei"].tolist() == [1, 2, 0, 1, 1, 1]
    assert table["nucleus_label"].tolist() == [1, 9, 0, 4, 3, 6]
    assert table["has_cell"].tolist() == [True] * 4 + [False] * 2
    np.testing.assert_array_equal(table["nucleus_area_px"], [25, 136, np.nan, 32, 64, 4])
    np.testing.assert_array_equal(table["cell_area_px"], [400, 600, 400, 400, np.nan, np.nan])
    np.testing.assert_array_equal(table["cytoplasm_area_px"], [375, 464, np.nan, 384, np.nan, np.nan])
    np.testing.assert_array_equal(table["cytoplasm_intensity_mean_grey"], [1, 1, np.nan, 1, np.nan, np.nan])
    odd = match(cw.Instances.from_label_map(nuclei), cw.Instances.from_label_map(cells)).odd
    assert [n for n, _, _ in odd] == [1, 1, 2]


def test_without_objects_on_one_side_or_both(two_sets):
    cells, nuclei = two_sets
    none = np.zeros_like(cells)
    assert len(cw.measure(none, nuclei=none)) == 0
    assert cw.measure(cells, nuclei=none)["n_nuclei"].tolist() == [0] * 4
    assert cw.measure(none, nuclei=nuclei).index.tolist() == [1, 2, 3, 4, 6, 9]
    assert len(cw.measure(none, expand=3)) == 0


def test_a_nucleus_that_fills_its_cell_leaves_an_empty_cytoplasm(two_sets):
    cells = cw.Instances.from_label_map(two_sets[0])
    assert cytoplasm_of(same_ids(cells, cells)).masks.areas.tolist() == [0] * 4
    assert cw.measure(cells, nuclei=cells)["cytoplasm_area_px"].tolist() == [0] * 4


def test_what_does_not_go_together_is_refused(two_sets):
    cells, nuclei = two_sets
    with pytest.raises(UsageError, match="exclude each other"):
        cw.measure(cells, nuclei=nuclei, expand=3)
    with pytest.raises(InputError, match="differ in number"):
        cw.measure([cells, cells], nuclei=[nuclei])
    with pytest.raises(InputError, match="different sizes"):
        cw.measure(cells, nuclei=nuclei[:-1])
    with pytest.raises(InputError, match="needs the pixel size"):
        cw.measure(nuclei, expand="3um")

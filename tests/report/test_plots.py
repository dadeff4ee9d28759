"""Curves from a log and the notebook helper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pillow

from cellwright.core.errors import FormatError, InputError
from cellwright.data.synthetic import draw_field
from cellwright.report.plots import draw_curves, read_log
from cellwright.report.show import show

LOG = """step,lr,loss,loss_mask,step_s,data_s,peak_memory_mb,AP@all,box_AP@all,AP@all/nucleus
1,0.01,2.5,1.0,0.5,0.1,900,,,
2,0.02,2.0,0.8,0.5,0.1,910,0.2,0.3,0.2
3,0.01,nan,0.7,0.5,0.1,910,,,
"""


def test_every_subject_of_the_log_leaves_its_picture(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    written = draw_curves(tmp_path / "log.csv", tmp_path / "curves")
    names = {path.stem for path in written}
    assert names == {"losses", "lr", "memory", "iteration_time", "ap_box", "ap_mask", "ap_per_class"}
    for path in written:
        with Pillow.open(path) as picture:
            assert picture.size == (840, 480)


def test_subjects_without_numbers_leave_nothing(tmp_path):
    (tmp_path / "log.csv").write_text("step,lr,AP@all\n1,0.1,\n")
    assert [path.name for path in draw_curves(tmp_path / "log.csv", tmp_path)] == ["lr.png"]
    (tmp_path / "log.csv").write_text("")
    assert draw_curves(tmp_path / "log.csv", tmp_path) == []


def test_a_bad_log_is_named_with_line_and_column(tmp_path):
    (tmp_path / "log.csv").write_text("step,lr\n1,0.1\n2,fast\n")
    with pytest.raises(FormatError, match=r"line 3, column lr"):
        read_log(tmp_path / "log.csv")
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FormatError, match="column named step"):
        read_log(tmp_path / "log.csv")
    with pytest.raises(InputError, match="cannot read"):
        read_log(tmp_path / "absent.csv")


def test_show_gives_axes_in_pixels_of_the_image():
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.use("Agg")
    image, truth = draw_field(0, (60, 80), 5)
    axes = show(image, truth, ax=Figure().add_subplot())
    assert axes.get_xlim() == (0, 80)
    assert axes.get_ylim() == (60, 0)
    assert "5 objects" in axes.get_title()
    several = replace(truth, class_ids=np.arange(5) % 2)
    assert show(image, several, ax=Figure().add_subplot()).get_ylim()[0] > 60, "the legend's strip"

"""Curves from a log and the notebook helper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pillow

from cellwright.core.errors import FormatError, InputError
from cellwright.data.synthetic import draw_field
from cellwright.report import plots
from cellwright.report.plots import Subject, draw_curves, read_log
from cellwright.report.show import show

LOG = """step,lr,loss,loss_mask,step_s,data_s,peak_memory_mb,AP@all,box_AP@all,AP@all/nucleus,AP_small@all,AP50@all/a
1,0.01,2.5,1.0,0.5,0.1,900,,,,,
2,0.02,2.0,0.8,0.5,0.1,910,0.2,0.3,0.2,0.1,0.3
3,0.01,nan,0.7,0.5,0.1,910,,,,,
"""


class Pen:
    """Stands in for the drawing: what would be in each picture."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.subjects: dict[str, Subject] = {}
        monkeypatch.setattr(plots, "_plot", lambda path, steps, subject: self.subjects.update({path.stem: subject}))

    def lines(self) -> dict[str, list[str]]:
        return {name: list(subject.lines) for name, subject in self.subjects.items()}


def test_every_subject_of_the_log_leaves_its_picture(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    written = draw_curves(tmp_path / "log.csv", tmp_path / "curves")
    names = {path.stem for path in written}
    assert names == {"losses", "lr", "memory", "iteration_time", "ap_box", "ap_mask", "ap_per_class"}
    for path in written:
        with Pillow.open(path) as picture:
            # Two losses stand in two panels.
            assert picture.size == ((864, 312) if path.stem == "losses" else (840, 480))


def test_what_is_in_which_picture(tmp_path, monkeypatch):
    pen = Pen(monkeypatch)
    stages = ("class_stage1", "box_stage1", "class_stage2", "box_stage2")
    names = ("loss", "loss_rpn_class", "loss_rpn_box", *(f"loss_{name}" for name in stages), "loss_mask", "evaluate_s")
    (tmp_path / "log.csv").write_text(",".join(["step", *names]) + "\n" + ",".join("1" * (len(names) + 1)) + "\n")
    draw_curves(tmp_path / "log.csv", tmp_path)
    assert pen.lines() == {"losses": ["total", "rpn_class", "rpn_box", *stages, "mask"]}
    (tmp_path / "log.csv").write_text(LOG)
    draw_curves(tmp_path / "log.csv", tmp_path)
    assert pen.lines() == {
        "losses": ["total", "mask"],
        "lr": ["lr"],
        "memory": ["peak_memory_mb"],
        "iteration_time": ["whole step", "waiting for its images"],
        "ap_box": ["AP@all"],
        "ap_mask": ["AP@all"],
        "ap_per_class": ["nucleus"],
    }


def test_a_rate_that_falls_in_steps_is_drawn_so_that_every_fall_shows(tmp_path, monkeypatch):
    pen = Pen(monkeypatch)
    for kind, rates in (
        ("steps", [1e-4, 1e-2, *[1e-2] * 5, *[1e-3] * 5, *[1e-5] * 5]),
        ("cosine", np.geomspace(1, 1e-4, 9)),
    ):
        rows = "".join(f"{k + 1},{rate}\n" for k, rate in enumerate(rates))
        (tmp_path / "log.csv").write_text(f"step,lr\n{rows}")
        draw_curves(tmp_path / "log.csv", tmp_path)
        assert pen.subjects["lr"].logarithmic == (kind == "steps")


def test_a_long_log_is_drawn_in_panels_without_a_warning(tmp_path):
    rows = "".join(f"{k + 1},0.1,{1 + k % 7},{k % 5},2,1,0.5,0.1\n" for k in range(3000))
    (tmp_path / "log.csv").write_text("step,lr,loss,loss_class,loss_box,loss_mask,step_s,data_s\n" + rows)
    assert {path.stem for path in draw_curves(tmp_path / "log.csv", tmp_path)} == {"losses", "lr", "iteration_time"}
    with Pillow.open(tmp_path / "losses.png") as picture:
        assert picture.size == (1296, 624)


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

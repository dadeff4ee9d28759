"""Training curves from a log."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Pillow

from cellwright.core.errors import FormatError, InputError
from cellwright.report import curves
from cellwright.report.curves import CurveFigure, draw_curves, read_log

LOG = """step,lr,loss,loss_mask,step_s,data_s,peak_memory_mb,AP@all,box_AP@all,AP@all/nucleus,AP_small@all,AP50@all/a
1,0.01,2.5,1.0,0.5,0.1,900,,,,,
2,0.02,2.0,0.8,0.5,0.1,910,0.2,0.3,0.2,0.1,0.3
3,0.01,nan,0.7,0.5,0.1,910,,,,,
"""


class Recorder:
    """Replaces the drawing and records what would be in each figure."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.figures: dict[str, CurveFigure] = {}
        monkeypatch.setattr(curves, "_plot", lambda path, steps, figure: self.figures.update({path.stem: figure}))

    def lines(self) -> dict[str, list[str]]:
        return {name: list(figure.lines) for name, figure in self.figures.items()}


def test_every_subject_of_the_log_has_a_figure(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    written = draw_curves(tmp_path / "log.csv", tmp_path / "curves")
    names = {path.stem for path in written}
    assert names == {"losses", "lr", "memory", "iteration_time", "ap_box", "ap_mask", "ap_per_class"}
    for path in written:
        with Pillow.open(path) as picture:
            # Two losses have two panels.
            assert picture.size == ((864, 312) if path.stem == "losses" else (840, 480))


def test_lines_of_each_figure(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    stages = ("class_stage1", "box_stage1", "class_stage2", "box_stage2")
    names = ("loss", "loss_rpn_class", "loss_rpn_box", *(f"loss_{name}" for name in stages), "loss_mask", "evaluate_s")
    (tmp_path / "log.csv").write_text(",".join(["step", *names]) + "\n" + ",".join("1" * (len(names) + 1)) + "\n")
    draw_curves(tmp_path / "log.csv", tmp_path)
    assert recorder.lines() == {"losses": ["total", "rpn_class", "rpn_box", *stages, "mask"]}
    (tmp_path / "log.csv").write_text(LOG)
    draw_curves(tmp_path / "log.csv", tmp_path)
    assert recorder.lines() == {
        "losses": ["total", "mask"],
        "lr": ["lr"],
        "memory": ["peak_memory_mb"],
        "iteration_time": ["whole step", "waiting for data"],
        "ap_box": ["AP@all"],
        "ap_mask": ["AP@all"],
        "ap_per_class": ["nucleus"],
    }


def test_the_validation_loss_is_drawn_with_the_total(tmp_path, monkeypatch):
    (tmp_path / "log.csv").write_text("step,loss,loss_mask,val_loss\n1,3,1,\n2,2,1,9.5\n3,1,1,\n4,1,1,8\n")
    (written,) = draw_curves(tmp_path / "log.csv", tmp_path)
    with Pillow.open(written) as picture:
        assert picture.size == (864, 312), "no panel of its own"
    recorder = Recorder(monkeypatch)
    draw_curves(tmp_path / "log.csv", tmp_path)
    (values,) = recorder.figures["losses"].added.values()
    assert values[[1, 3]].tolist() == [9.5, 8]


def test_a_stepwise_learning_rate_is_drawn_on_a_logarithmic_axis(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    for kind, rates in (
        ("steps", [1e-4, 1e-2, *[1e-2] * 5, *[1e-3] * 5, *[1e-5] * 5]),
        ("cosine", np.geomspace(1, 1e-4, 9)),
    ):
        rows = "".join(f"{k + 1},{rate}\n" for k, rate in enumerate(rates))
        (tmp_path / "log.csv").write_text(f"step,lr\n{rows}")
        draw_curves(tmp_path / "log.csv", tmp_path)
        assert recorder.figures["lr"].logarithmic == (kind == "steps")


def test_a_long_log_is_drawn_in_panels_without_a_warning(tmp_path):
    rows = "".join(f"{k + 1},0.1,{1 + k % 7},{k % 5},2,1,0.5,0.1\n" for k in range(3000))
    (tmp_path / "log.csv").write_text("step,lr,loss,loss_class,loss_box,loss_mask,step_s,data_s\n" + rows)
    assert {path.stem for path in draw_curves(tmp_path / "log.csv", tmp_path)} == {"losses", "lr", "iteration_time"}
    with Pillow.open(tmp_path / "losses.png") as picture:
        assert picture.size == (1296, 624)


def test_subjects_without_data_have_no_figure(tmp_path):
    (tmp_path / "log.csv").write_text("step,lr,AP@all\n1,0.1,\n")
    assert [path.name for path in draw_curves(tmp_path / "log.csv", tmp_path)] == ["lr.png"]
    (tmp_path / "log.csv").write_text("")
    assert draw_curves(tmp_path / "log.csv", tmp_path) == []


def test_errors_name_line_and_column(tmp_path):
    (tmp_path / "log.csv").write_text("step,lr\n1,0.1\n2,fast\n")
    with pytest.raises(FormatError, match=r"line 3, column lr"):
        read_log(tmp_path / "log.csv")
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FormatError, match="column named step"):
        read_log(tmp_path / "log.csv")
    with pytest.raises(InputError, match="cannot read"):
        read_log(tmp_path / "absent.csv")

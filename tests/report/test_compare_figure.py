"""The figure of `compare`: the metric that is drawn, its lines, and that runs differ in greyscale print."""

from __future__ import annotations

from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image as Pillow

from cellwright.report.compare_figure import RunLine, draw_comparison, shared_metric
from cellwright.report.curves import Curves, line_format


def curves(n_steps: int, slope: float, **metrics: float) -> Curves:
    """A loss that decreases by ``slope`` per step; metrics exist at the last step only."""
    steps = np.arange(1.0, n_steps + 1)
    values = {"lr": np.full(n_steps, 0.1), "loss": 10 - slope * steps}
    values |= {name: np.where(steps == n_steps, value, np.nan) for name, value in metrics.items()}
    return Curves(steps, values)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """The figures that the test saves."""
    saved: list[matplotlib.figure.Figure] = []
    save = matplotlib.figure.Figure.savefig

    def record(self: matplotlib.figure.Figure, *arguments: object, dpi: int, format: str) -> None:  # noqa: A002
        saved.append(self)
        save(self, *arguments, dpi=dpi, format=format)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", record)
    return saved


def test_the_metric_that_most_runs_have_is_drawn() -> None:
    both = [RunLine("a", (curves(3, 1, pq=1),)), RunLine("b", (curves(3, 1, pq=1, **{"AP50@all": 1}),))]
    assert shared_metric(both, ["pq"]) == "pq"
    assert shared_metric(both[1:], ["pq"]) == "AP50@all"
    assert shared_metric([RunLine("c", (curves(3, 1),))], ["pq"]) is None


def test_every_run_is_a_line_in_each_panel(tmp_path: Path, figures: list[matplotlib.figure.Figure]) -> None:
    lines = [RunLine("long", (curves(200, 0.01, pq=0.5),)), RunLine("short", (curves(20, 0.1),))]
    draw_comparison(lines, tmp_path / "f.png", "pq")
    (figure,) = figures
    lr, loss, metric = figure.axes
    assert [len(axes.lines) for axes in (lr, loss, metric)] == [2, 2, 1]
    np.testing.assert_allclose(loss.lines[1].get_xdata(), np.arange(1, 21))
    np.testing.assert_allclose(loss.lines[1].get_ydata(), 10 - 0.1 * np.arange(1, 21), atol=1e-9)
    assert metric.lines[0].get_ydata().tolist() == [0.5]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["long", "short"]
    assert len({(line.get_linestyle(), line.get_marker()) for line in loss.lines}) == 2
    with Pillow.open(tmp_path / "f.png") as picture:
        assert picture.format == "PNG"


def test_seeds_become_a_mean_with_a_band(tmp_path: Path, figures: list[matplotlib.figure.Figure]) -> None:
    seeds = RunLine("three", (curves(9, 1.0), curves(9, 2.0), curves(7, 3.0)))
    draw_comparison([seeds], tmp_path / "f.png", None)
    lr, loss, metric = figures[0].axes
    np.testing.assert_allclose(loss.lines[0].get_xdata(), np.arange(1, 8))  # the steps that all seeds have
    np.testing.assert_allclose(loss.lines[0].get_ydata(), 10 - 2 * np.arange(1, 8))
    band = loss.collections[0].get_paths()[0].vertices
    assert np.ptp(band[band[:, 0] == 4, 1]) == pytest.approx(2 * np.std([4, 8, 12], ddof=1))
    assert np.ptp(lr.collections[0].get_paths()[0].vertices[:, 1]) == pytest.approx(0)
    assert [text.get_text() for text in metric.texts] == ["no run was evaluated"]


def test_twenty_lines_differ_in_greyscale_and_more_in_colour() -> None:
    formats = [line_format(k) for k in range(28)]
    assert len({(line.style, line.marker) for line in formats[:20]}) == 20
    assert len({(line.style, line.colour) for line in formats}) == 28


def test_a_column_that_no_run_has(tmp_path: Path, figures: list[matplotlib.figure.Figure]) -> None:
    draw_comparison([RunLine("started", (Curves(np.zeros(0), {}),))], tmp_path / "f.png", None)
    texts = [axes.texts[0].get_text() for axes in figures[0].axes]
    assert texts == ["no run logged lr", "no run logged loss", "no run was evaluated"]

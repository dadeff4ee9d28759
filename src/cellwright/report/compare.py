"""Runs side by side: learning rate, loss and average precision over steps, a line a run, readable in grey print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.files import atomic_path
from cellwright.report.plots import Curves, line_look, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PREFERRED = ("AP@all", "AP@100", "AP50@all")
_MARKS = 8  # markers along a dense line
_LEGEND_COLUMNS = 3


@dataclass(frozen=True)
class RunLine:
    """One line of the figure. name: for the legend. curves: of the run; of each seed where it was repeated."""

    name: str
    curves: tuple[Curves, ...]


def shared_metric(lines: Sequence[RunLine], chosen_by: Sequence[str] = ()) -> str | None:
    """The metric to draw: what most runs were validated by, average precision first; None where none was.

    chosen_by: metrics by which best models were picked, looked at after average precision.
    """
    logged = [set.intersection(*(set(one.named("")) for one in line.curves)) for line in lines]
    counts = {name: sum(name in names for names in logged) for name in dict.fromkeys((*_PREFERRED, *chosen_by))}
    name = max(counts, key=lambda one: counts[one])
    return name if counts[name] else None


def draw_comparison(lines: Sequence[RunLine], path: Path, metric: str | None) -> None:
    """Write the figure (PNG) to ``path``: lr, total loss (running mean over 2 % of the steps) and ``metric``.

    Seeds of one run are drawn as their mean, with a band of one standard deviation. A run without a column has no line
    in its panel; a panel without lines says so.
    """
    # A figure of its own instead of pyplot: no global state, and no window system is asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    legend_rows = -(-len(lines) // _LEGEND_COLUMNS)
    figure = Figure(figsize=(13, 4.2 + 0.22 * legend_rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (("lr", "learning rate", False), ("loss", "total loss", True), (metric, metric or "", False))
    drawn = {}
    for axes, (column, label, smooth) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for k, line in enumerate(lines):
            mean = None if column is None else _mean_line(line, column, smooth=smooth)
            if mean is not None:
                drawn[k] = _plot(axes, mean, line.name, k)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(visible=True, alpha=0.3)
        if not axes.lines:
            axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
            nothing = "no run was validated" if column in (None, metric) else f"no run logged {column}"
            axes.text(0.5, 0.5, nothing, ha="center", va="center", transform=axes.transAxes)
    handles = [drawn[k] for k in sorted(drawn)]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=_LEGEND_COLUMNS, handlelength=4)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _mean_line(line: RunLine, column: str, *, smooth: bool) -> np.ndarray | None:
    """Rows step, mean, standard deviation over seeds (3, S) at the steps that all seeds have; None where no such."""
    steps: np.ndarray | None = None
    for one in line.curves:
        known = one.steps[np.isfinite(one.values.get(column, np.full(len(one.steps), np.nan)))]
        steps = known if steps is None else np.intersect1d(steps, known)
    if steps is None or len(steps) == 0:
        return None
    values = np.stack([one.values[column][np.isin(one.steps, steps)] for one in line.curves])
    values = np.stack([smoothed(one) for one in values]) if smooth else values
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(steps))
    return np.stack([steps, values.mean(axis=0), spread])


def _plot(axes: Axes, mean: np.ndarray, name: str, k: int):
    look, (steps, values, spread) = line_look(k), mean
    every = max(len(steps) // _MARKS, 1)
    (handle,) = axes.plot(
        steps,
        values,
        look.style,
        color=look.colour,
        marker=look.marker,
        markevery=(k * every // _MARKS % every, every),  # beside those of the other lines
        markersize=5,
        label=name,
        linewidth=1.5,
    )
    if spread.any():
        axes.fill_between(steps, values - spread, values + spread, color=look.colour, alpha=0.15, linewidth=0)
    return handle

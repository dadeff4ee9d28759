"""The figure of `compare`: learning rate, loss and a metric over the steps of several runs, one line per run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.files import atomic_path
from cellwright.report.curves import Curves, line_format, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PREFERRED = ("AP@all", "AP@100", "AP50@all")
_MARKERS = 8  # along a dense line
_LEGEND_COLUMNS = 3


@dataclass(frozen=True)
class RunLine:
    """One line of the figure. name: for the legend. curves: of the run, or of each seed of a repeated run."""

    name: str
    curves: tuple[Curves, ...]


def shared_metric(lines: Sequence[RunLine], chosen_by: Sequence[str] = ()) -> str | None:
    """The metric to draw: the one that most runs have, average precision first; None if no run has any.

    chosen_by: the metrics that selected the best models, considered after average precision.
    """
    logged = [set.intersection(*(set(curves.named("")) for curves in line.curves)) for line in lines]
    counts = {name: sum(name in names for names in logged) for name in dict.fromkeys((*_PREFERRED, *chosen_by))}
    name = max(counts, key=lambda candidate: counts[candidate])
    return name if counts[name] else None


def draw_comparison(lines: Sequence[RunLine], path: Path, metric: str | None) -> None:
    """Write the figure (PNG) to ``path``: lr, total loss (running mean over 2 % of the steps) and ``metric``.

    The seeds of a repeated run are drawn as their mean with a band of one standard deviation. A run that has not logged
    a column has no line in that panel; a panel without lines shows a note.
    """
    # Without pyplot: no global state, and no window system is needed.
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
            nothing = "no run was evaluated" if column in (None, metric) else f"no run logged {column}"
            axes.text(0.5, 0.5, nothing, ha="center", va="center", transform=axes.transAxes)
    handles = [drawn[k] for k in sorted(drawn)]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=_LEGEND_COLUMNS, handlelength=4)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _mean_line(line: RunLine, column: str, *, smooth: bool) -> np.ndarray | None:
    """Step, mean and standard deviation over seeds, (3, S), at the steps that all seeds have; None without any."""
    steps: np.ndarray | None = None
    for curves in line.curves:
        logged = curves.steps[np.isfinite(curves.values.get(column, np.full(len(curves.steps), np.nan)))]
        steps = logged if steps is None else np.intersect1d(steps, logged)
    if steps is None or len(steps) == 0:
        return None
    values = np.stack([curves.values[column][np.isin(curves.steps, steps)] for curves in line.curves])
    values = np.stack([smoothed(of_seed) for of_seed in values]) if smooth else values
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(steps))
    return np.stack([steps, values.mean(axis=0), spread])


def _plot(axes: Axes, mean: np.ndarray, name: str, k: int):
    line, (steps, values, spread) = line_format(k), mean
    every = max(len(steps) // _MARKERS, 1)
    (handle,) = axes.plot(
        steps,
        values,
        line.style,
        color=line.colour,
        marker=line.marker,
        markevery=(k * every // _MARKERS % every, every),  # not at the same steps as those of other lines
        markersize=5,
        clip_on=False,  # markers at the edge are drawn whole
        label=name,
        linewidth=1.5,
    )
    if spread.any():
        axes.fill_between(steps, values - spread, values + spread, color=line.colour, alpha=0.15, linewidth=0)
    return handle

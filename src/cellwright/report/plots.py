"""The curves of a run, drawn from its ``log.csv``: one PNG a subject, readable in grey print."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellwright.core.errors import FormatError, InputError
from cellwright.core.files import atomic_path
from cellwright.report.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, RGB, SKY_BLUE, VERMILLION

# Dark enough on white; styles and markers turn at other lengths than the colours, so pairs do not repeat early.
_COLOURS: tuple[RGB, ...] = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY_BLUE, BLACK)
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v")
_SMOOTH_SHARE = 0.02  # of a run's steps: losses are drawn as means over so many


@dataclass(frozen=True)
class Curves:
    """Columns of a log as arrays: steps (S,) and for each name values (S,) float64, NaN where the cell is empty."""

    steps: np.ndarray
    values: dict[str, np.ndarray]

    def named(self, *beginnings: str) -> dict[str, np.ndarray]:
        """The columns whose names begin so and that hold any number."""
        chosen = {name: values for name, values in self.values.items() if name.startswith(beginnings)}
        return {name: values for name, values in chosen.items() if np.isfinite(values).any()}


def read_log(path: Path) -> Curves:
    """Read a run's log. `InputError` where it is absent, `FormatError` naming a cell that is no number."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InputError("cannot read this log", where=path, got=error.strerror or str(error)) from error
    names = [name for name in (rows[0] if rows else {}) if name is not None]
    if rows and "step" not in names:
        raise FormatError("this is not a run's log", where=path, got=", ".join(names), expected="a column named step")
    columns = {name: np.array([_number(row[name], name, path, k) for k, row in enumerate(rows)]) for name in names}
    steps = columns.pop("step", np.zeros(0))
    return Curves(steps, columns)


def draw_curves(log: Path, out: Path) -> list[Path]:
    """Draw what ``log`` holds into ``out``: losses, lr, memory, iteration_time, ap_box, ap_mask, ap_per_class.

    A subject without numbers (no evaluation yet) leaves no file. Returns the paths written.
    """
    curves = read_log(log)
    per_class = {name: v for name, v in curves.named("AP", "box_AP", "mask_AP", "ap").items() if "/" in name}
    metrics = {name: v for name, v in curves.named("AP", "box_AP", "mask_AP", "ap").items() if "/" not in name}
    box = {name: v for name, v in metrics.items() if "box" in name.lower()}
    subjects = [
        ("losses", "loss", curves.named("loss"), True),
        ("lr", "learning rate", curves.named("lr"), False),
        ("memory", "peak memory (MB)", curves.named("peak_memory_mb"), False),
        ("iteration_time", "seconds a step", curves.named("step_s", "data_s"), True),
        ("ap_box", "average precision, boxes", box, False),
        ("ap_mask", "average precision, masks", {n: v for n, v in metrics.items() if n not in box}, False),
        ("ap_per_class", "average precision", per_class, False),
    ]
    written = []
    for name, label, lines, smooth in subjects:
        if lines:
            written.append(out / f"{name}.png")
            _plot(written[-1], curves.steps, lines, label, smooth=smooth)
    return written


def _number(cell: str | None, name: str, path: Path, k: int) -> float:
    if not cell:
        return np.nan
    try:
        return float(cell)
    except ValueError:
        where = f"{path}, line {k + 2}, column {name}"
        raise FormatError("a cell of this log is not a number", where=where, got=repr(cell)) from None


def _plot(path: Path, steps: np.ndarray, lines: dict[str, np.ndarray], label: str, *, smooth: bool) -> None:
    # A figure of its own instead of pyplot: no global state, and no window system is asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel=label)
    for k, (name, values) in enumerate(lines.items()):
        known = np.isfinite(values)
        sparse = known.sum() <= 50
        shown = _smoothed(values[known]) if smooth else values[known]
        axes.plot(
            steps[known],
            shown,
            _STYLES[k % len(_STYLES)],
            color=[part / 255 for part in _COLOURS[k % len(_COLOURS)]],
            marker=_MARKERS[k % len(_MARKERS)] if sparse else "",
            label=name,
            linewidth=1.5,
        )
    axes.grid(visible=True, alpha=0.3)
    if len(lines) > 1:
        axes.legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _smoothed(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Centred running mean over 2% of the values; the ends average what they have."""
    width = max(int(len(values) * _SMOOTH_SHARE), 1)
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")

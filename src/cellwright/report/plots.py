"""The curves of a run, drawn from its ``log.csv``: one PNG a subject, readable in grey print."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.errors import FormatError
from cellwright.core.files import atomic_path, unreadable
from cellwright.report.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, RGB, SKY_BLUE, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Dark enough on white; styles and markers turn at other lengths than the colours, so pairs do not repeat early.
_COLOURS: tuple[RGB, ...] = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY_BLUE, BLACK)
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v")
_OVERALL_AP = re.compile(r"(box_)?AP(50|75)?@(all|\d+)")
_PER_CLASS = "AP@all/"
_PANEL_COLUMNS = 3
_SMOOTH_SHARE = 0.02  # of a run's steps: losses are drawn as means over so many


@dataclass(frozen=True)
class Subject:
    """One picture: its file's name, the label of its axis, and its lines by name.

    panels: one for each line. smooth: running means. logarithmic: its axis. clipped: the rare largest are left out.
    """

    name: str
    label: str
    lines: dict[str, np.ndarray]
    panels: bool = False
    smooth: bool = False
    logarithmic: bool = False
    clipped: bool = False


@dataclass(frozen=True)
class LineLook:
    """Colour (0..1), line style and marker of one line, in matplotlib's words."""

    colour: tuple[float, float, float]
    style: str
    marker: str


def line_look(k: int) -> LineLook:
    """How the k-th line of a figure looks; style and marker tell lines apart in grey print, too."""
    red, green, blue = _COLOURS[k % len(_COLOURS)]
    style, marker = _STYLES[k % len(_STYLES)], _MARKERS[k % len(_MARKERS)]
    return LineLook((red / 255, green / 255, blue / 255), style, marker)


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
    """Read a run's log, one that is being written, too: a torn last line is left out.

    `InputError` where it is absent, `FormatError` naming a cell that is no number.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
    except OSError as error:
        raise unreadable(path, error, "log") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError("this is not a run's log", where=path, got=str(error), expected="a CSV table") from error
    names = [name for name in (rows[0] if rows else {}) if name is not None]
    if rows and "step" not in names:
        raise FormatError("this is not a run's log", where=path, got=", ".join(names), expected="a column named step")
    columns = {name: np.array([_number(row[name], name, path, k) for k, row in enumerate(rows)]) for name in names}
    steps = columns.pop("step", np.zeros(0))
    return Curves(steps, columns)


def draw_curves(log: Path, out: Path) -> list[Path]:
    """Draw what ``log`` holds into ``out``: losses, lr, memory, iteration_time, ap_box, ap_mask, ap_per_class.

    Every loss has a panel of its own, since their sizes differ. A subject without numbers (no evaluation yet) leaves no
    file. Returns the paths written.
    """
    curves = read_log(log)
    overall = {name: values for name, values in curves.named("AP", "box_AP").items() if _OVERALL_AP.fullmatch(name)}
    masks = {name: values for name, values in overall.items() if not name.startswith("box_")}
    boxes = {name.removeprefix("box_"): values for name, values in overall.items() if name not in masks}
    per_class = {name.removeprefix(_PER_CLASS): values for name, values in curves.named(_PER_CLASS).items()}
    losses = curves.named("loss")
    total, parts = losses.pop("loss", None), {name.removeprefix("loss_"): values for name, values in losses.items()}
    lr = curves.named("lr")
    subjects = [
        Subject("losses", "loss", parts if total is None else {"total": total, **parts}, panels=True, smooth=True),
        Subject("lr", "learning rate", lr, logarithmic=any(_falls_in_steps(values) for values in lr.values())),
        Subject("memory", "peak memory (MiB)", curves.named("peak_memory_mb")),
        Subject("iteration_time", "seconds a step", _times(curves), smooth=True, clipped=True),
        Subject("ap_box", "average precision, boxes", boxes),
        Subject("ap_mask", "average precision, masks", masks),
        Subject("ap_per_class", f"{_PER_CLASS[:-1]}, masks", per_class),
    ]
    written = []
    for subject in subjects:
        if subject.lines:
            written.append(out / f"{subject.name}.png")
            _plot(written[-1], curves.steps, subject)
    return written


def _times(curves: Curves) -> dict[str, np.ndarray]:
    names = {"step_s": "whole step", "data_s": "waiting for its images"}
    return {shown: values for name, shown in names.items() for values in curves.named(name).values()}


def _falls_in_steps(rate: np.ndarray) -> bool:
    """Whether a learning rate mostly stays and has a wide range: then only a logarithmic axis shows every fall."""
    known = rate[np.isfinite(rate) & (rate > 0)]
    return len(known) > 2 and bool(np.mean(np.diff(known) == 0) > 0.5) and known.max() > 50 * known.min()


def _number(cell: str | None, name: str, path: Path, k: int) -> float:
    if not cell:
        return np.nan
    try:
        return float(cell)
    except ValueError:
        where = f"{path}, line {k + 2}, column {name}"
        raise FormatError(
            "a cell of this log is not a number",
            where=where,
            got=repr(cell),
            remedy="remove the line, or the file: training writes it anew",
        ) from None


def _plot(path: Path, steps: np.ndarray, subject: Subject) -> None:
    # A figure of its own instead of pyplot: no global state, and no window system is asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(subject.lines), _PANEL_COLUMNS) if subject.panels else 1
    rows = -(-len(subject.lines) // columns) if subject.panels else 1
    size = (3.6 * columns, 2.6 * rows) if len(subject.lines) > 1 and subject.panels else (7, 4)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for k, (name, values) in enumerate(subject.lines.items()):
        axes = panels[k if subject.panels else 0]
        _draw_line(axes, steps, values, name, 0 if subject.panels else k, smooth=subject.smooth)
        if subject.panels:
            axes.set_title(name, fontsize="medium")
    for axes in panels[: len(subject.lines) if subject.panels else 1]:
        axes.set(xlabel="step", ylabel=subject.label, yscale="log" if subject.logarithmic else "linear")
        axes.grid(visible=True, alpha=0.3)
        if not subject.logarithmic:
            axes.set_ylim(bottom=0)  # no subject is ever negative
    for axes in panels[len(subject.lines) if subject.panels else 1 :]:
        axes.axis("off")
    if subject.clipped:
        known = np.concatenate([values[np.isfinite(values)] for values in subject.lines.values()])
        panels[0].set_ylim(0, 1.1 * np.percentile(known, 99) or None)  # the first step also loads and compiles
    if len(subject.lines) > 1 and not subject.panels:
        figure.legend(loc="outside lower center", ncols=_PANEL_COLUMNS, fontsize="small", handlelength=4)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _draw_line(axes: Axes, steps: np.ndarray, values: np.ndarray, name: str, k: int, *, smooth: bool) -> None:
    """One line where it is finite; where smoothed, over the faint values themselves."""
    known = np.isfinite(values)
    look, sparse = line_look(k), known.sum() <= 50
    if smooth and not sparse:
        axes.plot(steps[known], values[known], color=look.colour, alpha=0.25, linewidth=0.6)
    shown = smoothed(values[known]) if smooth else values[known]
    marker = look.marker if sparse else ""
    axes.plot(steps[known], shown, look.style, color=look.colour, marker=marker, label=name, linewidth=1.5)


def smoothed(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Centred running mean over 2% of the values; the ends average what they have."""
    width = max(int(len(values) * _SMOOTH_SHARE), 1)
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")

"""The training curves of a run, drawn from its ``log.csv``: one PNG per subject, readable in greyscale print."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.errors import FormatError
from cellwright.core.files import atomic_path, unreadable
from cellwright.report.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, RGB, SKY_BLUE, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Dark enough on white. Styles, markers and colours have different cycle lengths, so that combinations rarely repeat.
_COLOURS: tuple[RGB, ...] = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY_BLUE, BLACK)
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v")
_ADDED = {"val_loss": "on validation images"}  # column: what the figure of the losses calls it
_OVERALL_AP = re.compile(r"(box_)?AP(50|75)?@(all|\d+)")
_PER_CLASS = "AP@all/"
_PANEL_COLUMNS = 3
_SMOOTH_SHARE = 0.02  # of the steps of a run: losses are drawn as running means over this share


@dataclass(frozen=True)
class CurveFigure:
    """One figure: the name of its file, the label of its y axis, and its lines by name.

    panels: draw one panel per line. smooth: draw running means. logarithmic: scale of the y axis. clipped: limit the
    axis to the 99th percentile. added: values to draw in the first panel too, by name.
    """

    name: str
    label: str
    lines: dict[str, np.ndarray]
    panels: bool = False
    smooth: bool = False
    logarithmic: bool = False
    clipped: bool = False
    added: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class LineFormat:
    """Colour (0..1), line style and marker of a line, as matplotlib names them."""

    colour: tuple[float, float, float]
    style: str
    marker: str


def line_format(k: int) -> LineFormat:
    """The format of the k-th line of a figure; lines also differ by style and marker, for greyscale print."""
    red, green, blue = _COLOURS[k % len(_COLOURS)]
    style, marker = _STYLES[k % len(_STYLES)], _MARKERS[k % len(_MARKERS)]
    return LineFormat((red / 255, green / 255, blue / 255), style, marker)


@dataclass(frozen=True)
class Curves:
    """The columns of a log: steps (S,), and values (S,) float64 by name, NaN where a cell is empty."""

    steps: np.ndarray
    values: dict[str, np.ndarray]

    def named(self, *prefixes: str) -> dict[str, np.ndarray]:
        """The columns whose names start with one of ``prefixes`` and that contain a number."""
        chosen = {name: values for name, values in self.values.items() if name.startswith(prefixes)}
        return {name: values for name, values in chosen.items() if np.isfinite(values).any()}


def read_log(path: Path) -> Curves:
    """Read the log of a run, which may be in progress: an incomplete last line is ignored.

    Raises `InputError` if there is no log, `FormatError` if a cell is not a number.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
    except OSError as error:
        raise unreadable(path, error, "log") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError("not the log of a run", where=path, got=str(error), expected="a CSV table") from error
    names = [name for name in (rows[0] if rows else {}) if name is not None]
    if rows and "step" not in names:
        raise FormatError("not the log of a run", where=path, got=", ".join(names), expected="a column named step")
    columns = {name: np.array([_number(row[name], name, path, k) for k, row in enumerate(rows)]) for name in names}
    steps = columns.pop("step", np.zeros(0))
    return Curves(steps, columns)


def draw_curves(log: Path, out: Path) -> list[Path]:
    """Draw the curves of ``log`` into ``out``: losses, lr, memory, iteration_time, ap_box, ap_mask, ap_per_class.

    Each loss has its own panel, since their magnitudes differ. Figures without data (such as before the first
    evaluation) are not written. Returns the paths written.
    """
    curves = read_log(log)
    masks, boxes = overall_ap(curves)
    per_class = per_class_ap(curves)
    losses = curves.named("loss")
    total, parts = losses.pop("loss", None), {name.removeprefix("loss_"): values for name, values in losses.items()}
    lr = curves.named("lr")
    lines = parts if total is None else {"total": total, **parts}
    validation = {shown: curves.values[name] for name, shown in _ADDED.items() if curves.named(name)}
    figures = [
        CurveFigure("losses", "loss", lines, panels=True, smooth=True, added=validation),
        CurveFigure("lr", "learning rate", lr, logarithmic=any(_falls_in_steps(values) for values in lr.values())),
        CurveFigure("memory", "peak memory (MiB)", curves.named("peak_memory_mb")),
        CurveFigure("iteration_time", "seconds per step", _times(curves), smooth=True, clipped=True),
        CurveFigure("ap_box", "average precision, boxes", boxes),
        CurveFigure("ap_mask", "average precision, masks", masks),
        CurveFigure("ap_per_class", f"{_PER_CLASS[:-1]}, masks", per_class),
    ]
    written = []
    for figure in figures:
        if figure.lines:
            written.append(out / f"{figure.name}.png")
            _plot(written[-1], curves.steps, figure)
    return written


def overall_ap(curves: Curves) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Average precision over all classes by name, of masks and of boxes."""
    overall = {name: values for name, values in curves.named("AP", "box_AP").items() if _OVERALL_AP.fullmatch(name)}
    masks = {name: values for name, values in overall.items() if not name.startswith("box_")}
    return masks, {name.removeprefix("box_"): values for name, values in overall.items() if name not in masks}


def per_class_ap(curves: Curves) -> dict[str, np.ndarray]:
    """AP@all of masks by class."""
    return {name.removeprefix(_PER_CLASS): values for name, values in curves.named(_PER_CLASS).items()}


def _times(curves: Curves) -> dict[str, np.ndarray]:
    names = {"step_s": "whole step", "data_s": "waiting for data"}
    return {shown: values for name, shown in names.items() for values in curves.named(name).values()}


def _falls_in_steps(rate: np.ndarray) -> bool:
    """Whether a learning rate is mostly constant and has a wide range: only a logarithmic axis shows every step."""
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
            remedy="remove this line from the log",
        ) from None


def _plot(path: Path, steps: np.ndarray, content: CurveFigure) -> None:
    # Without pyplot: no global state, and no window system is needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(content.lines), _PANEL_COLUMNS) if content.panels else 1
    rows = -(-len(content.lines) // columns) if content.panels else 1
    size = (3.6 * columns, 2.6 * rows) if len(content.lines) > 1 and content.panels else (7, 4)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for k, (name, values) in enumerate(content.lines.items()):
        axes = panels[k if content.panels else 0]
        _draw_line(axes, steps, values, name, 0 if content.panels else k, smooth=content.smooth)
        for line in axes.lines if not content.clipped else ():
            line.set_clip_on(False)  # markers at the edge are drawn whole
        if content.panels:
            axes.set_title(name, fontsize="medium")
    for k, (name, values) in enumerate(content.added.items()):
        _draw_line(panels[0], steps, values, name, k + 1, smooth=False)
        panels[0].legend(fontsize="small")
    n_panels = len(content.lines) if content.panels else 1
    for axes in panels[:n_panels]:
        axes.set(xlabel="step", ylabel=content.label, yscale="log" if content.logarithmic else "linear")
        axes.grid(visible=True, alpha=0.3)
        if not content.logarithmic:
            axes.set_ylim(bottom=0)  # none of these values is ever negative
    for axes in panels[n_panels:]:
        axes.axis("off")
    if content.clipped:
        values = np.concatenate([line[np.isfinite(line)] for line in content.lines.values()])
        panels[0].set_ylim(0, 1.1 * np.percentile(values, 99) or None)  # the first step also loads and compiles
    if len(content.lines) > 1 and not content.panels:
        figure.legend(loc="outside lower center", ncols=_PANEL_COLUMNS, fontsize="small", handlelength=4)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _draw_line(axes: Axes, steps: np.ndarray, values: np.ndarray, name: str, k: int, *, smooth: bool) -> None:
    """Draw the finite values of a line; a smoothed line is drawn over its faint original values."""
    defined = np.isfinite(values)
    line, is_sparse = line_format(k), defined.sum() <= 50
    if smooth and not is_sparse:
        axes.plot(steps[defined], values[defined], color=line.colour, alpha=0.25, linewidth=0.6)
    drawn = smoothed(values[defined]) if smooth else values[defined]
    marker = line.marker if is_sparse else ""
    axes.plot(steps[defined], drawn, line.style, color=line.colour, marker=marker, label=name, linewidth=1.5)


def smoothed(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Centred running mean over 2 % of the values; at the ends, over those that exist."""
    width = max(int(len(values) * _SMOOTH_SHARE), 1)
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")

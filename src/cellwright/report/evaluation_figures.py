"""Figures of an evaluation: precision over recall, and which classes were confused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.files import atomic_path
from cellwright.evaluation.coco import CAPS, IOU_THRESHOLDS, RECALL_POINTS, CocoResult
from cellwright.evaluation.report import Report
from cellwright.evaluation.tables import confusion
from cellwright.report.curves import LineFormat, line_format

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PR_CURVE, CONFUSION = "pr_curve.png", "confusion.png"
_SHOWN_IOU = (0.5, 0.75, 0.9)
_MAX_LINES = 12  # of classes or predictions in one figure
_MAX_CLASSES = 20  # in the confusion matrix


def write_figures(report: Report, folder: Path) -> list[Path]:
    """Write pr_curve.png and confusion.png, as far as the report has what they show; returns the paths.

    Of one class, the confusion would show the numbers of the tables again.
    """
    written = []
    if report.data.masks is not None and report["n_truth"] and report["n_predicted"]:
        written.append(draw_pr_curves([("", report)], folder / PR_CURVE))
    if "errors" in report.data.groups and report["n_truth"] and 1 < len(report.data.class_names) <= _MAX_CLASSES:
        written.append(draw_confusion(report, folder / CONFUSION))
    return written


def draw_pr_curves(reports: Sequence[tuple[str, Report]], path: Path) -> Path:
    """Precision over recall of masks, as average precision is computed from it, without a cap on predictions.

    reports: (name, report) with AP. One report: a line for each of three IoU thresholds, or, with several classes, for
    each class at IoU 0.5. Several reports: a line for each at IoU 0.5, the mean over classes. With one class, a marker
    shows precision and recall at the score threshold. Returns ``path``.
    """
    names = reports[0][1].data.class_names
    if len(reports) > 1:
        lines = [(f"{name}: AP50 {report['AP50@all']:.3f}", _precision(report, 0.5)) for name, report in reports]
        title = "IoU 0.5, mean over classes" if len(names) > 1 else "IoU 0.5"
    else:
        lines, title = _lines_of_one(reports[0][1])
    figure, axes = _figure((6, 5))
    for k, (label, precision) in enumerate(lines[:_MAX_LINES]):
        form = line_format(k)
        reached = precision > 0  # a recall that is never reached has precision 0
        axes.plot(RECALL_POINTS[reached], precision[reached], form.style, color=form.colour, label=label, linewidth=2)
        if len(names) == 1 and k < len(reports):
            _mark_threshold(axes, reports[k][1], form, is_named=k == 0)
    if len(lines) > _MAX_LINES:
        title += f", first {_MAX_LINES} of {len(lines)} lines"
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01), xlabel="recall", ylabel="precision", title=title, aspect="equal")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower left", handlelength=3.5)
    return _save(figure, path)


def _lines_of_one(report: Report) -> tuple[list[tuple[str, np.ndarray]], str]:
    """Label and precision (R,) of each line of one report, and the title."""
    masks, names = _masks(report), report.data.class_names
    if len(names) == 1:
        lines = [(f"IoU {iou:g}: AP {masks.ap(threshold=iou):.3f}", _precision(report, iou)) for iou in _SHOWN_IOU]
        return lines, f"AP@all {masks.ap():.3f}"
    scored = [k for k in range(len(names)) if masks.n_truth[:, k, 0].any()]
    values = {k: masks.ap(threshold=0.5, class_id=k) for k in scored}
    return [(f"{names[k]}: AP50 {values[k]:.3f}", _precision(report, 0.5, k)) for k in scored], "IoU 0.5"


def draw_confusion(report: Report, path: Path) -> Path:
    """Annotated objects by class (rows) and by the class of the prediction that matches them at IoU 0.5 (columns).

    The last column counts annotated objects, the last row predictions, that nothing matches. Darker cells hold more of
    their row. Returns ``path``.
    """
    table = confusion(report.data)
    names = list(report.data.class_names)
    counts = table.to_numpy()
    totals = counts.sum(1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = 2.6 + 0.9 * len(names)
    figure, axes = _figure((side + 0.8, side))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        if row == column == len(names):
            continue  # what neither side has cannot be counted
        # The predictions without a match are no population that shares could be given of.
        percent = "" if row == len(names) else f"\n{share[row, column]:.0%}"
        text = f"{counts[row, column]:,}{percent}"
        axes.text(column, row, text, ha="center", va="center", color="white" if share[row, column] > 0.6 else "black")
    places = range(len(names) + 1)
    axes.set_xticks(places, [*names, "no match"], rotation=30 if len(names) > 3 else 0)
    axes.set_yticks(places, [*names, "no match"])
    axes.set(xlabel="prediction", ylabel="annotation", title="matched at IoU 0.5; % of each row")
    return _save(figure, path)


def _masks(report: Report) -> CocoResult:
    assert report.data.masks is not None, "checked by the callers"
    return report.data.masks


def _precision(report: Report, iou: float, class_id: int | None = None) -> np.ndarray:
    """Precision (R,) at the recall points: of one class, or the mean over the classes that have objects."""
    threshold = np.argmin(np.abs(IOU_THRESHOLDS - iou))
    table = _masks(report).precision[threshold, :, :, 0, list(CAPS).index("all")]
    return table[:, ~np.isnan(table).any(0)].mean(1) if class_id is None else table[:, class_id]


def _mark_threshold(axes: Axes, report: Report, form: LineFormat, *, is_named: bool) -> None:
    recall, precision = report["pooled_recall@0.5"], report["pooled_precision@0.5"]
    if np.isfinite(precision) and np.isfinite(recall):
        axes.plot(
            recall, precision, form.marker, color=form.colour, markersize=9, markeredgecolor="black", clip_on=False
        )
        if not is_named:  # the texts of several would lie on each other
            return
        is_right = recall > 0.6  # where the text would leave the axes
        axes.annotate(
            "at the score threshold",
            (recall, precision),
            xytext=(-10, -14) if is_right else (8, 6),
            textcoords="offset points",
            fontsize="small",
            ha="right" if is_right else "left",
        )


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    # Without pyplot: no global state, and no window system is needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _save(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path


def figures_section(paths: Sequence[Path], folder: Path) -> list[str]:
    """The section of report.md that shows the figures; empty without any."""
    if not paths:
        return []
    titles = {PR_CURVE: "precision over recall", CONFUSION: "annotated and predicted classes"}
    names = [path.relative_to(folder).as_posix() for path in paths]
    return ["## Precision, recall and classes", *(f"![{titles[Path(name).name]}]({name})" for name in names)]

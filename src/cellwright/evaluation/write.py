"""An evaluation folder: metrics.json, per_image.csv, per_class.csv, objects.csv, report.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwright.core.files import write_json, write_text

if TYPE_CHECKING:
    import pandas as pd

    from cellwright.evaluation.report import Report

SCHEMA_VERSION = 1


def write_report(
    report: Report, folder: Path, *, limits: pd.DataFrame | None = None, sections: Sequence[str] = ()
) -> list[Path]:
    """Write the five files and return their paths; each is whole or absent.

    limits: the table of `bootstrap.intervals`, for metrics.json and beside the headline. sections: more of the page, in
    Markdown, after the worst images.
    """
    write_json(folder / "metrics.json", metrics_json(report, limits))
    tables = {"per_image.csv": report.per_image, "per_class.csv": report.per_class, "objects.csv": report.objects}
    for name, table in tables.items():
        write_text(folder / name, table.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "report.md", markdown(report, limits, sections))
    return [folder / name for name in ("metrics.json", *tables, "report.md")]


def metrics_json(report: Report, limits: pd.DataFrame | None = None) -> dict[str, Any]:
    """Everything but the large tables, as strict JSON: undefined figures are null and stand under ``reasons``.

    What only a model can tell, where its recall was lost, stands apart: ``values`` are then the same figures for a
    model and for the predictions that it left.
    """
    lost = {name: value for name, value in report.values.items() if name.startswith("lost_recall_")}
    values = {name: value for name, value in report.values.items() if name not in lost}
    intervals = [] if limits is None else [_finite(row) for row in limits.to_dict("records")]
    return {
        "schema_version": SCHEMA_VERSION,
        "values": _finite(values),
        "lost_recall": _finite({name.removeprefix("lost_recall_"): value for name, value in lost.items()}),
        "intervals_95": intervals,
        "reasons": report.reasons,
        "notes": list(report.notes),
        "per_class": [_finite(row) for row in report.per_class.to_dict("records")],
        "tables": {name: [_finite(row) for row in table.to_dict("records")] for name, table in report.tables.items()},
    }


def markdown(report: Report, limits: pd.DataFrame | None = None, sections: Sequence[str] = ()) -> str:
    """The report as a page: headline, notes, errors by kind, the worst images, classes, then every figure."""
    parts = ["# Evaluation", _headline(report, limits)]
    parts += [f"- {note}" for note in report.notes]
    titles = {"errors": "Objects by kind", "lost_recall": "Where lost recall went", "reliability": "Reliability"}
    for name, table in report.tables.items():
        parts += [f"## {titles.get(name, name)}", _frame(table)]
    if len(report.per_image):
        columns = ["image", "n_truth", "n_predicted", "accuracy@0.5", "kaggle_score", "pq"]
        parts += ["## Worst images", _frame(report.worst_images().filter(columns))]
    parts += sections
    if len(report.per_class) > 1:
        columns = ("class", "n_truth", "n_predicted", "AP@all", "pooled_accuracy@0.5", "pooled_pq")
        parts += ["## Classes", _frame(report.per_class.filter(columns))]
    rows = [(name, _shown(value) if name not in report.reasons else f"undefined: {report.reasons[name]}")
            for name, value in report.values.items()]  # fmt: skip
    return "\n\n".join([*parts, "## Every figure", _table(["metric", "value"], rows)]) + "\n"


def _headline(report: Report, limits: pd.DataFrame | None) -> str:
    if limits is None:
        return _table(["metric", "value"], report.headline())
    text = "95 % intervals: bootstrap over images (percentiles of 1,000 resamples)."
    return _frame(limits.rename(columns={"low": "95 % from", "high": "to"})) + f"\n\n{text}"


def table_markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, numbers to four places, undefined ones as "-"."""
    return _frame(table)


def _frame(table: pd.DataFrame) -> str:
    return _table(list(table.columns), table.itertuples(index=False))


def _table(columns: list[str], rows: Any) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_shown(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.0f}" if value.is_integer() and abs(value) > 1 else f"{value:.4f}"
    return str(value).replace("|", "\\|")


def _finite(row: dict[Any, Any]) -> dict[str, Any]:
    """The row with NaN as None."""
    return {str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}

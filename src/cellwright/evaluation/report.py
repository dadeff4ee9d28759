"""`Report`: the result of an evaluation, and the files it is saved to."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwright.core.errors import UsageError
from cellwright.core.files import write_json, write_text
from cellwright.core.notebook import bars, card
from cellwright.core.public import public
from cellwright.core.table import frame_csv, markdown_cell, markdown_table
from cellwright.core.text import count
from cellwright.evaluation.data import HEADLINE, EvaluationData

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1


@public
@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """The result of `evaluate`: metric values by name, and tables per image, class and object.

    Attributes:
        values: metrics of all images together by name ("AP@all", "box_AP@100", "accuracy@0.5", "kaggle_score",
            "pooled_pq", ...), as means over images unless the name starts with "pooled_" or "class_mean_"; AP is
            always pooled. Undefined values are NaN. All names and definitions: docs/metrics.md.
        reasons: for each NaN, why the value is undefined.
        notes: what a reader should know before quoting a value.
        data: what values and tables are computed from.

    ``report[name]`` is the value of a metric; `UsageError` suggests names if there is no such metric.

    Example:
        >>> import cellwright as cw, numpy as np
        >>> truth = np.zeros((32, 32), int)
        >>> truth[2:10, 2:10], truth[15:25, 15:25] = 1, 2
        >>> report = cw.evaluate(np.where(truth == 1, 1, 0), truth)
        >>> report["accuracy@0.5"], report["recall@0.5"]
        (0.5, 0.5)
        >>> report.per_image[["n_truth", "n_predicted", "errors_missed"]].iloc[0].tolist()
        [2, 1, 1]
        >>> report["accuracy@.5"]
        Traceback (most recent call last):
        cellwright.UsageError: no such metric in this report
          got: 'accuracy@.5'
          fix: did you mean 'accuracy@0.5'?
    """

    values: dict[str, float]
    reasons: dict[str, str]
    notes: tuple[str, ...]
    data: EvaluationData

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {markdown_cell(value)}" for name, value in self.headline())
        return f"Report: {self.counts}\n  {values}"

    def _repr_html_(self) -> str:
        """A card with the most important metrics as bars, for notebooks."""
        rows = [("note", note) for note in self.notes[:5]]
        errors = self.tables.get("errors")
        if errors is not None and len(errors):
            kinds = [(str(kind), int(n)) for kind, n in zip(errors["kind"], errors["truth"], strict=True)]
            rows.insert(
                0, ("annotated objects", ", ".join(f"{n:,} {kind.replace('_', ' ')}" for kind, n in kinds if n))
            )
        return card(f"Report: {self.counts}", rows, bars(self.headline()))

    @property
    def counts(self) -> str:
        """What was evaluated: ``"2 images, 12 annotated objects, 11 predictions"``."""
        return ", ".join(count(int(self.values[f"n_{key}"]), name) for name, key in _COUNTED)

    @cached_property
    def per_image(self) -> pd.DataFrame:
        """One row per image, in the order given: object counts, every metric except AP, errors by kind."""
        return _tables().per_image(self.data)

    @cached_property
    def per_class(self) -> pd.DataFrame:
        """One row per class: object counts, AP, and the metrics of that class alone, as mean over images and pooled."""
        return _tables().per_class(self.data)

    @cached_property
    def objects(self) -> pd.DataFrame:
        """One row per annotated or predicted object, with its kind of error."""
        return _tables().objects(self.data)

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Further tables, as requested: "errors" by kind, "confusion" of classes, "reliability", "lost_recall"."""
        return _tables().extra_tables(self.data)

    def __getitem__(self, name: str) -> float:
        """The value of a metric. Raises `UsageError` with suggestions if there is no such metric."""
        if name not in self.values:
            raise UsageError(
                "no such metric in this report", got=repr(name), remedy=_suggestion(str(name), list(self.values))
            )
        return self.values[name]

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def headline(self) -> list[tuple[str, float]]:
        """The up to six most important metrics as (name, value)."""
        return [(name, self.values[name]) for name in HEADLINE if name in self.values]

    def worst_images(self, n: int = 10) -> pd.DataFrame:
        """The ``n`` rows of ``per_image`` with the lowest accuracy@0.5, worst first; undefined values come last."""
        return self.per_image.sort_values("accuracy@0.5", kind="stable").head(n)

    def save(self, folder: Path | str) -> list[Path]:
        """Write metrics.json, per_image.csv, per_class.csv, objects.csv and report.md; returns their paths.

        Raises `OutputError` if the folder cannot be written.
        """
        return write_report(self, Path(folder))


_COUNTED = (("image", "images"), ("annotated object", "truth"), ("prediction", "predicted"))


def _tables() -> Any:
    from cellwright.evaluation import tables

    return tables


def _suggestion(name: str, known: Sequence[str]) -> str:
    """``"did you mean 'AP@all'?"``, else the names that start the same way, else the most important ones."""
    similar = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if similar:
        return f"did you mean {similar[0]!r}?"
    alike = [other for other in known if name and other.lower().startswith(name.lower())][:6]
    names = alike or [other for other in HEADLINE if other in known]
    return f"one of: {', '.join(names)}, ...; list(report.values) has all names"


def write_report(
    report: Report,
    folder: Path,
    *,
    limits: pd.DataFrame | None = None,
    sections: Sequence[str] = (),
    made_by: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write the five files of an evaluation folder, each completely or not at all, and return their paths.

    limits: the table of `bootstrap.intervals`, for metrics.json and the headline. sections: further Markdown for
    report.md, placed after the worst images. made_by: what was evaluated, and how, for metrics.json.
    """
    content = metrics_json(report, limits) | ({} if made_by is None else {"made_by": dict(made_by)})
    write_json(folder / "metrics.json", content)
    tables = {"per_image.csv": report.per_image, "per_class.csv": report.per_class, "objects.csv": report.objects}
    for name, table in tables.items():
        write_text(folder / name, frame_csv(table))
    write_text(folder / "report.md", markdown(report, limits, sections))
    return [folder / name for name in ("metrics.json", *tables, "report.md")]


def metrics_json(report: Report, limits: pd.DataFrame | None = None) -> dict[str, Any]:
    """Everything except the large tables as strict JSON: undefined values are null, with an entry in ``reasons``.

    Lost recall is stored separately from ``values``, since it depends on whether the candidates of a model are known.
    All other values are the same for a model and for the predictions that it has written.
    """
    lost = {name: value for name, value in report.values.items() if name.startswith("lost_recall_")}
    values = {name: value for name, value in report.values.items() if name not in lost}
    intervals = [] if limits is None else [_nan_to_none(row) for row in limits.to_dict("records")]
    tables = {name: table.to_dict("records") for name, table in report.tables.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "values": _nan_to_none(values),
        "lost_recall": _nan_to_none({name.removeprefix("lost_recall_"): value for name, value in lost.items()}),
        "intervals_95": intervals,
        "reasons": report.reasons,
        "notes": list(report.notes),
        "per_class": [_nan_to_none(row) for row in report.per_class.to_dict("records")],
        "tables": {name: [_nan_to_none(row) for row in rows] for name, rows in tables.items()},
    }


def markdown(report: Report, limits: pd.DataFrame | None = None, sections: Sequence[str] = ()) -> str:
    """The report as a page: headline, notes, errors by kind, worst images, classes, then all metrics."""
    parts = ["# Evaluation", report.counts + ".", _headline(report, limits)]
    parts += [f"- {note}" for note in report.notes]
    titles = {
        "errors": "Errors by kind",
        "confusion": "Classes of annotated objects (rows) and of their predictions (columns)",
        "lost_recall": "Why annotated objects were not found",
        "reliability": "Reliability of scores",
    }
    for name, table in report.tables.items():
        if name == "lost_recall":
            table = table.loc[table["objects"] > 0, ["objects", "meaning"]]  # noqa: PLW2901
            if not len(table):
                continue
        parts += [f"## {titles.get(name, name)}", frame_markdown(table)]
    if len(report.per_image):
        columns = ["image", "n_truth", "n_predicted", "accuracy@0.5", "kaggle_score", "pq"]
        parts += ["## Worst images", frame_markdown(report.worst_images().filter(columns))]
    parts += sections
    if len(report.per_class) > 1:
        columns = ("class", "n_truth", "n_predicted", "AP@all", "pooled_accuracy@0.5", "pooled_pq")
        parts += ["## Classes", frame_markdown(report.per_class.filter(columns))]
    rows = [
        (name, f"undefined: {report.reasons[name]}" if name in report.reasons else value)
        for name, value in report.values.items()
    ]
    return "\n\n".join([*parts, "## All metrics", markdown_table(["metric", "value"], rows)]) + "\n"


def _headline(report: Report, limits: pd.DataFrame | None) -> str:
    if limits is None:
        return markdown_table(["metric", "value"], report.headline())
    text = "95 % confidence intervals: percentile bootstrap over images, 1,000 resamples."
    return frame_markdown(limits.rename(columns={"low": "95 % CI from", "high": "to"})) + f"\n\n{text}"


def frame_markdown(table: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    return markdown_table(list(table.columns), table.itertuples(index=False))


def _nan_to_none(row: dict[Any, Any]) -> dict[str, Any]:
    return {str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}

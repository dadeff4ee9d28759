"""The report of runs that differ only in their seed: the mean and the spread of their metrics, and their curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from cellwright.core.text import count
from cellwright.evaluation.data import HEADLINE
from cellwright.report.evaluation_report import MEANINGS
from cellwright.report.page import Cell, Charts, Command, Page, Part, Section, Table, Text, decimals
from cellwright.report.run_record import RunRecord, read_records
from cellwright.report.run_report import data_parts, recipe_parts, version_facts
from cellwright.report.svg import Line, line_chart


def repeats_page(folder: Path) -> Page:
    """The report of repeated runs: of those that are finished, or of all that have started if none is.

    Raises `InputError` for a folder without runs, `FormatError` and `RecipeError` for damaged files.
    """
    records, planned = read_records(folder)
    runs = {record.folder.name.replace("_", " "): record for record in records}
    n_finished = sum(record.finished for record in records)
    first = records[0]
    values = _values(runs)
    figures: list[tuple[Cell, str]] = [(n_finished, f"of {count(planned, 'run')} finished"), (first.step, "steps each")]
    figures += [(_mean_and_spread(each), f"{name}, validation") for name, each in list(values.items())[:3]]
    state = ""
    if n_finished < planned:
        state = f"{n_finished} of {count(planned, 'run')} are finished. The same command resumes the others."
    sections = [
        Section("Best models on the validation images", _metrics(values, list(runs))),
        Section("Curves", _curves(runs)),
        Section("Data", data_parts(first)),
        Section("Recipe", recipe_parts(first)),
        Section("How it was made", _how(first, planned)),
    ]
    name = str(first.recipe.get("name") or "training")
    return Page("Repeated training", name, figures, sections, str(first.recipe.get("description") or ""), state)


def _values(runs: Mapping[str, RunRecord]) -> dict[str, list[float]]:
    """The metrics that all runs have, the most important ones first."""
    metrics = [record.best.metrics for record in runs.values()]
    shared = [name for name in metrics[0] if all(name in others for others in metrics)]
    ordered = [*(name for name in HEADLINE if name in shared), *(name for name in shared if name not in HEADLINE)]
    return {name: [own[name] for own in metrics] for name in ordered}


def _mean_and_spread(each: Sequence[float]) -> str:
    return decimals(fmean(each)) + (f" ± {decimals(stdev(each))}" if len(each) > 1 else "")


def _metrics(values: Mapping[str, list[float]], names: Sequence[str]) -> list[Part]:
    if not values:
        return [Text("There are no validation images, so it is not known how well these models work on other images.")]

    def row(name: str, each: Sequence[float]) -> list[Cell]:
        spread = decimals(stdev(each)) if len(each) > 1 else None
        return [decimals(fmean(each)), spread, *map(decimals, each)]

    columns = ("mean", "standard deviation", *names)
    main = [[name, MEANINGS.get(name, ""), *row(name, each)] for name, each in values.items() if name in HEADLINE]
    others = [[name, *row(name, each)] for name, each in values.items() if name not in HEADLINE and "/" not in name]
    note = (
        f"Mean and sample standard deviation (n - 1) over {count(len(names), 'run')} that differ only in the seed: the "
        "spread is due to training, not to the choice of images. The best model of each run was chosen on these "
        "images, so the values are optimistic."
    )
    parts: list[Part] = [Table(("metric", "definition", *columns), main, n_text=2, note=note)] if main else []
    return [*parts, *([Table(("metric", *columns), others, title="Other metrics")] if others else [])]


def _curves(runs: Mapping[str, RunRecord]) -> list[Part]:
    """The loss and the most important metric of every run."""
    charts = []
    metric = next((name for name in HEADLINE if any(_logged(run, name) for run in runs.values())), None)
    wanted = [("loss", "Loss", "loss", None), ("val_loss", "Loss on the validation images", "loss", None)]
    wanted += [(metric, f"{metric} on the validation images", metric, (0, 1.02))] if metric else []
    for column, title, label, y_range in wanted:
        lines = {
            name: Line(run.curves.steps, run.curves.values[column])
            for name, run in runs.items()
            if _logged(run, column)
        }
        if lines:
            charts.append((title, line_chart(lines, "step", label, y_range=y_range, marked=column != "loss"), ""))
    return [Charts(charts)] if charts else [Text("No training step has been completed yet.")]


def _logged(run: RunRecord, column: str) -> bool:
    return len(run.curves.steps) > 0 and bool(np.isfinite(run.curves.values.get(column, np.zeros(0))).any())


def _how(first: RunRecord, planned: int) -> list[Part]:
    again = {"data": "DATA", "repeat": planned, "out": "OTHER_RUNS"}
    text = "Each run has its own report in its folder, with its curves, errors in pictures and the complete recipe."
    title = "To repeat the runs"
    return [Text(text), *version_facts(first), Command("train", ["RUN/recipe.yaml"], again, title=title)]

"""``compare``: runs side by side, with the differences between their recipes, their metrics and their costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import yaml
from cyclopts import Parameter

from cellwright.api.outputs import FolderOutput, earlier_output
from cellwright.core.errors import UsageError
from cellwright.core.files import write_text
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.table import frame_csv
from cellwright.core.text import count
from cellwright.evaluation.data import HEADLINE
from cellwright.report.run_record import RunRecord, read_records

MARKER = "compare.md"
SHOWN_FACTS = 22  # in the terminal, so that the whole comparison has at most 30 lines
SHOWN_METRICS = 6  # in the terminal, where none of the usual ones was computed
_NAMES = ("name", "description")  # keys of a recipe that are not settings


@Parameter(name="*")
@dataclass(frozen=True)
class ComparePlan:
    """Compare runs: their recipes, results and costs."""

    runs: tuple[Path, ...]
    """Two or more run folders, finished or not."""
    _: KW_ONLY
    out: Path = Path("work/comparison")
    """Folder to write: the table (compare.md, compare.csv) and the curves (compare.png)."""
    overwrite: bool = False
    """Replace an existing comparison."""


def run(plan: ComparePlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> Comparison | None:
    """Compare runs; writes compare.md, compare.csv (one row per run) and compare.png to ``plan.out``.

    Returns None after a dry run. Raises `UsageError` for fewer than two runs or a run given twice, `InputError` for a
    folder that is not a run, `FormatError` or `RecipeError` for a damaged file of a run, and `OutputError` if the
    output exists.
    """
    earlier = earlier_output("compare", MARKER, "compare.csv", "compare.png")
    output = FolderOutput(plan.out, "compare", inputs=(), overwrite=plan.overwrite, earlier=earlier)
    comparison = compare(_read_entries(plan, screen))
    if not output.exists:
        screen.note(f"will write {plan.out}/ (compare.md, compare.csv, compare.png)")
    if dry_run:
        return None
    with output.write() as folder:
        _write(comparison, folder)
    if output.is_complete:
        screen.note(output.text)
    return comparison


# --- the comparison -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Entry:
    """One column of the comparison: a run, or repeated runs of one recipe.

    Attributes:
        name: short and unique.
        runs: the runs.
        planned: the planned number of runs.
    """

    name: str
    runs: tuple[RunRecord, ...]
    planned: int = 1

    @property
    def state(self) -> str:
        """The state of the run; for repeated runs, how many are finished."""
        if self.planned == 1:
            return self.runs[0].state
        n_finished = sum(run.finished for run in self.runs)
        return "finished" if n_finished == self.planned else f"{n_finished} of {self.planned} runs finished"

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Plain values; for repeated runs those of the first one, with the seeds of all."""
        first = self.runs[0].recipe
        seeds = [run.recipe.get("train", {}).get("seed") for run in self.runs]
        return first if self.planned == 1 else {**first, "train": {**first.get("train", {}), "seed": seeds}}

    def over_runs(self, value_of: Callable[[RunRecord], float | None]) -> float | Spread | None:
        """A number of the run, or its spread over repeated runs; None if no run has it."""
        values = [value for run in self.runs if (value := value_of(run)) is not None]
        if not values or len(set(values)) == 1:
            return values[0] if values else None
        return Spread(fmean(values), stdev(values))


@dataclass(frozen=True)
class Spread:
    """The mean of repeated runs, and the standard deviation of a sample (n - 1)."""

    mean: float
    std: float


@dataclass(frozen=True, eq=False)
class Fact:
    """One row of the table.

    Attributes:
        name: the name of the row.
        values: one value per entry; None if it is unknown.
        show: formats a value.
        is_detail: whether only compare.md and compare.csv show it, not the terminal.
    """

    name: str
    values: tuple[Any, ...]
    show: Callable[[Any], str] = str
    is_detail: bool = False

    def shown(self) -> list[str]:
        """The values as the table shows them."""
        return ["-" if value is None else self._text(value) for value in self.values]

    def columns(self) -> dict[str, list[Any]]:
        """Columns of compare.csv: numbers as they are, empty if unknown; a spread has a column of its own."""
        columns = {self.name: [value.mean if isinstance(value, Spread) else value for value in self.values]}
        if any(isinstance(value, Spread) for value in self.values):
            columns[f"{self.name} std"] = [value.std if isinstance(value, Spread) else None for value in self.values]
        return columns

    def _text(self, value: Any) -> str:
        return f"{self.show(value.mean)} ± {self.show(value.std)}" if isinstance(value, Spread) else self.show(value)


@dataclass(frozen=True, eq=False)
class Comparison:
    """The compared entries in the order given, the facts about them, and notes to read first."""

    entries: tuple[Entry, ...]
    facts: tuple[Fact, ...]
    notes: tuple[str, ...]

    def table(self, facts: Sequence[Fact] | None = None) -> tuple[str, tuple[str, ...], list[list[str]]]:
        """Title, columns (one per entry) and rows (one per fact; None: all) as text."""
        rows = [[fact.name, *fact.shown()] for fact in (self.facts if facts is None else facts)]
        return "", ("", *(entry.name for entry in self.entries)), rows

    def main_facts(self, n: int = SHOWN_FACTS) -> tuple[Fact, ...]:
        """The first ``n`` facts that are no details, for the terminal."""
        return tuple(fact for fact in self.facts if not fact.is_detail)[:n]


def compare(entries: Sequence[Entry]) -> Comparison:
    """Compare two or more entries."""
    facts = (
        *_state_facts(entries),
        *_metric_facts(entries),
        *_cost_facts(entries),
        *_recipe_facts(entries),
        *_environment_facts(entries),
    )
    return Comparison(tuple(entries), facts, tuple(_notes(entries)))


class _Absent:
    """The value of a key that a recipe does not have."""

    def __repr__(self) -> str:
        return "-"


ABSENT = _Absent()


def differences(values: Sequence[Any], key: str = "") -> dict[str, tuple[Any, ...]]:
    """The differences between nested mappings: dotted key -> its value in each; `ABSENT` if one lacks the key."""
    if all(isinstance(value, Mapping) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        below = (
            differences([value.get(name, ABSENT) for value in values], f"{key}.{name}" if key else str(name))
            for name in names
        )
        return {name: each for part in below for name, each in part.items()}
    return {} if all(value == values[0] for value in values) else {key: tuple(values)}


def _read_entries(plan: ComparePlan, screen: ProgressReporter) -> list[Entry]:
    """The runs with short names, without the output folder of an earlier comparison, which runs/* also matches."""
    folders = [folder for folder in plan.runs if folder.resolve() != plan.out.resolve()]
    if len(folders) < len(plan.runs):
        screen.note(f"{plan.out} is the output folder and is not compared")
    resolved = [folder.resolve() for folder in folders]
    for k, folder in enumerate(folders):
        if resolved[k] in resolved[:k]:
            raise UsageError("a run is given twice", got=folder, remedy="name each run only once")
    if len(folders) < 2:
        raise UsageError("compare needs at least two runs", got=count(len(folders), "run"), expected="two or more")
    names = _short_names(folders)
    return [Entry(name, *read_records(folder)) for name, folder in zip(names, folders, strict=True)]


def _short_names(folders: Sequence[Path]) -> list[str]:
    """As many of the last parts of the paths as are needed to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    depth = next(n for n in range(1, 99) if len({path[-n:] for path in parts}) == len(parts))
    return ["/".join(path[-depth:]).replace("|", "_") for path in parts]


def _recipe_facts(entries: Sequence[Entry]) -> list[Fact]:
    names = Fact("recipe", tuple(str(entry.recipe.get("name", "")) for entry in entries))
    settings = [{key: value for key, value in entry.recipe.items() if key not in _NAMES} for entry in entries]
    return [names, *_setting_facts(settings)]


def _state_facts(entries: Sequence[Entry]) -> list[Fact]:
    """How far the runs have got, and whether they were trained on the same data."""
    data = [entry.runs[0].data for entry in entries]
    short = [None if digest is None else digest[:12] for digest in data]
    shown = [f"{short[k]} (other images)" if digest != data[0] else short[k] for k, digest in enumerate(data)]
    facts = [Fact("state", tuple(entry.state for entry in entries)), Fact("data", tuple(shown))]
    if any(entry.planned > 1 for entry in entries):
        facts.insert(0, Fact("runs", tuple(len(entry.runs) for entry in entries)))
    return facts


def _environment_facts(entries: Sequence[Entry]) -> list[Fact]:
    """Differences between versions, machines and code."""
    return _setting_facts([{"environment": _environment(entry.runs[0])} for entry in entries])


def _setting_facts(values: Sequence[Mapping[str, Any]]) -> list[Fact]:
    """The differences, formatted as in a recipe, so that null and a missing key look different."""
    return [Fact(key, tuple(_setting(value) for value in each)) for key, each in differences(values).items()]


def _environment(run: RunRecord) -> dict[str, Any]:
    """The environment of a run, without its data, which have their own row."""
    inputs = {name: digest for name, digest in run.environment.get("inputs", {}).items() if name != "data"}
    git = run.environment.get("git")
    code = f"{str(git.get('commit'))[:10]}{' with changes' if git.get('changed') else ''}" if git else "not recorded"
    return {**run.environment, "git": code, "inputs": inputs}


def _metric_facts(entries: Sequence[Entry]) -> list[Fact]:
    """Metrics of the best models."""
    steps = Fact(
        "best model at step",
        tuple(entry.over_runs(lambda run: run.best.step if run.best.step > 0 else None) for entry in entries),
        _whole,
    )
    names = dict.fromkeys(name for entry in entries for run in entry.runs for name in run.best.metrics)
    values = {
        name: tuple(entry.over_runs(lambda run, name=name: run.best.metrics.get(name)) for entry in entries)
        for name in names
    }
    chosen_by = {run.best.chosen_by for entry in entries for run in entry.runs}
    main = [name for name in values if name in HEADLINE or name in chosen_by] or list(values)[:SHOWN_METRICS]
    ordered = [*main, *(name for name in values if name not in main)]
    return [steps, *(Fact(name, values[name], "{:.4f}".format, is_detail=name not in main) for name in ordered)]


def _cost_facts(entries: Sequence[Entry]) -> list[Fact]:
    def of_runs(value_of: Callable[[RunRecord], float | None]) -> tuple[Any, ...]:
        return tuple(entry.over_runs(value_of) for entry in entries)

    def of_log(column: str, reduce: Callable[[np.ndarray], Any]) -> tuple[Any, ...]:
        return of_runs(lambda run: float(reduce(run.column(column))) if len(run.column(column)) else None)

    return [
        Fact("steps", of_runs(lambda run: run.step), _whole),
        Fact("time in steps (s)", of_log("step_s", np.sum), _clock),
        Fact("seconds per step (median)", of_log("step_s", np.median), "{:.3g}".format),
        Fact("parameters", of_runs(lambda run: run.parameters), _whole),
        Fact("peak memory (MB)", of_log("peak_memory_mb", np.max), _whole),
    ]


def _notes(entries: Sequence[Entry]) -> list[str]:
    def named(chosen: Callable[[Entry], bool]) -> str:
        return ", ".join(entry.name for entry in entries if chosen(entry))

    first = entries[0]
    notes = {
        f"trained on different images from {first.name}, so metrics are not comparable": named(
            lambda entry: any(run.data != first.runs[0].data for run in entry.runs)
        ),
        "mean ± standard deviation over seeds": named(lambda entry: len(entry.runs) > 1),
        "not finished": named(
            lambda entry: len(entry.runs) < entry.planned or not all(run.finished for run in entry.runs)
        ),
        "no evaluation": named(lambda entry: not any(run.best.metrics for run in entry.runs)),
        "recipe of another version of cellwright, compared without its defaults": named(
            lambda entry: not all(run.known_schema for run in entry.runs)
        ),
    }
    return [f"{text}: {names}" for text, names in notes.items() if names]


def _write(comparison: Comparison, out: Path) -> None:
    import pandas as pd

    from cellwright.evaluation.report import frame_markdown
    from cellwright.report.compare_figure import RunLine, draw_comparison, shared_metric

    entries = comparison.entries
    _, columns, rows = comparison.table()
    parts = [
        "# Comparison of runs",
        frame_markdown(pd.DataFrame(rows, columns=list(columns))),
        *(f"- {note}" for note in comparison.notes),
        "The settings (dotted keys) are those in which the recipes differ; - means that a recipe has no such key. The "
        "metrics are those of the best model of each run. Time is the time of the training steps, without evaluation.",
        "![learning rate, loss and average precision over steps](compare.png)",
    ]
    values: dict[str, list[Any]] = {"run": [entry.name for entry in entries]}
    for fact in comparison.facts:
        values |= fact.columns()
    lines = [RunLine(_label(entry), tuple(run.curves for run in entry.runs)) for entry in entries]
    metric = shared_metric(lines, [run.best.chosen_by for entry in entries for run in entry.runs])
    draw_comparison(lines, out / "compare.png", metric)
    write_text(out / "compare.csv", frame_csv(pd.DataFrame(values, dtype=object)))
    write_text(out / MARKER, "\n\n".join(parts) + "\n")


def _label(entry: Entry) -> str:
    """The label of an entry in the legend."""
    state = entry.state if len(entry.runs) == 1 else f"mean of {len(entry.runs)}"
    return entry.name if state == "finished" else f"{entry.name} ({state})"


def _setting(value: Any) -> str:
    """A value as it is written in a recipe."""
    if value is ABSENT or isinstance(value, str):
        return str(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()
    return text.removesuffix("\n...").removesuffix("...").strip()


def _whole(value: float) -> str:
    return f"{round(value):,}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole:,} ({whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d})"

"""Comparing as a job: runs in; what differs between their recipes, what they reached and what they cost out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import yaml

from cellwright.api.outputs import claim_folder
from cellwright.api.run_records import ABSENT, RunRecord, differing, read_records
from cellwright.core.errors import UsageError
from cellwright.core.files import write_text
from cellwright.core.progress import SILENT, Screen

MARKER = "compare.md"
_NAMES = ("name", "description")  # of a recipe: no setting


@dataclass(frozen=True)
class ComparePlan:
    """Which runs, and where the comparison goes."""

    runs: tuple[Path, ...]
    out: Path
    overwrite: bool = False


@dataclass(frozen=True, eq=False)
class Side:
    """One of those compared. name: short and distinct. runs: one, or those of `train --repeat`, of ``asked``."""

    name: str
    runs: tuple[RunRecord, ...]
    asked: int = 1

    @property
    def state(self) -> str:
        """Of the one run; of several, how many are finished."""
        if self.asked == 1:
            return self.runs[0].state
        n_finished = sum(run.finished for run in self.runs)
        return "finished" if n_finished == self.asked else f"{n_finished} of {self.asked} runs finished"

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Plain values; those of the first of several runs, with the seeds of all."""
        first = self.runs[0].recipe
        seeds = [run.recipe.get("train", {}).get("seed") for run in self.runs]
        return first if self.asked == 1 else {**first, "train": {**first.get("train", {}), "seed": seeds}}

    def over_runs(self, value_of: Callable[[RunRecord], float | None]) -> float | Spread | None:
        """A number of the run, over several runs their spread; None where none of them knows it."""
        values = [value for run in self.runs if (value := value_of(run)) is not None]
        if not values or len(set(values)) == 1:
            return values[0] if values else None
        return Spread(fmean(values), stdev(values))


@dataclass(frozen=True)
class Spread:
    """Of several runs: the mean, and the standard deviation of a sample (n - 1)."""

    mean: float
    std: float


@dataclass(frozen=True, eq=False)
class Fact:
    """A line of the table. values: one for each side, None where it is not known. show: a value as words."""

    name: str
    values: tuple[Any, ...]
    show: Callable[[Any], str] = str

    def shown(self) -> list[str]:
        """The values as the table shows them."""
        return ["-" if value is None else self._words(value) for value in self.values]

    def cells(self) -> dict[str, list[Any]]:
        """Columns of compare.csv: numbers as they are, empty where not known; the spread in a column of its own."""
        columns = {self.name: [value.mean if isinstance(value, Spread) else value for value in self.values]}
        if any(isinstance(value, Spread) for value in self.values):
            columns[f"{self.name} std"] = [value.std if isinstance(value, Spread) else None for value in self.values]
        return columns

    def _words(self, value: Any) -> str:
        return f"{self.show(value.mean)} ± {self.show(value.std)}" if isinstance(value, Spread) else self.show(value)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was compared: sides in the order given, facts as lines, and what to know before reading them."""

    sides: tuple[Side, ...]
    facts: tuple[Fact, ...]
    notes: tuple[str, ...]

    def table(self) -> tuple[str, tuple[str, ...], list[list[str]]]:
        """Title, columns (one a side) and rows (one a fact) of words."""
        return "", ("", *(side.name for side in self.sides)), [[fact.name, *fact.shown()] for fact in self.facts]


def run_plan(plan: ComparePlan, screen: Screen = SILENT) -> Comparison:
    """Compare runs; compare.md, compare.csv (a row a run) and compare.png are written to ``plan.out``.

    Raises `UsageError` for fewer than two runs or one given twice, `InputError` where there is no run, `FormatError`
    or `RecipeError` naming a file of a run that is damaged, `OutputError` where ``plan.out`` exists.
    """
    sides = _sides(plan, screen)
    claim_folder(plan.out, MARKER, overwrite=plan.overwrite)
    comparison = compare(sides)
    _write(comparison, plan.out)
    return comparison


def compare(sides: Sequence[Side]) -> Comparison:
    """The table of two sides or more."""
    facts = (*_recipe_facts(sides), *_state_facts(sides), *_metric_facts(sides), *_cost_facts(sides))
    return Comparison(tuple(sides), facts, tuple(_notes(sides)))


def _sides(plan: ComparePlan, screen: Screen) -> list[Side]:
    """The runs with short names; the output folder of an earlier comparison, which runs/* finds too, is left out."""
    folders = [folder for folder in plan.runs if folder.resolve() != plan.out.resolve()]
    if len(folders) < len(plan.runs):
        screen.note(f"{plan.out} is where this command writes: left out")
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise UsageError("a run is given twice", got=folder, remedy="give each run once")
        seen.add(folder.resolve())
    if len(folders) < 2:
        raise UsageError("two runs or more are compared", got=f"{len(folders)} run", expected="RUN RUN...")
    return [Side(name, *read_records(folder)) for name, folder in zip(_short_names(folders), folders, strict=True)]


def _short_names(folders: Sequence[Path]) -> list[str]:
    """As many of the last parts of the paths as make them distinct."""
    parts = [folder.resolve().parts for folder in folders]
    depth = next(n for n in range(1, 99) if len({one[-n:] for one in parts}) == len(parts))
    return ["/".join(one[-depth:]).replace("|", "_") for one in parts]


def _recipe_facts(sides: Sequence[Side]) -> list[Fact]:
    names = Fact("recipe", tuple(str(side.recipe.get("name", "")) for side in sides))
    settings = [{key: value for key, value in side.recipe.items() if key not in _NAMES} for side in sides]
    return [names, *_settings(settings)]


def _state_facts(sides: Sequence[Side]) -> list[Fact]:
    """How far the runs are, and where and from what they were made as far as that differs."""
    data = [_data(side.runs[0]) for side in sides]
    other = [f"{one} (other images)" if one != data[0] else one for one in data]
    facts = [Fact("state", tuple(side.state for side in sides)), Fact("data", tuple(other))]
    if any(side.asked > 1 for side in sides):
        facts.insert(0, Fact("runs", tuple(len(side.runs) for side in sides)))
    return facts + _settings([{"environment": _environment(side.runs[0])} for side in sides])


def _settings(values: Sequence[Mapping[str, Any]]) -> list[Fact]:
    """What differs, in the words of a recipe, so that null is not taken for unknown."""
    return [Fact(key, tuple(_setting(value) for value in found)) for key, found in differing(values).items()]


def _environment(run: RunRecord) -> dict[str, Any]:
    """What a run was made with; its data stand in a line of their own."""
    inputs = {name: one for name, one in run.environment.get("inputs", {}).items() if name != "data"}
    git = run.environment.get("git")
    code = f"{str(git.get('commit'))[:10]}{' with changes' if git.get('changed') else ''}" if git else "not recorded"
    return {**run.environment, "git": code, "inputs": inputs}


def _data(run: RunRecord) -> str | None:
    """The fingerprint of the training images."""
    return run.environment.get("inputs", {}).get("data")


def _metric_facts(sides: Sequence[Side]) -> list[Fact]:
    """Of the best models."""
    steps = Fact(
        "best model at step", tuple(side.over_runs(lambda run: run.best_step or None) for side in sides), _whole
    )
    names = dict.fromkeys(name for side in sides for run in side.runs for name in run.metrics)
    values = {
        name: tuple(side.over_runs(lambda run, name=name: run.metrics.get(name)) for side in sides) for name in names
    }
    return [steps, *(Fact(name, found, "{:.4f}".format) for name, found in values.items())]


def _cost_facts(sides: Sequence[Side]) -> list[Fact]:
    def of_runs(value_of: Callable[[RunRecord], float | None]) -> tuple[Any, ...]:
        return tuple(side.over_runs(value_of) for side in sides)

    def of_log(column: str, reduce: Callable[[np.ndarray], Any]) -> tuple[Any, ...]:
        return of_runs(lambda run: float(reduce(run.column(column))) if len(run.column(column)) else None)

    return [
        Fact("steps", of_runs(lambda run: run.step), _whole),
        Fact("time in steps (s)", of_log("step_s", np.sum), _clock),
        Fact("seconds a step (median)", of_log("step_s", np.median), "{:.3g}".format),
        Fact("parameters", of_runs(lambda run: run.parameters), _whole),
        Fact("peak memory (MB)", of_log("peak_memory_mb", np.max), _whole),
    ]


def _notes(sides: Sequence[Side]) -> list[str]:
    def named(chosen: Callable[[Side], bool]) -> str:
        return ", ".join(side.name for side in sides if chosen(side))

    texts = (
        ("trained on other images than {first}, so metrics do not compare: {names}",
         named(lambda side: any(_data(run) != _data(sides[0].runs[0]) for run in side.runs))),
        ("mean ± standard deviation over seeds: {names}", named(lambda side: len(side.runs) > 1)),
        ("not finished: {names}",
         named(lambda side: len(side.runs) < side.asked or not all(run.finished for run in side.runs))),
        ("never validated: {names}", named(lambda side: not any(run.metrics for run in side.runs))),
        ("a recipe of another version, compared as it was written: {names}",
         named(lambda side: not all(run.known_schema for run in side.runs))),
    )  # fmt: skip
    return [text.format(first=sides[0].name, names=names) for text, names in texts if names]


def _write(comparison: Comparison, out: Path) -> None:
    import pandas as pd

    from cellwright.evaluation.write import table_markdown
    from cellwright.report.compare import RunLine, draw_comparison, shared_metric

    sides = comparison.sides
    _, columns, rows = comparison.table()
    parts = [
        "# Runs compared",
        table_markdown(pd.DataFrame(rows, columns=list(columns))),
        *(f"- {note}" for note in comparison.notes),
        "Settings are those in which the recipes differ (dotted keys; - where a recipe has no such key). Metrics are "
        "those of each run's best model. Time is that of the steps alone, without validation.",
        "![learning rate, loss and average precision over steps](compare.png)",
    ]
    values: dict[str, list[Any]] = {"run": [side.name for side in sides]}
    for fact in comparison.facts:
        values |= fact.cells()
    lines = [RunLine(_label(side), tuple(run.curves for run in side.runs)) for side in sides]
    draw_comparison(lines, out / "compare.png", shared_metric(lines, [run.chosen_by for s in sides for run in s.runs]))
    write_text(out / "compare.csv", pd.DataFrame(values, dtype=object).to_csv(index=False, lineterminator="\n"))
    write_text(out / MARKER, "\n\n".join(parts) + "\n")


def _label(side: Side) -> str:
    """For the legend."""
    state = side.state if len(side.runs) == 1 else f"mean of {len(side.runs)}"
    return side.name if state == "finished" else f"{side.name} ({state})"


def _setting(value: Any) -> str:
    """A value as it stands in a recipe."""
    if value is ABSENT or isinstance(value, str):
        return str(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()
    return text.removesuffix("\n...").removesuffix("...").strip()


def _whole(value: float) -> str:
    return f"{round(value):,}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole:,} ({whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d})"

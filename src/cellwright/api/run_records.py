"""Runs as they lie on disk, finished or not: recipe, environment, log, best metrics, size of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cellwright.api.repeating import SUMMARY
from cellwright.config import recipe as recipes
from cellwright.core.errors import FormatError, InputError, RecipeError
from cellwright.core.files import read_json
from cellwright.report.plots import Curves, read_log
from cellwright.training.run_folder import RunFolder

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of normalisation layers: nobody trains them


@dataclass(frozen=True, eq=False)
class RunRecord:
    """One run.

    recipe: plain values, every default filled in. known_schema: False where the recipe is of another version and stands
    as it was written. metrics: of the best model, by name; empty where nothing was validated. best_step: its step, 0
    where there is no model. done_text: what DONE says. parameters: of the network, statistics of normalisation not;
    None: no weights yet.
    """

    folder: Path
    recipe: Mapping[str, Any]
    known_schema: bool
    environment: Mapping[str, Any]
    curves: Curves
    metrics: Mapping[str, float]
    best_step: int
    chosen_by: str
    finished: bool
    done_text: str
    parameters: int | None

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.curves.steps[-1]) if len(self.curves.steps) else 0

    @property
    def diverged(self) -> bool:
        """Whether the log ends with a loss or gradient that is not finite, or above the recipe's limit."""
        limits = {"loss": math.inf, "gradient_norm": self.recipe.get("train", {}).get("max_gradient_norm", math.inf)}
        last = [(self.curves.values[name][-1:], limit) for name, limit in limits.items() if name in self.curves.values]
        return not self.finished and not all(
            bool((np.isfinite(value) & (value <= limit)).all()) for value, limit in last
        )

    @property
    def state(self) -> str:
        """``finished`` (with the reason where that was early), ``diverged at step 120``, or how far it is."""
        if self.finished:
            return f"finished: {self.done_text}" if ";" in self.done_text else "finished"
        if self.diverged:
            return f"diverged at step {self.step}"
        planned = self.recipe.get("train", {}).get("length")
        return f"stopped at step {self.step}" + (f" of {planned}" if planned is not None else "")

    def column(self, name: str) -> np.ndarray:
        """The finite values of a column of the log; empty where there is none."""
        values = self.curves.values.get(name, np.zeros(0))
        return values[np.isfinite(values)]


def read_record(root: Path) -> RunRecord:
    """Read the run at ``root``.

    Raises `InputError` where there is none and `FormatError` or `RecipeError` naming the file that is damaged.
    """
    run = RunFolder(root)
    if not run.recipe.is_file() or not run.environment.is_file():
        raise InputError(
            "no run here", where=root, expected="a folder that `cellwright train` wrote, with recipe.yaml and log.csv"
        )
    recipe, known_schema = _read_recipe(run.recipe)
    environment = _mapping(run.environment)
    if not isinstance(environment.get("inputs", {}), Mapping) or not isinstance(environment.get("git") or {}, Mapping):
        raise FormatError("this is not a run's environment.json", where=run.environment, expected="inputs by name")
    described = _mapping(run.metrics) if run.metrics.is_file() else {}
    best = described.get("best", {})
    try:
        metrics = {str(name): float(value) for name, value in best.get("metrics", {}).items() if value is not None}
        best_step, chosen_by = int(best.get("step", 0)), str(best.get("chosen_by", ""))
    except (AttributeError, TypeError, ValueError) as error:
        raise FormatError(
            "this is not a run's metrics.json",
            where=run.metrics,
            got=str(error),
            remedy="run the train command again: it writes the file anew",
        ) from error
    return RunRecord(
        folder=root,
        recipe=recipe,
        known_schema=known_schema,
        environment=environment,
        # A run that ends before its first step has no log yet.
        curves=read_log(run.log) if run.log.is_file() else Curves(np.zeros(0), {}),
        metrics=metrics,
        best_step=max(best_step, 0),
        chosen_by=chosen_by,
        finished=run.done.is_file(),
        done_text=run.done.read_text(encoding="utf-8", errors="replace").strip() if run.done.is_file() else "",
        parameters=_count_parameters(run),
    )


def read_records(root: Path) -> tuple[tuple[RunRecord, ...], int]:
    """The run at ``root``, or the runs of ``train --repeat`` there, and how many there should be.

    Of repeated runs those that are finished count; where none is, all that have begun. Raises what `read_record` does.
    """
    summary = root / SUMMARY
    if not summary.is_file():
        return (read_record(root),), 1
    try:
        folders = [root / str(one["folder"]) for one in _mapping(summary)["runs"]]
    except (KeyError, TypeError) as error:
        raise FormatError(
            "this summary of repeated runs is damaged",
            where=summary,
            got=str(error),
            remedy="run the train command again: it writes the file anew",
        ) from error
    found = [read_record(folder) for folder in folders if RunFolder(folder).recipe.is_file()]
    if not found:
        raise InputError("no run here", where=root, expected=f"the runs that {SUMMARY} names")
    return tuple([run for run in found if run.finished] or found), len(folders)


def differing(values: Sequence[Any], key: str = "") -> dict[str, tuple[Any, ...]]:
    """What differs between nested mappings: dotted key to its value in each; `ABSENT` where one lacks the key."""
    if all(isinstance(value, Mapping) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        below = (
            differing([value.get(name, ABSENT) for value in values], f"{key}.{name}" if key else str(name))
            for name in names
        )
        return {name: found for part in below for name, found in part.items()}
    return {} if all(value == values[0] for value in values) else {key: tuple(values)}


class _Absent:
    """The value of a key that a recipe does not have."""

    def __repr__(self) -> str:
        return "-"


ABSENT = _Absent()


def _read_recipe(path: Path) -> tuple[dict[str, Any], bool]:
    """The recipe with today's defaults; as it was written, and False, where today's schema does not know it."""
    text, place = recipes.read_text(str(path))
    values = recipes.parse(text, place)
    try:
        return recipes.from_dict(values, place).resolved().to_dict(), True
    except RecipeError:
        if not isinstance(values.get("train", {}), Mapping):
            raise
        return values, False


def _mapping(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise FormatError("this file of a run is damaged", where=path, got=type(found).__name__, expected="a mapping")
    return found


def _count_parameters(run: RunFolder) -> int | None:
    """Of the best weights, else of the newest checkpoint's; only their headers are read."""
    checkpoints = [one for one in run.checkpoints.glob("step_*/weights.safetensors") if one.parent.name[5:].isdigit()]
    newest = sorted(checkpoints, key=lambda one: int(one.parent.name[5:]))[-1:]
    for path in [run.model / "weights.safetensors", *newest]:
        if not path.is_file():
            continue
        try:
            with safe_open(path, framework="numpy") as file:
                trained = [name for name in file.keys() if not name.endswith(_STATISTICS)]  # noqa: SIM118 - no mapping
                return sum(math.prod(file.get_slice(name).get_shape()) for name in trained)
        except (OSError, SafetensorError) as error:
            raise FormatError(
                "these weights are damaged", where=path, got=str(error), remedy="copy the run or model folder again"
            ) from error
    return None

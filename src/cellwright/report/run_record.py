"""A training run as it is on disk, finished or not: what reports and comparisons read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cellwright.config import recipe as recipes
from cellwright.core.errors import FormatError, InputError, RecipeError
from cellwright.core.files import read_json
from cellwright.report.curves import Curves, read_log
from cellwright.training.run_folder import REPEATS, Best, RunFolder, read_best

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of normalisation layers: not trained


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run on disk, finished or not.

    Attributes:
        folder: the run folder.
        recipe: plain values, with every default filled in.
        known_schema: False if the recipe is of another version of cellwright; ``recipe`` is then the file's content.
        environment: the content of environment.json.
        curves: the log.
        best: the best evaluation; without metrics if there are no validation images.
        done_text: the content of DONE; None if the run is not finished.
        parameters: number of trainable parameters; None before the first weights are saved.
    """

    folder: Path
    recipe: Mapping[str, Any]
    known_schema: bool
    environment: Mapping[str, Any]
    curves: Curves
    best: Best
    done_text: str | None
    parameters: int | None

    @property
    def finished(self) -> bool:
        """Whether the run has reached its end."""
        return self.done_text is not None

    @property
    def step(self) -> int:
        """The number of steps done."""
        return int(self.curves.steps[-1]) if len(self.curves.steps) else 0

    @property
    def data(self) -> str | None:
        """The fingerprint of the training and validation images."""
        return self.environment.get("inputs", {}).get("data")

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
        """``finished`` (with the reason if it stopped early), ``diverged at step 120``, or how far it has got."""
        if self.done_text is not None:
            return f"finished: {self.done_text}" if ";" in self.done_text else "finished"
        if self.diverged:
            return f"diverged at step {self.step}"
        planned = self.recipe.get("train", {}).get("length")
        return f"stopped at step {self.step}" + (f" of {planned}" if planned is not None else "")

    def column(self, name: str) -> np.ndarray:
        """The finite values of a column of the log; empty if there is no such column."""
        values = self.curves.values.get(name, np.zeros(0))
        return values[np.isfinite(values)]


def read_record(root: Path) -> RunRecord:
    """Read the run at ``root``.

    Raises `InputError` if there is none, and `FormatError` or `RecipeError` for a damaged file.
    """
    run = RunFolder(root)
    if not run.recipe.is_file() or not run.environment.is_file():
        raise InputError(
            "not a run", where=root, expected="a folder that `cellwright train` wrote, with recipe.yaml and log.csv"
        )
    recipe, known_schema = _read_recipe(run.recipe)
    environment = _read_mapping(run.environment)
    if not isinstance(environment.get("inputs", {}), Mapping) or not isinstance(environment.get("git") or {}, Mapping):
        raise FormatError(
            "this environment.json is not that of a run",
            where=run.environment,
            expected="inputs and git as JSON objects",
        )
    return RunRecord(
        folder=root,
        recipe=recipe,
        known_schema=known_schema,
        environment=environment,
        # A run that ends before its first step has no log yet.
        curves=read_log(run.log) if run.log.is_file() else Curves(np.zeros(0), {}),
        best=read_best(run) if run.metrics.is_file() else Best(),
        done_text=run.done.read_text(encoding="utf-8", errors="replace").strip() if run.done.is_file() else None,
        parameters=_count_parameters(run),
    )


def read_records(root: Path) -> tuple[tuple[RunRecord, ...], int]:
    """The run at ``root``, or the repeated runs (several seeds) there, and the planned number of runs.

    Of repeated runs, those that are finished, or all that have started if none is finished. Raises what `read_record`
    raises.
    """
    summary = root / REPEATS
    if not summary.is_file():
        return (read_record(root),), 1
    try:
        folders = [root / str(entry["folder"]) for entry in _read_mapping(summary)["runs"]]
    except (KeyError, TypeError) as error:
        raise FormatError(
            "this summary of repeated runs is damaged",
            where=summary,
            got=str(error),
            remedy="run the same training command again, which writes this file again",
        ) from error
    records = [read_record(folder) for folder in folders if RunFolder(folder).recipe.is_file()]
    if not records:
        raise InputError("this folder contains no run", where=root, expected=f"the runs that {REPEATS} names")
    return tuple([record for record in records if record.finished] or records), len(folders)


def _read_recipe(path: Path) -> tuple[dict[str, Any], bool]:
    """The recipe with the current defaults and True, or the file's content and False if its schema is not ours."""
    text, place = recipes.read_text(str(path))
    values = recipes.parse(text, place)
    try:
        return recipes.from_dict(values, place).resolved().to_dict(), True
    except RecipeError:
        if not isinstance(values.get("train", {}), Mapping):
            raise
        return values, False


def _read_mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise FormatError("this file of a run is damaged", where=path, got=type(content).__name__, expected="a mapping")
    return content


def _count_parameters(run: RunFolder) -> int | None:
    """Parameters of the best model, or else of the newest checkpoint; reads only the header of the file."""
    checkpoints = [
        path for path in run.checkpoints.glob("step_*/weights.safetensors") if path.parent.name[5:].isdigit()
    ]
    newest = sorted(checkpoints, key=lambda path: int(path.parent.name[5:]))[-1:]
    for path in [run.model / "weights.safetensors", *newest]:
        if not path.is_file():
            continue
        try:
            with safe_open(path, framework="numpy") as file:
                trained = [name for name in file.keys() if not name.endswith(_STATISTICS)]  # noqa: SIM118 - not a dict
                return sum(math.prod(file.get_slice(name).get_shape()) for name in trained)
        except (OSError, SafetensorError) as error:
            raise FormatError(
                "these weights are damaged", where=path, got=str(error), remedy="copy the run or model folder again"
            ) from error
    return None

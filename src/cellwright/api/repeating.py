"""One recipe under several seeds: a run each, and how much the figures spread."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from cellwright.api.read import read_dataset
from cellwright.api.training import Run, TrainPlan, recipe_of, run_plan
from cellwright.api.training_hooks import HEADLINE
from cellwright.core.dataset import Dataset
from cellwright.core.errors import OutputError, UsageError
from cellwright.core.files import write_json
from cellwright.core.progress import SILENT, Screen

SCHEMA_VERSION = 1
SUMMARY = "repeat.json"


@dataclass(frozen=True)
class Repeats:
    """Runs that differ in their seed alone.

    runs: those that are finished, by seed. asked: how many there should be.
    """

    folder: Path
    runs: dict[int, Run]
    asked: int

    @property
    def finished(self) -> bool:
        """Whether all runs are."""
        return len(self.runs) == self.asked

    def metrics(self) -> dict[str, dict[str, float | int | None]]:
        """For each metric that every run has: ``mean``, ``std`` (of a sample, n - 1; None for one run) and ``n``."""
        found = [run.metrics for run in self.runs.values()]
        names = [name for name in (found[0] if found else {}) if all(name in one for one in found)]
        values = {name: [one[name] for one in found] for name in names}
        return {
            name: {"mean": fmean(own), "std": stdev(own) if len(own) > 1 else None, "n": len(own)}
            for name, own in values.items()
        }

    def table(self) -> tuple[tuple[str, ...], list[list[object]]]:
        """Columns and rows: metric, mean, standard deviation, and the value of each seed."""
        summary = self.metrics()
        rows: list[list[object]] = []
        for name in [name for name in HEADLINE if name in summary] or sorted(summary):
            spread = summary[name]["std"]
            each = [run.metrics[name] for run in self.runs.values()]
            rows.append([name, summary[name]["mean"], "-" if spread is None else spread, *each])
        return ("metric", "mean", "std", *(f"seed {seed}" for seed in self.runs)), rows


def run_repeats(plan: TrainPlan, times: int, screen: Screen = SILENT) -> Repeats:
    """Train ``times`` runs with the seeds from the recipe's on, each in ``plan.out/seed_N``; the same call goes on.

    ``plan.max_minutes`` is for all of them together. ``plan.out/repeat.json`` is written after each run. Raises
    `UsageError` for less than one run, `OutputError` where ``plan.out`` holds something else, and what
    `training.run_plan` raises.
    """
    if times < 1:
        raise UsageError("at least one run is needed", where="--repeat", got=times, remedy="give --repeat 1 or more")
    _check_folder(plan.out)
    recipe = recipe_of(plan)
    data = plan.data if isinstance(plan.data, Dataset) else read_dataset(plan.data)
    deadline = None if plan.max_minutes is None else time.monotonic() + 60 * plan.max_minutes
    repeats = Repeats(plan.out, {}, times)
    _write(repeats, recipe.train.seed)
    for seed in range(recipe.train.seed, recipe.train.seed + times):
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) / 60
        out = plan.out / f"seed_{seed}"
        kept = not plan.overwrite and (out / "DONE").exists()  # takes no time, and belongs into the summary
        if left is not None and left <= 0 and not kept:
            screen.note("the time is over; the same command goes on")
            break
        screen.note(f"seed {seed} ({seed - recipe.train.seed + 1} of {times})")
        seeded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
        single = TrainPlan(seeded, data, out, None, (), left, plan.device, plan.overwrite, keep_finished=True)
        run = run_plan(single, screen)
        if run.finished:
            repeats = dataclasses.replace(repeats, runs={**repeats.runs, seed: run})
            _write(repeats, recipe.train.seed)
    return repeats


def _check_folder(folder: Path) -> None:
    """Whether repeats may be written here: a new folder, an empty one, or one that holds repeats."""
    if not folder.exists() or (folder / SUMMARY).is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        what = "a single run" if (folder / "recipe.yaml").is_file() else "something else"
        raise OutputError(
            f"{what} stands where the repeated runs should go", where=folder, remedy="choose another --out"
        )


def _write(repeats: Repeats, first_seed: int) -> None:
    seeds = range(first_seed, first_seed + repeats.asked)
    runs = [
        {
            "seed": seed,
            "folder": f"seed_{seed}",
            "metrics": repeats.runs[seed].metrics if seed in repeats.runs else None,
        }
        for seed in seeds
    ]
    content = {"schema_version": SCHEMA_VERSION, "finished": repeats.finished, "runs": runs}
    write_json(repeats.folder / SUMMARY, {**content, "metrics": repeats.metrics()})

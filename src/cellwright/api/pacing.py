"""A schedule that ends when the time is over: the length of a training is fitted to a number of minutes.

`cellwright train` with a time limit stops in the middle of its schedule, at a high learning rate. Here, a few steps on
the same images tell how long a step takes, and the whole schedule, with warm-up and decay, is made as long as fits. The
page uses it for its trainings, and `cellwright plan` for the recipes that it writes.
"""

from __future__ import annotations

import csv
import dataclasses
import shutil
import time
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from cellwright.config.training import Span
from cellwright.core.files import read_json, write_json
from cellwright.core.progress import ProgressReporter
from cellwright.core.text import count

if TYPE_CHECKING:
    from cellwright.api.train import TrainPlan
    from cellwright.config.recipe import Recipe
    from cellwright.config.training import TrainConfig
    from cellwright.core.dataset import Dataset

PROBE_STEPS = 4  # of which the first ones do not count: they wait for images and compile
PROBE_IMAGES = 4  # that it evaluates
RESERVE = 0.9  # of the time that is left, as no estimate is exact
EVALUATIONS = 4  # of a whole run, see `fitted_steps`
FEWEST = 10
FEW = 100  # a model learns little in fewer steps
SHORTEST_MINUTES = 1.0  # a shorter time is not worth the probe
_LENGTH = "train.length"


def fitted_steps(left_s: float, step_s: float, evaluate_s: float) -> int:
    """How many steps fit into a time, with an evaluation in the middle and three at the end.

    Those at the end are of the last model, and for the report of the best one and the one that training started from.

    >>> fitted_steps(left_s=300, step_s=0.5, evaluate_s=5)
    500
    >>> fitted_steps(left_s=1, step_s=0.5, evaluate_s=5)
    10
    """
    return max(int((RESERVE * left_s - EVALUATIONS * evaluate_s) / max(step_s, 1e-6)), FEWEST)


def fitted(plan: TrainPlan, n_samples: int, reporter: ProgressReporter, notes: Path) -> TrainPlan:
    """The plan with a length that fits into its minutes; as it is with no limit or a very short one, or if all fits.

    notes: a file that keeps the result, so that a training goes on with the same schedule. n_samples: images to train
    on.
    """
    from cellwright.api.train import load_recipe
    from cellwright.training.schedule import Timeline

    if (
        plan.max_minutes is None
        or plan.max_minutes < SHORTEST_MINUTES
        or any(key.strip().startswith(_LENGTH) for key in plan.set)
    ):
        return plan
    if not notes.is_file():
        config = load_recipe(plan.recipe, plan.set, plan.init).train
        total, started = Timeline.of(config, n_samples).total_steps, time.monotonic()
        step_s, evaluate_s = _probe(plan, notes.with_suffix(""), reporter)
        left_s = 60 * plan.max_minutes - (time.monotonic() - started)
        steps = fitted_steps(left_s, step_s, evaluate_s)
        write_json(notes, {"set": _schedule(config, n_samples, steps) if steps < total else [], "step_s": step_s})
        if steps < total:
            of = f"{count(steps, 'step')} of {total:,} fit into {plan.max_minutes:g} min"
            reporter.note(f"{of} at {step_s:.2f} s per step; the schedule is made as long")
        if steps < min(total, FEW):
            reporter.note(f"warning: a model learns little in {count(steps, 'step')}; allow more minutes")
    return dataclasses.replace(plan, set=(*plan.set, *read_json(notes)["set"]))


def _probe(plan: TrainPlan, folder: Path, reporter: ProgressReporter) -> tuple[float, float]:
    """Seconds per step and per evaluation of a plan, from a few steps in a folder that is removed again."""
    from cellwright.api.read import read_annotations
    from cellwright.api.train import load_recipe
    from cellwright.data.images.reading import Reading

    reporter.note("measuring how long a step takes")
    recipe = load_recipe(plan.recipe, plan.set, plan.init)
    data = read_annotations(plan.data, Reading(z=plan.z, t=plan.t, series=plan.series), format=plan.format)
    return measured_pace(recipe, data, plan.channel, device=plan.device, folder=folder)


def measured_pace(
    recipe: Recipe, dataset: Dataset, channel: tuple[str | int, ...] = (), *, device: str, folder: Path
) -> tuple[float, float]:
    """Seconds per step and per evaluation of all validation images, from a few steps on this machine.

    Only a few validation images are evaluated, and the others counted. folder: is removed again.
    """
    from cellwright.api.train import train_briefly

    tested = [sample for sample in dataset if sample.split == recipe.evaluate.split][: recipe.evaluate.max_images]
    left_out = {sample.id for sample in tested[PROBE_IMAGES:]}
    few = dataset.with_samples([sample for sample in dataset if sample.id not in left_out])
    spans = dict.fromkeys(("length", "evaluate_every", "checkpoint_every"), Span.parse(f"{PROBE_STEPS} steps"))
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={**spans, "warmup": None})})
    shutil.rmtree(folder, ignore_errors=True)  # of a probe that was killed
    try:
        log = train_briefly(short, few, channel, device=device, out=folder)
        with log.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    evaluations = [float(row["evaluate_s"]) for row in rows if row.get("evaluate_s")]
    per_image = max(evaluations, default=0.0) / max(min(len(tested), PROBE_IMAGES), 1)
    return fmean(float(row["step_s"]) for row in rows[PROBE_STEPS // 2 :]), per_image * len(tested)


def _schedule(config: TrainConfig, n_samples: int, steps: int) -> list[str]:
    """The keys of a recipe for a run of so many steps."""
    from cellwright.training.schedule import Timeline

    keys = {"length": steps, "evaluate_every": max(steps // 2, 1), "checkpoint_every": max(steps // 4, 1)}
    if config.warmup is not None:
        warmup = Timeline.of(config, n_samples).steps(config.warmup)
        keys["warmup"] = max(min(int(warmup), steps // 10), 1)
    return [f"train.{name}={count(n, 'step').replace(',', '')}" for name, n in keys.items()]

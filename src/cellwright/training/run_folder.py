"""The folder of a run: its file names, how it is opened to start or resume a run, and its ``metrics.json``."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellwright.core.errors import FormatError, OutputError
from cellwright.core.files import output_error, read_json, write_json, write_text
from cellwright.data.identity import Identity

SCHEMA_VERSION = 1
REPEATS = "repeat.json"  # the summary of several runs, in the folder that contains them
_OTHER_RUN = "choose another `out`, or start from scratch with `overwrite=True`"


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run. `open_run` creates them."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Versions, device, threads, and fingerprints of the inputs."""
        return self.root / "environment.json"

    @property
    def inputs(self) -> Path:
        """The content of images and annotations: a digest of each file and of the objects of each image."""
        return self.root / "inputs.json"

    @property
    def log(self) -> Path:
        """One row per step."""
        return self.root / "log.csv"

    @property
    def curves(self) -> Path:
        """Plots of the log."""
        return self.root / "curves"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files, with ``train.tensorboard``."""
        return self.root / "tensorboard"

    @property
    def init_report(self) -> Path:
        """How each tensor of the network was initialised, if training started from given weights."""
        return self.root / "init_report.txt"

    @property
    def metrics(self) -> Path:
        """The last and the best evaluation."""
        return self.root / "metrics.json"

    @property
    def checkpoints(self) -> Path:
        """Training states to resume from."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The best model: the folder to share."""
        return self.root / "model"

    @property
    def done(self) -> Path:
        """Exists once the run is finished."""
        return self.root / "DONE"

    @property
    def is_started(self) -> bool:
        """Whether there is anything to resume or to keep: a checkpoint, a model, or the end of the run."""
        return self.done.exists() or self.model.exists() or any(self.checkpoints.glob("step_*"))


def open_run(
    root: Path,
    *,
    recipe_yaml: str,
    environment: dict[str, Any],
    identity: Identity | None = None,
    overwrite: bool = False,
) -> RunFolder:
    """Start a run at ``root``, or open an unfinished one with the same recipe and inputs to resume it.

    A run that was interrupted or failed before its first checkpoint has nothing to resume, and does not block its
    folder.

    Args:
        root: the run folder, created if it does not exist.
        recipe_yaml: the text of the resolved recipe.
        environment: the result of `describe_environment`. Its ``inputs`` (fingerprints of data and initial weights by
            name) must be the same as before; everything else may differ, and the latest is recorded.
        identity: the content of the data, recorded so that a later call can say what has changed.
        overwrite: remove an existing run first.

    Raises `OutputError` if the run is finished or has other inputs, if ``root`` contains something other than a run,
    or if it cannot be written.
    """
    run = RunFolder(root)
    environment = check_run_folder(run, recipe_yaml, environment, identity, overwrite=overwrite)
    if run.done.exists() and not overwrite:
        raise OutputError("this run is finished", where=root, remedy=_OTHER_RUN)
    try:
        if overwrite and run.recipe.is_file():
            shutil.rmtree(root)
        elif not run.is_started:  # what a run left that ended before its first checkpoint
            shutil.rmtree(run.curves, ignore_errors=True)
            shutil.rmtree(run.tensorboard, ignore_errors=True)
            for leftover in (run.log, run.init_report):
                leftover.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(root, error) from error
    # The recipe comes first: it shows that the folder is a run, whenever this is interrupted.
    write_text(run.recipe, recipe_yaml)
    write_json(run.environment, {"schema_version": SCHEMA_VERSION, **environment})
    if identity is not None:
        write_json(run.inputs, {"schema_version": SCHEMA_VERSION, **identity.to_dict()})
    try:
        run.checkpoints.mkdir(exist_ok=True)
    except OSError as error:
        raise output_error(root, error) from error
    return run


def check_run_folder(
    run: RunFolder,
    recipe_yaml: str,
    environment: dict[str, Any],
    identity: Identity | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """The environment to record when this run starts, resumes or is finished already; nothing is written.

    Raises `OutputError` as `open_run`, but not for a finished run.
    """
    root = run.root
    if root.exists() and not root.is_dir():
        raise OutputError("the run folder cannot be created: a file has its name", where=root, remedy=_OTHER_RUN)
    # A run that was killed at once left only the temporary name of its first file.
    if not root.is_dir() or all(entry.name.startswith(f".{run.recipe.name}.") for entry in root.iterdir()):
        return environment
    if not run.recipe.is_file():
        raise OutputError(
            "this folder is not empty and is not a run",
            where=root,
            expected="a new folder, or one with recipe.yaml",
            remedy="choose another `out`",
        )
    if overwrite or not run.is_started:
        return environment
    before = _check_same_run(run, recipe_yaml, environment, identity)
    # A run keeps its number of threads, because another number rounds differently.
    return {**environment, **{key: before[key] for key in ("threads",) if key in before}}


def recorded_identity(run: RunFolder) -> Identity | None:
    """The content of the data when the run was last started, or None. Raises `FormatError` if it is damaged."""
    return Identity.from_dict(read_json(run.inputs), run.inputs) if run.inputs.is_file() else None


def _check_same_run(
    run: RunFolder, recipe_yaml: str, environment: dict[str, Any], identity: Identity | None
) -> dict[str, Any]:
    """The recorded environment of an existing run. Raises `OutputError` if its recipe or inputs differ."""
    before = run.recipe.read_text(encoding="utf-8")
    if before != recipe_yaml:
        difference = _first_difference(before, recipe_yaml)
        raise OutputError(
            "this run was started with another recipe", where=run.recipe, got=difference, remedy=_OTHER_RUN
        )
    if not run.environment.is_file():
        return {}
    recorded = read_json(run.environment)
    inputs = recorded.get("inputs", {})
    for name in sorted({*inputs, *environment.get("inputs", {})}):
        was, now = inputs.get(name), environment.get("inputs", {}).get(name)
        if was != now:
            earlier = recorded_identity(run) if name == "data" else None
            changes = [] if earlier is None or identity is None else identity.changes(earlier)
            raise OutputError(
                f"this run was started with another input ({name})",
                where=run.root,
                got="changed since: " + "; ".join(changes) if changes else now,
                expected=None if changes else was,
                remedy=_OTHER_RUN,
            )
    return recorded


def _first_difference(before: str, now: str) -> str:
    lines_before, lines_now = before.splitlines(), now.splitlines()
    for old, new in zip(lines_before, lines_now, strict=False):
        if old != new:
            return f"{new.strip()!r} instead of {old.strip()!r}"
    longer = max(lines_before, lines_now, key=len)
    return f"the line {longer[min(len(lines_before), len(lines_now))].strip()!r} is in one of them only"


@dataclass(frozen=True)
class Best:
    """The best evaluation of a run.

    Attributes:
        step: its step; 0 or less before the first evaluation.
        chosen_by: the metric that decides which evaluation is the best.
        metrics: all its metrics by name; empty if the run has no validation images.
    """

    step: int = 0
    chosen_by: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


def write_metrics(run: RunFolder, step: int, metrics: Mapping[str, float], best: Best) -> None:
    """Write ``metrics.json``: the evaluation after ``step`` and the best one."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "metrics": finite_or_none(metrics),
        "best": {"step": best.step, "chosen_by": best.chosen_by, "metrics": finite_or_none(best.metrics)},
    }
    write_json(run.metrics, content)


def read_best(run: RunFolder) -> Best:
    """The best evaluation in ``metrics.json``, without undefined metrics. Raises `FormatError` if it is damaged."""
    content = read_json(run.metrics)
    try:
        best = content.get("best", {})
        metrics = {str(name): float(value) for name, value in best.get("metrics", {}).items() if value is not None}
        return Best(int(best.get("step", 0)), str(best.get("chosen_by", "")), metrics)
    except (AttributeError, TypeError, ValueError) as error:
        raise FormatError(
            "invalid metrics.json of a run",
            where=run.metrics,
            got=str(error),
            remedy="run the same training command again: it resumes, and writes this file again",
        ) from error


def finite_or_none(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for strict JSON, which has no NaN: an undefined metric becomes null."""
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}

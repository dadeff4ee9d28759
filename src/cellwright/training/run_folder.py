"""The folder of one run: what lies where, and whether it may be begun, gone on with, or is finished."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellwright.core.errors import OutputError
from cellwright.core.files import output_error, read_json, write_json, write_text

SCHEMA_VERSION = 1
_OTHER_RUN = "choose another --out, or give --overwrite to begin anew"


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run. ``open_run`` makes one."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Versions, device, threads, and fingerprints of what went in."""
        return self.root / "environment.json"

    @property
    def log(self) -> Path:
        """One row a step."""
        return self.root / "log.csv"

    @property
    def tensorboard(self) -> Path:
        """Event files, with ``train.tensorboard``."""
        return self.root / "tensorboard"

    @property
    def init_report(self) -> Path:
        """What became of each tensor of the initial weights."""
        return self.root / "init_report.txt"

    @property
    def metrics(self) -> Path:
        """The last and the best evaluation."""
        return self.root / "metrics.json"

    @property
    def checkpoints(self) -> Path:
        """Training states."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The best model; the folder to share."""
        return self.root / "model"

    @property
    def done(self) -> Path:
        """Exists when all steps are done."""
        return self.root / "DONE"


def open_run(root: Path, *, recipe_yaml: str, environment: dict[str, Any], overwrite: bool = False) -> RunFolder:
    """Begin a run at ``root``, or go on with one that has the same recipe and inputs and is not finished.

    Args:
        root: made where it is absent.
        recipe_yaml: the resolved recipe's text.
        environment: as `describe_environment` gives it. Its ``inputs`` (name to fingerprint of data and initial
            weights) must not have changed; all else may, and the newest is kept.
        overwrite: remove what is there first.

    Raises `OutputError` where the run is finished, was begun with other inputs, or ``root`` is no run or not writable.
    """
    run = RunFolder(root)
    if overwrite and run.recipe.is_file():
        shutil.rmtree(root, ignore_errors=True)
    if root.exists() and not root.is_dir():
        raise OutputError("a file stands where the run's folder should be", where=root, remedy=_OTHER_RUN)
    if root.is_dir() and any(root.iterdir()):
        if run.done.exists():
            raise OutputError("this run is finished", where=run.root, remedy=_OTHER_RUN)
        before = check_same_run(run, recipe_yaml, environment)
        # A run keeps its thread count, because another one rounds differently.
        environment = {**environment, **{key: before[key] for key in ("threads",) if key in before}}
    try:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(root, error) from error
    write_text(run.recipe, recipe_yaml)
    write_json(run.environment, {"schema_version": SCHEMA_VERSION, **environment})
    return run


def check_same_run(run: RunFolder, recipe_yaml: str, environment: dict[str, Any]) -> dict[str, Any]:
    """The environment that the run at ``run`` recorded, if it has the same recipe and inputs; else `OutputError`."""
    if not run.recipe.is_file():
        raise OutputError(
            "this folder is not empty and holds no run",
            where=run.root,
            expected="a new folder, or one with recipe.yaml",
            remedy="choose another --out",
        )
    before = run.recipe.read_text(encoding="utf-8")
    if before != recipe_yaml:
        differing = _first_difference(before, recipe_yaml)
        raise OutputError("this run was begun with another recipe", where=run.recipe, got=differing, remedy=_OTHER_RUN)
    if not run.environment.is_file():  # killed between its first two files: nothing has been trained
        return {}
    recorded = read_json(run.environment)
    inputs = recorded.get("inputs", {})
    for name in sorted({*inputs, *environment.get("inputs", {})}):
        was, now = inputs.get(name), environment.get("inputs", {}).get(name)
        if was != now:
            raise OutputError(
                f"this run was begun with other input ({name})",
                where=run.root,
                got=now,
                expected=was,
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

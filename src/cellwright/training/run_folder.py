"""The folder of a run: its file names, and its ``metrics.json``. `run_output` starts and resumes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cellwright.core.errors import FormatError
from cellwright.core.files import read_json, write_json
from cellwright.core.result_folders import REPORT

SCHEMA_VERSION = 1
REPEATS = "repeat.json"  # the summary of several runs, in the folder that contains them
CURVES = ("losses", "lr", "memory", "iteration_time", "ap_box", "ap_mask", "ap_per_class")  # drawn by `report.curves`


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

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
    def report(self) -> Path:
        """The whole run on one page."""
        return self.root / REPORT

    @property
    def metrics(self) -> Path:
        """The last and the best evaluation."""
        return self.root / "metrics.json"

    @property
    def validation(self) -> Path:
        """The evaluation of the best model on the validation images, with pictures."""
        return self.root / "validation"

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

"""The verbs of the page, and an order to the worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cellwright.core.errors import UsageError, did_you_mean
from cellwright.core.progress import ProgressReporter
from cellwright.serve.facts import ProjectFacts
from cellwright.serve.object_tasks import ExportTask, MeasureTask, PredictTask
from cellwright.serve.task import Place, Task
from cellwright.serve.training_tasks import EvaluateTask, SuspectsTask, TrainTask, TuneTask

TASKS: dict[str, type[Task]] = {
    "predict": PredictTask,
    "train": TrainTask,
    "tune": TuneTask,
    "evaluate": EvaluateTask,
    "suspects": SuspectsTask,
    "measure": MeasureTask,
    "export": ExportTask,
}


def parse_task(verb: str, parameters: Mapping[str, Any]) -> Task:
    """The parameters of a verb. Raises `UsageError` that names the field that is not valid."""
    if verb not in TASKS:
        raise UsageError("unknown verb", got=verb, expected=", ".join(TASKS), remedy=did_you_mean(verb, TASKS))
    try:
        return TASKS[verb].model_validate(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        expected = ", ".join(TASKS[verb].model_fields) if first["type"] == "extra_forbidden" else None
        got = str(first.get("input"))[:200]
        raise UsageError(f"invalid `{field}`: {first['msg']}", where=verb, got=got, expected=expected) from error


@dataclass(frozen=True)
class Order:
    """What the worker is asked to do."""

    id: str
    task: Task
    place: Place

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Order:
        """Of what `serve.jobs` sends."""
        place = Place(ProjectFacts.from_json(values["project"]), Path(values["folder"]), str(values["id"]))
        return Order(str(values["id"]), parse_task(values["verb"], values["parameters"]), place)

    def run(self, reporter: ProgressReporter) -> dict[str, Any]:
        """Do it; returns the result."""
        return self.task.run(self.place, reporter)

"""What the verbs of the page have in common: parameters, the plans of `cellwright.api` they carry out, a folder.

A task is checked and shown as command lines in the server, and run by the worker; both use the same plans. Its folder
is in ``predictions/``, ``runs/``, ``models/``, ``evaluations/``, ``measurements/`` or ``exports/``, and has the name of
the job.
"""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from cellwright.api.models import NAMED_MODELS
from cellwright.core.errors import UsageError, did_you_mean
from cellwright.core.progress import ProgressReporter
from cellwright.serve.facts import ProjectFacts

EVALUATIONS = "evaluations"
MODEL_FOLDERS = ("runs", "models")


@dataclass(frozen=True)
class Step:
    """One command of a task. verb: as it is typed."""

    verb: str
    plan: Any

    @property
    def command(self) -> str:
        """The command line that does the same.

        >>> from cellwright.api.predict import PredictPlan
        >>> Step("predict", PredictPlan((Path("my images"),), score=0.4, save=("masks",), out=Path("p"))).command
        "cellwright predict 'my images' --score 0.4 --save masks --out p"
        """
        words = ["cellwright", *self.verb.split()]
        for field in dataclasses.fields(self.plan):
            value = getattr(self.plan, field.name)
            if value == field.default and field.kw_only:
                continue
            values = value if isinstance(value, tuple) else (value,)
            option = [f"--{field.name.replace('_', '-')}"] if field.kw_only else []
            for one in values:
                shown = f"{one:g}" if isinstance(one, float) else str(one)
                words += option if one is True else [*option, shown]
        return shlex.join(words)

    def run(self, reporter: ProgressReporter) -> Any:
        """Carry out the plan, as the command line does."""
        return import_module(type(self.plan).__module__).run(self.plan, reporter)


@dataclass(frozen=True)
class Place:
    """The project of a task, the folder that the task writes, and the id of the job."""

    project: ProjectFacts
    folder: Path
    job: str

    def beside(self, what: str) -> Path:
        """A folder for what a step reads, beside the folder of the task, which a step writes."""
        return self.folder.with_name(f"{self.folder.name}_{what}")

    def model(self, name: str) -> str:
        """A bundled model, or the folder of one of the project. Raises `UsageError` for another name."""
        if name in NAMED_MODELS:
            return name
        from cellwright.api.paths import is_model_folder

        for kind in MODEL_FOLDERS:
            path = self._inside(f"{kind}/{name}")
            if path is not None and is_model_folder(path):
                return str(path)
        remedy = did_you_mean(name, model_names(self.project.folder))
        raise UsageError("no such model in this project", got=name, remedy=remedy)

    def recipe(self, name: str) -> str:
        """A shipped recipe, or one in the project. Raises `UsageError` for another one."""
        from cellwright.config.recipe import shipped_names

        if name in shipped_names():
            return name
        path = self._inside(name)
        if path is None or not path.is_file():
            raise UsageError("no such recipe", got=name, remedy=did_you_mean(name, shipped_names()))
        return str(path)

    def _inside(self, name: str) -> Path | None:
        """A path in the project, without links that lead out of it."""
        path, root = self.project.folder / name, self.project.folder.resolve()
        return path if path.resolve().is_relative_to(root) else None


class Task(BaseModel):
    """The parameters of a verb, which the page sends. images: ids, or None for all that can be used."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: ClassVar[str]  # the folder of the project
    images: tuple[str, ...] | None = None

    def steps(self, place: Place) -> list[Step]:
        """The commands. Raises `CellwrightError` for parameters that are not valid, or images that do not fit."""
        raise NotImplementedError

    def run(self, place: Place, reporter: ProgressReporter) -> dict[str, Any]:
        """Carry out the steps; returns what the page shows. A task that was interrupted resumes."""
        raise NotImplementedError

    def folder_name(self, job: str) -> str:
        """The name of the folder of a job."""
        return job


def relative(path: Path, folder: Path) -> str:
    """The place of a file or folder in the project."""
    return path.relative_to(folder).as_posix()


def model_names(project: Path) -> list[str]:
    """The models that can be used in a project: the bundled ones, and those in its folders, newest first."""
    from cellwright.api.paths import is_model_folder

    found = [path for kind in MODEL_FOLDERS for path in project.glob(f"{kind}/*")]
    folders = sorted(filter(is_model_folder, found), key=lambda path: path.stat().st_mtime, reverse=True)
    return [*NAMED_MODELS, *[path.name for path in folders]]

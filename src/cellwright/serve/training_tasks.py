"""Tasks that learn from corrected images, or compare with them: train, tune, evaluate, check."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from cellwright.api.check import CheckPlan
from cellwright.api.evaluate import EvaluatePlan
from cellwright.api.pacing import fitted
from cellwright.api.train import TrainPlan
from cellwright.api.tune import TunePlan
from cellwright.core.errors import UsageError
from cellwright.core.events import plain
from cellwright.core.files import read_json
from cellwright.core.progress import ProgressReporter
from cellwright.core.text import count
from cellwright.data.formats.paths import output_path
from cellwright.report.change_picture import CHANGES
from cellwright.serve.facts import (
    ImageFacts,
    Part,
    ProjectFacts,
    predicted_part,
    truth_part,
    write_dataset,
)
from cellwright.serve.tables import comparison_of, read_table
from cellwright.serve.task import Place, Step, Task, relative
from cellwright.training.run_folder import RunFolder

PICTURES = 6  # of the worst images, that an evaluation draws
HELD_OUT = 0.2  # share of the corrected images on which a new model is tested
DATA = "data"


class TrainTask(Task):
    """Train on corrected images, and compare the model before and after on held-out ones.

    minutes: the schedule is made as long as fits, see `api.pacing`.
    name: of the folder in ``runs/``; by default the id of the job. held_out: ids of the images to test on; by default,
    a fifth: those that were held out before, then others.
    """

    kind: ClassVar[str] = "runs"
    recipe: str = "nuclei/finetune"
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")
    init: str | None = None
    minutes: float | None = Field(5, ge=0)
    set: tuple[str, ...] = ()
    channel: tuple[str, ...] = ()
    device: str = "auto"
    held_out: tuple[str, ...] | None = None

    def folder_name(self, job: str) -> str:
        """See `Task`."""
        return self.name or job

    def chosen(self, project: ProjectFacts) -> list[ImageFacts]:
        """The images to train and test on."""
        return project.chosen(self.images, lambda image: image.is_truth, "corrected")

    def steps(self, place: Place) -> list[Step]:
        """The training, which ends with an evaluation on held-out images if there are any."""
        from cellwright.api.train import load_recipe

        images = self.chosen(place.project)
        fixed = [key for key in self.set if key.strip().startswith(("model.init", "extends"))]
        if fixed:
            raise UsageError("this key cannot be set here", where="`set`", got=fixed[0], remedy="use `init`")
        init = None if self.init is None else place.model(self.init)
        recipe, data = place.recipe(self.recipe), place.beside(DATA)
        load_recipe(recipe, self.set, init)
        self._held_out(place, images)
        train = TrainPlan(
            recipe,
            data=data,
            channel=self.channel,
            init=init,
            set=self.set,
            max_minutes=self.minutes,
            device=self.device,
            out=place.folder,
        )
        return [Step("train", train)]

    def _held_out(self, place: Place, images: Sequence[ImageFacts]) -> set[str]:
        """The names of the images to test on; none if there is only one image."""
        if self.held_out is not None:
            held_out = {image.id for image in images if image.id in self.held_out}
            if len(held_out) in (0, len(images)):
                got, remedy = count(len(held_out), "image"), "leave some images for training, and some to test on"
                raise UsageError("invalid `held_out`", got=f"{got} of {len(images)}", remedy=remedy)
            return held_out
        if len(images) < 2:
            return set()
        trained, tested = earlier_splits(place.project.folder, place.folder.name)
        names = sorted((image.id for image in images), key=_in_mixed_order)
        wanted = max(1, round(HELD_OUT * len(names)))
        kept = [name for name in names if name in tested and name not in trained]
        fresh = [name for name in names if name not in tested and name not in trained]
        held_out = kept + fresh[: max(wanted - len(kept), 0)]
        return set((held_out or names)[: len(names) - 1][: max(wanted, len(kept))])

    def run(self, place: Place, reporter: ProgressReporter) -> dict[str, Any]:
        """See `Task`."""
        images, data = self.chosen(place.project), place.beside(DATA)
        (train,) = self.steps(place)
        if not (data / "dataset.json").is_file():  # a training that goes on keeps its images
            part, held_out = truth_part(place.project, self.images), self._held_out(place, images)
            samples = [dataclasses.replace(s, split="val" if s.id in held_out else "train") for s in part.named]
            if held_out & earlier_splits(place.project.folder, place.folder.name)[0]:
                text = "the held-out images were used in an earlier training, so the comparison may be optimistic"
                reporter.note(f"warning: {text}; correct another image, which will be held out")
            if not held_out:
                samples = [dataclasses.replace(sample, split=None) for sample in samples]
                reporter.note(
                    "no image is left to test the new model on; correct another one to compare it with the old model"
                )
            write_dataset(part.named.with_samples(samples), data)
        trained, tested = splits_of(data / "dataset.json")
        schedule = place.folder.with_name(f"{place.folder.name}_speed.json")
        train = dataclasses.replace(train, plan=fitted(train.plan, len(trained), reporter, schedule))
        run = train.run(reporter)
        result: dict[str, Any] = {"model": place.folder.name, "finished": run.finished}
        result |= {"metrics": [list(one) for one in run.headline()]}
        result |= {"commands": [train.command]}
        result |= {"trained_on": sorted(trained), "held_out": sorted(tested)}
        result |= self._comparison(place)
        ended = "Trained" if run.finished else "Trained until the time ran out"
        return {"text": f"{ended}{_before_and_after(result.get('rows'))}", **result}

    def _comparison(self, place: Place) -> dict[str, Any]:
        """The metrics before and after on held-out images, and the pictures of what has changed."""
        folder = RunFolder(place.folder).validation
        if not (folder / "metrics.json").is_file():
            return {}
        table = folder / f"{CHANGES}.csv"
        rows = plain(read_table(table).to_dict("records")) if table.is_file() else []
        pictures = [
            {"image": row["image"], "file": relative(folder / row["picture"], place.project.folder)}
            | {"box": [row[key] for key in ("y0", "x0", "y1", "x1")], "before": row["first"], "after": row["second"]}
            for row in rows
        ]
        return comparison_of(folder) | {"pictures": pictures}


class TuneTask(Task):
    """Choose thresholds of a model on corrected images; the tuned model is a copy."""

    kind: ClassVar[str] = "models"
    model: str
    metric: str = "accuracy@0.5"
    views: str | None = None
    device: str = "auto"

    def steps(self, place: Place) -> list[Step]:
        """See `Task`."""
        place.project.chosen(self.images, lambda image: image.is_truth, "corrected")
        plan = TunePlan(Path(place.model(self.model)), data=place.beside(DATA), out=place.folder)
        return [Step("tune", dataclasses.replace(plan, metric=self.metric, views=self.views, device=self.device))]

    def run(self, place: Place, reporter: ProgressReporter) -> dict[str, Any]:
        """See `Task`."""
        part = truth_part(place.project, self.images)
        samples = [dataclasses.replace(sample, split="val") for sample in part.named]
        write_dataset(part.named.with_samples(samples), place.beside(DATA))
        (step,) = self.steps(place)
        tuned = step.run(reporter)
        table = None if tuned is None else dict(zip(("title", "columns", "rows"), tuned.table(), strict=True))
        return {"text": f"tuned on {count(len(samples), 'image')}", "model": place.folder.name, "table": table}


class EvaluateTask(Task):
    """Evaluate a model, or the predictions that the project has, against the corrected images."""

    kind: ClassVar[str] = "evaluations"
    model: str | None = None
    score: float | None = None
    views: str | None = None
    channel: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    remove_border: bool = False
    device: str = "auto"

    def _parts(self, place: Place) -> tuple[Part, Part | None]:
        """Annotations and predictions; None for a model."""
        if self.model is not None:
            return truth_part(place.project, self.images), None
        predicted = predicted_part(place.project, self.images)
        return truth_part(place.project, [sample.id for sample in predicted.named]), predicted

    def steps(self, place: Place) -> list[Step]:
        """See `Task`."""
        truth, predicted = self._parts(place)
        data = truth.folder_by_id or place.beside("annotations")
        if predicted is None:
            subject = Path(place.model(self.model or ""))
        else:
            subject = predicted.folder_by_id or place.beside("predictions")
        shared = self.model_dump(exclude={"images", "model"})
        plan = EvaluatePlan((subject,), data=data, pictures=PICTURES, out=place.folder, **shared)
        return [Step("evaluate", plan)]

    def run(self, place: Place, reporter: ProgressReporter) -> dict[str, Any]:
        """See `Task`."""
        truth, predicted = self._parts(place)
        for part, name in ((truth, "annotations"), (predicted, "predictions")):
            if part is not None and part.folder_by_id is None:
                write_dataset(part.named, place.beside(name))
        (step,) = self.steps(place)
        step.run(reporter)
        summary = read_json(place.folder / "metrics.json")
        headline = summary["intervals_95"]
        text = ", ".join(f"{row['metric']} {row['value']:.3f}" for row in headline[:3] if row["value"] is not None)
        result = {"text": text, "evaluation": place.folder.name, "headline": headline, "notes": summary["notes"]}
        return result | {"pictures": self._pictures(place)}

    def _pictures(self, place: Place) -> list[dict[str, Any]]:
        """The pictures of the worst images, worst first."""
        table = read_table(place.folder / "per_image.csv").sort_values("accuracy@0.5", kind="stable")
        drawn = [(name, output_path(place.folder / "errors", name, ".png")) for name in table["image"]]
        folder = place.project.folder
        return [{"image": name, "file": relative(path, folder)} for name, path in drawn if path.is_file()]


class SuspectsTask(Task):
    """List suspicious objects of corrected images, most suspicious first."""

    kind: ClassVar[str] = "evaluations"
    suspects: int = Field(200, ge=1, le=1000)

    def steps(self, place: Place) -> list[Step]:
        """See `Task`."""
        folder = truth_part(place.project, self.images).folder_by_id or place.beside("annotations")
        return [Step("data check", CheckPlan(folder, suspects=self.suspects))]

    def run(self, place: Place, reporter: ProgressReporter) -> dict[str, Any]:
        """See `Task`."""
        part = truth_part(place.project, self.images)
        if part.folder_by_id is None:
            write_dataset(part.named, place.beside("annotations"))
        (step,) = self.steps(place)
        checked = step.run(reporter)
        suspects = checked.suspects[: self.suspects]
        boxes = {}
        for sample in part.named:
            if any(suspect.sample_id == sample.id for suspect in suspects):
                objects = sample.read_instances()
                pairs = zip(objects.ids.tolist(), objects.masks.boxes[:, [1, 0, 3, 2]].tolist(), strict=True)
                boxes |= {(sample.id, number): box for number, box in pairs}
        rows = [
            {"image": s.sample_id, "ids": [s.object_id], "kind": s.kind, "score": s.score, "why": s.why}
            | {"box": boxes[s.sample_id, s.object_id]}
            for s in suspects
        ]
        findings = [dataclasses.asdict(finding) for finding in checked.findings]
        text = f"{count(len(rows), 'suspicious object')}, {count(checked.n_errors, 'error')}"
        return {"text": text, "suspects": rows, "findings": findings}


def earlier_splits(project: Path, run: str) -> tuple[set[str], set[str]]:
    """The names of the images that other runs of a project trained on, and held out."""
    trained: set[str] = set()
    tested: set[str] = set()
    for path in project.glob(f"runs/*_{DATA}/dataset.json"):
        if path.parent.name != f"{run}_{DATA}":
            own = splits_of(path)
            trained |= own[0]
            tested |= own[1]
    return trained, tested


def splits_of(dataset: Path) -> tuple[set[str], set[str]]:
    """The names of the images of a run for training and validation; without splits, all are for training."""
    images = read_json(dataset)["images"]
    tested = {image["sample_id"] for image in images if image.get("split") == "val"}
    return {image["sample_id"] for image in images} - tested, tested


def _in_mixed_order(name: str) -> bytes:
    """A key that puts names in an order which has nothing to do with the names, and is always the same."""
    return hashlib.sha256(name.encode()).digest()


def _before_and_after(rows: list[dict[str, Any]] | None) -> str:
    """How the model changed; empty without a comparison.

    >>> _before_and_after([{"metric": "aji", "before": 0.61, "after": 0.58}])
    ': aji on held-out images 0.610 before, 0.580 after; the model before was better'
    """
    if not rows:
        return ""
    earlier, after = rows[0].get("before"), rows[0]["after"]
    before = "" if earlier is None else f"{earlier:.3f} before, "
    worse = "; the model before was better" if earlier is not None and after < earlier else ""
    return f": {rows[0]['metric']} on held-out images {before}{after:.3f} after{worse}"

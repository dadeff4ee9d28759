"""Tasks about the objects of images: predict, measure, export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cellwright.api.export import ExportPlan
from cellwright.api.measure import LARGE_PX, MeasurePlan
from cellwright.api.predict import PredictPlan
from cellwright.core.claim import CONTROL, Claim, files_below
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import InputError, UsageError, did_you_mean
from cellwright.core.files import write_text
from cellwright.core.instances import Instances
from cellwright.core.progress import ProgressReporter
from cellwright.core.table import frame_csv
from cellwright.core.text import count
from cellwright.prediction.fusion import Method
from cellwright.prediction.job import Save
from cellwright.serve.facts import ImageFacts, Part, ProjectFacts, joined, object_parts, only_objects, write_dataset
from cellwright.serve.tables import Gate, read_table, within
from cellwright.serve.task import Place, Step, Task, relative

if TYPE_CHECKING:
    pass

SUBMISSIONS = {"rle_csv": "objects.csv", "rle_csv_submission": "submission.csv", "dsb2018_csv": "submission.csv"}
FILE_NAMES = {"coco_results": "results.json", **SUBMISSIONS}  # other formats write a folder
MEASUREMENTS = "measurements"  # an export that is the table of the objects
FILES_FOLDER = "files"


class PredictTask(Task):
    """Segment images. keep: whether those that were corrected stay as they are, or are predicted too (undoable)."""

    kind: ClassVar[str] = "predictions"
    keep: Literal["corrected", "none"] = "corrected"
    model: tuple[str, ...] = ("nuclei",)
    channel: tuple[str, ...] = ()
    diameter: float | None = None
    score: float | None = None
    min_area: int | None = None
    max_objects: int | None = None
    remove_border: bool = False
    ring: int | None = None
    z: int | Literal["max", "mean"] | None = None
    t: int | None = None
    series: str | None = None
    pixel_size: tuple[float, ...] | None = None
    views: str | None = None
    fuse: Method = "wbf"
    device: str = "auto"
    tile: str = "auto"
    tissue: str | None = None
    save: tuple[Save, ...] = ("masks",)

    def chosen(self, project: ProjectFacts) -> list[ImageFacts]:
        """The images to predict."""
        images = project.chosen(self.images, lambda image: True, "in this project")
        if self.keep == "none":
            return images
        free = [image for image in images if not image.is_corrected]
        if not free:
            n, remedy = count(len(images), "image"), 'predict again with `keep="none"`, which can be undone'
            raise UsageError("only images with corrections, which are kept", got=n, remedy=remedy)
        return free

    def left(self, project: ProjectFacts) -> list[str]:
        """The ids of the images that are left as they are, as they have corrections."""
        images = project.chosen(self.images, lambda image: True, "in this project")
        return [image.id for image in images if image.is_corrected and self.keep == "corrected"]

    def steps(self, place: Place) -> list[Step]:
        """One command for all images; a command of its own for each large one, which is predicted tile by tile."""
        images = self.chosen(place.project)
        self._check_channels(images)
        large = [image for image in images if math.prod(image.hw) > LARGE_PX] if len(images) > 1 else []
        others = [image for image in images if image not in large]
        shared = self.model_dump(exclude={"images", "keep", "model"})
        shared["model"] = tuple(place.model(name) for name in self.model)
        steps = (
            [Step("predict", PredictPlan(self._sources(place, others), out=place.folder, **shared))] if others else []
        )
        for k, image in enumerate(large, 1):
            out = place.folder.with_name(f"{place.folder.name}_large_{k}")
            steps.append(Step("predict", PredictPlan((image.path,), out=out, **shared)))
        return steps

    def _check_channels(self, images: Sequence[ImageFacts]) -> None:
        """A number must mean the same channel in all images. Where a name is missing, only that image fails."""
        for word in self.channel:
            if not word.isdecimal():
                continue
            several = [image for image in images if len(image.channels) > 1 and word not in image.channels]
            named = {image.channels[int(word)]: image for image in several if int(word) < len(image.channels)}
            if len(named) > 1:
                got = ", ".join(f"{name} in {image.name or image.id}" for name, image in sorted(named.items())[:5])
                remedy = "choose a channel by its name, or predict these images one by one"
                raise UsageError(f"channel {word} is not the same in all images", got=got, remedy=remedy)

    def _sources(self, place: Place, images: Sequence[ImageFacts]) -> tuple[Path, ...]:
        """Files and whole folders, or, where names would collide, the dataset that `run` writes."""
        from cellwright.data.images.read import find_images
        from cellwright.prediction.sources import sources_of_paths

        wanted = {image.path.resolve() for image in images}
        readings = [dict(image.reading) for image in images]
        if readings[0] and all(reading == readings[0] for reading in readings):
            return (place.beside("images"),)  # a dataset records which channel is used
        paths: list[Path] = []
        for parent in dict.fromkeys(image.path.parent for image in images):
            own = [image.path for image in images if image.path.parent == parent]
            is_whole = len(own) > 1 and {path.resolve() for path in find_images(parent, [])} == {
                p.resolve() for p in own
            }
            paths += [parent] if is_whole else own
        try:
            if {source.path.resolve() for source in sources_of_paths(paths)} == wanted:
                return tuple(paths)
        except (InputError, UsageError):
            pass
        return (place.beside("images"),)

    def run(self, place: Place, reporter: ProgressReporter) -> dict[str, Any]:
        """See `Task`."""
        from cellwright.prediction.job import group_failures
        from cellwright.prediction.tiling.job import JobReport

        images = self.chosen(place.project)
        steps, named = self.steps(place), place.beside("images")
        if any(named in step.plan.sources for step in steps):
            samples = tuple(Sample(i.id, i.path, i.hw, Loaded(Instances.empty(i.hw))) for i in images)
            write_dataset(Dataset(samples, place.project.class_names, info=dict(images[0].reading)), named)
        n_objects, n_images, failures = 0, 0, []
        for step in steps:
            report = step.run(reporter)
            if isinstance(report, JobReport):
                n_objects, n_images = n_objects + (report.n_objects or 0), n_images + 1
                failures += [f"{failure.problem}" for failure in report.failures]
            else:
                n_objects, n_images = n_objects + report.n_objects, n_images + report.n_images
                failures += group_failures(report.failures)
        folders = [str(step.plan.out) for step in steps]
        text = f"{count(n_objects, 'object')} in {count(n_images, 'image')}"
        return {
            "text": text,
            "predictions": folders,
            "n_objects": n_objects,
            "n_images": n_images,
            "failures": failures,
        }


def _alone(folder: Path) -> str | None:
    """The option to measure objects alone, as the page does everywhere, where a prediction has cells around them."""
    claim = Claim.read(folder)
    options = {} if claim is None or claim.request is None else claim.request.get("options")
    return "0" if isinstance(options, Mapping) and options.get("expand") else None


class MeasureTask(Task):
    """Measure all objects of the images in one table."""

    kind: ClassVar[str] = "measurements"
    channel: tuple[str, ...] = ()
    ring: int | None = None
    pixel_size: float | None = None

    def _parts(self, place: Place) -> dict[str, Part]:
        """The objects by the name of their table."""
        parts = [part.with_names(place.project) for part in object_parts(place.project, self.images)]
        names = ["measurements"] if len(parts) == 1 else [f"part_{k}" for k in range(1, len(parts) + 1)]
        return dict(zip(names, parts, strict=True))

    def steps(self, place: Place) -> list[Step]:
        """One command for the corrected images, and one for each prediction with other images."""
        shared = self.model_dump(exclude={"images"})
        return [
            Step(
                "measure",
                MeasurePlan(folder, expand=_alone(folder), out=place.folder / f"{name}.csv", **shared),
            )
            for name, part in self._parts(place).items()
            for folder in (part.folder or place.folder / f"{name}_objects",)
        ]

    def run(self, place: Place, reporter: ProgressReporter) -> dict[str, Any]:
        """See `Task`."""
        import pandas as pd

        from cellwright.prediction.job import group_failures

        for name, part in self._parts(place).items():
            part.written(place.folder / f"{name}_objects")
        measured = [step.run(reporter) for step in self.steps(place)]
        table = pd.concat([one.table for one in measured], ignore_index=True)
        path = place.folder / "measurements.csv"
        if len(measured) > 1:
            write_text(path, frame_csv(table, float_format="%.7g"))
        failures = [(Path(str(error.where)).name, error) for one in measured for error in one.failures]
        n_images = sum(one.n_images for one in measured)
        text = f"{count(len(table), 'object')} in {count(n_images, 'image')}"
        shown = {"table": relative(path, place.project.folder), "failures": group_failures(failures)}
        return {"text": text, "n_objects": len(table), "n_images": n_images, **shown}


def exported_files(folder: Path) -> list[Path]:
    """The files of an export, without the records of the output folder."""
    return [folder / name for name in files_below(folder) if not name.startswith(f"{CONTROL}/")]


class ExportTask(Task):
    """Write the objects in another format; with gates, only those within all of them."""

    kind: ClassVar[str] = "exports"
    to: str
    gate: tuple[Gate, ...] = ()

    def steps(self, place: Place) -> list[Step]:
        """Measuring where it is needed, and the export."""
        steps = []
        folder = self._part(place).folder or place.folder / "objects"
        if self.gate or self.to == MEASUREMENTS:
            steps.append(
                Step("measure", MeasurePlan(folder, expand=_alone(folder), out=place.folder / "measurements.csv"))
            )
        folder = place.folder / "selected" if self.gate else folder
        if self.to != MEASUREMENTS:
            steps.append(Step("export", ExportPlan(folder, to=self.to, out=self._out(place, folder))))
        return steps

    def _out(self, place: Place, folder: Path) -> Path:
        from cellwright.api.export_job import JOB_FORMATS
        from cellwright.core.result_folders import is_job_folder
        from cellwright.data.formats import FORMATS

        files = place.folder / FILES_FOLDER
        if is_job_folder(folder) and self.to in JOB_FORMATS:
            return files / f"objects{JOB_FORMATS[self.to][0]}"
        known = {name for name, form in FORMATS.items() if form.is_writable} | {MEASUREMENTS}
        if self.to not in known:
            raise UsageError("unknown export format", got=self.to, remedy=did_you_mean(self.to, known))
        return files / FILE_NAMES[self.to] if self.to in FILE_NAMES else files

    def _part(self, place: Place) -> Part:
        part = joined(object_parts(place.project, self.images), place.project.class_names)
        return part.with_names(place.project)

    def run(self, place: Place, reporter: ProgressReporter) -> dict[str, Any]:
        """See `Task`."""
        part, steps = self._part(place), self.steps(place)
        part.written(place.folder / "objects")
        text = ""
        for step in steps:
            if step.verb == "export" and self.gate:
                table = within(read_table(place.folder / "measurements.csv"), self.gate)
                ids_of = {str(image): rows["label"].tolist() for image, rows in table.groupby("image")}
                write_dataset(only_objects(part.as_read, ids_of), place.folder / "selected")
            done = step.run(reporter)
            text = getattr(done, "text", text)
        files = place.folder / FILES_FOLDER
        if self.to == MEASUREMENTS:
            table = within(read_table(place.folder / "measurements.csv"), self.gate)
            files.mkdir(parents=True, exist_ok=True)
            write_text(files / "measurements.csv", frame_csv(table, float_format="%.7g"))
            text = f"1 table of {count(len(table), 'object')}"
        paths = [relative(path, place.project.folder) for path in exported_files(files)]
        return {
            "text": text,
            "files": paths[:100],
            "download": f"/api/exports/{place.job}",
            "n_files": len(paths),
            "folder": relative(files, place.project.folder),
        }

"""Routes of the jobs and of their results: /api/jobs, measurements, evaluations, exports, models, formats."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.background import BackgroundTask

from cellwright.core.errors import CellwrightError, InputError, OutputError, UsageError
from cellwright.core.events import plain
from cellwright.core.instances import Instances
from cellwright.core.result_folders import kind_of_result
from cellwright.serve.corrected import instances_of
from cellwright.serve.facts import ImageFacts
from cellwright.serve.jobs import JobQueue, WorkerProcess
from cellwright.serve.object_tasks import FILES_FOLDER, exported_files
from cellwright.serve.security import REPORT_POLICY
from cellwright.serve.tables import evaluation_of, measurements_of
from cellwright.serve.task import EVALUATIONS, model_names

if TYPE_CHECKING:
    from cellwright.serve.project import ImageRecord, Page

# What an export is called on the page, and what it is for; others have the name of the format.
TITLES = {
    "label_images": ("Label masks", "one 16- or 32-bit TIFF per image, 0 is background"),
    "geojson": ("QuPath GeoJSON", "outlines with classes and scores, for QuPath and other tools"),
    "imagej_roi": ("ImageJ ROIs", "one zip file per image, for Fiji and ImageJ"),
    "measurements": ("Measurements (CSV)", "one row per object: size, shape, intensities"),
    "coco": ("COCO dataset", "annotations with the images by reference, for training"),
    "coco_results": ("COCO results", "predictions with scores, for a benchmark"),
    "mask_folder": ("Mask folders", "one PNG per object, as in the Data Science Bowl"),
    "class_masks": ("Class masks", "one image per class"),
    "yolo_seg": ("YOLO segmentation", "outlines as text files"),
    "ctc": ("Cell Tracking Challenge", "masks as maskNNN.tif"),
    "rle_csv": ("RLE table (CSV)", "run lengths per object"),
    "rle_csv_submission": ("RLE submission (CSV)", "for Kaggle"),
    "dsb2018_csv": ("DSB 2018 submission (CSV)", "for Kaggle"),
}


class PageProject:
    """An open project as `serve.jobs.JobProject` has it."""

    def __init__(self, page: Page) -> None:
        self._page, self._project = page, page.project

    @property
    def folder(self) -> Path:
        return self._project.folder

    @property
    def corrected(self) -> Path:
        return self._project.corrected

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._project.classes

    def image_facts(self) -> list[ImageFacts]:
        """See `JobProject`."""
        names = self._project.file_names()
        return [self._facts_of(record, names[record.id]) for record in self._project.images if record.hw is not None]

    def _facts_of(self, record: ImageRecord, name: str) -> ImageFacts:
        source = None if record.source is None else (self.folder / record.source).resolve()
        is_result = source is not None and kind_of_result(source) is not None
        is_untouched = source is not None and not self._project.is_changed(record.id)
        assert record.hw is not None
        return ImageFacts(
            record.id,
            Path(os.path.abspath(self._project.path_of(record))),  # noqa: PTH100 - a link to an image stays one
            record.hw,
            is_corrected=record.is_corrected,
            is_annotated=is_untouched and not is_result,
            has_objects=record.is_predicted or is_untouched or bool(record.n_objects),
            objects=source if is_untouched else None,
            prediction=None if record.prediction is None else (self.folder / record.prediction).resolve(),
            reading=record.reading,
            name=name,
            channels=tuple(record.channels),
        )

    def objects(self, image_id: str) -> Instances:
        """See `JobProject`."""
        frozen = self._project.annotation(image_id).snapshot()
        shown = instances_of(frozen)
        shown = shown[~shown.ignore]
        scores = frozen.columns["score"][np.searchsorted(frozen.columns["id"], shown.ids)]
        return shown if np.isnan(scores).any() else replace(shown, scores=scores)

    def save_corrected(self) -> None:
        """See `JobProject`."""
        if any(image.is_corrected for image in self.image_facts()):
            self._project.save_corrected()

    def adopt(self, folder: Path, ids: Sequence[str]) -> list[str]:
        """See `JobProject`."""
        return self._project.adopt(folder, ids)

    def set_training(self, ids: Sequence[str], *, is_on: bool) -> None:
        """See `JobProject`."""
        there = {record.id for record in self._project.images}  # others were removed meanwhile
        self._project.set_training([one for one in ids if one in there], is_on=is_on)
        self._page.events.publish({"kind": "project"})


def start(page: Page) -> None:
    """Begin to work, when the server starts; `stop` ends it."""
    page.jobs = JobQueue(PageProject(page), page.events.publish, start_worker=page.start_worker or WorkerProcess)
    page.jobs.start()


def stop(page: Page) -> None:
    """End the work; an unfinished job goes on when the server starts again."""
    if page.jobs is not None:
        page.jobs.close()


def job_router() -> APIRouter:
    """The routes; they run in threads, as they read files."""
    router = APIRouter(prefix="/api")
    router.add_api_route("/jobs", list_jobs, methods=["GET"])
    router.add_api_route("/jobs", submit, methods=["POST"])
    router.add_api_route("/jobs/{job_id}", show, methods=["GET"])
    router.add_api_route("/jobs/{job_id}", cancel, methods=["DELETE"])
    router.add_api_route("/jobs/{job_id}/resume", resume, methods=["POST"])
    router.add_api_route("/jobs/{job_id}/pictures/{number}", picture, methods=["GET"])
    router.add_api_route("/images/{image_id}/measurements", measurements, methods=["GET"])
    router.add_api_route("/evaluations/{job_id}", evaluation, methods=["GET"])
    router.add_api_route("/exports/{job_id}", download, methods=["GET"])
    router.add_api_route("/reports/{job_id}/{number}", report, methods=["GET"])
    router.add_api_route("/models", models, methods=["GET"])
    router.add_api_route("/formats", formats, methods=["GET"])
    return router


def jobs_of(request: Request) -> JobQueue:
    """The jobs of the server."""
    return request.app.state.page.jobs


def list_jobs(request: Request) -> Response:
    """All jobs, without most of their events. A page asks when it is opened, so the worker starts."""
    jobs = jobs_of(request)
    jobs.warm_up()
    return answered(lambda: {"jobs": jobs.all()})


def submit(request: Request, body: dict[str, Any]) -> Response:
    """Queue a job: ``{"verb", "parameters"}``."""

    def work() -> dict[str, Any]:
        verb, parameters = body.get("verb"), body.get("parameters", {})
        if not isinstance(verb, str) or not isinstance(parameters, dict) or set(body) - {"verb", "parameters"}:
            raise UsageError("not a job", got=", ".join(sorted(body)), expected="verb and parameters")
        return jobs_of(request).submit(verb, parameters)

    return answered(work, status=201)


def show(request: Request, job_id: str) -> Response:
    """A job with all its events."""
    return answered(lambda: jobs_of(request).get(job_id))


def cancel(request: Request, job_id: str) -> Response:
    """Cancel a job; one that is finished stays as it is."""
    return answered(lambda: jobs_of(request).cancel(job_id))


def resume(request: Request, job_id: str, body: dict[str, Any]) -> Response:
    """Go on with a job that failed, was cancelled or ran out of time; the body has parameters to change."""
    return answered(lambda: jobs_of(request).resume(job_id, body))


def picture(request: Request, job_id: str, number: int, px: int = 1600) -> Response:
    """A picture of a result, by its place in ``result.pictures``; px: its longer side, at most."""
    from cellwright.report.page import embedded

    jobs = jobs_of(request)
    try:
        pictures = (jobs.get(job_id)["result"] or {}).get("pictures", [])
        if not 0 <= number < len(pictures):
            raise InputError("no such picture", got=number, expected=f"one of {len(pictures)}")
        folder = jobs.project.folder.resolve()
        path = (folder / pictures[number]["file"]).resolve()
        shown = embedded(path, longest_px=min(max(px, 16), 4096)) if path.is_relative_to(folder) else None
        if shown is None:
            raise InputError("no such picture", got=pictures[number]["file"], remedy="run the job again")
    except CellwrightError as error:
        return failed(error)
    kind = shown.uri.partition(":")[2].partition(";")[0]
    return Response(shown.data, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})


def measurements(request: Request, image_id: str) -> Response:
    """The measurements of the objects of an image."""

    def work() -> dict[str, Any]:
        jobs = jobs_of(request)
        (image,) = jobs.facts().chosen([image_id], lambda image: True, "in this project")
        return measurements_of(image, jobs.project.objects(image_id), jobs.project.class_names)

    return answered(work)


def evaluation(request: Request, job_id: str, image: str | None = None) -> Response:
    """An evaluation, with the errors of the worst images, or of one."""

    def work() -> dict[str, Any]:
        jobs = jobs_of(request)
        return evaluation_of(jobs.project.folder / EVALUATIONS / jobs.get(job_id)["id"], image)

    return answered(work)


def download(request: Request, job_id: str) -> Response:
    """The file of an export, or a zip file of all."""
    jobs = jobs_of(request)
    try:
        return _download(jobs.project.folder / "exports" / jobs.get(job_id)["id"] / FILES_FOLDER, job_id)
    except CellwrightError as error:
        return failed(error)


def report(request: Request, job_id: str, number: int) -> Response:
    """A page that a job has left, as a document that can do nothing."""
    jobs = jobs_of(request)
    try:
        reports = jobs.get(job_id)["result"] or {}
        place = reports.get("reports", [])[number : number + 1] if number >= 0 else []
        path = (jobs.project.folder / place[0]["file"]).resolve() if place else None
        if path is None or not path.is_file() or not path.is_relative_to(jobs.project.folder.resolve()):
            raise InputError("no such report in this project", got=ascii(job_id)[:80], expected="one that is there")
        headers = {"content-security-policy": REPORT_POLICY}
        return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)
    except CellwrightError as error:
        return failed(error)


def models(request: Request) -> Response:
    """The models that can be used."""
    return answered(lambda: {"models": list_models(jobs_of(request).project.folder, jobs_of(request))})


def formats() -> Response:
    """What can be exported, the most useful first."""
    from cellwright.data.formats import FORMATS

    known = [name for name, form in FORMATS.items() if form.is_writable] + ["measurements"]
    order = sorted(known, key=lambda name: ([*TITLES].index(name) if name in TITLES else len(TITLES), name))
    titles = [(name, *TITLES.get(name, (name, ""))) for name in order]
    return JSONResponse([{"name": name, "title": title, "what": what} for name, title, what in titles])


def list_models(folder: Path, jobs: JobQueue | None) -> list[dict[str, Any]]:
    """The models of a project: name, kind, and what the training of each says about before and after."""
    from cellwright.api.models import NAMED_MODELS

    done = [] if jobs is None else jobs.all()
    results = {job["result"]["model"]: job for job in done if job["result"] and "model" in job["result"]}
    models = []
    for name in model_names(folder):
        job = results.get(name)
        is_tuned = (folder / "models" / name).is_dir()
        kind = "bundled" if name in NAMED_MODELS else "tuned" if is_tuned else "trained"
        values = {"name": name, "kind": kind, "text": NAMED_MODELS.get(name, "" if job is None else job["text"])}
        if job is not None:
            values |= {"job": job["id"]} | {side: job["result"].get(side) for side in ("before", "after")}
        models.append(values)
    return models


def answered(work: Callable[[], Any], *, status: int = 200) -> Response:
    """The result of ``work`` as JSON, or its error."""
    try:
        return JSONResponse(plain(work()), status)
    except CellwrightError as error:
        return failed(error)


def failed(error: CellwrightError) -> Response:
    """An error of the user as JSON: 404 for what does not exist, 507 for a full disk, otherwise 422."""
    status = 404 if error.problem.startswith("no such") else 507 if isinstance(error, OutputError) else 422
    return JSONResponse({"error": {"message": str(error), "parts": plain(error.parts())}}, status)


def _download(folder: Path, name: str) -> Response:
    files = exported_files(folder)
    if not files:
        raise InputError("no such export in this project", got=name, expected="the id of an export that is done")
    if len(files) == 1:
        return FileResponse(files[0], filename=files[0].name, media_type="application/octet-stream")
    with (
        tempfile.NamedTemporaryFile(suffix=".zip", delete=False) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
    ):
        for path in files:
            packed.write(path, path.relative_to(folder).as_posix())
    path = Path(temporary.name)
    background = BackgroundTask(path.unlink)
    return FileResponse(path, filename=f"{name}.zip", media_type="application/zip", background=background)

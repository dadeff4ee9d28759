"""The jobs of the page: a queue that one warm worker process works off, one job at a time.

The queue is kept in ``jobs.json`` of the project: what was queued or running when the server ended goes on when it
starts again, in the same folder, where the verb resumes. A worker that dies fails its job only, and is started again.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import CellwrightError, FormatError, OutputError, UsageError
from cellwright.core.events import emit, plain
from cellwright.core.files import read_json, write_json
from cellwright.core.instances import Instances
from cellwright.core.result_folders import REPORT
from cellwright.core.text import count
from cellwright.serve.facts import ImageFacts, ProjectFacts, write_dataset
from cellwright.serve.object_tasks import ExportTask, MeasureTask, PredictTask
from cellwright.serve.task import EVALUATIONS, Place, Task, model_names, relative
from cellwright.serve.tasks import TASKS, parse_task
from cellwright.serve.training_tasks import TrainTask

SCHEMA_VERSION = 1
State = Literal["queued", "running", "done", "failed", "cancelled"]
MAX_EVENTS = 600  # of a job; then every second step is dropped
MAX_NOTES = 100
RESUMED_WITH = ("minutes", "device")  # parameters that may change when a job goes on
MAX_STARTS = 3  # of a job that ends with the server every time
TOLD_EVERY_S = 0.25
CANCEL_S = 20.0  # then the worker is killed
RESULT_FOLDERS = sorted({task.kind for task in TASKS.values()})


class JobProject(Protocol):
    """What jobs use of a project. All of it may be called from any thread."""

    @property
    def folder(self) -> Path: ...
    @property
    def corrected(self) -> Path: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...

    def image_facts(self) -> Sequence[ImageFacts]:
        """All images that can be read, with absolute paths."""
        ...

    def objects(self, image_id: str) -> Instances:
        """The objects of an image as they are shown, with scores unless some have none."""
        ...

    def save_corrected(self) -> None:
        """Bring the dataset ``corrected/`` up to date."""
        ...

    def adopt(self, folder: Path, ids: Sequence[str]) -> list[str]:
        """Show a prediction of these images; returns those that it has."""
        ...

    def set_training(self, ids: Sequence[str], *, is_on: bool) -> None:
        """Mark images as in training, or not."""
        ...


@dataclass
class Job:
    """One job. progress: 0 to 1, or None. events: steps and evaluations of a training. commands: the same to type."""

    id: str
    verb: str
    parameters: dict[str, Any]
    state: State = "queued"
    created: str = ""
    started: str | None = None
    ended: str | None = None
    progress: float | None = None
    text: str = ""
    commands: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    starts: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it is still to be done."""
        return self.state in ("queued", "running")

    def to_json(self, *, events: bool = True) -> dict[str, Any]:
        """All of it; without events, the last of each kind instead of all."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values["command"] = "\n".join(self.commands)
        if not events:
            values["events"] = list({event["kind"]: event for event in self.events}.values())
        return plain(values)

    def add_event(self, event: dict[str, Any]) -> None:
        """Keep an event; of very many steps, every second one."""
        self.events.append(event)
        if len(self.events) > MAX_EVENTS:
            steps = [one for one in self.events if one["kind"] == "step"]
            dropped = {id(one) for one in steps[1:-1:2]}
            self.events = [one for one in self.events if id(one) not in dropped]


class WorkerProcess:
    """The worker as the server sees it, see `serve.worker`. arguments: of Python, that start it."""

    arguments: ClassVar[tuple[str, ...]] = ("-m", "cellwright.serve.worker")

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [sys.executable, *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C in the terminal is for the server
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def send(self, message: dict[str, Any]) -> None:
        """Send an order, or cancel one; a worker that died does not get it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def last_words(self) -> tuple[str, str]:
        """Why a process ended that should not have, and the end of what it printed."""
        self._reader.join(1)  # events that it sent before
        code = self._process.wait()
        self._errors.seek(0)
        details = self._errors.read().decode("utf-8", "replace")[-2000:]
        if code >= 0:
            return f"the worker process ended with exit code {code}", details
        why = "; perhaps the machine ran out of memory" if -code == signal.SIGKILL else ""
        return f"the worker process was ended by {signal.Signals(-code).name}{why}", details

    def kill(self) -> None:
        """End the process, and those that it started, at once."""
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()

    def end(self, wait_s: float = 0.0) -> None:
        """End the process, and those that it started. wait_s: how long a job that was cancelled may take to end."""
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_s)
        self.kill()
        self._process.wait()
        self._reader.join(1)
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with suppress(ValueError):  # the end of a process that was killed
                    self.events.put(json.loads(line))


class JobQueue:
    """The jobs of a project. publish: told of every change, from any thread.

    Raises `FormatError` for a damaged ``jobs.json``.
    """

    def __init__(
        self,
        project: JobProject,
        publish: Callable[[dict[str, Any]], None],
        *,
        start_worker: Callable[[], WorkerProcess] = WorkerProcess,
    ) -> None:
        self.project, self._publish, self._start_worker = project, publish, start_worker
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._jobs: dict[str, Job] = {job.id: job for job in _read(self._path)}
        self._worker: WorkerProcess | None = None
        self._cancelled: dict[str, float] = {}  # id -> when
        self._is_closing = False
        self._told_at = 0.0
        self._thread: threading.Thread | None = None

    @property
    def _path(self) -> Path:
        return self.project.folder / "jobs.json"

    def start(self) -> None:
        """Begin to work."""
        with self._lock:
            for job in self._jobs.values():
                if job.state == "running":  # when the server ended
                    job.state, job.text = "queued", "resuming where it was interrupted"
                    if job.starts >= MAX_STARTS:
                        message = f"was interrupted by the end of the server {count(job.starts, 'time')}"
                        self._finish(job, "failed", error={"message": message, "details": ""})
            self._save()
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    @property
    def worker_pid(self) -> int | None:
        """The process that works, if there is one."""
        return None if self._worker is None else self._worker.pid

    def warm_up(self) -> None:
        """Start the worker, so that the first job does not wait for it."""
        with self._lock:
            if self._worker is None and not self._is_closing:
                self._worker = self._start_worker()

    def close(self) -> None:
        """Interrupt what runs, and end the worker. The job goes on when the server starts again."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._worker is not None:
            self._worker.end(CANCEL_S if self._running() is not None else 0.5)
        if self._thread is not None:
            self._thread.join()

    def all(self) -> list[dict[str, Any]]:
        """All jobs, in the order in which they came; of the events of each, only the last."""
        with self._lock:
            return [job.to_json(events=False) for job in self._jobs.values()]

    def get(self, job_id: str) -> dict[str, Any]:
        """One job with all its events. Raises `UsageError` for another id."""
        with self._lock:
            return self._job(job_id).to_json()

    def facts(self) -> ProjectFacts:
        """The project as it is."""
        project = self.project
        return ProjectFacts(project.folder, project.corrected, project.class_names, tuple(project.image_facts()))

    def submit(self, verb: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Check a job, and add it to the queue. Raises `CellwrightError` for one that cannot be done."""
        task = parse_task(verb, parameters)
        self._save_corrected(task)
        with self._changed:
            job = Job(self._new_id(verb, task), verb, dict(parameters), created=_now())
            place = self._place(job, task)
            if isinstance(task, TrainTask) and (place.folder.exists() or self._is_named(place.folder.name)):
                raise UsageError(
                    "there is a model or a job with this name",
                    where="`name`",
                    got=place.folder.name,
                    remedy="choose another name",
                )
            job.commands = [step.command for step in task.steps(place)]
            self._jobs[job.id] = job
            try:
                self._save()
            except BaseException:
                del self._jobs[job.id]
                raise
            self._changed.notify_all()
        self._tell(job)
        return job.to_json()

    def resume(self, job_id: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Put a job that failed, was cancelled, or ran out of time into the queue again, where it goes on.

        parameters: to change, of `RESUMED_WITH`; with others it would be another job.
        """
        if others := sorted(set(parameters) - {*RESUMED_WITH}):
            expected = " or ".join(RESUMED_WITH)
            raise UsageError("a job goes on with its own parameters", got=", ".join(others), expected=expected)
        with self._changed:
            job = self._job(job_id)
            if job.is_open:
                raise UsageError("this job is not finished", got=job.state, remedy="wait for it, or cancel it")
            changed = {**job.parameters, **parameters}
            parse_task(job.verb, changed)
            job.parameters, job.state, job.error, job.starts = changed, "queued", None, 0
            self._save()
            self._changed.notify_all()
        self._tell(job)
        return job.to_json()

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; one that is finished stays as it is."""
        with self._changed:
            job = self._job(job_id)
            if job.state == "queued":
                self._finish(job, "cancelled")
            elif job.state == "running" and job_id not in self._cancelled:
                self._cancelled[job_id] = time.monotonic()
                job.text = "is being cancelled"
                if self._worker is not None:
                    self._worker.send({"cancel": job_id})
        self._tell(job)
        return job.to_json()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until no job is left to do."""
        with self._changed:
            self._changed.wait_for(lambda: not any(job.is_open for job in self._jobs.values()), timeout_s)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                task = parse_task(job.verb, job.parameters)
                self._save_corrected(task)
                place = self._place(job, task)
                job.commands = [step.command for step in task.steps(place)]
                self._run(job, task, place)
            except CellwrightError as error:
                problem, *details = str(error).splitlines()
                self._finish(job, "failed", error={"message": problem, "details": "\n".join(details)})
            except Exception as error:  # noqa: BLE001 - the jobs after this one are still to be done
                text = "".join(traceback.format_exception(error))
                error_values = {"message": f"an error in cellwright: {error!r}", "details": text, "kind": "bug"}
                self._finish(job, "failed", error=error_values)

    def _next(self) -> Job | None:
        """The next job, which is set to running; None if the server ends."""
        with self._changed:
            while not self._is_closing:
                job = next((job for job in self._jobs.values() if job.state == "queued"), None)
                if job is not None:
                    job.state, job.started, job.starts = "running", _now(), job.starts + 1
                    job.progress, job.text, job.result, job.error, job.ended = None, "", None, None, None
                    self._try_to_save()
                    return job
                self._changed.wait()
        return None

    def _run(self, job: Job, task: Task, place: Place) -> None:
        """Have the worker do a job, and follow it to its end."""
        if self._worker is None or not self._worker.is_alive:
            if self._worker is not None:
                self._worker.end()
            self._worker = self._start_worker()
        worker = self._worker
        self._tell(job)
        trained = [image.id for image in task.chosen(place.project)] if isinstance(task, TrainTask) else []
        if trained:
            self.project.set_training(trained, is_on=True)
        order = {"id": job.id, "verb": job.verb, "parameters": job.parameters, "folder": str(place.folder)}
        worker.send({"job": {**order, "project": place.project.to_json()}})
        try:
            while (last := self._take_event(job, worker)) is None:
                self._kill_if_stuck(job, worker)
            if last["event"] == "closing":
                return
            if last["event"] == "done" and isinstance(task, PredictTask):
                last["result"] |= self._adopt(task, place.project, last["result"])
        finally:
            if trained:
                self.project.set_training(trained, is_on=False)
            self._cancelled.pop(job.id, None)
        error = {key: last[key] for key in ("message", "details", "kind") if key in last} or None
        if last["event"] == "done":
            job.text, job.progress = str(last["result"]["text"]), 1.0
            job.commands = last["result"].get("commands", job.commands)
            last["result"]["reports"] = _reports_of(job, last["result"], self.project.folder)
        self._finish(job, last["event"], result=last.get("result"), error=error)

    def _take_event(self, job: Job, worker: WorkerProcess) -> dict[str, Any] | None:
        """Handle the next event of a job; the last one is returned."""
        try:
            event = worker.events.get(timeout=0.1)
        except queue.Empty:
            if self._is_closing and not worker.is_alive:
                return {"event": "closing"}
            if worker.is_alive:
                return None
            message, details = worker.last_words()
            if not worker.events.empty():
                return None
            if job.id in self._cancelled:
                return {"event": "cancelled"}
            remedy = "run the job again to go on where it was"
            return {"event": "failed", "message": f"{message}; {remedy}", "details": details, "kind": "worker"}
        if event.get("job") != job.id:
            return None
        if event["event"] in ("done", "failed", "cancelled"):
            return {"event": "closing"} if self._is_closing and event["event"] == "cancelled" else event
        with self._lock:
            _record(job, event)
        if time.monotonic() - self._told_at >= TOLD_EVERY_S or event["event"] != "progress":
            self._told_at = time.monotonic()
            self._tell(job)
        return None

    def _kill_if_stuck(self, job: Job, worker: WorkerProcess) -> None:
        """End a worker that does not react to a cancellation, such as in a very long computation."""
        since = self._cancelled.get(job.id)
        if since is not None and time.monotonic() - since > CANCEL_S and worker.is_alive:
            worker.kill()

    def _adopt(self, task: PredictTask, before: ProjectFacts, result: dict[str, Any]) -> dict[str, Any]:
        """Show the predictions on the page, but not of images that the user began to correct in the meantime."""
        now = {image.id: image.is_corrected for image in self.facts().images}
        wanted = [image.id for image in task.chosen(before)]
        taken = [one for one in wanted if one in now and (task.keep == "none" or not now[one])]
        images = {folder: self.project.adopt(Path(folder), taken) for folder in result["predictions"]}
        left = [*task.left(before), *(one for one in wanted if one in now and one not in taken)]
        text = result["text"]
        if left:
            text += (
                f"; {count(len(left), 'image')} with corrections left as {'it is' if len(left) == 1 else 'they are'}"
            )
        return {"text": text, "images": images, "left": left}

    # --- the rest -----------------------------------------------------------------------------------------------------

    def _finish(
        self, job: Job, state: State, result: dict[str, Any] | None = None, error: dict[str, Any] | None = None
    ) -> None:
        with self._changed:
            job.state, job.result, job.error, job.ended = state, result, error, _now()
            if error is not None:
                job.text = str(error["message"])
            elif state == "cancelled":
                job.text = "cancelled"
            self._try_to_save()
            self._changed.notify_all()
        self._tell(job)

    def _running(self) -> Job | None:
        return next((job for job in self._jobs.values() if job.state == "running"), None)

    def _job(self, job_id: str) -> Job:
        if job_id not in self._jobs:
            raise UsageError("no such job", got=ascii(job_id)[:80], expected="a job of this project")
        return self._jobs[job_id]

    def _place(self, job: Job, task: Task) -> Place:
        """The folder of a job, and the project as it is; objects that no folder has are written beside it."""
        facts = self.facts()
        place = Place(facts, self.project.folder / task.kind / task.folder_name(job.id), job.id)
        if not isinstance(task, MeasureTask | ExportTask):
            return place
        images = [
            image
            for image in facts.images
            if image.has_objects and image.objects is None and not image.is_corrected
            if task.images is None or image.id in task.images
        ]
        if not images:
            return place
        layers = place.beside("layers")
        samples = tuple(Sample(one.id, one.path, one.hw, Loaded(self.project.objects(one.id))) for one in images)
        write_dataset(Dataset(samples, facts.class_names, info=dict(images[0].reading)), layers)
        written = {image.id for image in images}
        images = [replace(one, objects=layers) if one.id in written else one for one in facts.images]
        return replace(place, project=replace(facts, images=tuple(images)))

    def _is_named(self, name: str) -> bool:
        """Whether a model has this name, or a training will give it to one."""
        named = {job.parameters.get("name") for job in self._jobs.values()}
        return name in named or name in model_names(self.project.folder)

    def _save_corrected(self, task: Task) -> None:
        if not isinstance(task, PredictTask):
            self.project.save_corrected()

    def _new_id(self, verb: str, task: Task) -> str:
        """``predict-4``: a number that neither a job nor a folder has, as the list of jobs may have been removed."""
        folder = self.project.folder / task.kind
        names = [*self._jobs, *([path.name for path in folder.iterdir()] if folder.is_dir() else [])]
        numbers = [name.removeprefix(f"{verb}-").partition("_")[0] for name in names if name.startswith(f"{verb}-")]
        return f"{verb}-{max([int(number) for number in numbers if number.isdecimal()], default=0) + 1}"

    def _save(self) -> None:
        jobs = [job.to_json() for job in self._jobs.values()]
        write_json(self._path, {"schema_version": SCHEMA_VERSION, "jobs": jobs})

    def _try_to_save(self) -> None:
        """Save the list; if the disk is full, jobs go on, and the list is saved with the next change."""
        try:
            self._save()
        except OutputError as error:
            emit("note", f"warning: the list of jobs could not be saved: {error}")

    def _tell(self, job: Job) -> None:
        with self._lock:
            values = job.to_json(events=False)
        self._publish({"kind": "job", "job": values})


def _reports_of(job: Job, result: dict[str, Any], project: Path) -> list[dict[str, str]]:
    """The pages that a job has left. file: in the project."""
    folders = [("prediction", Path(one)) for one in result.get("predictions", [])]
    if job.verb == "train":
        folders.append(("training", project / "runs" / str(result["model"])))
    if "evaluation" in result:
        folders.append(("comparison" if job.verb == "train" else "evaluation", project / EVALUATIONS / job.id))
    there = [(what, folder / REPORT) for what, folder in folders if (folder / REPORT).is_file()]
    return [
        {"what": what, "file": relative(path, project), "url": f"/api/reports/{job.id}/{k}"}
        for k, (what, path) in enumerate(there)
    ]


def _record(job: Job, event: dict[str, Any]) -> None:
    """Keep what the worker reports."""
    match event["event"]:
        case "progress":
            job.text = event["text"]
            job.progress = event["done"] / event["total"] if event.get("total") else None
        case "note":
            if event["text"] not in job.notes[-MAX_NOTES:]:
                job.notes = [*job.notes, event["text"]][-MAX_NOTES:]
        case "step" | "evaluation" as name:
            kept = {key: value for key, value in event.items() if key not in ("job", "event", "text")}
            job.add_event({"kind": "validation" if name == "evaluation" else "step", **kept})
            job.text = event["text"]
            if name == "step":
                job.progress = _share_done(job, event)


def _share_done(job: Job, event: dict[str, Any]) -> float:
    """How much of a training is done: of its steps, or of the time that it may take."""
    share = event["step"] / max(event["total_steps"], 1)
    minutes = parse_task(job.verb, job.parameters).model_dump().get("minutes")
    if not minutes or job.started is None:
        return share
    used_s = (datetime.now(UTC) - datetime.fromisoformat(job.started)).total_seconds()
    return min(max(share, used_s / (60 * minutes)), 1.0)


def _read(path: Path) -> list[Job]:
    if not path.is_file():
        return []
    try:
        content = read_json(path)
        known = {one.name for one in fields(Job)}
        jobs = [Job(**{key: value for key, value in one.items() if key in known}) for one in content["jobs"]]
        for job in jobs:
            parse_task(job.verb, job.parameters)
            if job.state not in ("queued", "running", "done", "failed", "cancelled"):
                raise ValueError(f"state {job.state!r}")
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        remedy = "move the file away; the results of the jobs stay"
        raise FormatError("the list of jobs is damaged", where=path, got=str(error), remedy=remedy) from error
    return jobs


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

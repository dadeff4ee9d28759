"""Every verb of the page through the routes; jobs that are cancelled, killed, and go on after a restart."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stand_in import DrawnProject, results

from cellwright.cli.app import build_app
from cellwright.core.instances import Instances
from cellwright.serve.jobs import JobQueue, WorkerProcess

fastapi = pytest.importorskip("fastapi")
from starlette.testclient import TestClient  # noqa: E402

from cellwright.serve.job_routes import job_router  # noqa: E402

CLASSICAL = {"model": ["classical"]}
TINY = [
    "train.length=3 steps", "train.warmup=1 step", "train.evaluate_every=3 steps", "augment.crop_px=64",
    "model.backbone.width=8", "model.fpn.channels=16", "train.batch_size=1",
]  # fmt: skip


class Shared(WorkerProcess):
    """A worker that outlives a queue."""

    def end(self, wait_s: float = 0.0) -> None:
        if not self.is_alive:
            super().end(wait_s)


@pytest.fixture(scope="module")
def worker() -> Iterator[Any]:
    workers = [Shared()]

    def start() -> WorkerProcess:
        if not workers[-1].is_alive:
            workers.append(Shared())
        return workers[-1]

    yield start
    for one in workers:
        WorkerProcess.end(one)


class Opened:
    """A project with its jobs, and a client of the routes."""

    def __init__(self, project: DrawnProject, worker: Any) -> None:
        self.project, self.told = project, list[dict[str, Any]]()
        self.jobs = JobQueue(project, self.told.append, start_worker=worker)
        app = fastapi.FastAPI()
        app.state.page = SimpleNamespace(jobs=self.jobs)
        app.include_router(job_router())
        self.client = TestClient(app)

    def submit(self, verb: str, **parameters: Any) -> dict[str, Any]:
        answer = self.client.post("/api/jobs", json={"verb": verb, "parameters": parameters})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def do(self, verb: str, **parameters: Any) -> dict[str, Any]:
        job = self.submit(verb, **parameters)
        self.jobs.wait(60)
        done = self.client.get(f"/api/jobs/{job['id']}").json()
        assert done["state"] == "done", done["error"]
        return done


@pytest.fixture
def opened(tmp_path: Path, worker: Any) -> Iterator[Any]:
    queues: list[JobQueue] = []

    def open_project(n_images: int, corrected: tuple[int, ...] = ()) -> Opened:
        one = Opened(DrawnProject(tmp_path / "project", n_images, corrected), worker)
        one.jobs.start()
        queues.append(one.jobs)
        return one

    yield open_project
    for one in queues:
        one.close()


def parsed(command: str) -> Any:
    """The plan of a command line."""
    words = shlex.split(command)
    assert words[0] == "cellwright"
    _, bound, _ = build_app(words[1:]).parse_args(words[1:], print_error=False, exit_on_error=False)
    return bound.arguments["plan"]


def test_predict_measure_export(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = opened(3, (2,))
    job = page.do("predict", **CLASSICAL, min_area=20)
    assert job["result"]["images"] == ["field_0", "field_1"]
    assert job["result"]["left"] == ["field_2"]
    assert job["text"].endswith("; 1 image with corrections left as it is")
    assert parsed(job["command"]).model == ("classical",)
    folder = page.project.folder / "predictions/predict-1"
    assert {path.name for path in folder.glob("*_masks.tif")} == {"field 0_masks.tif", "field 1_masks.tif"}
    assert any(event["job"]["state"] == "running" for event in page.told)

    answer = page.client.get("/api/images/field_0/measurements").json()
    columns = {column["name"]: column for column in answer["columns"]}
    assert columns["area_px"]["unit"] == "px"
    assert len(columns["area_px"]["values"]) == len(answer["ids"]) == len(columns["score"]["values"]) > 3
    assert page.client.get("/api/images/nowhere/measurements").status_code == 404

    measured = page.do("measure")
    table = (page.project.folder / measured["result"]["table"]).read_text().splitlines()
    assert len(table) == 1 + measured["result"]["n_objects"] > 12
    assert {line.split(",")[0] for line in table[1:]} == {"field 0", "field 1", "field_2"}

    smallest, *_, largest = sorted(columns["area_px"]["values"])
    gate = [{"column": "area_px", "low": smallest + 1, "high": largest - 1}]
    one = page.do("export", to="label_images", images=["field_0"], gate=gate)
    answer = page.client.get(one["result"]["download"])
    import tifffile

    kept = np.unique(tifffile.imread(io.BytesIO(answer.content)))[1:]
    areas = dict(zip(answer_ids(page, "field_0"), columns["area_px"]["values"], strict=True))
    assert kept.tolist() == sorted(i for i, area in areas.items() if smallest < area < largest)

    everything = page.do("export", to="geojson")
    with zipfile.ZipFile(io.BytesIO(page.client.get(everything["result"]["download"]).content)) as packed:
        assert sorted(packed.namelist()) == ["field_0.geojson", "field_1.geojson", "field_2.geojson"]
    assert page.client.get("/api/formats").json()[0]["name"] == "label_images"


def answer_ids(page: Opened, image: str) -> list[int]:
    return page.client.get(f"/api/images/{image}/measurements").json()["ids"]


def test_train_tune_evaluate_suspects(opened: Any) -> None:
    page = opened(3, (0, 1, 2))
    region = np.zeros((96, 128), bool)
    region[:, 64:] = True

    def with_region(truth: Instances) -> Instances:
        from cellwright.core.masks import MaskSet, concat

        masks = concat([truth.masks, MaskSet.from_dense(region[None])])
        return Instances.from_masks(masks, ignore=np.arange(len(masks)) == len(truth))

    page.project.correct("field_1", objects=with_region)
    options = {"set": TINY, "recipe": "synthetic/demo", "minutes": 1, "device": "cpu"}
    job = page.do("train", name="mine", held_out=["field_2"], **options)
    result = job["result"]
    assert (result["model"], result["finished"], result["held_out"]) == ("mine", True, ["field_2"])
    assert [event["kind"] for event in job["events"]].count("validation") == 1
    assert job["events"][-1]["metrics"]
    assert job["progress"] == 1
    assert "accuracy@0.5" in result["after"]
    assert page.project.marked == ["field_0 field_1 field_2 True", "field_0 field_1 field_2 False"]
    train, evaluate = (parsed(line) for line in job["command"].splitlines())
    assert (train.recipe, train.max_minutes, evaluate.split) == ("synthetic/demo", 1, "val")
    data = json.loads((page.project.folder / "runs/mine_data/dataset.json").read_text())
    splits = {image["sample_id"]: image["split"] for image in data["images"]}
    assert splits == {"field_0": "train", "field_1": "train", "field_2": "val"}
    models = {model["name"]: model for model in page.client.get("/api/models").json()["models"]}
    assert models["mine"]["after"] == result["after"]
    again = page.client.post("/api/jobs", json={"verb": "train", "parameters": {"name": "mine", **options}})
    assert again.status_code == 422

    tuned = page.do("tune", model="mine", images=["field_2"], device="cpu")
    assert tuned["result"]["model"] == "tune-1"

    page.do("predict", **CLASSICAL, keep="none")
    page.project.correct("field_0", "field_1", "field_2", objects=lambda truth: truth[1:])
    evaluated = page.do("evaluate")
    shown = page.client.get(f"/api/evaluations/{evaluated['id']}").json()
    assert shown["metrics"]["accuracy@0.5"] > 0.3
    assert {row["image"] for row in shown["images"]} == {"field_0", "field_1", "field_2"}
    extra = [error for error in shown["errors"] if error["kind"] == "extra"]
    assert extra
    assert extra[0]["ids"] == []
    assert all(error["box"][1] < 64 for error in shown["errors"] if error["image"] == "field_1")  # the rest is ignored
    one = page.client.get(f"/api/evaluations/{evaluated['id']}?image=field_0").json()["errors"]
    assert {error["image"] for error in one} == {"field_0"}

    suspects = page.do("suspects", images=["field_0"])["result"]["suspects"]
    assert all(row["image"] == "field_0" and len(row["box"]) == 4 for row in suspects)


def test_cancel_kill_and_queue(opened: Any) -> None:
    page = opened(2, (0, 1))
    long = [*TINY, "train.length=100000 steps", "train.checkpoint_every=1 step", "train.evaluate_every=100000 steps"]
    options = {"recipe": "synthetic/demo", "minutes": None, "device": "cpu"}
    first = page.submit("train", **options, set=long)
    second = page.submit("predict", **CLASSICAL, keep="none")
    third = page.submit("predict", **CLASSICAL, keep="none")
    assert page.client.delete(f"/api/jobs/{third['id']}").json()["state"] == "cancelled"
    wait_for_steps(page, first["id"], 2)
    assert results(page.jobs) == [("train-1", "running"), ("predict-1", "queued"), ("predict-2", "cancelled")]
    page.client.delete(f"/api/jobs/{first['id']}")
    page.jobs.wait(60)
    assert results(page.jobs) == [("train-1", "cancelled"), ("predict-1", "done"), ("predict-2", "cancelled")]
    assert second["id"] == "predict-1"
    steps = max(event["step"] for event in page.jobs.get("train-1")["events"])
    assert (page.project.folder / "runs/train-1/checkpoints").is_dir()

    page.client.post("/api/jobs/train-1/resume", json={})
    wait_for_steps(page, "train-1", steps + 2)
    assert any("resuming from step" in note for note in page.jobs.get("train-1")["notes"])
    waiting = page.submit("predict", **CLASSICAL, keep="none")
    assert page.jobs._worker is not None
    os.kill(page.jobs._worker.pid, signal.SIGKILL)
    page.jobs.wait(60)
    killed = page.jobs.get("train-1")
    assert killed["state"] == "failed"
    assert "SIGKILL" in killed["error"]["message"]
    assert page.jobs.get(waiting["id"])["state"] == "done"


def wait_for_steps(page: Opened, job: str, step: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if any(event["step"] >= step for event in page.jobs.get(job)["events"]):
            return
        assert page.jobs.get(job)["state"] in ("queued", "running"), page.jobs.get(job)["error"]
        time.sleep(0.02)
    raise AssertionError("no steps")


def test_jobs_go_on_after_a_restart_of_the_server(tmp_path: Path, worker: Any) -> None:
    project = DrawnProject(tmp_path / "project", 2)
    before = JobQueue(project, lambda event: None, start_worker=worker)  # never starts to work
    before.submit("predict", CLASSICAL)
    before.submit("predict", {**CLASSICAL, "images": ["field_0"]})
    path = tmp_path / "project/jobs.json"
    content = json.loads(path.read_text())
    content["jobs"][0]["state"] = "running"  # when the server was killed
    path.write_text(json.dumps(content))
    after = JobQueue(project, lambda event: None, start_worker=worker)
    after.start()
    after.wait(60)
    assert results(after) == [("predict-1", "done"), ("predict-2", "done")]
    after.close()
    assert results(JobQueue(project, lambda event: None)) == [("predict-1", "done"), ("predict-2", "done")]


@pytest.mark.parametrize(
    ("verb", "parameters", "message"),
    [
        ("paint", {}, "unknown verb"),
        ("predict", {"modle": ["nuclei"]}, "modle"),
        ("predict", {"score": "high"}, "score"),
        ("predict", {"model": ["../../secret"]}, "no such model"),
        ("predict", {"images": ["field_9"]}, "no such image"),
        ("predict", {"images": ["field_1"]}, "only images with corrections"),
        ("train", {"images": ["field_0"]}, "not corrected"),
        ("train", {"recipe": "/etc/passwd"}, "no such recipe"),
        ("train", {"set": ["model.init=/etc"]}, "cannot be set"),
        ("train", {"name": "../out"}, "name"),
        ("export", {"to": "docx", "images": ["field_1"]}, "unknown export format"),
        ("evaluate", {}, "no image is corrected after a prediction"),
    ],
)
def test_bad_requests(tmp_path: Path, verb: str, parameters: dict[str, Any], message: str) -> None:
    page = Opened(DrawnProject(tmp_path / "project", 2, (1,)), None)
    answer = page.client.post("/api/jobs", json={"verb": verb, "parameters": parameters})
    assert answer.status_code in (404, 422)
    assert message in answer.json()["error"]["message"]
    assert page.jobs.all() == []

"""Every verb of the page through the routes; jobs that are cancelled, killed, and go on after a restart."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

pytest.importorskip("fastapi")
from browser import browser_or_skip
from drawn import run
from page_client import PageClient, open_page
from story import tell

from cellwright.api.read import read_dataset
from cellwright.cli.app import build_app
from cellwright.core.errors import OutputError, UsageError
from cellwright.core.ignored import counted_objects
from cellwright.data.synthetic import draw_field
from cellwright.serve.facts import ImageFacts, ProjectFacts
from cellwright.serve.jobs import WorkerProcess
from cellwright.serve.object_tasks import PredictTask
from cellwright.serve.task import Place

CLASSICAL = {"model": ["classical"]}
TINY = [
    "train.length=3 steps", "train.warmup=1 step", "train.evaluate_every=3 steps", "augment.crop_px=64",
    "model.backbone.width=8", "model.fpn.channels=16", "train.batch_size=1",
]  # fmt: skip
TRAIN = {"recipe": "synthetic/demo", "device": "cpu"}


# As `blank_charts` and `no_waiting_for_the_disk` of conftest.py; and it need not wait for other tests.
QUICK = """
import os
from matplotlib.figure import Figure
from cellwright.serve import worker
Figure.draw, os.fsync = lambda figure, renderer: None, lambda descriptor: None
os.nice = lambda increment: 0
worker.main()
"""


class Shared(WorkerProcess):
    """A worker that outlives a page."""

    arguments = ("-c", QUICK)

    def end(self, wait_s: float = 0.0) -> None:
        if not self.is_alive:
            super().end(wait_s)


@pytest.fixture(scope="module")
def worker() -> Iterator[Callable[[], WorkerProcess]]:
    workers = [Shared()]

    def start() -> WorkerProcess:
        if not workers[-1].is_alive:
            workers.append(Shared())
        return workers[-1]

    yield start
    for one in workers:
        WorkerProcess.end(one)


def draw_images(folder: Path, n_images: int) -> Path:
    folder.mkdir()
    for k in range(n_images):
        image, _ = draw_field(k, (96, 128), 8)
        cv2.imwrite(str(folder / f"field {k}.png"), image.data[:, :, ::-1])
    return folder


@pytest.fixture
def page(tmp_path: Path, worker: Any) -> Iterator[PageClient]:
    """The page on three drawn images: field_0, field_1, field_2."""
    with open_page(draw_images(tmp_path / "my images", 3), tmp_path / "project", worker=worker) as client:
        yield client


def submit(page: PageClient, verb: str, **parameters: Any) -> dict[str, Any]:
    answer = page.post("/api/jobs", json={"verb": verb, "parameters": parameters})
    assert answer.status_code == 201, answer.text
    return answer.json()


def do(page: PageClient, verb: str, **parameters: Any) -> dict[str, Any]:
    job = submit(page, verb, **parameters)
    page.page.jobs.wait(60)
    done = page.get(f"/api/jobs/{job['id']}").json()
    assert done["state"] == "done", done["error"]
    return done


def edit(page: PageClient, image: str, **values: Any) -> None:
    answer = page.post(f"/api/images/{image}/edits", json=values)
    assert answer.status_code == 200, answer.text


def objects(page: PageClient, image: str) -> dict[str, list[Any]]:
    return page.get(f"/api/images/{image}/objects").json()


def states(page: PageClient) -> list[tuple[str, str]]:
    return [(job["id"], job["state"]) for job in page.page.jobs.all()]


def parsed(command: str) -> Any:
    """The plan of a command line."""
    words = shlex.split(command)
    assert words[0] == "cellwright"
    _, bound, _ = build_app(words[1:]).parse_args(words[1:], print_error=False, exit_on_error=False)
    return bound.arguments["plan"]


def test_predict_measure_export(page: PageClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = do(page, "predict", **CLASSICAL, min_area=20)
    assert run(*shlex.split(job["command"])[1:]) == 0
    assert "already complete" in capsys.readouterr().err
    assert sorted(next(iter(job["result"]["images"].values()))) == ["field_0", "field_1", "field_2"]
    plan = parsed(job["command"])
    assert (plan.model, plan.sources) == (("classical",), (tmp_path / "my images",))
    masks = tifffile.imread(tmp_path / "project/predictions/predict-1/field 0_masks.tif")
    assert objects(page, "field_0")["id"] == np.unique(masks)[1:].tolist()

    victim = objects(page, "field_2")["id"][0]
    edit(page, "field_2", op="delete", ids=[victim])
    again = do(page, "predict", **CLASSICAL, min_area=30)
    assert again["result"]["left"] == ["field_2"]
    assert again["text"].endswith("; 1 image with corrections left as it is")
    assert victim not in objects(page, "field_2")["id"]

    table = page.get("/api/images/field_0/measurements").json()
    columns = {column["name"]: column for column in table["columns"]}
    assert columns["area_px"]["unit"] == "px"
    shown = objects(page, "field_0")
    assert dict(zip(table["ids"], columns["area_px"]["values"], strict=True)) == dict(
        zip(shown["id"], shown["area"], strict=True)
    )
    assert page.get("/api/images/nowhere/measurements").status_code == 404

    measured = do(page, "measure")["result"]
    rows = (tmp_path / "project" / measured["table"]).read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {"field 0", "field 1", "field 2"}
    assert len(rows) == 1 + measured["n_objects"] == 1 + sum(len(objects(page, f"field_{k}")["id"]) for k in range(3))

    smallest, *_, largest = sorted(columns["area_px"]["values"])
    gate = [{"column": "area_px", "low": smallest + 1, "high": largest - 1}]
    one = do(page, "export", to="label_images", images=["field_0"], gate=gate)["result"]
    kept = np.unique(tifffile.imread(io.BytesIO(page.get(one["download"]).content)))[1:]
    areas = zip(table["ids"], columns["area_px"]["values"], strict=True)
    assert kept.tolist() == sorted(number for number, area in areas if smallest < area < largest)

    everything = do(page, "export", to="geojson")["result"]
    with zipfile.ZipFile(io.BytesIO(page.get(everything["download"]).content)) as packed:
        assert sorted(packed.namelist()) == ["field 0.geojson", "field 1.geojson", "field 2.geojson"]
        features = json.loads(packed.read("field 2.geojson"))["features"]
    assert len(features) == len(objects(page, "field_2")["id"])
    assert page.get("/api/formats").json()[0]["name"] == "label_images"
    check_report(page, job, tmp_path)


def check_report(page: PageClient, job: dict[str, Any], tmp_path: Path) -> None:
    """The report of a job is shown as a document that can do nothing, and no file outside of the project is."""
    (report,) = job["result"]["reports"]
    assert report["what"] == "prediction"
    answer = page.get(report["url"])
    assert answer.headers["content-type"].startswith("text/html")
    assert "<script" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert {"default-src 'none'", "sandbox", "form-action 'none'"} <= {one.strip() for one in policy.split(";")}
    assert "script-src" not in policy
    assert "allow" not in policy
    url = report["url"].rpartition("/")[0]
    assert [page.get(f"{url}/{other}").status_code for other in (1, -1, "..")] == [404, 404, 404]
    (tmp_path / "secret.html").write_text("secret")
    file = tmp_path / "project" / report["file"]
    file.unlink()
    assert page.get(report["url"]).status_code == 404
    file.symlink_to(tmp_path / "secret.html")
    assert page.get(report["url"]).status_code == 404


def test_a_channel_by_its_number_is_the_same_in_all_images(tmp_path: Path) -> None:
    channels = {"a": ("DAPI", "GFP"), "b": ("GFP", "DAPI"), "c": ("GFP", "DAPI"), "d": ("grey",)}
    images = tuple(
        ImageFacts(k, tmp_path / f"{k}.tif", (9, 9), name=k, channels=names) for k, names in channels.items()
    )
    for image in images:
        image.path.touch()
    place = Place(ProjectFacts(tmp_path, tmp_path, ("cell",), images), tmp_path / "predictions/p", "p")
    with pytest.raises(UsageError, match="channel 1 is not the same in all images") as caught:
        PredictTask(channel=("1",)).steps(place)
    assert "DAPI in c, GFP in a" in str(caught.value)
    for task in (PredictTask(channel=("DAPI",)), PredictTask(channel=("1",), images=("b", "c", "d"))):
        assert task.steps(place)


def test_train_tune_evaluate_suspects(page: PageClient, tmp_path: Path) -> None:
    do(page, "predict", **CLASSICAL)
    right_half = [[0, 64], [96, 64], [96, 128], [0, 128]]
    hidden = {n for n, x0 in zip(*(objects(page, "field_1")[key] for key in ("id", "x0")), strict=True) if x0 >= 64}
    edit(page, "field_1", op="ignore_region", outline=right_half)
    for image in ("field_0", "field_2"):
        edit(page, image, op="delete", ids=objects(page, image)["id"][:1])
    job = do(page, "train", name="mine", held_out=["field_2"], minutes=1, set=TINY, **TRAIN)
    result = job["result"]
    assert (result["model"], result["finished"], result["held_out"]) == ("mine", True, ["field_2"])
    assert [event["kind"] for event in job["events"]].count("validation") == 1
    assert job["events"][-1]["metrics"]
    assert "accuracy@0.5" in result["after"]
    (train,) = (parsed(line) for line in job["command"].splitlines())
    assert (train.recipe, train.max_minutes) == ("synthetic/demo", 1)
    data = read_dataset(tmp_path / "project/runs/mine_data")
    assert {sample.id: sample.split for sample in data} == {"field_0": "train", "field_1": "train", "field_2": "val"}
    # The predicted objects in the region stay in the data, but do not count.
    learned = data.sample("field_1").read_instances()
    assert hidden <= {*learned.ids.tolist()}
    assert hidden.isdisjoint(counted_objects(learned).ids.tolist())
    assert learned.masks[learned.ignore].foreground()[:, 64:].all()
    exported = do(page, "export", to="label_images", images=["field_1"])["result"]
    with zipfile.ZipFile(io.BytesIO(page.get(exported["download"]).content)) as packed:
        assert sorted(packed.namelist()) == ["field 1_ignore.png", "field 1_masks.tif"]
        labels = tifffile.imread(io.BytesIO(packed.read("field 1_masks.tif")))
    assert np.unique(labels)[1:].tolist() == sorted(objects(page, "field_1")["id"])
    models = {model["name"]: model for model in page.get("/api/models").json()["models"]}
    assert models["mine"]["after"] == result["after"]
    assert "mine" in [model["name"] for model in page.get("/api/project").json()["models"]]
    again = page.post("/api/jobs", json={"verb": "train", "parameters": {"name": "mine", **TRAIN}})
    assert again.status_code == 422

    assert do(page, "tune", model="mine", images=["field_2"], device="cpu")["result"]["model"] == "tune-1"

    evaluated = do(page, "evaluate")
    shown = page.get(f"/api/evaluations/{evaluated['id']}").json()
    assert {row["image"]: row["n_extra"] for row in shown["images"]} == {"field_0": 1, "field_1": 0, "field_2": 1}
    (worst, *_) = evaluated["result"]["pictures"]
    assert worst["image"] == shown["images"][0]["image"]
    drawn = page.get(f"/api/jobs/{evaluated['id']}/pictures/0?px=64")
    assert drawn.headers["content-type"] in ("image/png", "image/jpeg")
    assert max(cv2.imdecode(np.frombuffer(drawn.content, np.uint8), cv2.IMREAD_COLOR).shape) == 64
    assert page.get(f"/api/jobs/{evaluated['id']}/pictures/9").status_code == 404
    (extra,) = page.get(f"/api/evaluations/{evaluated['id']}?image=field_0").json()["errors"]
    assert (extra["kind"], extra["ids"]) == ("extra", [])

    suspects = do(page, "suspects", images=["field_0"])["result"]["suspects"]
    assert all(row["image"] == "field_0" and len(row["box"]) == 4 for row in suspects)


def test_the_story_in_the_browser(worker: Any, tmp_path: Path) -> None:
    """Here, as it uses the same worker: to start one takes longer than the story."""
    tell(tmp_path, browser_or_skip(), worker)


def test_cancel_kill_and_queue(page: PageClient, tmp_path: Path) -> None:
    do(page, "predict", **CLASSICAL)
    for image in ("field_0", "field_1"):
        edit(page, image, op="delete", ids=objects(page, image)["id"][:1])
    long = [*TINY, "train.length=100000 steps", "train.checkpoint_every=1 step", "train.evaluate_every=100000 steps"]
    first = submit(page, "train", **TRAIN, set=long, minutes=None)
    waiting = submit(page, "predict", **CLASSICAL)
    removed = submit(page, "predict", **CLASSICAL)
    assert page.delete(f"/api/jobs/{removed['id']}").json()["state"] == "cancelled"
    wait_for_step(page, first["id"], 2)
    assert states(page)[1:] == [("train-1", "running"), ("predict-2", "queued"), ("predict-3", "cancelled")]
    assert {row["state"] for row in page.get("/api/project").json()["images"]} == {"training", "predicted"}
    page.delete(f"/api/jobs/{first['id']}")
    page.page.jobs.wait(60)
    assert states(page)[1:] == [("train-1", "cancelled"), (waiting["id"], "done"), ("predict-3", "cancelled")]
    steps = max(event["step"] for event in page.page.jobs.get("train-1")["events"])

    assert page.post("/api/jobs/train-1/resume", json={"name": "other"}).status_code == 422
    page.post("/api/jobs/train-1/resume", json={})
    wait_for_step(page, "train-1", steps + 2)
    assert any("resuming from step" in note for note in page.page.jobs.get("train-1")["notes"])
    waiting = submit(page, "predict", **CLASSICAL)
    os.kill(page.page.jobs.worker_pid, signal.SIGKILL)
    page.page.jobs.wait(60)
    killed = page.page.jobs.get("train-1")
    assert killed["state"] == "failed"
    assert "SIGKILL" in killed["error"]["message"]
    assert page.page.jobs.get(waiting["id"])["state"] == "done"
    assert {row["state"] for row in page.get("/api/project").json()["images"]} == {"corrected", "predicted"}


def wait_for_step(page: PageClient, job: str, step: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        now = page.page.jobs.get(job)
        if any(event["step"] >= step for event in now["events"]):
            return
        assert now["state"] in ("queued", "running"), now["error"]
        time.sleep(0.02)
    raise AssertionError("no steps")


def test_jobs_go_on_after_a_restart_of_the_server(tmp_path: Path, worker: Any) -> None:
    images, project = draw_images(tmp_path / "images", 2), tmp_path / "project"
    with open_page(images, project) as page:
        page.page.jobs.close()  # it does not work any more
        submit(page, "predict", **CLASSICAL)
        submit(page, "predict", **CLASSICAL, images=["field_0"])
    content = json.loads((project / "jobs.json").read_text())
    content["jobs"][0] |= {"state": "running", "starts": 1}  # when the server was killed
    content["jobs"].append({**content["jobs"][0], "id": "predict-9", "starts": 3})
    (project / "jobs.json").write_text(json.dumps(content))
    with open_page(images, project, worker=worker) as page:
        page.page.jobs.wait(60)
        assert states(page) == [("predict-1", "done"), ("predict-2", "done"), ("predict-9", "failed")]
        assert submit(page, "predict", **CLASSICAL)["id"] == "predict-10"


@pytest.mark.parametrize(
    ("verb", "parameters", "message"),
    [
        ("paint", {}, "unknown verb"),
        ("predict", {"modle": ["nuclei"]}, "modle"),
        ("predict", {"score": "high"}, "score"),
        ("predict", {"model": ["../../secret"]}, "no such model"),
        ("predict", {"images": ["field_9"]}, "no such image"),
        ("train", {"images": ["field_0"]}, "not corrected"),
        ("train", {"recipe": "/etc/passwd"}, "no such recipe"),
        ("train", {"set": ["model.init=/etc"]}, "cannot be set"),
        ("train", {"name": "../out"}, "name"),
        ("export", {"to": "docx"}, "unknown export format"),
        ("evaluate", {}, "no image is corrected after a prediction"),
    ],
)
def test_bad_requests(one_page: PageClient, verb: str, parameters: dict[str, Any], message: str) -> None:
    answer = one_page.post("/api/jobs", json={"verb": verb, "parameters": parameters})
    assert answer.status_code in (404, 422)
    assert message in answer.json()["error"]["message"]
    assert one_page.page.jobs.all() == []


def test_a_job_that_cannot_be_stored_is_refused(one_page: PageClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: Any) -> None:
        raise OutputError("the disk is full", where=path, remedy="make room")

    monkeypatch.setattr("cellwright.serve.jobs.write_json", full)
    answer = one_page.post("/api/jobs", json={"verb": "predict", "parameters": CLASSICAL})
    assert (answer.status_code, one_page.page.jobs.all()) == (507, [])


@pytest.fixture(scope="module")
def one_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageClient]:
    folder = tmp_path_factory.mktemp("page")
    with open_page(draw_images(folder / "images", 2), folder / "project") as client:
        edit(client, "field_1", op="draw", outline=[[10, 10], [30, 10], [30, 30], [10, 30]])
        yield client

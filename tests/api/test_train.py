"""Training through the public API: resuming, what is refused, several seeds."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import cellwright as cw
from cellwright.api import evaluate
from cellwright.api import train as api
from cellwright.api.train import Repeats, Run, TrainPlan, load_recipe, run
from cellwright.config import recipe as recipes
from cellwright.core.claim import Claim
from cellwright.core.dataset import Dataset
from cellwright.core.errors import CellwrightError, ModelError, OutputError, RecipeError, UsageError
from cellwright.core.files import write_text
from cellwright.core.progress import SILENT, ProgressReporter, no_progress
from cellwright.data.formats import FORMATS
from cellwright.data.formats.contract import WriteOptions
from cellwright.data.synthetic import write_demo_dataset

CHANGES = (
    "train.length=3 steps",
    "train.warmup=1 step",
    "train.evaluate_every=3 steps",
    "train.checkpoint_every=1 step",
    "augment.crop_px=96",
    "model.backbone.width=8",
    "model.fpn.channels=16",
    "train.threads=1",
)


class Notes:
    """Keeps the notes of a job."""

    quiet, log_format, track = True, "text", staticmethod(no_progress)

    def __init__(self) -> None:
        self.text = ""

    def note(self, text: str) -> None:
        self.text += text + "\n"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("drawn")
    return write_demo_dataset(folder, splits=(("train", 3), ("val", 1)), image_hw=(128, 128), n_objects=12)


@pytest.fixture(scope="module")
def data(drawn: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn dataset as a folder."""
    folder = tmp_path_factory.mktemp("data")
    FORMATS["coco"].write(drawn, folder, WriteOptions())
    return folder


def plan_of(data: Path, out: Path, *changes: str, **fields: object) -> TrainPlan:
    return TrainPlan("synthetic/demo", data=data, out=out, set=(*CHANGES, *changes), device="cpu", **fields)  # type: ignore[arg-type]


def test_interruptions_and_workers_change_no_bit(
    drawn: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cw.train("synthetic/demo", drawn, out=tmp_path / "whole", set=CHANGES, device="cpu")
    assert whole.finished
    loop = importlib.import_module("cellwright.training.loop")
    take_step, changes, parts = loop.take_step, (*CHANGES, "data.workers=2"), tmp_path / "parts"

    def train_one_step() -> Run | None:
        """Take one more step, and interrupt the next one."""
        steps = itertools.count()

        def first_only(*arguments: object) -> object:
            if next(steps):
                raise KeyboardInterrupt
            return take_step(*arguments)

        monkeypatch.setattr(loop, "take_step", first_only)
        try:
            return cw.train("synthetic/demo", drawn, out=parts, set=changes, device="cpu")
        except KeyboardInterrupt:
            return None

    assert [train_one_step() is not None for _ in range(3)] == [False, False, True]
    expected, actual = (load_file(folder / "model" / "weights.safetensors") for folder in (tmp_path / "whole", parts))
    assert expected.keys() == actual.keys()
    assert all(np.array_equal(expected[key], actual[key]) for key in expected)


def test_a_trained_model_predicts_and_can_be_trained_further(drawn: Dataset, data: Path, tmp_path: Path) -> None:
    trained = cw.train("synthetic/demo", drawn, out=tmp_path / "run", set=CHANGES, device="cpu")
    names = {"AP50@all", "accuracy@0.5", "box_AP@all", "AP@all/nucleus", "accuracy@0.5/nucleus"}
    assert names <= set(trained.metrics)
    assert repr(trained).startswith(f"Run({str(tmp_path / 'run')!r}, finished, AP@all ")
    assert len(repr(trained)) < 200
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert {*names, "val_loss"} <= set(last)
    assert float(last["val_loss"]) == trained.metrics["val_loss"] > 0
    assert float(last["AP@all/nucleus"]) == float(last["AP@all"]), "there is only one class"
    curves = {path.stem for path in (tmp_path / "run" / "curves").iterdir()}
    assert curves == {"lr", "losses", "memory", "iteration_time", "ap_box", "ap_mask", "ap_per_class"}
    again = cw.train("synthetic/demo", drawn, out=tmp_path / "run", set=CHANGES, device="cpu")
    assert (again.finished, again.metrics) == (True, trained.metrics)
    image = cw.read_image(drawn[0].image_path or "")
    cells = cw.load_model(tmp_path / "run").predict(image)
    in_a_list = trained.model.predict([image.data])
    assert cells.masks == in_a_list[0].masks
    more = (*CHANGES, "train.length=4 steps")
    assert cw.train("synthetic/demo", drawn, out=tmp_path / "next", set=more, init=str(trained.folder)).finished
    assert str(tmp_path) not in (tmp_path / "next" / "environment.json").read_text()
    weights = load_file(tmp_path / "next" / "model" / "weights.safetensors")
    report = (tmp_path / "next" / "init_report.txt").read_text()
    assert report.startswith(f"{len(weights)} loaded tensors\n")
    assert all(f"  {name} " in report for name in weights)


def test_metrics_of_a_run_are_those_of_an_evaluation_of_its_model(data: Path, tmp_path: Path) -> None:
    trained = run(plan_of(data, tmp_path / "run", "predict.score_threshold=0.3"))
    assert isinstance(trained, Run)
    evaluated = evaluate.run(
        evaluate.EvaluatePlan((trained.folder,), data=data, out=tmp_path / "evaluation", split="val", pictures=0)
    )
    assert evaluated is not None
    report = evaluated.evaluations[0].report
    overall = {name: value for name, value in trained.metrics.items() if "/" not in name and name != "val_loss"}
    assert {"AP@all", "accuracy@0.5", "pq"} <= set(overall)
    assert overall == {name: report[name] for name in overall}


def test_a_request_that_does_not_fit_is_refused_before_the_first_step(drawn: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean"):
        cw.train("synthetic/demo", drawn, out=tmp_path / "a", set=(*CHANGES, "train.best_metric=AP50"))
    with pytest.raises(RecipeError, match="needs no training"):
        cw.train("synthetic/demo", drawn, out=tmp_path / "a", set=("model.kind=classical",))
    with pytest.raises(RecipeError, match="different numbers of classes"):
        cw.train("synthetic/demo", drawn, out=tmp_path / "a", set=(*CHANGES, "classes=2"))
    with pytest.raises(UsageError, match="cuda:99"):
        cw.train("synthetic/demo", drawn, out=tmp_path / "a", set=CHANGES, device="cuda:99")
    for minutes in (-1.0, float("nan")):
        with pytest.raises(UsageError, match="`max_minutes`"):
            cw.train("synthetic/demo", drawn, out=tmp_path / "a", set=CHANGES, max_minutes=minutes)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.precision=fp16", "fp16 needs CUDA"),
        ("train.warmup=9 steps", "warm-up is as long"),
        ("model.box_head.class_weights=[1,2,3]", "class weights do not match"),
        ("model.init=nowhere", "nowhere"),
    ],
)
def test_a_request_that_does_not_fit_overwrites_no_run(
    drawn: Dataset, tmp_path: Path, change: str, message: str
) -> None:
    write_text(tmp_path / "recipe.yaml", "an earlier run")
    write_text(tmp_path / "environment.json", '{"inputs": {}}')
    write_text(tmp_path / "DONE", "")
    with pytest.raises(CellwrightError, match=message) as caught:
        cw.train("synthetic/demo", drawn, out=tmp_path, set=(*CHANGES, change), device="cpu", overwrite=True)
    assert caught.value.exit_code == 2
    assert (tmp_path / "recipe.yaml").read_text() == "an earlier run"


def test_a_recipe_object_can_be_trained(drawn: Dataset, tmp_path: Path) -> None:
    recipe = recipes.load("synthetic/demo", CHANGES)
    assert cw.train(recipe, drawn, out=tmp_path / "run").finished
    with pytest.raises(RecipeError, match="need a recipe given by name or file"):
        cw.train(recipe, drawn, out=tmp_path / "next", init="somewhere")


def test_a_dry_run_makes_all_checks_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def notes(*changes: str, out: Path = out, **fields: object) -> str:
        screen = Notes()
        assert run(plan_of(data, out, *changes, **fields), screen, dry_run=True) is None
        return screen.text

    text = notes()
    assert f"will write {out}/" in text
    assert "3 training images, 1 validation image; 3 steps with 4 images per step" in text
    with pytest.raises(ModelError, match="nothing"):
        notes(init=str(tmp_path / "nothing"))
    assert "model.init_fresh has no effect" in notes("model.init_fresh=[classes]")
    assert "seed 0 (1 of 3)" in notes(repeat=3)
    first = run(plan_of(data, tmp_path / "first"))
    assert isinstance(first, Run)
    assert f"initial weights: {first.folder}: " in notes(init=str(first.folder))
    assert not out.exists()
    assert f"already complete: {tmp_path / 'first'}" in notes(out=tmp_path / "first")


VALUES = {7: 0.25, 8: 0.5, 9: 0.3}


class StubTraining:
    """Replaces the training: a run scores what ``VALUES`` has for its seed; those in ``unfinished`` are unfinished."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[api._Request] = []
        self.unfinished: set[int] = set()
        monkeypatch.setattr(api, "_train", self.train)

    def train(self, request: api._Request, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> Run:
        self.requests.append(request)
        seed = request.recipe.train.seed
        return Run(request.out, {"AP@all": VALUES[seed], "other": 2.0}, seed not in self.unfinished)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> StubTraining:
    return StubTraining(monkeypatch)


def train_repeats(out: Path, planned: int, **fields: object) -> Repeats:
    recipe = load_recipe("synthetic/demo", ("train.seed=7",))
    request = dataclasses.replace(api._request(recipe, Dataset((), ("nucleus",))), out=out, **fields)
    repeats = api._train_repeats(request, planned, SILENT, dry_run=False)
    assert repeats is not None
    return repeats


def test_mean_and_spread_over_seeds(training: StubTraining, tmp_path: Path) -> None:
    repeats = train_repeats(tmp_path / "out", 3)
    assert [request.out.name for request in training.requests] == ["seed_7", "seed_8", "seed_9"]
    # By hand: mean .35, squared distances .01 .0225 .0025, over n - 1.
    spread = pytest.approx(0.0175**0.5)
    assert repeats.metrics()["AP@all"] == {"mean": pytest.approx(0.35), "std": spread, "n": 3}
    columns, rows = repeats.table()
    assert columns == ("metric", "mean", "std", "seed 7", "seed 8", "seed 9")
    assert rows == [["AP@all", pytest.approx(0.35), spread, 0.25, 0.5, 0.3]]
    written = json.loads((tmp_path / "out" / "repeat.json").read_text())
    assert written["finished"] is True
    assert written["runs"][1] == {"seed": 8, "folder": "seed_8", "metrics": {"AP@all": 0.5, "other": 2.0}}
    assert written["metrics"]["other"] == {"mean": 2.0, "std": 0.0, "n": 3}


def test_repeated_runs_resume_after_a_time_limit(training: StubTraining, tmp_path: Path) -> None:
    training.unfinished = {8}
    first = train_repeats(tmp_path, 2, max_minutes=5.0)
    assert (list(first.runs), first.finished) == ([7], False)
    assert json.loads((tmp_path / "repeat.json").read_text())["runs"][1]["metrics"] is None
    left = [request.max_minutes for request in training.requests]
    assert all(minutes is not None and 4.9 < minutes <= 5 for minutes in left)
    assert first.table()[1] == [["AP@all", 0.25, "-", 0.25]]
    training.unfinished = set()
    assert train_repeats(tmp_path, 2).finished
    assert not train_repeats(tmp_path, 2, max_minutes=0.0).runs


def test_finished_runs_are_in_the_summary_of_a_call_without_time(training: StubTraining, tmp_path: Path) -> None:
    for seed in (7, 8):
        for name in ("recipe.yaml", "DONE"):
            write_text(tmp_path / f"seed_{seed}" / name, "")
        write_text(tmp_path / f"seed_{seed}" / "environment.json", '{"inputs": {}}')
    write_text(tmp_path / "repeat.json", '{"runs": []}')
    assert list(train_repeats(tmp_path, 3, max_minutes=0.0).runs) == [7, 8]
    assert not train_repeats(tmp_path, 3, max_minutes=0.0, overwrite=True).runs


def test_repeats_refuse_other_folders_and_less_than_one_run(training: StubTraining, tmp_path: Path) -> None:
    Claim("train", {}, "writing").write(tmp_path / "run")
    write_text(tmp_path / "thesis" / "chapter.txt", "years of work")
    with pytest.raises(OutputError, match="this folder has the output of cellwright train\n"):
        train_repeats(tmp_path / "run", 2)
    with pytest.raises(OutputError, match="not an output of this command"):
        train_repeats(tmp_path / "thesis", 2, overwrite=True)
    with pytest.raises(UsageError, match="invalid number of runs"):
        train_repeats(tmp_path / "out", 0)
    assert training.requests == []


def test_finished_runs_of_a_repeat_are_kept(data: Path, tmp_path: Path) -> None:
    changes = ("train.length=1 step", "train.warmup=null", "train.batch_size=1")
    plan = plan_of(data, tmp_path / "out", *changes, repeat=2)
    for _ in range(2):
        repeats = run(plan)
        assert isinstance(repeats, Repeats)
        assert repeats.finished
    saved = [(tmp_path / "out" / f"seed_{seed}" / "model" / "weights.safetensors").read_bytes() for seed in (0, 1)]
    assert saved[0] != saved[1]
    with pytest.raises(OutputError, match="another recipe"):
        run(replace(plan, set=(*plan.set, "train.lr=0.5")))

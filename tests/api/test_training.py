"""Training through the front door: the real network, interrupted after every step, ends in the same bits."""

from __future__ import annotations

import csv
import importlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import cellwright as cw
from cellwright.api.training import Run, TrainPlan, fingerprint, rehearse, run_plan
from cellwright.config import recipe as recipes
from cellwright.core.dataset import Dataset
from cellwright.core.errors import CellwrightError, ModelError, OutputError, RecipeError, UsageError
from cellwright.core.files import write_text
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


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("drawn")
    return write_demo_dataset(folder, splits=(("train", 3), ("val", 1)), image_hw=(128, 128), n_objects=12)


def test_stopping_after_every_step_and_any_workers_change_no_bit(
    drawn: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cw.train("synthetic/demo", drawn, out=tmp_path / "whole", overrides=CHANGES, device="cpu")
    assert whole.finished
    loop = importlib.import_module("cellwright.training.loop")
    take_step, changes, parts = loop.take_step, (*CHANGES, "data.workers=2"), tmp_path / "parts"

    def train_on() -> Run | None:
        """One more step, then the power goes."""
        steps = itertools.count()

        def first_only(*arguments: object) -> object:
            if next(steps):
                raise KeyboardInterrupt
            return take_step(*arguments)

        monkeypatch.setattr(loop, "take_step", first_only)
        try:
            return cw.train("synthetic/demo", drawn, out=parts, overrides=changes, device="cpu")
        except KeyboardInterrupt:
            return None

    assert [train_on() is not None for _ in range(3)] == [False, False, True]
    one, other = (load_file(folder / "model" / "weights.safetensors") for folder in (tmp_path / "whole", parts))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_trained_model_is_a_folder_that_predicts(drawn: Dataset, tmp_path: Path) -> None:
    run = cw.train("synthetic/demo", drawn, out=tmp_path / "run", overrides=CHANGES, device="cpu")
    names = {"AP50@all", "accuracy@0.5", "box_AP@all", "AP@all/nucleus", "accuracy@0.5/nucleus"}
    assert names <= set(run.metrics)
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert names <= set(last)
    assert float(last["AP@all/nucleus"]) == float(last["AP@all"]), "there is one class only"
    curves = {path.stem for path in (tmp_path / "run" / "curves").iterdir()}
    assert curves == {"lr", "losses", "memory", "iteration_time", "ap_box", "ap_mask", "ap_per_class"}
    plan = TrainPlan("synthetic/demo", drawn, tmp_path / "run", overrides=CHANGES, device="cpu", keep_finished=True)
    assert run_plan(plan).metrics == run.metrics
    with pytest.raises(OutputError, match="another recipe"):
        run_plan(replace(plan, overrides=(*CHANGES, "train.seed=5")))
    image = cw.read_image(drawn[0].image_path or "")
    cells = cw.load_model(tmp_path / "run").predict(image)
    again = cw.load_model(tmp_path / "run" / "model").predict([image.data])
    assert cells.masks == again[0].masks
    further = (*CHANGES, "train.length=4 steps")
    assert cw.train("synthetic/demo", drawn, out=tmp_path / "next", overrides=further, init=str(run.folder)).finished
    assert str(tmp_path) not in (tmp_path / "next" / "environment.json").read_text()
    weights = load_file(tmp_path / "next" / "model" / "weights.safetensors")
    report = (tmp_path / "next" / "init_report.txt").read_text()
    assert report.startswith(f"{len(weights)} loaded tensors\n")
    assert all(f"  {name} " in report for name in weights)


def test_what_does_not_fit_is_refused_before_the_first_step(drawn: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean"):
        cw.train("synthetic/demo", drawn, out=tmp_path / "a", overrides=(*CHANGES, "train.best_metric=AP50"))
    with pytest.raises(RecipeError, match="is not trained"):
        cw.train("synthetic/demo", drawn, out=tmp_path / "a", overrides=("model.kind=classical",))
    with pytest.raises(UsageError, match="does not answer"):
        cw.train("synthetic/demo", drawn, out=tmp_path / "a", overrides=CHANGES, device="cuda:99")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.precision=fp16", "fp16 needs CUDA"),
        ("train.warmup=9 steps", "warm-up is as long"),
        ("model.box_head.class_weights=[1,2,3]", "class weights do not fit"),
        ("model.init=nowhere", "nowhere"),
    ],
)
def test_a_request_that_does_not_fit_overwrites_no_run(drawn: Dataset, tmp_path: Path, change: str, said: str) -> None:
    write_text(tmp_path / "recipe.yaml", "a run of days")
    plan = TrainPlan("synthetic/demo", drawn, tmp_path, overrides=(*CHANGES, change), device="cpu", overwrite=True)
    with pytest.raises(CellwrightError, match=said) as caught:
        run_plan(plan)
    assert caught.value.exit_code == 2
    assert (tmp_path / "recipe.yaml").read_text() == "a run of days"


def test_the_fingerprint_knows_the_data(drawn: Dataset) -> None:
    assert fingerprint(drawn) == fingerprint(drawn)
    assert fingerprint(drawn) != fingerprint(drawn.with_split("val"))


def test_a_recipe_object_trains_too(drawn: Dataset, tmp_path: Path) -> None:
    recipe = recipes.load("synthetic/demo", CHANGES)
    assert cw.train(recipe, drawn, out=tmp_path / "run").finished
    with pytest.raises(RecipeError, match="overrides go with a recipe's name"):
        cw.train(recipe, drawn, out=tmp_path / "next", init="somewhere")


def test_a_rehearsal_finds_what_a_run_would_and_writes_nothing(drawn: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    plan = TrainPlan("synthetic/demo", drawn, out, overrides=CHANGES, device="cpu")
    said = rehearse(plan)
    assert f"writes {out}/" in said
    assert "trains on 3 images, validates on 1" in said
    with pytest.raises(ModelError, match="nothing"):
        rehearse(replace(plan, init=str(tmp_path / "nothing")))
    fresh = rehearse(replace(plan, overrides=(*CHANGES, "model.init_fresh=[classes]")))
    assert "model.init_fresh does nothing" in fresh
    first = cw.train("synthetic/demo", drawn, out=tmp_path / "first", overrides=CHANGES, device="cpu")
    assert f"starts from {first.folder}: " in rehearse(replace(plan, init=str(first.folder)))
    assert not out.exists()

"""Several seeds: which runs are made, gone on with and summed up. One test trains; the others replace the training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cellwright.api import repeating
from cellwright.api.repeating import run_repeats
from cellwright.api.training import Run, TrainPlan
from cellwright.core.dataset import Dataset
from cellwright.core.errors import OutputError, UsageError
from cellwright.core.files import write_text
from cellwright.core.progress import SILENT, Screen
from cellwright.data.synthetic import write_demo_dataset

VALUES = {7: 0.25, 8: 0.5, 9: 0.3}


class Trainer:
    """Stands in for training: a run scores what ``VALUES`` has for its seed; those ``unfinished`` run out of time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plans: list[TrainPlan] = []
        self.unfinished: set[int] = set()
        monkeypatch.setattr(repeating, "run_plan", self.run)

    def run(self, plan: TrainPlan, screen: Screen = SILENT) -> Run:
        self.plans.append(plan)
        assert not isinstance(plan.recipe, str)
        seed = plan.recipe.train.seed
        write_text(plan.out / "recipe.yaml", "")
        return Run(plan.out, {"AP@all": VALUES[seed], "other": 2.0}, seed not in self.unfinished)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    return Trainer(monkeypatch)


def plan_of(out: Path, **changes: object) -> TrainPlan:
    return TrainPlan("synthetic/demo", Dataset((), ("nucleus",), None), out, overrides=("train.seed=7",), **changes)  # type: ignore[arg-type]


def test_mean_and_spread_over_seeds_that_begin_at_the_recipes_own(trainer: Trainer, tmp_path: Path) -> None:
    repeats = run_repeats(plan_of(tmp_path / "out"), 3)
    assert [plan.out.name for plan in trainer.plans] == ["seed_7", "seed_8", "seed_9"]
    assert all(plan.keep_finished for plan in trainer.plans)
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


def test_the_same_call_goes_on_where_time_ran_out(trainer: Trainer, tmp_path: Path) -> None:
    trainer.unfinished = {8}
    first = run_repeats(plan_of(tmp_path, max_minutes=5.0), 2)
    assert (list(first.runs), first.finished) == ([7], False)
    assert json.loads((tmp_path / "repeat.json").read_text())["runs"][1]["metrics"] is None
    left = [plan.max_minutes for plan in trainer.plans]
    assert all(one is not None and 4.9 < one <= 5 for one in left)
    assert first.table()[1] == [["AP@all", 0.25, "-", 0.25]]
    trainer.unfinished = set()
    assert run_repeats(plan_of(tmp_path), 2).finished
    assert not run_repeats(plan_of(tmp_path, max_minutes=0.0), 2).runs


def test_runs_that_are_finished_stay_in_the_summary_of_a_call_without_time(trainer: Trainer, tmp_path: Path) -> None:
    for seed in (7, 8):
        write_text(tmp_path / f"seed_{seed}" / "DONE", "")
    write_text(tmp_path / "repeat.json", "{}")
    assert list(run_repeats(plan_of(tmp_path, max_minutes=0.0), 3).runs) == [7, 8]
    assert not run_repeats(plan_of(tmp_path, max_minutes=0.0, overwrite=True), 3).runs
    for wrong in (-1.0, float("nan")):
        with pytest.raises(UsageError, match="--max-minutes"):
            plan_of(tmp_path, max_minutes=wrong)


def test_other_folders_and_no_runs_are_refused(trainer: Trainer, tmp_path: Path) -> None:
    write_text(tmp_path / "run" / "recipe.yaml", "")
    write_text(tmp_path / "thesis" / "chapter.txt", "years of work")
    with pytest.raises(OutputError, match="a single run stands"):
        run_repeats(plan_of(tmp_path / "run"), 2)
    with pytest.raises(OutputError, match="something else stands"):
        run_repeats(plan_of(tmp_path / "thesis"), 2)
    with pytest.raises(UsageError, match="at least one run"):
        run_repeats(plan_of(tmp_path / "out"), 0)
    assert trainer.plans == []


def test_real_runs_are_kept_and_differ(tmp_path: Path) -> None:
    data = write_demo_dataset(tmp_path / "data", splits=(("train", 2),), image_hw=(128, 128), n_objects=8)
    changes = ("train.length=1 step", "train.warmup=null", "augment.crop_px=96", "model.backbone.width=8")
    changes += ("model.fpn.channels=16", "train.threads=1", "train.batch_size=1")
    plan = TrainPlan("synthetic/demo", data, tmp_path / "out", overrides=changes, device="cpu")
    for _ in range(2):
        assert run_repeats(plan, 2).finished
    saved = [(tmp_path / "out" / f"seed_{seed}" / "model" / "weights.safetensors").read_bytes() for seed in (0, 1)]
    assert saved[0] != saved[1]
    with pytest.raises(OutputError, match="another recipe"):
        run_repeats(TrainPlan("synthetic/demo", data, tmp_path / "out", overrides=(*changes, "train.lr=0.5")), 2)

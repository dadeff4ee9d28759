"""A schedule that fits into a time: its keys make a valid recipe, and a training that goes on keeps them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from cellwright.api import pacing
from cellwright.api.train import TrainPlan, load_recipe
from cellwright.core.progress import SILENT
from cellwright.training.schedule import Timeline

PLAN = TrainPlan("nuclei/finetune", data=Path("data"), max_minutes=5)


def test_the_schedule_is_fitted_once(tmp_path: Path, monkeypatch) -> None:
    probes = []
    monkeypatch.setattr(pacing, "_probe", lambda *_: probes.append(1) or (1.0, 10.0))
    notes = tmp_path / "speed.json"
    plan = pacing.fitted(PLAN, 4, SILENT, notes)
    config = load_recipe(plan.recipe, plan.set).train
    timeline = Timeline.of(config, 4)
    assert 225 <= timeline.total_steps <= 230  # 90 % of 300 s, without four evaluations
    assert timeline.steps(config.warmup) == timeline.total_steps // 10
    assert timeline.steps(config.evaluate_every) == timeline.total_steps // 2
    again = pacing.fitted(dataclasses.replace(PLAN, max_minutes=9), 4, SILENT, notes)
    assert again.set == plan.set
    assert len(probes) == 1
    assert json.loads(notes.read_text())["step_s"] == 1.0


def test_plans_that_stay_as_they_are(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pacing, "_probe", lambda *_: (0.01, 0.0))
    for plan in (
        PLAN,  # all of its 1,000 steps fit
        dataclasses.replace(PLAN, max_minutes=None),
        dataclasses.replace(PLAN, max_minutes=0.5),
        dataclasses.replace(PLAN, set=("train.length=50 steps",)),
    ):
        assert pacing.fitted(plan, 4, SILENT, tmp_path / "speed.json") == plan

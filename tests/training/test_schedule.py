"""Learning rates against values computed by hand and against the schedulers of torch."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from cellwright.config.training import Span, TrainConfig
from cellwright.core.errors import RecipeError
from cellwright.training.schedule import Timeline, learning_rate


def rates(n_samples: int = 10, **settings: object) -> list[float]:
    """The learning rate of every step of a run on ``n_samples`` images."""
    config = TrainConfig(**settings)  # type: ignore[arg-type]
    timeline = Timeline.of(config, n_samples)
    return [learning_rate(config, step, timeline) for step in range(timeline.total_steps)]


def due(timeline: Timeline, every: str, total: int) -> list[int]:
    return [step for step in range(total + 1) if timeline.is_due(step, Span.parse(every))]


def test_warm_up_is_linear_from_the_start_factor() -> None:
    actual = rates(lr=0.2, length="6 steps", warmup="4 steps", warmup_start_factor=0.5, schedule={"kind": "constant"})
    assert actual == pytest.approx([0.1, 0.125, 0.15, 0.175, 0.2, 0.2])


def test_milestones_in_percent_steps_and_epochs_are_equivalent() -> None:
    expected = pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)
    for milestones in (("50%", "80%"), ("5 steps", "8 steps"), ("2.5 epochs", "4 epochs")):
        schedule = {"kind": "multi_step", "milestones": milestones}
        assert rates(n_samples=4, lr=1, length="10 steps", warmup=None, schedule=schedule) == expected


def test_percentages_are_exact() -> None:
    """In floating point 70 % of 10 is 7.000000000000001, and the decay would come one step late."""
    actual = rates(lr=1, length="10 steps", warmup=None, schedule={"kind": "multi_step", "milestones": ["70%"]})
    assert actual == pytest.approx([1] * 7 + [0.1] * 3)


def test_cosine_decays_from_the_end_of_warm_up_to_the_final_factor() -> None:
    schedule = {"kind": "cosine", "final_factor": 0.2}
    config = TrainConfig(lr=1, length="12 steps", warmup="2 steps", warmup_start_factor=0.1, schedule=schedule)  # type: ignore[arg-type]
    timeline = Timeline.of(config, 1)
    actual = {step: learning_rate(config, step, timeline) for step in (0, 1, 2, 7, 12)}
    assert actual == pytest.approx({0: 0.1, 1: 0.55, 2: 1, 7: 0.6, 12: 0.2})


def test_one_step_without_warm_up() -> None:
    assert rates(lr=0.3, length="1 step", warmup=None, schedule={"kind": "cosine"}) == [0.3]


@pytest.mark.parametrize(
    ("schedule", "scheduler_of"),
    [
        ({"kind": "step", "every": "3 epochs"}, lambda o: torch.optim.lr_scheduler.StepLR(o, 15, 0.1)),
        (
            {"kind": "multi_step", "milestones": ["4 epochs", "7 epochs"], "factor": 0.5},
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [20, 35], 0.5),
        ),
        ({"kind": "cosine"}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50)),
    ],
)
def test_schedulers_of_torch_agree(schedule: dict[str, object], scheduler_of) -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler, expected = scheduler_of(optimiser), []
    for _ in range(50):  # 10 epochs of 10 images, 2 images per step
        expected.append(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()
    assert rates(n_samples=10, lr=0.4, length="10 epochs", warmup=None, schedule=schedule) == pytest.approx(expected)


# Schedules of published reports as recipes: number of images, settings, schedule, and expected rates by step.
REPORTS = {
    "first VRDL report": (
        20,
        {"batch_size": 1, "length": "120 epochs", "warmup": "3 epochs"},
        {"kind": "multi_step", "milestones": ["20 epochs", "50 epochs", "80 epochs", "90 epochs"]},
        {0: 1e-5, 30: 0.005005, 60: 0.01, 399: 0.01, 400: 1e-3, 1000: 1e-4, 1600: 1e-5, 1800: 1e-6, 2399: 1e-6},
    ),
    "second VRDL report": (
        20,
        {"batch_size": 1, "length": "2400 steps", "warmup": "72 steps"},
        {"kind": "multi_step", "milestones": ["480 steps", "1200 steps", "1920 steps", "2160 steps"]},
        {0: 1e-5, 36: 0.005005, 72: 0.01, 479: 0.01, 480: 1e-3, 1200: 1e-4, 1920: 1e-5, 2160: 1e-6},
    ),
    "four cells, cascade": (
        400,
        {"batch_size": 4, "length": "20000 steps", "warmup": "1000 steps", "lr": 1e-4},
        {"kind": "multi_step", "milestones": ["7000 steps", "9000 steps"]},
        {0: 1e-7, 500: 5.005e-5, 1000: 1e-4, 6999: 1e-4, 7000: 1e-5, 9000: 1e-6, 19999: 1e-6},
    ),
    "four cells, light": (
        400,
        {"batch_size": 4, "length": "50 epochs", "warmup": "5%", "lr": 0.005},
        {"kind": "cosine"},
        {0: 5e-6, 125: 0.0025025, 250: 0.005, 2625: 0.0025},
    ),
    "four cells, light ablations": (
        400,
        {"batch_size": 4, "length": "10 epochs", "warmup": None, "lr": 1e-4, "optimiser": "adamw"},
        {"kind": "step", "every": "3 epochs"},
        {0: 1e-4, 299: 1e-4, 300: 1e-5, 600: 1e-6, 900: 1e-7},
    ),
}


@pytest.mark.parametrize("report", REPORTS)
def test_schedules_of_published_reports(report: str) -> None:
    n_samples, settings, schedule, expected = REPORTS[report]
    actual = rates(n_samples=n_samples, **settings, schedule=schedule)
    assert {step: actual[step] for step in expected} == pytest.approx(expected)


def test_multiples_of_a_span_are_due() -> None:
    timeline = Timeline.of(TrainConfig(length="2 epochs", batch_size=2, warmup=None), 5)
    assert (timeline.total_steps, timeline.steps_per_epoch) == (5, Fraction(5, 2))
    assert due(timeline, "1 epoch", 10) == [3, 5, 8, 10]  # the first step after each complete epoch
    assert due(timeline, "2 steps", 6) == [2, 4, 6]
    assert due(timeline, "0.1 epochs", 4) == [1, 2, 3, 4]
    assert due(timeline, "40%", 6) == [2, 4, 6]
    accumulated = Timeline.of(TrainConfig(length="4 epochs", batch_size=2, accumulate=5, warmup=None), 40)
    assert (accumulated.total_steps, due(accumulated, "2 epochs", 16)) == (16, [8, 16])


def test_a_warm_up_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(RecipeError, match="warm-up is as long as the run") as caught:
        Timeline.of(TrainConfig(length="50 steps", warmup="10 epochs"), 10)
    assert "train.warmup, train.length" in str(caught.value)
    assert Timeline.of(TrainConfig(length="50 steps", schedule={"kind": "constant"}), 10).total_steps == 50  # type: ignore[arg-type]

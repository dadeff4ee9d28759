"""What is shown where."""

from __future__ import annotations

import io
import json

from rich.console import Console

from cellwright.training.reporter import (
    BarReporter,
    JsonReporter,
    LineReporter,
    SilentReporter,
    StepReport,
    choose_reporter,
)


def report(step: int) -> StepReport:
    return StepReport(
        step=step,
        total_steps=50,
        loss=1.5,
        losses={"mask": 1.5},
        lr=0.02,
        gradient_norm=3.0,
        step_s=0.5,
        steps_per_s=2.0,
        eta_s=3725.0,
    )


def test_the_line() -> None:
    assert report(7).line() == "step 7/50  loss 1.5000  lr 0.02  2.00 it/s  ETA 1:02:05"


def test_without_a_terminal_lines_come_now_and_then() -> None:
    stream, times = io.StringIO(), iter([0.0, 10.0, 31.0, 32.0, 33.0])
    with LineReporter(stream, every_s=30, clock=lambda: next(times)) as lines:
        for step in (1, 2, 3, 4, 50):
            lines.step(report(step))
        lines.note("checkpoint")
    shown = stream.getvalue().splitlines()
    assert [line.split()[1] for line in shown[:3]] == ["1/50", "3/50", "50/50"]
    assert shown[3] == "checkpoint"
    assert "\x1b" not in stream.getvalue()


def test_json_lines() -> None:
    stream = io.StringIO()
    with JsonReporter(stream) as lines:
        lines.step(report(1))
        lines.note("hello")
    step, note = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (step["event"], step["step"], step["losses"]) == ("step", 1, {"mask": 1.5})
    assert note == {"event": "note", "text": "hello"}


def test_a_terminal_shows_loss_rate_and_time_left() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with BarReporter(console) as bar:
        bar.step(report(1))
        bar.note("[not markup] evaluated")
        bar.step(report(50))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "loss 1.5000" in text
    assert "ETA 1:02:05" in text
    assert "[not markup] evaluated" in text


def test_which_reporter() -> None:
    stream = io.StringIO()
    assert type(choose_reporter(stream)) is LineReporter
    assert type(choose_reporter(stream, quiet=True)) is SilentReporter
    assert type(choose_reporter(stream, log_format="json", quiet=True)) is JsonReporter

"""`log.csv` after resumes, kills and new columns; what each reporter shows."""

from __future__ import annotations

import io
import json
import logging
import math
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console

from cellwright.core.errors import FormatError
from cellwright.training.logging import (
    BarReporter,
    JsonReporter,
    LineReporter,
    SilentReporter,
    StepLog,
    StepReport,
    choose_reporter,
)


def test_new_columns_are_added_to_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    with StepLog(path, 0) as log:
        log.step(1, {"loss": 0.5})
        log.step(2, {"loss": 0.25, "memory": None})
        log.add({"AP@100": 0.125})
        log.step(3, {"loss": 0.1})
    assert path.read_text() == "step,loss,memory,AP@100\n1,0.5,,\n2,0.25,,0.125\n3,0.1,,\n"


def test_a_resume_removes_later_rows_and_an_incomplete_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    # The incomplete last line looks like step 1; it must not become a second row of that step.
    path.write_text("step,loss\n1,0.5\n2,0.25\n3,0.2\n1")
    with StepLog(path, 2) as log:
        log.add({"AP": 0.75})
        log.step(3, {"loss": 0.125})
    assert path.read_text() == "step,loss,AP\n1,0.5,\n2,0.25,0.75\n3,0.125,\n"


def test_a_call_that_is_killed_before_its_first_step_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,0.5\n2,0.25\n")
    for _ in range(2):
        StepLog(path, 2)._file.close()  # and nothing else, as after a kill
        assert path.read_text() == "step,loss\n1,0.5\n2,0.25\n"
    with StepLog(path, 2) as log:
        log.step(3, {"loss": 0.125})
    assert path.read_text() == "step,loss\n1,0.5\n2,0.25\n3,0.125\n"


def test_a_new_run_starts_a_new_log_and_a_missing_log_is_created(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,0.5\n")
    with StepLog(path, 0):
        pass
    assert path.read_text() == "step\n"
    path.unlink()
    with StepLog(path, 7) as log:
        log.step(8, {"loss": 1.0})
    assert path.read_text() == "step,loss\n8,1.0\n"


def test_a_flushed_row_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    with StepLog(path, 0) as log:
        log.step(1, {"loss": 0.5})
        log.flush()
        assert path.read_text() == "step,loss\n1,0.5\n"
        log.flush()
    assert path.read_text() == "step,loss\n1,0.5\n"


def test_a_file_that_is_not_a_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("name,value\na,b\n")
    with pytest.raises(FormatError, match="not a training log"):
        StepLog(path, 3)


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


def test_the_progress_line() -> None:
    assert report(7).line() == "step 7/50  loss 1.5000  lr 0.02  2.00 it/s  ETA 1:02:05"


def test_without_a_terminal_lines_are_printed_at_intervals() -> None:
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
        lines.step(replace(report(1), gradient_norm=math.inf))
        lines.note("hello")
        lines.note("step 1: AP nan", "evaluation", {"metrics": {"AP": math.nan}})
    assert not re.search("NaN|Infinity", stream.getvalue()), "not JSON"
    step, note, evaluation = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (step["event"], step["step"], step["losses"], step["gradient_norm"]) == ("step", 1, {"mask": 1.5}, None)
    assert step["progress"] == {"done": 1, "total": 50}
    assert datetime.fromisoformat(note.pop("time")).tzinfo is not None
    assert note == {"level": "info", "event": "note", "text": "hello"}
    assert (evaluation["event"], evaluation["metrics"]) == ("evaluation", {"AP": None})


def test_a_terminal_shows_loss_speed_and_remaining_time() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with BarReporter(console) as bar:
        bar.step(report(1))
        bar.note("[not markup] evaluated")
        bar.step(report(50))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "loss 1.5000" in text
    assert "ETA 1:02:05" in text
    assert "[not markup] evaluated" in text


def test_choice_of_the_reporter() -> None:
    stream = io.StringIO()
    assert type(choose_reporter(stream)) is LineReporter
    assert type(choose_reporter(stream, quiet=True)) is SilentReporter
    assert type(choose_reporter(stream, log_format="json")) is JsonReporter
    assert type(choose_reporter(stream, log_format="json", quiet=True)) is SilentReporter


def test_without_a_display_the_training_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "cellwright"):
        reporter = SilentReporter()
        reporter.step(report(7))
        reporter.note("step 7: AP 0.5", "evaluation", {"step": 7})
    assert [(record.levelname, record.event) for record in caplog.records] == [  # type: ignore[attr-defined]
        ("DEBUG", "step"),
        ("INFO", "evaluation"),
    ]

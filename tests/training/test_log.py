"""`log.csv` after resumes, kills and new columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellwright.core.errors import FormatError
from cellwright.training.log import StepLog


def test_columns_that_come_later_are_added_to_every_row(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    with StepLog(path, 0) as log:
        log.step(1, {"loss": 0.5})
        log.step(2, {"loss": 0.25, "memory": None})
        log.add({"AP@100": 0.125})
        log.step(3, {"loss": 0.1})
    assert path.read_text() == "step,loss,memory,AP@100\n1,0.5,,\n2,0.25,,0.125\n3,0.1,,\n"


def test_a_resume_cuts_later_rows_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    # The torn last line reads as step 1; it must not come back as a second row of that step.
    path.write_text("step,loss\n1,0.5\n2,0.25\n3,0.2\n1")
    with StepLog(path, 2) as log:
        log.add({"AP": 0.75})
        log.step(3, {"loss": 0.125})
    assert path.read_text() == "step,loss,AP\n1,0.5,\n2,0.25,0.75\n3,0.125,\n"


def test_a_new_run_begins_a_new_log_and_an_absent_one_is_begun(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,0.5\n")
    with StepLog(path, 0):
        pass
    assert path.read_text() == "step\n"
    path.unlink()
    with StepLog(path, 7) as log:
        log.step(8, {"loss": 1.0})
    assert path.read_text() == "step,loss\n8,1.0\n"


def test_a_flushed_row_is_on_disk_and_not_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    with StepLog(path, 0) as log:
        log.step(1, {"loss": 0.5})
        log.flush()
        assert path.read_text() == "step,loss\n1,0.5\n"
        log.flush()
    assert path.read_text() == "step,loss\n1,0.5\n"


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("name,value\na,b\n")
    with pytest.raises(FormatError, match="not a training log"):
        StepLog(path, 3)

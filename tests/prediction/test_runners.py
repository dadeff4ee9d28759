"""Units of a job in this process and in several: order, what waits in memory, processes that die."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from cellwright.core.errors import CellwrightError, InputError, UsageError
from cellwright.prediction.runners import MAX_WAITING, run_here, run_processes

DEADLY, WRONG = 3, 5


@dataclass(frozen=True)
class Files:
    """Units that write a file each, of which one ends its process and one fails. Must be importable: spawned."""

    folder: Path

    def open(self) -> Files:
        return self

    def predict(self, units: Files, unit: int) -> Callable[[], int]:
        if unit == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        if unit == WRONG:
            raise InputError("wrong")
        return lambda: self.store(unit)

    def store(self, unit: int) -> int:
        (self.folder / str(unit)).write_text(str(os.getpid()))
        return unit * unit

    def result(self, unit: int) -> int | None:
        return unit * unit if (self.folder / str(unit)).is_file() else None

    def failure(self, unit: int, error: CellwrightError | MemoryError) -> CellwrightError | None:
        return error if isinstance(error, InputError) else None

    def lost(self, unit: int) -> CellwrightError:
        return InputError("lost")

    def part(self, unit: int) -> Files:
        return self


@pytest.mark.usefixtures("forked_workers")
def test_a_unit_with_which_processes_die_fails_alone(tmp_path: Path) -> None:
    outcomes = {outcome.unit: outcome for outcome in run_processes(Files(tmp_path), range(7), 2)}
    assert sorted(outcomes) == list(range(7))
    assert {unit: outcome.result for unit, outcome in outcomes.items() if outcome.failure is None} == {
        unit: unit * unit for unit in range(7) if unit not in (DEADLY, WRONG)
    }
    problems = {unit: outcome.failure.problem for unit, outcome in outcomes.items() if outcome.failure is not None}
    assert problems == {DEADLY: "lost", WRONG: "wrong"}
    assert str(os.getpid()) not in {path.read_text() for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("main_file", "text"),
    [
        (None, "defined in a notebook"),
        ("<stdin>", "cannot read this script"),
        (__file__, "cannot be sent"),
    ],
)
def test_a_model_that_processes_would_not_find_is_refused(
    main_file: str | None, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(Files):
        pass

    if main_file != __file__:
        main = types.ModuleType("__main__")
        Own.__module__, Own.__qualname__, main.Own = "__main__", "Own", Own
        if main_file is not None:
            main.__file__ = main_file
        monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(UsageError, match=text):
        list(run_processes(Own(tmp_path), range(3), 2))


class Result:
    """Something large, of which few should be alive."""


class Slow(Files):
    """Units whose results take longer to be written than to be predicted."""

    alive: ClassVar = weakref.WeakSet[Result]()
    most = 0
    threads: ClassVar = set[str]()

    def predict(self, units: Files, unit: int) -> Callable[[], int]:
        if unit == self.stop_at:
            raise KeyboardInterrupt
        result = Result()
        self.alive.add(result)
        Slow.most = max(Slow.most, len(self.alive))

        def store() -> int:
            assert result in self.alive
            self.threads.add(threading.current_thread().name)
            time.sleep(0.01)
            return self.store(unit)

        return store

    stop_at = -1


def test_results_are_written_beside_and_few_wait(tmp_path: Path) -> None:
    assert [outcome.unit for outcome in run_here(Slow(tmp_path), range(20))] == list(range(20))
    assert 1 < Slow.most <= MAX_WAITING + 2, "the one that is predicted, the one that is written, and those that wait"
    assert threading.current_thread().name not in Slow.threads


def test_what_was_predicted_is_written_when_a_job_is_interrupted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Slow, "stop_at", 4)
    with pytest.raises(KeyboardInterrupt):
        list(run_here(Slow(tmp_path), range(20)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]

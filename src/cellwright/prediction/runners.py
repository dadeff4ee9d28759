"""Run the units of a job: in this process, in several processes of this machine, or on a Dask cluster.

A unit is a tile of a large image, or one of many images, and known by its number. Whoever does it also stores what it
found; only a summary comes back.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from cellwright.core.errors import CellwrightError, UsageError

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
# Units that only one process of several that share a folder does: shard (i, n) those with number % n == i - 1.
Shard = tuple[int, int]
# Results that wait to be written while the next unit is predicted, apart from the one that is being written.
MAX_WAITING = 1
DASK_RETRIES = 2


@dataclass(frozen=True)
class Outcome(Generic[R_co]):
    """What became of a unit: a result, or why it failed. seconds: it took, without waiting to be written."""

    unit: int
    result: R_co | None = None
    seconds: float = 0.0
    failure: CellwrightError | None = None


Outcomes = Generator[Outcome[R], None, None]


class Work(Protocol[R_co]):
    """What a process has open to do units: a model, images."""

    def predict(self, units: Any, unit: int, /) -> Callable[[], R_co]:
        """Predict a unit of ``units``; calling what is returned stores the result.

        Both raise `CellwrightError` or `MemoryError` if the unit fails, and `OutputError` if nothing can be written.
        """
        ...


class Units(Protocol[R_co]):
    """The units of a job, for a process that is to do some of them; they can be pickled."""

    def open(self) -> Work[R_co]:
        """Load what is needed; called once per process."""
        ...

    def result(self, unit: int, /) -> R_co | None:
        """The stored result of a unit; None if it is not done."""
        ...

    def failure(self, unit: int, error: CellwrightError | MemoryError, /) -> CellwrightError | None:
        """Store why a unit failed, and return it; None if the error concerns the whole job, and is to be raised."""
        ...

    def lost(self, unit: int, /) -> CellwrightError:
        """The error of a unit whose process ended."""
        ...

    def part(self, unit: int, /) -> Units[R_co]:
        """What is needed for this unit alone; its work does the others too."""
        ...


@dataclass(frozen=True)
class Running:
    """How the units of a job are run. workers: processes; 1 is this one. dask: address of a scheduler, or "local".

    progress: called after each unit with the numbers of units that are done, and of all.
    """

    workers: int = 1
    dask: str | None = None
    shard: Shard | None = None
    progress: Callable[[int, int], object] | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError("invalid `workers`", got=self.workers, expected="at least 1")
        if self.workers > 1 and self.dask is not None:
            remedy = "start as many workers of the cluster as you need"
            raise UsageError("`workers` and `dask` exclude each other", remedy=remedy)

    @property
    def is_elsewhere(self) -> bool:
        """Whether other processes do the work."""
        return self.workers > 1 or self.dask is not None

    @property
    def threads(self) -> int:
        """Threads for each worker."""
        return 1 if self.dask is not None else threads_of(self.workers)

    def outcomes(self, units: Units[R], numbers: Sequence[int]) -> Outcomes[R]:
        """Run units, as they finish. Close the generator to end the workers."""
        if self.dask is not None:
            return run_dask(units, numbers, self.dask)
        if self.workers > 1 and len(numbers) > 1:
            return run_processes(units, numbers, self.workers)
        return run_here(units, numbers)

    def mine(self, numbers: Iterable[int]) -> list[int]:
        """The units of this shard."""
        if self.shard is None:
            return list(numbers)
        part, n = self.shard
        return [number for number in numbers if number % n == part - 1]


def threads_of(n_workers: int) -> int:
    """Threads for each of several processes."""
    return max((os.cpu_count() or 1) // n_workers, 1)


def run_here(units: Units[R], numbers: Sequence[int]) -> Outcomes[R]:
    """In this process: a thread writes results while the next unit is predicted, in order.

    If this is interrupted, what was predicted is still written.
    """
    if not numbers:
        return
    work = units.open()
    waiting: deque[Future[Outcome[R]]] = deque()
    with ThreadPoolExecutor(1, "cellwright write") as writer:
        for unit in numbers:
            waiting.append(writer.submit(_predicted(units, work, unit)))
            while waiting and (len(waiting) > MAX_WAITING + 1 or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _predicted(units: Units[R], work: Work[R], unit: int) -> Callable[[], Outcome[R]]:
    """Predict a unit; calling what is returned stores the result, or why the unit failed."""
    start = time.perf_counter()
    try:
        store: Callable[[], R] = work.predict(units, unit)
    except (CellwrightError, MemoryError) as error:
        store = _Raise(error)
    seconds = time.perf_counter() - start

    def write() -> Outcome[R]:
        start = time.perf_counter()
        try:
            result = store()
        except (CellwrightError, MemoryError) as error:
            if (failure := units.failure(unit, error)) is None:
                raise
            return Outcome(unit, None, seconds, failure)
        return Outcome(unit, result, seconds + time.perf_counter() - start)

    return write


@dataclass(frozen=True)
class _Raise:
    error: Exception

    def __call__(self) -> Any:
        raise self.error


def run_processes(units: Units[R], numbers: Sequence[int], n_workers: int) -> Outcomes[R]:
    """In several processes; as they finish.

    If a process dies, the units that were in work are done one by one; one with which a process dies alone fails.
    """
    left, suspects = list(numbers), list[int]()
    while left or suspects:
        batch, n = (suspects, 1) if suspects else (left, min(n_workers, len(left)))
        in_work: set[int] = set()
        try:
            with _processes(units, n) as submit:
                for outcome in _as_finished(submit, list(batch), n, in_work):
                    batch.remove(outcome.unit)
                    yield outcome
        except BrokenProcessPool as error:
            # Which process died is not known: every unit in work may be the cause.
            for unit in in_work:
                batch.remove(unit)
                if (result := units.result(unit)) is not None:
                    yield Outcome(unit, result)
                elif batch is suspects:
                    lost = units.lost(unit)
                    if (failure := units.failure(unit, lost)) is None:
                        raise lost from error
                    yield Outcome(unit, failure=failure)
                else:
                    suspects.append(unit)


Submit = Callable[[int], "Future[Outcome[Any]]"]


@contextmanager
def _processes(units: Units[Any], n_workers: int) -> Iterator[Submit]:
    """A function that has a unit done by one of several processes; they end with the context, at once on an error."""
    _check_sendable(units)
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        n_workers, multiprocessing.get_context("spawn"), _start_worker, (units, threads_of(n_workers))
    )
    ready: Future[int] | None = None
    try:
        ready = pool.submit(int)
        yield lambda unit: pool.submit(_run_in_worker, unit)
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        has_begun = ready is not None and ready.done() and ready.exception() is None
        if isinstance(error, BrokenProcessPool) and not has_begun:
            remedy = 'in a script, begin the main part with `if __name__ == "__main__":`; or use fewer `workers`'
            raise UsageError("the processes of `workers` cannot be started", remedy=remedy) from error
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_sendable(units: Units[Any]) -> None:
    """Raise `UsageError` if new processes would not find the class of a model."""
    remedy = "define its class in a module, a .py file that you import; or omit `workers`"
    try:
        sent = pickle.dumps(units)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        problem = "this model cannot be sent to the processes of `workers`"
        raise UsageError(problem, got=str(error), remedy=remedy) from error
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is not None and not Path(file).is_file():
        remedy = "save the script as a file; or omit `workers`"
        raise UsageError("the processes of `workers` cannot read this script", got=file, remedy=remedy)
    if file is None and b"__main__" in sent:
        problem = "the processes of `workers` do not find a class that is defined in a notebook or interactive session"
        raise UsageError(problem, remedy=remedy)


def _as_finished(submit: Submit, numbers: Sequence[int], n_workers: int, in_work: set[int]) -> Outcomes[Any]:
    """Have units done, and keep ``in_work``; each process has at most one."""
    waiting, running = iter(numbers), dict[Future[Outcome[Any]], int]()
    while True:
        while len(running) < n_workers and (unit := next(waiting, None)) is not None:
            in_work.add(unit)
            running[submit(unit)] = unit
        if not running:
            return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            outcome = future.result()
            in_work.remove(running.pop(future))
            yield outcome


class _Worker:
    """What a worker process has open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: str | None = None

    def run(self, key: str, units: Units[Any], unit: int) -> Outcome[Any]:
        """Do a unit. key: of the run; another one has its own work."""
        with self._lock:  # a Dask worker may have several threads
            if key != self._key:
                self._work, self._key = units.open(), key
            work = self._work
        return _predicted(units, work, unit)()


_worker = _Worker()
_units: list[Units[Any]] = []


def _start_worker(units: Units[Any], n_threads: int) -> None:
    """In a new process: leave interrupts to the main process, and end with it."""
    import signal

    import cv2

    cv2.setNumThreads(n_threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _units[:] = [units]
    threading.Thread(target=_end_with_parent, name="cellwright parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(unit: int) -> Outcome[Any]:
    return _worker.run("", _units[0], unit)


def run_dask(units: Units[R], numbers: Sequence[int], address: str) -> Outcomes[R]:
    """On a Dask cluster: the address of its scheduler, or "local". Workers must see the images and the output folder.

    Dask gives the units of a worker that was lost to others; a unit with which several workers were lost fails.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        remedy = 'pip install "cellwright[dask]"'
        raise UsageError("Dask needs another package", got=f"no {error.name}", remedy=remedy) from error
    try:
        client = Client(processes=True, threads_per_worker=1) if address == "local" else Client(address, timeout=20)
    except (OSError, TimeoutError, ValueError) as error:
        remedy = "check the address, and that the scheduler runs"
        raise UsageError("no Dask scheduler answers", got=f"{address}: {error}", remedy=remedy) from error
    with client:
        key = uuid.uuid4().hex
        tasks = [_Task(key, units.part(unit), unit) for unit in numbers]
        futures = client.map(_Task.run, tasks, pure=False, retries=DASK_RETRIES)
        number_of = {future.key: unit for future, unit in zip(futures, numbers, strict=True)}
        for future in as_completed(futures):
            try:
                yield future.result()
            except KilledWorker:
                unit = number_of[future.key]
                lost = units.lost(unit)
                if (failure := units.failure(unit, lost)) is None:
                    raise lost from None
                yield Outcome(unit, failure=failure)
            future.release()


@dataclass(frozen=True)
class _Task(Generic[R]):
    """What a Dask worker does; the work stays open in the worker for the other units of this run."""

    run_key: str
    units: Units[R]
    unit: int

    def run(self) -> Outcome[R]:
        if (result := self.units.result(self.unit)) is not None:  # done by a worker that was lost afterwards
            return Outcome(self.unit, result)
        return _worker.run(self.run_key, self.units, self.unit)

"""Run the tiles of a job: in this process, in several processes of this machine, or on a Dask cluster.

A worker needs three things: the job folder, the source and the model. It gets them from ``make_work``, a function that
can be pickled, and writes the tile's file itself; only a summary comes back.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from cellwright.core.errors import CellwrightError, InputError, OutputError, UsageError
from cellwright.prediction.tiling.ledger import Failure, Ledger
from cellwright.prediction.tiling.work import TileWork

MakeWork = Callable[[], TileWork]
# A tile that was in work in this many processes that died is recorded as a failure.
MAX_DEATHS = 2


@dataclass(frozen=True)
class Outcome:
    """What became of a tile. n_objects: those that it owns."""

    tile: int
    n_objects: int = 0
    seconds: float = 0.0
    failure: Failure | None = None


def run_tile(work: TileWork, ledger: Ledger, tile: int) -> Outcome:
    """Predict a tile and store its result, or why it failed. Raises `OutputError` if nothing can be written."""
    start = time.perf_counter()
    try:
        record = work.record(tile)
    except OutputError:
        raise
    except (CellwrightError, MemoryError) as error:
        if isinstance(error, MemoryError):
            remedy = "use a smaller `tile`, or fewer `workers`"
            error = InputError("not enough memory for this tile", remedy=remedy)
        failure = Failure.of(tile, error)
        ledger.fail(failure)
        return Outcome(tile, 0, time.perf_counter() - start, failure)
    ledger.write(tile, record)
    return Outcome(tile, int(record.stored.owned.sum()), time.perf_counter() - start)


def run_here(make_work: MakeWork, ledger: Ledger, tiles: Sequence[int]) -> Iterator[Outcome]:
    """One tile after the other, in this process."""
    if tiles:
        work = make_work()
        for tile in tiles:
            yield run_tile(work, ledger, tile)


def run_processes(make_work: MakeWork, ledger: Ledger, tiles: Sequence[int], n_workers: int) -> Iterator[Outcome]:
    """In several processes; as they finish. The tiles of a process that dies are done by others."""
    left, deaths = list(tiles), dict.fromkeys(tiles, 0)
    while left:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(n_workers, context, _open_worker, (make_work, ledger))
        running: dict[Future[Outcome], int] = {}
        waiting = iter(list(left))
        try:
            for _ in range(n_workers):
                _submit(pool, running, waiting)
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    outcome = future.result()
                    left.remove(running.pop(future))
                    yield outcome
                    _submit(pool, running, waiting)
        except BrokenProcessPool:
            # Which process died is not known: every tile in work counts.
            for tile in running.values():
                if ledger.has(tile):
                    continue
                deaths[tile] += 1
                if deaths[tile] >= MAX_DEATHS:
                    failure = Failure(
                        tile,
                        "the process that predicted this tile ended",
                        "",
                        "perhaps the machine ran out of memory",
                        "use a smaller `tile`, or fewer `workers`",
                    )
                    ledger.fail(failure)
                    left.remove(tile)
                    yield Outcome(tile, failure=failure)
            unfinished = ledger.left(left)
            for tile in set(left) - set(unfinished):
                yield Outcome(tile, int(ledger.read(tile).stored.owned.sum()))
            left = unfinished
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def run_dask(make_work: MakeWork, ledger: Ledger, tiles: Sequence[int], address: str) -> Iterator[Outcome]:
    """On a Dask cluster: the address of its scheduler, or "local". Workers must see the job folder and the source."""
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        remedy = 'pip install "cellwright[dask]"'
        raise UsageError("Dask needs another package", got=f"no {error.name}", remedy=remedy) from error
    try:
        client = Client(processes=True, threads_per_worker=1) if address == "local" else Client(address, timeout=20)
    except (OSError, TimeoutError, ValueError) as error:
        remedy = "check the address, and that the scheduler runs"
        raise UsageError("no Dask scheduler answers", got=f"{address}: {error}", remedy=remedy) from error
    with client:
        futures = client.map(_Task(make_work, ledger), list(tiles), pure=False, retries=MAX_DEATHS)
        for _, outcome in as_completed(futures, with_results=True):
            yield outcome


@dataclass(frozen=True)
class _Task:
    """What a Dask worker does with a tile; the model and the source stay open in the worker."""

    make_work: MakeWork
    ledger: Ledger

    def __call__(self, tile: int) -> Outcome:
        if self.ledger.has(tile) and not self.ledger.left([tile]):  # done by a worker that was lost afterwards
            return Outcome(tile, int(self.ledger.read(tile).stored.owned.sum()))
        key = f"{self.ledger.root} {self.ledger.job}"
        if key not in _open_works:
            _open_works.clear()
            _open_works[key] = self.make_work()
        return run_tile(_open_works[key], self.ledger, tile)


_open_works: dict[str, TileWork] = {}
_worker: list[Any] = []


def _open_worker(make_work: MakeWork, ledger: Ledger) -> None:
    """In a new process: open the source and the model."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    _worker[:] = [make_work(), ledger]


def _run_in_worker(tile: int) -> Outcome:
    work, ledger = _worker
    return run_tile(work, ledger, tile)


def _submit(pool: ProcessPoolExecutor, running: dict[Future[Outcome], int], waiting: Iterator[int]) -> None:
    tile = next(waiting, None)
    if tile is not None:
        running[pool.submit(_run_in_worker, tile)] = tile

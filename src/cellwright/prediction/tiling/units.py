"""The tiles of a job as the units that `prediction.runners` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from cellwright.core.errors import CellwrightError, InputError, OutputError
from cellwright.prediction.tiling.ledger import Failure, Ledger
from cellwright.prediction.tiling.tile_file import TileRecord
from cellwright.prediction.tiling.work import TileWork

MakeWork = Callable[[], TileWork]


@dataclass(frozen=True)
class TileUnits:
    """See `Units`; the result of a tile is the number of objects that it owns.

    make_work: opens the source and the model; it can be pickled if other processes use it.
    """

    make_work: MakeWork
    ledger: Ledger

    def open(self) -> TilePredictor:
        """See `Units`."""
        return TilePredictor(self.make_work())

    def result(self, tile: int) -> int | None:
        """See `Units`."""
        return None if self.ledger.left([tile]) else _n_owned(self.ledger.read(tile))

    def failure(self, tile: int, error: CellwrightError | MemoryError) -> CellwrightError | None:
        """See `Units`."""
        if isinstance(error, OutputError):
            return None
        if isinstance(error, MemoryError):
            error = InputError("not enough memory for this tile", remedy="use a smaller `tile`, or fewer `workers`")
        self.ledger.fail(Failure.of(tile, error))
        return error

    def lost(self, tile: int) -> CellwrightError:
        """See `Units`."""
        got, remedy = "perhaps the machine ran out of memory", "use a smaller `tile`, or fewer `workers`"
        return InputError("the process that predicted this tile ended", got=got, remedy=remedy)

    def part(self, tile: int) -> TileUnits:
        """See `Units`."""
        return replace(self, ledger=replace(self.ledger, tiles=(tile,)))


@dataclass(frozen=True)
class TilePredictor:
    """See `Work`."""

    work: TileWork

    def predict(self, units: TileUnits, tile: int) -> Callable[[], int]:
        """See `Work`."""
        return partial(_store, units.ledger, tile, self.work.record(tile))


def _store(ledger: Ledger, tile: int, record: TileRecord) -> int:
    ledger.write(tile, record)
    return _n_owned(record)


def _n_owned(record: TileRecord) -> int:
    return int(record.stored.owned.sum())

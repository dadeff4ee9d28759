"""Which tiles of a job are done: the ledger is the set of valid tile files, and of notes of what failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellwright.core.errors import CellwrightError, FormatError, InputError
from cellwright.core.files import read_json, write_json
from cellwright.prediction.tiling.tile_file import TileRecord, read_tile, write_tile

SCHEMA_VERSION = 1
TILES = "tiles"


@dataclass(frozen=True)
class Failure:
    """Why a tile could not be predicted."""

    tile: int
    problem: str
    where: str
    got: str
    fix: str

    @staticmethod
    def of(tile: int, error: CellwrightError) -> Failure:
        """From the error of a tile."""
        parts = (error.problem, error.where, error.got, error.remedy)
        return Failure(tile, *("" if part is None else str(part) for part in parts))


@dataclass(frozen=True)
class Ledger:
    """The tile files of a job below ``root/tiles``.

    tiles: the numbers of all tiles of the job. job: what identifies it; files of another job do not count.
    """

    root: Path
    tiles: Sequence[int]
    job: str

    def path(self, tile: int) -> Path:
        """The file of a tile."""
        return self.root / TILES / f"{tile:07d}.tile"

    def has(self, tile: int) -> bool:
        """Whether a tile has a file; its content is not looked at."""
        return self.path(tile).is_file()

    def left(self, among: Iterable[int] | None = None, *, verify: bool = True) -> list[int]:
        """The tiles that are not done. verify: damaged files, or those of another job, do not count and are removed."""
        missing = []
        for tile in self.tiles if among is None else among:
            if self.has(tile):
                if not verify:
                    continue
                try:
                    read_tile(self.path(tile), self.job)
                    continue
                except (FormatError, InputError):
                    self.path(tile).unlink(missing_ok=True)
            missing.append(tile)
        return missing

    def write(self, tile: int, record: TileRecord) -> None:
        """Store what a tile found; when this returns, it is on the disk."""
        write_tile(self.path(tile), record, self.job)
        self._failure_path(tile).unlink(missing_ok=True)

    def read(self, tile: int) -> TileRecord:
        """What a tile found. Raises `FormatError` if its file is damaged."""
        return read_tile(self.path(tile), self.job)

    def fail(self, failure: Failure) -> None:
        """Store why a tile failed; it is tried again when the job is run again."""
        content = {"schema_version": SCHEMA_VERSION, **vars(failure)}
        write_json(self._failure_path(failure.tile), content)

    def failures(self) -> list[Failure]:
        """Why tiles failed, in order; a damaged note says so."""
        found = []
        for tile in self.tiles:
            path = self._failure_path(tile)
            if path.is_file() and not self.has(tile):
                try:
                    content = dict(read_json(path))
                    parts = (str(content[name]) for name in ("problem", "where", "got", "fix"))
                    found.append(Failure(tile, *parts))
                except (CellwrightError, KeyError, TypeError, ValueError):
                    found.append(Failure(tile, "this tile failed, and the note of why is damaged", str(path), "", ""))
        return found

    def _failure_path(self, tile: int) -> Path:
        return self.root / TILES / f"{tile:07d}.failed.json"

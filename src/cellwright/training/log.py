"""`log.csv`: one row a step, with every loss by name; after a resume it reads as if nothing had happened."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TextIO

from cellwright.core.errors import FormatError
from cellwright.core.files import output_error, write_text

Row = dict[str, float | int | None]


class Mirror(Protocol):
    """Is told every value that the log is told."""

    def add(self, step: int, values: Row) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class StepLog:
    """Appends rows to a CSV file; the first column is ``step`` (optimiser steps done, 1-based).

    The row of the newest step stays open until the next one begins, so that the metrics of an evaluation after that
    step join it. Columns that appear later (metrics at the first evaluation) are added to the whole file. An absent
    value is an empty cell.
    """

    def __init__(self, path: Path, step: int, mirror: Mirror | None = None) -> None:
        """Go on with the log at ``path`` from ``step`` (0: begin anew): later rows and a torn last line are cut off.

        What is logged from now on also goes to ``mirror``, which is closed with the log.

        Raises `OutputError` where the file cannot be written and `FormatError` where it is not our log.
        """
        self.path, self._step, self._mirror = path, step, mirror
        kept = _read_rows(path, step) if step else []
        self._columns = list(dict.fromkeys(name for row in kept for name in row)) or ["step"]
        # The row of ``step`` itself may still get metrics: the run may have ended between step and evaluation.
        self._open_row: dict[str, str] | None = kept.pop() if kept and kept[-1]["step"] == str(step) else None
        write_text(path, self._as_csv(kept, header=True))
        self._file = self._reopen()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._file.close()
            if self._mirror is not None:
                self._mirror.close()

    def step(self, step: int, values: Row) -> None:
        """Begin the row of ``step``; the row before it is written."""
        self._write_open_row()
        self._open_row, self._step = {"step": str(step)}, step
        self.add(values)

    def add(self, values: Row) -> None:
        """Put more values into the open row."""
        assert self._open_row is not None, "no step has been logged yet"
        self._open_row |= {name: "" if value is None else str(value) for name, value in values.items()}
        if self._mirror is not None:
            self._mirror.add(self._step, values)

    def flush(self) -> None:
        """Write the open row, so that it survives whatever comes."""
        self._write_open_row()
        if self._mirror is not None:
            self._mirror.flush()

    def _write_open_row(self) -> None:
        if self._open_row is None:
            return
        row, self._open_row = self._open_row, None
        try:
            if new := [name for name in row if name not in self._columns]:
                self._file.close()
                with self.path.open(newline="") as file:
                    rows = list(csv.DictReader(file))
                self._columns += new
                write_text(self.path, self._as_csv(rows, header=True))
                self._file = self._reopen()
            self._file.write(self._as_csv([row], header=False))
            self._file.flush()
        except OSError as error:
            raise output_error(self.path, error) from error

    def _reopen(self) -> TextIO:
        try:
            return self.path.open("a", newline="", encoding="utf-8")
        except OSError as error:
            raise output_error(self.path, error) from error

    def _as_csv(self, rows: list[dict[str, str]], *, header: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def _read_rows(path: Path, step: int) -> list[dict[str, str]]:
    """The whole rows up to ``step``; none where there is no file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a kill in the middle of a write leaves a torn line
    rows = list(csv.DictReader(io.StringIO(whole)))
    if any(not row.get("step", "").isdigit() for row in rows):
        raise FormatError(
            "this is not a training log", where=path, remedy="move it away; the run then starts a new one"
        )
    return [row for row in rows if int(row["step"]) <= step]

"""What a training run reports: `log.csv`, TensorBoard, and progress on the terminal.

`Recorder` passes every step and evaluation on to a `StepLog` (a CSV file), an optional `TensorBoardLog` with the same
values, and a `Reporter`: a progress bar on a terminal, plain lines elsewhere, or JSON lines.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cellwright.core.errors import FormatError, RecipeError
from cellwright.core.events import emit, json_line
from cellwright.core.files import output_error, read_text, write_text
from cellwright.core.text import printable
from cellwright.training.environment import peak_memory_mb
from cellwright.training.pace import Pace
from cellwright.training.step import StepOutcome

Row = Mapping[str, float | int | None]
_N_RECENT = 20  # steps before a resume that tell how long the next ones take


class Recorder:
    """Records the steps and evaluations of a run in its log and shows them."""

    def __init__(
        self,
        log: StepLog,
        reporter: Reporter,
        total_steps: int,
        n_evaluations: Callable[[int], int],
        device: torch.device,
    ) -> None:
        """n_evaluations: how many evaluations take place after later steps than a given one."""
        self._log, self._reporter, self._total_steps, self._device = log, reporter, total_steps, device
        self._n_evaluations = n_evaluations
        evaluation_s = log.recent("evaluate_s", 1)
        self.pace = Pace(log.recent("step_s", _N_RECENT), evaluation_s[0] if evaluation_s else None)

    def step(self, outcome: StepOutcome, n_images: int, data_s: float, step_s: float) -> None:
        """Record one step on ``n_images`` images that took ``step_s`` seconds, of which loading took ``data_s``."""
        memory = peak_memory_mb(self._device)
        self._log.step(
            outcome.step,
            {
                "lr": outcome.lr,
                "loss": outcome.loss,
                **{
                    name if name.startswith("loss_") else f"loss_{name}": value
                    for name, value in outcome.losses.items()
                },
                "gradient_norm": outcome.gradient_norm,
                "step_s": round(step_s, 4),
                "data_s": round(data_s, 4),
                "samples_per_s": round(n_images / max(step_s, 1e-9), 3),
                "peak_memory_mb": None if memory is None else round(memory, 1),
            },
        )
        self.pace.after_step(step_s)
        left_s = self.pace.left_s(self._total_steps - outcome.step, self._n_evaluations(outcome.step - 1))
        self._reporter.step(
            StepReport(
                step=outcome.step,
                total_steps=self._total_steps,
                loss=outcome.loss,
                losses=outcome.losses,
                lr=outcome.lr,
                gradient_norm=outcome.gradient_norm,
                step_s=step_s,
                steps_per_s=1 / max(self.pace.step_s or 0.0, 1e-9),
                eta_s=left_s,
            )
        )

    def evaluation(self, step: int, metrics: Row, evaluate_s: float, shown: Mapping[str, float]) -> None:
        """Record an evaluation after ``step`` that took ``evaluate_s`` seconds; the terminal gets ``shown`` only."""
        self.pace.evaluation_s = evaluate_s
        self._log.add({"evaluate_s": round(evaluate_s, 3), **metrics})
        text = f"step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        self._reporter.note(text, "evaluation", {"step": step, "evaluate_s": round(evaluate_s, 3), "metrics": metrics})

    def flush(self) -> None:
        """Write everything recorded so far to disk."""
        self._log.flush()


class StepLog:
    """Appends rows to a CSV file; the first column is ``step`` (optimiser steps done, 1-based).

    The row of the latest step stays open until the next step, so that the metrics of an evaluation after that step are
    in the same row. Columns that appear later (metrics at the first evaluation) are added to the whole file. A missing
    value is an empty cell.
    """

    def __init__(self, path: Path, step: int, tensorboard: TensorBoardLog | None = None) -> None:
        """Continue the log at ``path`` after ``step`` (0: start a new log); removes later rows and an incomplete line.

        New values are also written to ``tensorboard``, which is closed together with the log.

        Raises `OutputError` if the file cannot be written and `FormatError` if it is not a training log.
        """
        self.path, self._step, self._tensorboard = path, step, tensorboard
        kept = _read_rows(path, step) if step else []
        self.n_lost = step - len(kept)
        self._columns = list(dict.fromkeys(name for row in kept for name in row)) or ["step"]
        # The row of ``step`` itself may still get metrics: the run may have ended between step and evaluation. It stays
        # in the file until then, as this call may be killed before its first step.
        is_open = bool(kept) and kept[-1]["step"] == str(step)
        self._open_row: dict[str, str] | None = dict(kept[-1]) if is_open else None
        self._on_disk: dict[str, str] | None = kept[-1] if is_open else None
        write_text(path, self._as_csv(kept, header=True))
        self._file = self._reopen()
        self._recent = {name: [row[name] for row in kept if row.get(name)][-_N_RECENT:] for name in self._columns}

    def recent(self, column: str, n: int) -> list[float]:
        """The last values of a column before this log was continued, up to ``n``, of at most 20."""
        values = self._recent.get(column, [])[-n:]
        with suppress(ValueError):
            return [float(value) for value in values]
        return []  # a damaged log

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._file.close()
            if self._tensorboard is not None:
                self._tensorboard.close()

    def step(self, step: int, values: Row) -> None:
        """Write the previous row and open the row of ``step``."""
        self._write_open_row()
        self._open_row, self._step = {"step": str(step)}, step
        self.add(values)

    def add(self, values: Row) -> None:
        """Add values to the open row."""
        assert self._open_row is not None, "no step has been logged yet"
        self._open_row |= {name: "" if value is None else str(value) for name, value in values.items()}
        if self._tensorboard is not None:
            self._tensorboard.add(self._step, values)

    def flush(self) -> None:
        """Write the open row, which stays open, and have everything on the disk."""
        row = self._open_row
        self._write_open_row()
        if row is not None:
            self._open_row, self._on_disk = dict(row), row
        if self._file.closed:  # it could not be written again, which was told
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise output_error(self.path, error) from error
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def _write_open_row(self) -> None:
        if self._open_row is None:
            return
        row, self._open_row = self._open_row, None
        on_disk, self._on_disk = self._on_disk, None
        if row == on_disk:
            return
        try:
            new = [name for name in row if name not in self._columns]
            if new or on_disk is not None:
                self._file.close()
                with self.path.open(newline="") as file:
                    rows = list(csv.DictReader(file))
                self._columns += new
                if on_disk is not None:  # the row has metrics now, and replaces the one in the file
                    write_text(self.path, self._as_csv([*rows[:-1], row], header=True))
                    self._file = self._reopen()
                    return
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
    """The complete rows up to ``step``, one per step; none if there is no file."""
    if not path.exists():
        return []
    text = read_text(path)
    complete = text[: text.rfind("\n") + 1]  # a process killed while writing leaves an incomplete line
    rows: dict[int, dict[str, str]] = {}
    try:
        for row in csv.DictReader(io.StringIO(complete), strict=True):
            if None in row or None in row.values():
                raise ValueError(f"row {row.get('step')!r} has another number of columns")
            rows[int(row["step"])] = row
        if list(rows) != sorted(rows):
            raise ValueError("the steps are not in order")
    except (csv.Error, KeyError, ValueError) as error:
        remedy = "move the file away; the run then starts a new log"
        raise FormatError("not a training log", where=path, got=str(error), remedy=remedy) from error
    return [row for number, row in rows.items() if number <= step]


def check_tensorboard() -> None:
    """Raise `RecipeError` if TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard.writer  # noqa: F401 - only tests whether it can be imported
    except ImportError as error:
        raise RecipeError(
            "TensorBoard is not installed",
            where="train.tensorboard",
            got=str(error),
            remedy="pip install 'cellwright[tensorboard]', or set train.tensorboard to false",
        ) from error


class TensorBoardLog:
    """Writes event files to ``folder``; hides what an interrupted run has written there after ``step``.

    Raises `RecipeError` if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        check_tensorboard()
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, step: int, values: Row) -> None:
        """Write one scalar per value that is not None."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write buffered events to disk."""
        self._writer.flush()

    def close(self) -> None:
        """Write buffered events to disk and close the file."""
        self._writer.close()


@dataclass(frozen=True)
class StepReport:
    """One optimiser step as a `Reporter` shows it.

    Attributes:
        step: number of steps done.
        total_steps: number of steps of the whole run.
        loss: sum of all losses.
        losses: each loss by name.
        lr: learning rate of this step.
        gradient_norm: norm before clipping.
        step_s: duration of this step, seconds.
        steps_per_s: smoothed over the last steps.
        eta_s: seconds to the end at that speed, with the evaluations that are left.
    """

    step: int
    total_steps: int
    loss: float
    losses: dict[str, float]
    lr: float
    gradient_norm: float
    step_s: float
    steps_per_s: float
    eta_s: float

    def line(self) -> str:
        """``"step 120/2000  loss 1.2345  lr 0.01  3.20 it/s  ETA 0:09:47"``."""
        return (
            f"step {self.step}/{self.total_steps}  loss {self.loss:.4f}  lr {self.lr:.3g}  "
            f"{self.steps_per_s:.2f} it/s  ETA {_clock(self.eta_s)}"
        )


class Reporter(Protocol):
    """Shows steps and notes. Used as a context manager around the whole run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def step(self, report: StepReport) -> None:
        """Show a step."""
        ...

    def note(self, text: str, event: str = "note", fields: Mapping[str, object] | None = None) -> None:
        """Show another event, such as an evaluation or a resume; ``fields`` are its values."""
        ...


class SilentReporter:
    """Shows nothing; steps are logged at DEBUG, everything else at INFO."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def step(self, report: StepReport) -> None:
        """Log the step."""
        emit("step", report.line(), asdict(report), level=logging.DEBUG)

    def note(self, text: str, event: str = "note", fields: Mapping[str, object] | None = None) -> None:
        """Log ``text``."""
        emit(event, text, fields)


class LineReporter:
    """Plain lines for files and pipes: the first step, the last, and one step every ``every_s`` seconds."""

    def __init__(self, stream: TextIO, *, every_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._shown_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def step(self, report: StepReport) -> None:
        """Show the step if ``every_s`` seconds have passed since the last one shown."""
        now = self._clock()
        due = self._shown_at is None or now - self._shown_at >= self._every_s
        if due or report.step == report.total_steps:
            self._shown_at = now
            self._write(self._format(report))

    def note(self, text: str, event: str = "note", fields: Mapping[str, object] | None = None) -> None:
        """Show ``text``."""
        self._write(text)

    def _format(self, report: StepReport) -> str:
        return report.line()

    def _write(self, line: str) -> None:
        self._stream.write(printable(line) + "\n")
        self._stream.flush()


class JsonReporter(LineReporter):
    """JSON lines (see `json_line`): steps at most once per second, and all other events."""

    def __init__(self, stream: TextIO, *, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, every_s=every_s, clock=clock)

    def note(self, text: str, event: str = "note", fields: Mapping[str, object] | None = None) -> None:
        """Write the event."""
        self._write(json_line("info", event, {"text": text, **(fields or {})}))

    def _format(self, report: StepReport) -> str:
        progress = {"done": report.step, "total": report.total_steps}
        return json_line("info", "step", {"text": report.line(), "progress": progress, **asdict(report)})


class BarReporter:
    """A progress bar on a terminal; notes are printed above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}", markup=False),
            console=console,
            refresh_per_second=4,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, report: StepReport) -> None:
        """Update the bar."""
        if self._task is None:
            self._task = self._progress.add_task("", total=report.total_steps, line="")
        self._progress.update(self._task, completed=report.step, line=report.line())

    def note(self, text: str, event: str = "note", fields: Mapping[str, object] | None = None) -> None:
        """Print ``text`` above the bar."""
        self._progress.console.print(printable(text), markup=False, highlight=False)


def choose_reporter(stream: TextIO, *, log_format: Literal["text", "json"] = "text", quiet: bool = False) -> Reporter:
    """Nothing if quiet; else JSON lines if requested, a progress bar on a terminal, and plain lines elsewhere."""
    if quiet:
        return SilentReporter()
    if log_format == "json":
        return JsonReporter(stream)
    console = Console(file=stream)
    return BarReporter(console) if console.is_terminal else LineReporter(stream)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"

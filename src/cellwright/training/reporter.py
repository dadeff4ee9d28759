"""What a running training shows: a live line on a terminal, plain lines now and then elsewhere, or JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


@dataclass(frozen=True)
class StepReport:
    """One optimiser step, as it is shown.

    Attributes:
        step: steps done. total_steps: of the whole run.
        loss: sum of all losses. losses: by name.
        lr: learning rate of this step. gradient_norm: before clipping.
        step_s: seconds this step took. steps_per_s: smoothed over the last steps.
        eta_s: seconds to the end at that speed, evaluations not counted.
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
        """``"step 120/2000  loss 1.2345  lr 0.01  3.2 it/s  ETA 0:09:47"``."""
        return (
            f"step {self.step}/{self.total_steps}  loss {self.loss:.4f}  lr {self.lr:.3g}  "
            f"{self.steps_per_s:.2f} it/s  ETA {_clock(self.eta_s)}"
        )


class Reporter(Protocol):
    """Shows steps and notes; entered before the first and left after the last."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def step(self, report: StepReport) -> None:
        """A step is done."""
        ...

    def note(self, text: str) -> None:
        """Something else happened: an evaluation, a checkpoint, a resume."""
        ...


class LineReporter:
    """Plain lines for files and pipes: the first step, the last, and one whenever ``every_s`` seconds have passed."""

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
        """Show the step if one is due."""
        now = self._clock()
        due = self._shown_at is None or now - self._shown_at >= self._every_s
        if due or report.step == report.total_steps:
            self._shown_at = now
            self._write(self._format(report))

    def note(self, text: str) -> None:
        """Show ``text``."""
        self._write(text)

    def _format(self, report: StepReport) -> str:
        return report.line()

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class JsonReporter(LineReporter):
    """One JSON object a line: ``{"event": "step", ...}`` at most once a second, ``{"event": "note", "text": ...}``."""

    def __init__(self, stream: TextIO, *, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, every_s=every_s, clock=clock)

    def note(self, text: str) -> None:
        """Write ``text`` as an event."""
        self._write(json.dumps({"event": "note", "text": text}))

    def _format(self, report: StepReport) -> str:
        return json.dumps({"event": "step", **asdict(report)})


class SilentReporter:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def step(self, report: StepReport) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class BarReporter:
    """A live progress line on a terminal; notes scroll above it."""

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
        """Move the line on."""
        if self._task is None:
            self._task = self._progress.add_task("", total=report.total_steps, line="")
        self._progress.update(self._task, completed=report.step, line=report.line())

    def note(self, text: str) -> None:
        """Print ``text`` above the line."""
        self._progress.console.print(text, markup=False, highlight=False)


class Pace:
    """Steps a second, smoothed: each step moves the mean by a tenth, the first sets it."""

    def __init__(self) -> None:
        self._mean_s: float | None = None

    def after(self, step_s: float) -> float:
        """Steps a second after one more step of ``step_s`` seconds."""
        self._mean_s = step_s if self._mean_s is None else 0.9 * self._mean_s + 0.1 * step_s
        return 1 / max(self._mean_s, 1e-9)


def choose_reporter(stream: TextIO, *, log_format: Literal["text", "json"] = "text", quiet: bool = False) -> Reporter:
    """JSON lines if asked for; nothing if quiet; a live line on a terminal; else plain lines."""
    if log_format == "json":
        return JsonReporter(stream)
    if quiet:
        return SilentReporter()
    console = Console(file=stream)
    return BarReporter(console) if console.is_terminal else LineReporter(stream)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"

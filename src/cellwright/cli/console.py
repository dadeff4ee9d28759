"""What the terminal shows: progress, tables, notes and errors. None of it is written to files.

With ``--log-format json``, every line is an event as strict JSON (`cellwright.core.events.json_line`), errors included,
on standard output; standard error stays empty. As text, results go to standard output, and everything else to standard
error.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal, TypeVar

from cyclopts import Group, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cellwright.cli.arguments import as_typed, option_names
from cellwright.core.events import LOGGER, event_of, json_line
from cellwright.core.progress import Description
from cellwright.core.text import printable

T = TypeVar("T")
COMMON = Group("Common options", sort_key=100)
LINES_S, EVENTS_S = 10.0, 1.0  # seconds between two lines, or two JSON events, about the progress


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Options that every verb takes."""

    quiet: Annotated[bool, Parameter(group=COMMON)] = False
    """Print results and errors only."""
    log_format: Annotated[Literal["text", "json"], Parameter(group=COMMON)] = "text"
    """json prints one JSON object per line instead of text and progress bars."""
    dry_run: Annotated[bool, Parameter(group=COMMON)] = False
    """Check the request, print what would be written, and stop."""

    def screen(self, plan: object = None) -> Show:
        """The `Show` that these options request; it shows parameters of ``plan`` as command-line options."""
        return Show(self.quiet, self.log_format, option_names(plan))


PLAIN = Common()


class Show:
    """Prints for one command: a `cellwright.core.progress.ProgressReporter`.

    Progress bars need a terminal; without one, long work prints a line every ten seconds.
    """

    def __init__(
        self,
        quiet: bool = False,
        log_format: Literal["text", "json"] = "text",
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.quiet: bool = quiet
        self.log_format: Literal["text", "json"] = log_format
        self.json = log_format == "json"
        self.options = dict(options or {})
        self.out = Console(highlight=False, soft_wrap=True)
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line about the work in progress (standard error, unless --quiet)."""
        if self.quiet:
            return
        text = as_typed(text, self.options)
        if self.json:
            level = "warning" if text.startswith("warning: ") else "info"
            print_event(level, "note", {"text": text.removeprefix("warning: ")})
        else:
            self.err.print(printable(text), markup=False)

    def problem(self, text: str) -> None:
        """Print what is wrong with some of the inputs (standard error, with --quiet too)."""
        text = as_typed(text, self.options)
        if self.json:
            print_event("error", "failures", {"text": text})
        else:
            self.err.print(printable(text), markup=False)

    def result(self, text: str, values: Mapping[str, object] | None = None) -> None:
        """Print a result (standard output); ``values`` appear in the JSON line only."""
        if self.json:
            print_event("info", "result", {"text": text, **(values or {})})
        else:
            self.out.print(printable(text), markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table (standard output); numbers are right-aligned."""
        rows = [[as_typed(v, self.options) if isinstance(v, str) else v for v in row] for row in rows]
        if self.json:
            values = [dict(zip(columns, row, strict=True)) for row in rows]
            print_event("info", "table", {"text": title, "rows": values})
            return
        table = Table(title=Text(printable(title)) if title else None, title_justify="left")
        for k, name in enumerate(columns):
            numeric = all(isinstance(row[k], int | float) for row in rows)
            # A column without a heading holds the names of the rows.
            heading, side = Text(printable(name)), "right" if numeric else "left"
            table.add_column(heading, justify=side, overflow="fold", no_wrap=not name)
        for row in rows:
            table.add_row(*[Text(_cell(value)) for value in row])
        self.out.print(table)

    def track(self, items: Iterable[T], description: Description, total: int | None = None) -> Iterable[T]:
        """`Track` for this terminal: a progress bar, or a line or event every few seconds, or nothing."""
        if self.quiet:
            return items
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        if self.json:
            return self._events(items, description, total)
        return self._bar(items, description, total) if self.err.is_terminal else self._lines(items, description, total)

    def _bar(self, items: Iterable[T], description: Description, total: int | None) -> Iterator[T]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=self.err, transient=True) as progress:
            task = progress.add_task(_text(description), total=total)
            for item in items:
                yield item
                progress.update(task, advance=1, description=_text(description))

    def _lines(self, items: Iterable[T], description: Description, total: int | None) -> Iterator[T]:
        start = time.monotonic()
        for done, item in _at_intervals(items, LINES_S):
            if done is None:
                yield item
            else:
                left = _time_left(start, done, total)
                of = "" if total is None else f"/{total}"
                self.err.print(f"{_text(description)}: {done}{of}{f', {left} left' if left else ''}", markup=False)

    def _events(self, items: Iterable[T], description: Description, total: int | None) -> Iterator[T]:
        for done, item in _at_intervals(items, EVENTS_S):
            if done is None:
                yield item
            else:
                fields = {"text": _text(description), "progress": {"done": done, "total": total}}
                print_event("info", "progress", fields)


def _text(description: Description) -> str:
    return description if isinstance(description, str) else description()


def _time_left(start: float, done: int, total: int | None) -> str:
    """About how long the rest takes, such as "3 min"; empty if it is not known, or nothing is left."""
    if total is None or done >= total:
        return ""
    seconds = (time.monotonic() - start) / done * (total - done)
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {seconds:.0f} s"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "undefined" if math.isnan(value) else f"{value:.4g}"
    return printable(str(value))


def _at_intervals(items: Iterable[T], every_s: float) -> Iterator[tuple[int | None, T]]:
    """Each item with None, and after it, once ``every_s`` have passed, again with the number of items done.

    If anything was reported in this way, so is the end.
    """
    last, done, reported = time.monotonic(), 0, 0
    item = None
    for done, item in enumerate(items, 1):
        yield None, item
        if time.monotonic() - last >= every_s:
            last, reported = time.monotonic(), done
            yield done, item
    if 0 < reported < done:
        yield done, item  # type: ignore[misc] - there was an item


def print_event(level: str, event: str, fields: Mapping[str, object]) -> None:
    """Print a JSON line to standard output."""
    print(json_line(level, event, fields), file=sys.stdout, flush=True)


class _Printer(logging.Handler):
    """Prints what the library logs: warnings; as JSON also images that are done and other events.

    options: what one types for each parameter that a message names.
    """

    def __init__(self, options: Mapping[str, str], *, quiet: bool, as_json: bool) -> None:
        super().__init__(logging.ERROR if quiet else logging.INFO if as_json else logging.WARNING)
        self._options, self._as_json = options, as_json

    def emit(self, record: logging.LogRecord) -> None:
        text = as_typed(record.getMessage(), self._options)
        event, fields = event_of(record, text)
        if self._as_json:
            fields = {
                k: as_typed(value, self._options) if isinstance(value, str) else value for k, value in fields.items()
            }
            print_event(record.levelname.lower(), event, fields)
        elif event != "failure":  # these are printed in groups, at the end
            print(f"warning: {printable(text)}", file=sys.stderr)


@contextmanager
def printed_log(options: Mapping[str, str], *, quiet: bool, as_json: bool) -> Iterator[None]:
    """Print what the library logs while the block runs."""
    printer, level = _Printer(options, quiet=quiet, as_json=as_json), LOGGER.level
    LOGGER.addHandler(printer)
    LOGGER.setLevel(min(printer.level, LOGGER.getEffectiveLevel()))
    try:
        yield
    finally:
        LOGGER.removeHandler(printer)
        LOGGER.setLevel(level)

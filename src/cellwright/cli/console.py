"""What the terminal shows: progress, tables, notes and errors. Nothing of it goes into files."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, TypeVar

from cyclopts import Group, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cellwright.cli.arguments import as_typed, option_names

T = TypeVar("T")
COMMON = Group("Common options", sort_key=100)


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
        """The `Show` that these options ask for; it shows parameters of ``plan`` as command-line options."""
        return Show(self.quiet, self.log_format, option_names(plan))


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
        text = as_typed(text, self.options)
        if self.json:
            self._json("note", {"text": text})
        elif not self.quiet:
            self.err.print(text, markup=False)

    def result(self, text: str, values: Mapping[str, object] | None = None) -> None:
        """Print a result (standard output); ``values`` appear in the JSON line only."""
        if self.json:
            self._json("result", {"text": text, **(values or {})})
        else:
            self.out.print(text, markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table (standard output); numbers are right-aligned."""
        rows = [list(row) for row in rows]
        if self.json:
            self._json("table", {"title": title, "rows": [dict(zip(columns, row, strict=True)) for row in rows]})
            return
        table = Table(title=Text(title) if title else None, title_justify="left")
        for k, name in enumerate(columns):
            numeric = all(isinstance(row[k], int | float) for row in rows)
            # A column without a heading holds the names of the rows.
            table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=not name)
        for row in rows:
            table.add_row(*[Text(f"{v:.4g}" if isinstance(v, float) else str(v)) for v in row])
        self.out.print(table)

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
        """`Track` for this terminal: a progress bar, a line every ten seconds, or nothing."""
        if self.quiet or self.json:
            return items
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        return self._bar(items, description, total) if self.err.is_terminal else self._lines(items, description, total)

    def _bar(self, items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=self.err, transient=True) as progress:
            yield from progress.track(items, total=total, description=description)

    def _lines(self, items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
        last = time.monotonic()
        for k, item in enumerate(items):
            yield item
            if time.monotonic() - last > 10:
                last = time.monotonic()
                self.err.print(f"{description}: {k + 1}{f'/{total}' if total is not None else ''}", markup=False)

    def _json(self, event: str, values: Mapping[str, object]) -> None:
        print(json.dumps({"event": event, **values}, default=str), file=sys.stdout, flush=True)

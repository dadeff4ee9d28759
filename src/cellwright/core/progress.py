"""Progress reporting: the interface through which long-running functions report to a terminal or a log.

Two protocols, so that the library depends on no progress-bar package. A function that only loops takes a ``track``
function, used like ``tqdm`` or ``rich.progress.track``::

    for image in track(images, "reading images"):
        ...

A whole job takes a `ProgressReporter`, which also prints notes. The command line passes one that draws progress bars
with rich; the default, `SILENT`, shows nothing and logs the notes (see `cellwright.core.events`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol, TypeVar

from cellwright.core.events import emit

T = TypeVar("T")
Description = str | Callable[[], str]
"""What is shown beside the progress; a function is called whenever it is shown."""


class Track(Protocol):
    """Yields ``items`` unchanged and shows the progress under ``description``; ``total`` if they have no length."""

    def __call__(self, items: Iterable[T], description: Description, total: int | None = None) -> Iterable[T]: ...


class ProgressReporter(Protocol):
    """Reports the notes and the progress of one job."""

    @property
    def quiet(self) -> bool:
        """Whether only results and errors are shown."""
        ...

    @property
    def log_format(self) -> Literal["text", "json"]:
        """The format of the lines that a training run prints."""
        ...

    def note(self, text: str) -> None:
        """Report one line of information, such as an assumption; one that starts with "warning: " is a warning."""
        ...

    def track(self, items: Iterable[T], description: Description, total: int | None = None) -> Iterable[T]:
        """Iterate with progress, as `Track` describes."""
        ...


def no_progress(items: Iterable[T], description: Description, total: int | None = None) -> Iterable[T]:
    """A `Track` that shows nothing."""
    return items


class _Silent:
    """A `ProgressReporter` that shows nothing; notes are logged."""

    quiet = True
    log_format: Literal["text", "json"] = "text"

    def note(self, text: str) -> None:
        emit("note", text)

    def track(self, items: Iterable[T], description: Description, total: int | None = None) -> Iterable[T]:
        return items


SILENT = _Silent()

"""Progress without a dependency: long work tells a `Screen` that the front door hands in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Passes ``items`` through and shows how far it is; ``total`` where ``items`` has no length."""

    def __call__(self, items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]: ...


class Screen(Protocol):
    """What a job may show: notes, progress, and (for training) how its own lines should look."""

    @property
    def quiet(self) -> bool: ...

    @property
    def log_format(self) -> Literal["text", "json"]: ...

    def note(self, text: str) -> None:
        """A line about what is going on."""
        ...

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
        """As `Track`."""
        ...


def no_progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """The `Track` that shows nothing."""
    return items


class Silent:
    """The `Screen` that shows nothing."""

    quiet = True
    log_format: Literal["text", "json"] = "text"

    def note(self, text: str) -> None:
        """Nothing."""

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
        """The items."""
        return items


SILENT = Silent()

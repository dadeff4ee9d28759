"""Progress without a dependency: long work wraps its loop in a ``track`` that the front door hands in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Passes ``items`` through and shows how far it is; ``total`` where ``items`` has no length."""

    def __call__(self, items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]: ...


def no_progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """The `Track` that shows nothing."""
    return items

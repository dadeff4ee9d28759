"""The decorator of the public types."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T", bound=type)


def public(kind: T) -> T:
    """Class decorator for the types that ``cellwright`` exports: tracebacks, reprs and help show ``cellwright.Name``.

    Place it above ``@dataclass``. The class must be listed in ``cellwright.__all__``, because pickle looks it up there.
    """
    kind.__module__ = "cellwright"
    return kind

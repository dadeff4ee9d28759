"""The mark of a public type."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T", bound=type)


def public(kind: T) -> T:
    """Class decorator for types exported by ``cellwright``: tracebacks, reprs and help show ``cellwright.Name``.

    Put it above ``@dataclass``. The class must be in ``cellwright.__all__``, since pickle finds it there.
    """
    kind.__module__ = "cellwright"
    return kind

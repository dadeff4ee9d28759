"""How a reader's classes get their names and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cellwright.core.errors import UsageError, did_you_mean
from cellwright.data.formats.contract import ReadOptions

DEFAULT_CLASS = "cell"


def unnamed_classes(defaults: Sequence[str], options: ReadOptions, where: Path) -> tuple[str, ...]:
    """Names for a format that numbers its classes: those of ``options``, else ``defaults``.

    `UsageError` where fewer names are given than the files hold classes.
    """
    names = tuple(defaults) if options.class_names is None else options.class_names
    if len(names) < len(defaults):
        raise UsageError(
            "too few class names",
            where=where,
            got=f"{len(names)} names: {', '.join(names)}",
            expected=f"{len(defaults)}, for {', '.join(defaults)}",
            remedy="give --classes one name for each class, in this order",
        )
    return names


def named_classes(found: Sequence[str], options: ReadOptions, where: Path) -> tuple[str, ...]:
    """Names for a format whose files name the classes: ``found`` (or the default where there is none), or those of
    ``options``, which are then the only ones kept. `UsageError` for a name that no object has."""
    if options.class_names is None:
        return tuple(found) or (DEFAULT_CLASS,)
    for name in options.class_names:
        if found and name not in found:
            raise UsageError("no object has this class", where=where, got=repr(name), remedy=did_you_mean(name, found))
    return options.class_names

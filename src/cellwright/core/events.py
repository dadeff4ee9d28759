"""What a job reports besides its files: records of Python's `logging`, and the same as strict JSON lines.

Everything is logged under the logger ``cellwright``: notes and progress at INFO, warnings and images that failed at
WARNING, single training steps at DEBUG. Nothing is shown unless a program configures logging; the command line prints
the records itself. The attributes ``event`` and ``fields`` of a record hold what its text says, as values.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("cellwright")
_WARNING = "warning: "


def emit(event: str, text: str, fields: Mapping[str, object] | None = None, *, level: int | None = None) -> None:
    """Log ``text`` and its ``fields``. level: by default INFO, or WARNING for a text that starts with "warning: "."""
    if level is None:
        level = logging.WARNING if text.startswith(_WARNING) else logging.INFO
    LOGGER.log(level, "%s", text.removeprefix(_WARNING), extra={"event": event, "fields": dict(fields or {})})


def json_line(level: str, event: str, fields: Mapping[str, object], *, time: float | None = None) -> str:
    """One event as a line of strict JSON: time (ISO 8601, UTC), level, event, then the fields.

    What JSON lacks is replaced: numbers that are not finite become null, and other types their text. time: seconds
    since 1970, by default now.

    >>> json_line("info", "image", {"image": "a", "objects": 3, "score": float("nan")}, time=0)
    '{"time": "1970-01-01T00:00:00.000Z", "level": "info", "event": "image", "image": "a", "objects": 3, "score": null}'
    """
    when = datetime.now(UTC) if time is None else datetime.fromtimestamp(time, UTC)
    stamp = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": stamp, "level": level, "event": event, **plain(dict(fields))}, allow_nan=False)


def event_of(record: logging.LogRecord, text: str | None = None) -> tuple[str, dict[str, object]]:
    """The event and the fields of a record, ``text`` in place of its own text."""
    own = record.getMessage() if text is None else text
    return getattr(record, "event", "note"), {"text": own, **getattr(record, "fields", {})}


def plain(value: object) -> Any:
    """``value`` as strict JSON has it: numbers that are not finite become None, and other types their text.

    >>> plain({"a": (1, float("inf")), 2: None})
    {'a': [1, None], '2': None}
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(content) for key, content in value.items()}
    if hasattr(value, "tolist"):  # a NumPy number or array
        return plain(value.tolist())  # type: ignore[attr-defined]
    if isinstance(value, Iterable):
        return [plain(content) for content in value]
    return str(value)

"""Counts what was tried and how many held, for `benchmarks/reliability.py`, which prints the table of the docs."""

from __future__ import annotations

import json
import os
from pathlib import Path

VARIABLE = "CELLWRIGHT_RELIABILITY"  # a file to which counts are appended; unset: they are not kept


def record(what: str, tried: int, held: int) -> None:
    """Add to the row ``what`` of the table."""
    if VARIABLE in os.environ:
        with Path(os.environ[VARIABLE]).open("a") as file:
            print(json.dumps({"what": what, "tried": tried, "held": held}), file=file)

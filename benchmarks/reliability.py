"""How many faults of tests/reliability do no harm: killed commands, full disks, power cuts, damaged files.

    python benchmarks/reliability.py [--slow] [--only kills,damage]

Runs the tests and prints the table of docs/reliability.md. With ``--slow``, commands are killed at every file operation
and at random times, and each kind of file is damaged 10,000 times; this takes hours. The exit code is 1 if a trial
failed; what failed is in the output of the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]


def read_counts(path: Path) -> dict[str, tuple[int, int]]:
    """How many were tried, and how many held, by what was tried."""
    tried, held = Counter[str](), Counter[str]()
    for line in path.read_text().splitlines():
        row = json.loads(line)
        tried[row["what"]] += row["tried"]
        held[row["what"]] += row["held"]
    return {what: (tried[what], held[what]) for what in tried}


def as_table(counts: dict[str, tuple[int, int]]) -> str:
    """The table in Markdown."""
    rows = [f"| {what} | {tried:,} | {held:,} |" for what, (tried, held) in counts.items()]
    return "\n".join(["| what was tried | trials | held |", "|---|---|---|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", action="store_true", help="the long runs too")
    parser.add_argument("--only", help="some of kills, full_disk, power_cut, foreign_files, damage")
    arguments = parser.parse_args()
    folder = ROOT / "tests" / "reliability"
    names = arguments.only.split(",") if arguments.only else []
    chosen = [str(folder / f"test_{name}.py") for name in names] or [str(folder)]
    with tempfile.TemporaryDirectory() as temporary:
        counts = Path(temporary) / "counts"
        counts.touch()
        environment = os.environ | {"CELLWRIGHT_RELIABILITY": str(counts), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", *([] if arguments.slow else ["-m", "not slow"]), *chosen]
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        print(as_table(read_counts(counts)))
    sys.exit(code)


if __name__ == "__main__":
    main()

"""Every command that writes, small enough to be run hundreds of times, and what it leaves."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from warm_process import End, Warm, output_of

# Files that contain times and the environment; all others must be the same to the last byte.
DIFFERS = ("environment.json", "curves/iteration_time.png", "curves/memory.png", "log.csv")
TIMES = ("_s", "samples_per_s", "memory_mb")  # endings of columns of log.csv
# What stays in .cellwright/: the claim, the records of a predicted image, the lock of a process that was killed.
STAYS = {"claim.json", "progress", "lock"}
KILLED = 9  # the exit code of `killed.die_at`


@dataclass(frozen=True)
class Command:
    """What is typed; words in capitals stand for folders and files of the workshop.

    has: folders before, by name, and the folder of the workshop that each is a copy of. out: the output folder.
    """

    words: tuple[str, ...]
    has: dict[str, str] = field(default_factory=dict)
    out: str = "out"


_TRAIN = ("train", "TINY.yaml", "--data", "DATA", "--device", "cpu", "--out", "out")
_EVALUATE = ("--data", "DATA", "--metrics", "pq", "--pictures", "1", "--out", "out")
_PREDICT = ("predict", "DATA", "--model", "classical", "--save", "masks", "--out", "out")
_TILES = (
    "predict",
    "FIELD.tif",
    "--model",
    "RUN",
    "--device",
    "cpu",
    "--tile",
    "128",
    "--labels",
    "tiff",
    "--out",
    "out",
)
_EXPORT = ("export", "PRED", "--to", "geojson", "--out", "out")
COMMANDS = {
    "predict": Command(_PREDICT),
    "predict tiles": Command(_TILES),
    "fuse": Command(("fuse", "PRED", "PRED2", "--save", "masks", "--out", "out")),
    "train": Command(_TRAIN),
    "evaluate": Command(("evaluate", "PRED", *_EVALUATE)),
    "evaluate two": Command(("evaluate", "PRED", "PRED2", *_EVALUATE)),
    "export": Command(_EXPORT),
    "export a file": Command(("export", "PRED", "--to", "coco_results", "--out", "out/answer.zip")),
    "tune": Command(("tune", "RUN", "--data", "DATA", "--device", "cpu", "--out", "out")),
    "convert": Command(("data", "convert", "SOURCE", "--copy-images", "--out", "out")),
    "merge": Command(("data", "merge", "DATA", "--out", "out")),
    "split": Command(("data", "split", "out", "--val", ".34"), {"out": "copies"}),
    "check": Command(("data", "check", "DATA", "--out", "out/check.csv")),
    "measure": Command(("measure", "PRED", "--out", "out/table.csv")),
    "model export": Command(("model", "export", "RUN", "--to", "half", "--out", "out")),
    "model import": Command(("model", "import", "WEIGHTS.pkl", "--recipe", "IMPORT.yaml", "--out", "out")),
    "demo": Command(("demo", "--out", "out")),
}
# The same, with the result of another request in its place.
OVERWRITE = {
    "predict": Command((*_PREDICT, "--overwrite"), {"out": "pred2"}),
    "predict tiles": Command((*_TILES, "--overwrite"), {"out": "pred2"}),
    "train": Command((*_TRAIN, "--overwrite"), {"out": "run"}),
    "evaluate": Command(("evaluate", "PRED", *_EVALUATE, "--overwrite"), {"out": "evaluated"}),
    "export": Command((*_EXPORT, "--overwrite"), {"out": "exported"}),
}


def trials_of(command: Command, warm: Warm, workshop: Path, folder: Path) -> Trials:
    """Skips the test if the workshop lacks an input."""
    if "WEIGHTS.pkl" in command.words and not (workshop / "weights.pkl").exists():
        pytest.skip("no weights to import: set CELLWRIGHT_DATA to the folder that holds fixtures/")
    return Trials(warm, workshop, folder, command)


class Trials:
    """Runs one command again and again in ``folder / "work"``, which is made anew by `begin`."""

    def __init__(self, warm: Warm, workshop: Path, folder: Path, command: Command) -> None:
        self.warm, self.workshop, self.command = warm, workshop, command
        self.folder, self.out = folder / "work", folder / "work" / command.out
        self._child = folder.with_name(f"{folder.name} child")  # what it prints
        self.words = [self._place(word) for word in (*command.words, "--quiet")]

    def _place(self, word: str) -> str:
        return str(self.workshop / word.lower()) if word.partition(".")[0].isupper() else word

    def begin(self) -> None:
        """The folder as it was."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name, source in self.command.has.items():
            shutil.copytree(self.workshop / source, self.folder / name)

    def run(self, *, at: int | None = None, after_s: float | None = None) -> tuple[list[int], End]:
        """Run the command; see `command_trials.run_command`."""
        arguments = {"words": self.words, "place": str(self.folder), "at": at, "after_s": after_s}
        return self.warm.call("command_trials:run_command", self._child, memory=None, seconds=120, **arguments)

    def counted(self) -> tuple[int, dict[str, bytes]]:
        """How many file operations an uninterrupted command has, and what it makes."""
        self.begin()
        (n,), end = self.run(at=0)
        return n, self._finished(end)

    def finish(self) -> dict[str, bytes]:
        """Run the command, which must succeed and leave nothing else; returns `contents`."""
        _, end = self.run()
        return self._finished(end)

    def _finished(self, end: End) -> dict[str, bytes]:
        if end.status != 0:
            raise AssertionError(f"exit code {end.status}: {self.printed}")
        if left := self.leftovers():
            raise AssertionError(f"left over: {', '.join(left)}")
        return self.contents()

    def expected(self) -> dict[str, bytes]:
        """What an uninterrupted command makes."""
        self.begin()
        return self.finish()

    @property
    def printed(self) -> str:
        """What the last run printed."""
        return output_of(self._child)

    def contents(self) -> dict[str, bytes]:
        """All files of the user and of the result, without times."""
        files = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        wanted = {name: path for name, path in files.items() if ".cellwright/" not in name}
        made = {name: path.read_bytes() for name, path in wanted.items() if not name.endswith(DIFFERS)}
        for name in wanted.keys() & {"out/log.csv"}:
            rows = csv.DictReader(io.StringIO(wanted[name].read_text()))
            made[name] = repr([{key: row[key] for key in row if not key.endswith(TIMES)} for row in rows]).encode()
        return made

    def leftovers(self) -> list[str]:
        """Temporary files, and what should not stay in ``.cellwright``."""
        names = {path.name for path in self.folder.rglob("*") if "partial" in path.name}
        return sorted(names | {path.name for path in self.folder.glob("**/.cellwright/*")} - STAYS)

    def states(self) -> set[str]:
        """The states of all claims: "writing"; "swapping" while a new result is moved in; "complete"."""
        claims = [*self.folder.glob("**/.cellwright/claim.json")]
        return {json.loads(claim.read_text())["state"] for claim in claims}

    def put_foreign_file(self) -> dict[str, bytes]:
        """Write a file of the user into the folder if it is claimed; returns it as `contents` does."""
        if not (self.out / ".cellwright" / "claim.json").exists():
            return {}
        (self.out / "raw").mkdir(exist_ok=True)
        (self.out / "raw" / "slide.tif").write_bytes(b"only copy")
        return {f"{self.command.out}/raw/slide.tif": b"only copy"}


def differences(made: dict[str, bytes], expected: dict[str, bytes]) -> str:
    """The names of files that differ, are missing or are too many; empty if there are none."""
    return ", ".join(sorted(name for name in made.keys() | expected.keys() if made.get(name) != expected.get(name)))


def chosen(n: int, n_points: int | None) -> list[int]:
    """Numbers from 1 to ``n``: all of them, or evenly chosen ones."""
    n_points = n if n_points is None else min(n_points, n)
    return sorted({1 + k * n // n_points for k in range(n_points)})


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0

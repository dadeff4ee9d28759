"""Commands killed at every kind of file operation: the same command goes on, and ends in the same bytes."""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from record import record
from warm_process import End, Warm, output_of

N_POINTS = 20
# Files that contain times and the environment; all others must be the same to the last byte.
DIFFERS = ("environment.json", "curves/iteration_time.png", "curves/memory.png", "log.csv")
TIMES = ("_s", "_s_per_step", "images_per_s", "memory_mb")  # endings of columns of log.csv


@dataclass(frozen=True)
class Command:
    """What is typed; names in capitals stand for folders of the workshop. has: what is in the folder before."""

    words: tuple[str, ...]
    has: dict[str, str] = field(default_factory=dict)


TRAIN = ("train", "TINY.yaml", "--data", "DATA", "--device", "cpu", "--out", "out")
EVALUATE = ("--data", "DATA", "--metrics", "pq", "--pictures", "1", "--out", "out")
SAVE = ("--save", "masks", "--out", "out")
COMMANDS = {
    "predict": Command(("predict", "DATA", "--model", "classical", *SAVE)),
    "fuse": Command(("fuse", "PRED", "PRED2", *SAVE)),
    "train": Command(TRAIN),
    "evaluate": Command(("evaluate", "PRED", *EVALUATE)),
    "evaluate two": Command(("evaluate", "PRED", "PRED2", *EVALUATE)),
    "export": Command(("export", "PRED", "--to", "geojson", "--out", "out")),
    "export a file": Command(("export", "PRED", "--to", "coco_results", "--out", "out/answer.zip")),
    "tune": Command(("tune", "RUN", "--data", "DATA", "--device", "cpu", "--out", "out")),
    "convert": Command(("data", "convert", "SOURCE", "--copy-images", "--out", "out")),
    "merge": Command(("data", "merge", "DATA", "--out", "out")),
    "split": Command(("data", "split", "out", "--val", ".34"), {"out": "copies"}),
    "check": Command(("data", "check", "DATA", "--out", "out/check.csv")),
    "measure": Command(("measure", "PRED", "--out", "out/table.csv")),
    "model export": Command(("model", "export", "RUN", "--to", "half", "--out", "out")),
}


@pytest.fixture(scope="module")
def root(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kills") / "workshop"
    warm.prepare("command_trials:prepare", root)
    return root


class Trials:
    """Runs one command again and again in a folder in memory."""

    def __init__(self, warm: Warm, root: Path, folder: Path, command: Command) -> None:
        self.warm, self.root, self.folder, self.command = warm, root, folder / "work", command
        self.words = [self._place(word) for word in (*command.words, "--quiet")]

    def _place(self, word: str) -> str:
        place = self.root / word.lower()
        return str(place) if word.partition(".")[0].isupper() and place.exists() else word

    def begin(self) -> None:
        """The folder as it was."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name, source in self.command.has.items():
            shutil.copytree(self.root / source, self.folder / name)

    def run(self, at: int | None = None) -> tuple[list[int], End]:
        """Run the command, and kill it at its ``at``-th file operation; 0: count them."""
        arguments = {"words": self.words, "place": str(self.folder), "at": at}
        return self.warm.call(
            "command_trials:run_command", self.folder.with_name("child"), memory=None, seconds=60, **arguments
        )

    def finish(self) -> dict[str, bytes]:
        """Run the command, which must succeed and tidy up; returns the files that it made."""
        _, end = self.run()
        if end.status != 0:
            raise AssertionError(f"exit code {end.status}: {output_of(self.folder.with_name('child'))}")
        if left := leftovers(self.folder):
            raise AssertionError(f"left over: {', '.join(left)}")
        return contents(self.folder)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of the user and of the result that contain no times."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    wanted = {name: path for name, path in files.items() if ".cellwright/" not in name}
    made = {name: path.read_bytes() for name, path in wanted.items() if not name.endswith(DIFFERS)}
    for name in wanted.keys() & {"out/log.csv"}:
        rows = csv.DictReader(io.StringIO(wanted[name].read_text()))
        made[name] = repr([{key: row[key] for key in row if not key.endswith(TIMES)} for row in rows]).encode()
    return made


def leftovers(folder: Path) -> list[str]:
    """What is no result, and not what stays in ``.cellwright``: the claim, the records of a prediction, a dead lock."""
    names = {path.name for path in folder.rglob("*") if "partial" in path.name}
    return sorted(names | {path.name for path in folder.glob("**/.cellwright/*")} - {"claim.json", "progress", "lock"})


def points(n_operations: int, n_points: int | None) -> list[int]:
    """Numbers from 1 to ``n_operations``: all of them, or evenly chosen ones."""
    n = n_operations if n_points is None else min(n_points, n_operations)
    return sorted({1 + k * n_operations // n for k in range(n)})


def sweep(trials: Trials, name: str, n_points: int | None) -> None:
    trials.begin()
    (n_operations,), _ = trials.run(0)
    trials.begin()
    expected = trials.finish()
    bad = []
    chosen = points(n_operations, n_points)
    for at in chosen:
        trials.begin()
        _, end = trials.run(at)
        assert end.status in (0, 9), output_of(trials.folder.with_name("child"))
        foreign = put_foreign_file(trials.folder / "out")
        try:
            made = trials.finish()
            difference = sorted(dict(made.items() ^ (expected | foreign).items()))
            if difference:
                raise AssertionError(f"other content: {', '.join(difference)}")
        except AssertionError as error:
            bad.append(f"killed at operation {at} of {n_operations}: {error}")
    record(f"killed at a file operation: {name}", len(chosen), len(chosen) - len(bad))
    assert not bad, f"{len(bad)} of {len(chosen)}:\n" + "\n\n".join(bad[:5])


def put_foreign_file(out: Path) -> dict[str, bytes]:
    """Write a file of the user into a folder that is claimed, which is allowed; returns it as `contents` does."""
    if not (out / ".cellwright" / "claim.json").exists():
        return {}
    (out / "raw").mkdir(exist_ok=True)
    (out / "raw" / "slide.tif").write_bytes(b"only copy")
    return {"out/raw/slide.tif": b"only copy"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_goes_on(name: str, warm: Warm, root: Path, memory_path: Path) -> None:
    sweep(Trials(warm, root, memory_path, COMMANDS[name]), name, N_POINTS)

"""Folders with any content: no command removes or changes a file that it did not write, whatever its options."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from commands import COMMANDS, OVERWRITE, Command, Trials, trials_of
from record import record
from warm_process import Warm

N_FOLDERS, N_SLOW_FOLDERS = 1, 100
# Names that commands write themselves, among names that only a user would choose.
NAMES = (
    "predictions.json", "summary.csv", "i0_masks.tif", "i0.geojson", "recipe.yaml", "metrics.json", "model.json",
    "DONE", "weights.safetensors", "dataset.json", "dataset.index", "log.csv", "report.md", "README.md",
    "contact_sheet.png", "notes.txt", "slide.tif", ".gitignore", "a.partial", ".x.99999-0000.partial.csv",
    "Größe 1.csv", "table.csv",
)  # fmt: skip
FOLDERS = ("raw_data", ".git", "model", "checkpoints/step_00000001", "images", "errors", "new", "a/b")


OF_RUNS = (
    "recipe.yaml",
    "metrics.json",
    "DONE",
    "log.csv",
)  # what a run has before its first checkpoint is not recorded


def draw_content(out: Path, outside: Path, rng: random.Random, without: tuple[str, ...]) -> None:
    """Files, folders, links to files and folders outside, among what is there already."""
    out.mkdir(parents=True, exist_ok=True)
    for _ in range(rng.randint(1, 8)):
        folder = out / rng.choice(FOLDERS) if rng.random() < 0.6 else out
        path = folder / rng.choice(NAMES)
        if (
            (folder == out and path.name in without)
            or any(os.path.lexists(parent) and not parent.is_dir() for parent in path.parents)
            or os.path.lexists(path)
        ):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        kind = rng.random()
        if kind < 0.1:
            path.symlink_to(outside / "only_copy.tif")
        elif kind < 0.2:
            path.symlink_to(outside, target_is_directory=True)
        else:
            path.write_bytes(rng.choice([b"", b"{}", b"only copy", rng.randbytes(50)]))


def seen(folder: Path) -> dict[str, bytes | str]:
    """Content of files and targets of links, by name."""
    found: dict[str, bytes | str] = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root) / name
            if path.is_symlink():
                found[path.relative_to(folder).as_posix()] = str(path.readlink())
            elif path.is_file():
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def tried(trials: Trials, case: int) -> list[str]:
    """The files of the user that are not as they were."""
    rng = random.Random(f"{trials.command.words} {case}")
    trials.begin()
    is_interrupted = rng.random() < 0.3
    if is_interrupted:
        trials.run(at=rng.randint(5, 60))
    before = seen(trials.out)
    outside = trials.folder.with_name("outside")
    shutil.rmtree(outside, ignore_errors=True)
    outside.mkdir()
    (outside / "only_copy.tif").write_bytes(b"only copy")
    without = OF_RUNS if is_interrupted and trials.command.words[0] == "train" else ()
    # A file that is named as the output is replaced as requested.
    draw_content(trials.out, outside, rng, (*without, Path(trials.command.words[-2]).name))
    ours = {name for name, content in seen(trials.out).items() if before.get(name) == content}
    users = {name: content for name, content in seen(trials.out).items() if name not in ours}
    elsewhere = seen(outside)
    for _ in range(2):
        _, end = trials.run()
        assert end.status in (0, 2), trials.printed
    after = seen(trials.out)
    assert seen(outside) == elsewhere, "a file outside of the folder was changed"
    return [name for name, content in users.items() if after.get(name) != content]


def check(command: Command, n: int, warm: Warm, workshop: Path, folder: Path) -> None:
    trials = trials_of(command, warm, workshop, folder)
    lost = {case: names for case in range(n) if (names := tried(trials, case))}
    record("a folder with files of the user", n, n - len(lost))
    assert not lost


def commands() -> dict[str, Command]:
    """All of them, with ``--overwrite`` where they have it, into new folders and over old results."""
    words = {name: (*command.words, "--overwrite") for name, command in COMMANDS.items() if name != "split"}
    plain = {name: Command(words.get(name, command.words), command.has) for name, command in COMMANDS.items()}
    return plain | {f"{name} over an old result": command for name, command in OVERWRITE.items()}


@pytest.mark.parametrize("name", commands())
def test_no_file_of_the_user_is_lost(name: str, warm: Warm, workshop: Path, tmp_path: Path) -> None:
    check(commands()[name], N_FOLDERS, warm, workshop, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", commands())
def test_no_file_of_the_user_is_lost_from_many_folders(name: str, warm: Warm, workshop: Path, tmp_path: Path) -> None:
    check(commands()[name], N_SLOW_FOLDERS, warm, workshop, tmp_path)

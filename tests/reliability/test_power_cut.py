"""Files of a half-done command that a power cut emptied, cut short or lost: redone, or one error, never a wrong one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import COMMANDS, KILLED, Trials, chosen, differences, trials_of
from record import record
from warm_process import Warm

N_POINTS, N_SLOW_POINTS = 1, 12
JOBS = ("predict", "train", "evaluate")  # resumed, or made again


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGES: dict[str, Callable[[Path], None]] = {"emptied": _empty, "cut short": _truncate, "lost": Path.unlink}


def go_on(trials: Trials, name: str, expected: dict[str, bytes]) -> None:
    """Run the command on; name: the damaged file."""
    _, end = trials.run()
    if end.status == 0:
        # Rows of a log that are lost stay so, and a note says it; an older checkpoint, and the index of a dataset, are
        # verified when they are read.
        lost = ("log.csv", "curves/", "report.html") if name.endswith("log.csv") else ()
        lost = (Path(name).name,) if name.endswith("dataset.index") else (name,) if "checkpoints/" in name else lost
        wanted = [
            {key: value for key, value in made.items() if not any(part in key for part in lost)}
            for made in (trials.contents(), expected)
        ]
        if difference := differences(*wanted):
            raise AssertionError(f"exit code 0 with other content: {difference}")
        return
    parts = [part for part in Path(name).parts if part in trials.printed]
    if end.status != 2 or "Traceback" in trials.printed or not parts:
        raise AssertionError(f"exit code {end.status}: {trials.printed}")


def times(folder: Path) -> dict[str, int]:
    """When each file was written, by name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


def at_risk(state: Path, before: dict[str, int]) -> list[Path]:
    """The files that a power cut may damage: those that the command wrote, but not into a part that is complete.

    What is complete was on the disk before it was called so; who changes it later is not this command.
    """
    complete: set[Path] = set()
    for path in state.glob("**/.cellwright/claim.json"):
        claim = json.loads(path.read_text())
        if claim["state"] == "complete" and path.parents[1].name != "new":
            complete |= {path, *(path.parents[1] / name for name in claim["files"])}
    written = [state / name for name, time in times(state).items() if before.get(name) != time]
    return sorted(path for path in written if path not in complete)


def cut(trials: Trials, points: int, *, every_damage: bool) -> None:
    n_operations, expected = trials.counted()
    state = trials.folder.with_name("state")
    n, bad = 0, []
    for at in chosen(n_operations, points + 1)[1:]:
        trials.begin()
        before = times(trials.folder)
        _, end = trials.run(at=at)
        assert end.status in (0, KILLED), trials.printed
        if trials.states() == {"complete"}:
            continue
        shutil.rmtree(state, ignore_errors=True)
        trials.folder.rename(state)
        files = at_risk(state, before)
        for k, file in enumerate(files if every_damage else files[::2]):
            # The claim is on the disk, with its folder, before anything else is written.
            possible = [kind for kind in DAMAGES if (file.name, kind) != ("claim.json", "lost")]
            kinds = possible if every_damage else [possible[k % len(possible)]]
            for kind in kinds:
                shutil.rmtree(trials.folder, ignore_errors=True)
                shutil.copytree(state, trials.folder, symlinks=True)
                name = file.relative_to(state).as_posix()
                DAMAGES[kind](trials.folder / name)
                n += 1
                try:
                    go_on(trials, name, expected)
                except AssertionError as error:
                    bad.append(f"operation {at}, {name} {kind}: {error}")
    record("a file emptied, cut short or lost by a power cut", n, n - len(bad))
    assert not bad, f"{len(bad)} of {n}:\n" + "\n\n".join(bad[:8])


@pytest.mark.parametrize("name", JOBS)
def test_a_power_cut(name: str, warm: Warm, workshop: Path, tmp_path: Path) -> None:
    cut(trials_of(COMMANDS[name], warm, workshop, tmp_path), N_POINTS, every_damage=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_many_power_cuts(name: str, warm: Warm, workshop: Path, tmp_path: Path) -> None:
    cut(trials_of(COMMANDS[name], warm, workshop, tmp_path), N_SLOW_POINTS, every_damage=True)

"""Commands that are killed: the same command goes on, and ends in the same bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from commands import COMMANDS, KILLED, OVERWRITE, Trials, chosen, differences, trials_of
from record import record
from warm_process import Warm

N_POINTS = 3
NAMES = [
    *((name, False) for name in COMMANDS),
    *((name, True) for name in OVERWRITE),
]
IDS = [name + " over an old result" * overwrite for name, overwrite in NAMES]
N_RANDOM = 100
RANDOM = ("predict", "train", "evaluate", "fuse", "export", "tune", "convert")


def go_on(trials: Trials, expected: dict[str, bytes], old: dict[str, bytes]) -> None:
    """After a kill. old: what was there before; it or the new result is there, unless they are just being swapped."""
    if old and "swapping" not in trials.states():
        made = trials.contents()
        new = {name: content for name, content in made.items() if old.get(name) != content}
        if differences(made, old) and differences(made, expected):
            raise AssertionError(f"neither the old nor the new result: {', '.join(new)}")
    foreign = trials.put_foreign_file()
    if difference := differences(trials.finish(), expected | foreign):
        raise AssertionError(f"other content: {difference}")


def sweep(trials: Trials, row: str, n_points: int | None) -> None:
    n_operations, expected = trials.counted()
    trials.begin()
    old, points, bad = trials.contents(), chosen(n_operations, n_points), []
    for at in points:
        trials.begin()
        _, end = trials.run(at=at)
        assert end.status in (0, KILLED), trials.printed
        try:
            go_on(trials, expected, old)
        except AssertionError as error:
            bad.append(f"killed at operation {at} of {n_operations}: {error}")
    record(row, len(points), len(points) - len(bad))
    assert not bad, f"{len(bad)} of {len(points)}:\n" + "\n\n".join(bad[:5])


@pytest.mark.parametrize(("name", "overwrite"), NAMES, ids=IDS)
def test_killed_at_a_file_operation(name: str, overwrite: bool, warm: Warm, workshop: Path, tmp_path: Path) -> None:
    command = (OVERWRITE if overwrite else COMMANDS)[name]
    sweep(trials_of(command, warm, workshop, tmp_path), "killed at a file operation", N_POINTS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "overwrite"), NAMES, ids=IDS)
def test_killed_at_every_file_operation(name: str, overwrite: bool, warm: Warm, workshop: Path, tmp_path: Path) -> None:
    command = (OVERWRITE if overwrite else COMMANDS)[name]
    sweep(trials_of(command, warm, workshop, tmp_path), "killed at a file operation", None)


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_killed_at_a_random_time(name: str, warm: Warm, workshop: Path, tmp_path: Path) -> None:
    trials = trials_of(COMMANDS[name], warm, workshop, tmp_path)
    expected = trials.expected()
    trials.begin()
    _, end = trials.run()
    seconds, rng, bad, n_killed = end.cpu_seconds, random.Random(name), [], 0
    for trial in range(N_RANDOM):
        trials.begin()
        for _ in range(3):  # some of them several times
            _, end = trials.run(after_s=rng.uniform(0.005, seconds))
            n_killed += end.status < 0
            if rng.random() < 0.7:
                break
        try:
            go_on(trials, expected, {})
        except AssertionError as error:
            bad.append(f"trial {trial}: {error}")
    assert n_killed > N_RANDOM / 3
    record("killed at a random time", N_RANDOM, N_RANDOM - len(bad))
    assert not bad, f"{len(bad)} of {N_RANDOM}:\n" + "\n\n".join(bad[:5])

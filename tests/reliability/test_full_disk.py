"""A full disk, on a small file system in memory: one message, and the same command goes on once there is space."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import COMMANDS, Trials, differences, is_root, trials_of
from record import record
from warm_process import Warm

N_SIZES, N_SLOW_SIZES = 1, 12
PAGE = 4096


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if not is_root() or not shutil.which("mount"):
        pytest.skip("only root can mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk))
    if subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("this container does not allow mounts")
    try:
        yield disk
    finally:
        subprocess.run(("umount", "-l", str(disk)), check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(("mount", "-o", f"remount,size={size}", str(disk)), check=True)


def used(disk: Path) -> int:
    return shutil.disk_usage(disk).used


def fill(trials: Trials, disk: Path, n_sizes: int) -> None:
    """Run the command with too little space: from none to nearly as much as it needs."""
    (disk / "page").write_bytes(b"x")  # a size of 0 would be no limit
    expected, peak = trials.expected(), used(disk)
    trials.begin()
    before, bad = used(disk), []
    for k in range(n_sizes):
        resize(disk, "64m")
        trials.begin()
        resize(disk, str(before + (peak - before) // PAGE * (k + 1) // (n_sizes + 1) * PAGE))
        try:
            _, end = trials.run()
            if end.status == 0:
                raise AssertionError("it did not need the space")
            if end.status != 2 or trials.printed.count("the disk is full") != 1:
                raise AssertionError(f"exit code {end.status}: {trials.printed}")
            resize(disk, "64m")
            if difference := differences(trials.finish(), expected):
                raise AssertionError(f"other content: {difference}")
        except AssertionError as error:
            bad.append(f"size {k}: {error}")
    record("full disk", n_sizes, n_sizes - len(bad))
    assert not bad, "\n\n".join(bad)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_full_disk(name: str, warm: Warm, workshop: Path, small_disk: Path) -> None:
    fill(trials_of(COMMANDS[name], warm, workshop, small_disk), small_disk, N_SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(COMMANDS))
def test_disks_of_many_sizes(name: str, warm: Warm, workshop: Path, small_disk: Path) -> None:
    fill(trials_of(COMMANDS[name], warm, workshop, small_disk), small_disk, N_SLOW_SIZES)

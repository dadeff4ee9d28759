"""One process writes a folder; locks of processes that are gone are taken over."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from cellwright.core import folder_lock
from cellwright.core.errors import OutputError
from cellwright.core.folder_lock import FolderLock, Holder

DEAD = 4_194_999  # above the largest process number of Linux


def take(folder: Path, verb: str = "train") -> FolderLock:
    return FolderLock.take(folder / "lock", folder, verb)


def left_by(folder: Path, pid: int, host: str, age_s: float = 0) -> None:
    content = {"verb": "predict", "pid": pid, "host": host, "started": "2026-01-31 10:02"}
    (folder / "lock").write_text(json.dumps(content))
    os.utime(folder / "lock", (time.time() - age_s,) * 2)


def test_a_folder_in_use_says_by_whom(tmp_path: Path) -> None:
    lock = take(tmp_path)
    by = rf"in use by cellwright train \(process {os.getpid()} on {socket.gethostname()} since 2\d\d\d-"
    with pytest.raises(OutputError, match=by):
        take(tmp_path)
    lock.verify()
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []
    take(tmp_path).release()


@pytest.mark.parametrize("has_flock", [True, False])
def test_locks_of_processes_that_are_gone(has_flock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "_SECOND_LOOK_S", 0)
    if not has_flock:
        monkeypatch.setattr(folder_lock, "_flock", lambda descriptor: None)
    here, elsewhere = socket.gethostname(), "another.machine"
    for pid, host, age_s in ((DEAD, here, 0), (DEAD, elsewhere, 200), (os.getpid(), elsewhere, 200)):
        left_by(tmp_path, pid, host, age_s)
        take(tmp_path).release()
    left_by(tmp_path, DEAD, elsewhere, 60)
    with pytest.raises(OutputError, match="process 4194999 on another.machine since 2026-01-31 10:02"):
        take(tmp_path)
    left_by(tmp_path, os.getppid(), here)
    if has_flock:  # a lock that is not held says nothing, whatever process has this number now
        take(tmp_path).release()
    else:
        with pytest.raises(OutputError, match="in use"):
            take(tmp_path)
    for text in ("", "[]", '{"pid": "x"}'):
        (tmp_path / "lock").write_text(text)
        take(tmp_path).release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs child processes")
def test_a_child_of_a_killed_process_does_not_keep_the_folder(tmp_path: Path) -> None:
    """A worker of a data loader inherits the file, and lives some seconds longer than a process that is killed."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        take(tmp_path)
        grandchild = os.fork()
        if grandchild == 0:
            time.sleep(60)
            os._exit(0)
        os.write(writes, str(grandchild).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    grandchild = int(os.read(reads, 20))
    os.waitpid(child, 0)
    try:
        take(tmp_path).release()
    finally:
        os.kill(grandchild, signal.SIGKILL)
        os.close(reads)
        os.close(writes)


def test_the_holder_notices_that_the_lock_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    lock = take(folder)
    (folder / "lock").unlink()
    with pytest.raises(OutputError, match="its lock, was moved or removed"):
        lock.verify()
    other = take(folder, "fuse")
    with pytest.raises(OutputError, match="taken over[\\s\\S]*cellwright fuse"):
        lock.verify()
    lock.release()
    other.verify()
    folder.rename(tmp_path / "b")
    with pytest.raises(OutputError, match="moved or removed"):
        other.verify()
    other.release()


def test_a_lock_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "HEARTBEAT_S", 0.001)
    lock = take(tmp_path)
    os.utime(tmp_path / "lock", (0, 0))
    deadline = time.monotonic() + 10
    while (tmp_path / "lock").stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert (tmp_path / "lock").stat().st_mtime > 0
    lock.release()


def test_a_lock_file_of_others_is_shown_safely(tmp_path: Path) -> None:
    left_by(tmp_path, 1, "\x1b[2J" + "x" * 500)
    text = str(Holder.read(tmp_path / "lock"))
    assert text.isprintable()
    assert len(text) < 160

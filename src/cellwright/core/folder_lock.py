"""The lock that one process holds on an output folder while it writes there.

The lock is a file with an flock, which ends with the process. For the message to others, and for file systems without
flock, the file says who holds it, and a thread renews its time: a lock of a dead process of this machine, and one of
another machine that was not renewed for two minutes, are taken over.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread

from cellwright.core.errors import OutputError
from cellwright.core.files import is_alive, output_error

HEARTBEAT_S = 20.0
STALE_S = 120.0
# A dead holder is looked at twice: another process may have just taken the lock and not yet written its name.
_SECOND_LOOK_S = 0.2
_WITHOUT_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock. started: local time, for the message."""

    verb: str
    pid: int
    host: str
    started: str

    @staticmethod
    def read(path: Path) -> Holder | None:
        """The holder named in a lock file; None if there is none."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return Holder(str(content["verb"]), int(content["pid"]), str(content["host"]), str(content["started"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def __str__(self) -> str:
        # The text of a lock file may come from anywhere.
        verb, host, started = (ascii(value)[1:-1][:40] for value in (self.verb, self.host, self.started))
        return f"cellwright {verb} (process {self.pid} on {host} since {started})"

    def is_here(self) -> bool:
        """Whether the process runs, or ran, on this machine."""
        return self.host == socket.gethostname()


class FolderBusy(OutputError):
    """Another process writes the folder at this moment."""


class FolderLock:
    """A lock that this process holds; see `take`."""

    def __init__(self, descriptor: int, path: Path, folder: Path) -> None:
        self._descriptor, self._path, self._folder = descriptor, path, folder
        self._end = Event()
        Thread(target=self._renew, name="cellwright lock", daemon=True).start()

    @staticmethod
    def take(path: Path, folder: Path, verb: str) -> FolderLock:
        """Lock ``folder`` with the file ``path``, which is created. Raises `FolderBusy` if it is in use."""
        me = Holder(verb, os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M"))
        try:
            while True:
                descriptor = _try_to_take(path, folder, me)
                if descriptor is not None:
                    return FolderLock(descriptor, path, folder)
        except OSError as error:
            raise output_error(folder, error) from error

    def verify(self) -> None:
        """Raise `OutputError` if the folder was moved or removed, or if another process has taken the lock."""
        if not os.path.lexists(self._path):
            remedy = "run the same command again: what is missing is made again"
            problem = "the output folder, or its lock, was moved or removed while it was written"
            raise OutputError(problem, where=self._folder, remedy=remedy)
        if not _is_at(self._path, self._descriptor):
            got = None if (holder := Holder.read(self._path)) is None else str(holder)
            problem = "the output folder was taken over by another process while it was written"
            raise OutputError(problem, where=self._folder, got=got, remedy="run the same command again")

    def release(self) -> None:
        """Release the lock, and remove its file."""
        if not self._end.is_set():
            self._end.set()
            with suppress(OSError):
                if _is_at(self._path, self._descriptor):
                    os.ftruncate(self._descriptor, 0)  # Windows does not remove an open file
                    self._path.unlink()
            os.close(self._descriptor)

    def _renew(self) -> None:
        while not self._end.wait(HEARTBEAT_S):
            with suppress(OSError, NotImplementedError):
                os.utime(self._descriptor if os.utime in os.supports_fd else self._path)


def _try_to_take(path: Path, folder: Path, me: Holder) -> int | None:
    """A descriptor of the locked file; None to try again. Raises `FolderBusy` if it is in use."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    is_taken = False
    try:
        granted, holder = _flock(descriptor), Holder.read(path)
        if _is_in_use(granted, holder, path):
            raise FolderBusy(
                f"this folder is in use by {holder or 'another process'}",
                where=folder,
                remedy="wait until it has finished and run the same command again, or choose another `out`",
            )
        if granted is False:  # its process is dead, but a child of it still has the file: a new file replaces it
            time.sleep(_SECOND_LOOK_S)
            if Holder.read(path) == holder:
                path.unlink(missing_ok=True)
            return None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(asdict(me)).encode())
        if granted is None:  # the last of several processes has it
            time.sleep(_SECOND_LOOK_S)
        # The file is another one if its holder has removed it at this moment.
        is_taken = _is_at(path, descriptor) and Holder.read(path) == me
        return descriptor if is_taken else None
    finally:
        if not is_taken:
            os.close(descriptor)


def _is_in_use(granted: bool | None, holder: Holder | None, path: Path) -> bool:
    """granted: what `_flock` returned."""
    if granted is False:
        return holder is None or not holder.is_here() or is_alive(holder.pid)
    if holder is None or _is_stale(path):
        return False
    # An flock may not reach the processes of other machines.
    return not holder.is_here() or (granted is None and is_alive(holder.pid))


def _flock(descriptor: int) -> bool | None:
    """Whether the lock was granted; None where there are no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _WITHOUT_FLOCK:
            return None
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _is_stale(path: Path) -> bool:
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > STALE_S
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether ``path`` is still the file that is open."""
    try:
        return _identity(path.lstat()) == _identity(os.fstat(descriptor))
    except OSError:
        return False


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino

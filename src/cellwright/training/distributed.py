"""Several processes that train together, one per device: how they are started, talk to each other, and end.

Rank 0 is the process of the command: it decides about everything, evaluates, and writes every file. The other ranks,
its members, do what it sends them, and only take steps. `lead` starts them, unless torchrun has; `join` is their side.
They meet in a store, which is a file in a private folder, so that no port is open to the network; torchrun has its own.

A member that fails leaves the reason in the store, and its end breaks off the exchange (`Disconnected`) of rank 0,
which then raises that reason. Members that `lead` started also end with the pipe from rank 0, however that ends.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed import FileStore, PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.rendezvous import rendezvous

from cellwright.core.errors import CellwrightError, InputError, RecipeError, UsageError
from cellwright.core.interrupts import SIGNALS
from cellwright.core.memory import memory_error
from cellwright.core.text import count
from cellwright.ops.batch import Batch
from cellwright.ops.ranks import ALONE, Disconnected, Ranks

PATIENCE_S = 30 * 60.0  # how long a rank waits for another one in a step, with its loading of images
_START_S = 600.0  # until all ranks have imported torch and met
_IDLE = timedelta(days=365)  # while rank 0 evaluates; if it ends, the connection does
_CAUSE_S = 15.0  # in which the reason of a broken connection shows
_GRACE_S = 60  # in which rank 0 ends a step and writes a checkpoint
_POLL_S = 0.05
_CLOSE_S = 5.0  # in which a member ends, once its pipe is closed
_PIPE_S = 2.0  # in which the pipe from a killed rank 0 closes, once the connection has
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # as torchrun sets them
_OWN_STORE = "CELLWRIGHT_RANKS"  # the folder of the store, for members that `lead` has started
_ERRORS = "errors.txt"  # what members print
_LOOPBACK = {"linux": "lo", "darwin": "lo0"}
END = "end"  # the last message to members
AGAIN = "run the same command again: it resumes from the last checkpoint"


@dataclass(frozen=True)
class Place:
    """Which rank this process is, of how many; local: on this machine."""

    rank: int = 0
    n: int = 1
    local_rank: int = 0

    @staticmethod
    def of_environment() -> Place:
        """The place that torchrun, or `lead`, gave this process; rank 0 of 1 without them."""
        given = [os.environ.get(name, "") for name in _VARIABLES]
        if not (all(given) or (_OWN_STORE in os.environ and all(given[:2]))):
            return Place()
        rank, n = int(given[0]), int(given[1])
        return Place(rank, n, int(os.environ.get("LOCAL_RANK", rank)))


@dataclass(eq=False)
class Team:
    """The ranks that train together, as one of them sees them. A team of one exchanges nothing.

    Attributes:
        place: of this process.
        device: of this process.
        code: what Python runs in members that rank 0 starts.
        folder: of the store; None: that of torchrun, which starts all ranks.
        store: where they meet, and members leave the reason of a failure.
        control: a process group of its own, in which members wait without a limit.
        members: the processes that rank 0 has started.
    """

    place: Place = field(default_factory=Place)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    code: str = ""
    folder: Path | None = None
    store: Any = None
    control: Any = None
    members: Sequence[subprocess.Popen[bytes]] = ()

    def start(self) -> None:
        """In rank 0: start the members that are not there yet, and meet them. Raises the error of one that fails."""
        if self.place.n == 1 or self.control is not None:
            return
        if self.folder is not None:
            self.members = [_started(rank, self.place.n, self.folder, self.code) for rank in range(1, self.place.n)]
        _meet(self)

    @property
    def ranks(self) -> Ranks:
        """For batches."""
        return Ranks(self.place.n) if self.place.n > 1 else ALONE

    def send(self, message: object) -> None:
        """From rank 0 to all members, which are in `receive`."""
        if self.place.n > 1:
            self._exchange([message])

    def receive(self) -> Any:
        """What rank 0 sends next."""
        return self._exchange([None])

    def _exchange(self, content: list[Any]) -> Any:
        try:
            distributed.broadcast_object_list(content, src=0, group=self.control, device=torch.device("cpu"))
        except RuntimeError as error:
            raise Disconnected(str(error)) from error
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            remedy = "define its class in a module, a .py file that you import; or use one device"
            raise UsageError("the data cannot be sent to other processes", got=str(error), remedy=remedy) from error
        return content[0]

    def share(self, batches: Sequence[Batch]) -> list[Batch]:
        """This rank's parts of whole batches, padded to the same size in all ranks."""
        if self.place.n == 1:
            return list(batches)
        sizes = self.ranks.largest([side for batch in batches for side in batch.images.shape[2:]])
        sides = zip(sizes[::2], sizes[1::2], strict=True)
        return [replace(batch, ranks=self.ranks).padded(*hw) for batch, hw in zip(batches, sides, strict=True)]

    # --- failures -------------------------------------------------------------------------------------------------

    def report(self, error: BaseException) -> None:
        """Leave the reason why this member ends, for rank 0."""
        known = error if isinstance(error, CellwrightError) else memory_error(error)  # type: ignore[arg-type]
        content = known or "".join(traceback.format_exception(error))
        with suppress(Exception):  # rank 0 may have ended
            self.store.set(f"failure/{self.place.rank}", pickle.dumps(content))

    def cause(self, error: Disconnected) -> Exception:
        """Why an exchange was broken off: the failure of a member, or how its process ended."""
        deadline = time.monotonic() + _CAUSE_S
        while time.monotonic() < deadline:
            if (failure := self.failure()) is not None:
                return failure
            time.sleep(_POLL_S)
        if "imed out" in str(error):
            got = f"no answer for {PATIENCE_S / 60:g} min"
            return InputError(f"one of the {self.place.n} training processes hangs", got=got, remedy=AGAIN)
        got = str(error).splitlines()[0]
        return InputError(f"one of the {self.place.n} training processes ended", got=got, remedy=AGAIN)

    def failure(self) -> Exception | None:
        """The error of a member, as it reported it, or of how its process ended; None if none has failed."""
        ended = self._ended()  # before the reports, as a member reports and then ends
        for rank in range(1, self.place.n):
            with suppress(RuntimeError):  # torchrun may have closed its store
                if self.store.check([f"failure/{rank}"]):
                    return self._named(rank, pickle.loads(self.store.get(f"failure/{rank}")))
        return ended

    def _named(self, rank: int, content: CellwrightError | str) -> Exception:
        name = self.name(rank)
        if isinstance(content, str):
            return RuntimeError(f"{name} failed:\n{content}")
        kind, problem = type(content), f"{name}: {content.problem}"
        return kind(problem, where=content.where, got=content.got, expected=content.expected, remedy=content.remedy)

    def name(self, rank: int) -> str:
        """How messages call a rank."""
        return f"rank {rank} of {self.place.n} (training process {rank + 1})"

    def _ended(self) -> InputError | None:
        """The error that says which of the members that `lead` started has ended, and how; None if none has."""
        for rank, member in enumerate(self.members, 1):
            if (code := member.poll()) is not None:
                how = f"exit code {code}"
                if code < 0:
                    with suppress(ValueError):
                        how = f"it was ended by {signal.Signals(-code).name}"
                text = (self.folder / _ERRORS).read_text(errors="replace").strip() if self.folder else ""
                last = f"; its last words: {text.splitlines()[-1]}" if text else ""
                memory = "check the memory: every process needs as much as one; " if code == -9 else ""
                return InputError(f"{self.name(rank)} ended", got=f"{how}{last}", remedy=memory + AGAIN)
        return None


# --- rank 0 ---------------------------------------------------------------------------------------------------------


@contextmanager
def lead(n: int, device: torch.device, code: str) -> Iterator[Team]:
    """The team of ``n`` ranks as rank 0 sees it; `Team.start` starts its members, which end with the block.

    code: what Python runs in each of them. Raises the error of a member in place of `Disconnected`.
    """
    if n == 1:
        yield Team()
        return
    is_torchrun = Place.of_environment().n > 1
    folder = None if is_torchrun else Path(tempfile.mkdtemp(prefix="cellwright-ranks-"))
    team = Team(Place(0, n), device, code, folder)
    try:
        try:
            if is_torchrun:  # its processes wait already
                team.start()
            yield team
            if is_torchrun:
                team.send(END)
        except Disconnected as error:
            raise team.cause(error) from error
    finally:
        _end(team.members)
        if folder is not None:
            _leave()
            shutil.rmtree(folder, ignore_errors=True)


def _started(rank: int, n: int, folder: Path, code: str) -> subprocess.Popen[bytes]:
    """A member in a process of its own, which finds the same modules, and ends when its standard input does."""
    variables = {"RANK": rank, "WORLD_SIZE": n, "LOCAL_RANK": rank, _OWN_STORE: folder}
    modules = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}, "PYTHONPATH": modules}
    with (folder / _ERRORS).open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
        )


def _end(members: Sequence[subprocess.Popen[bytes]]) -> None:
    """Close the pipes, at which members end at once, and wait for them."""
    for member in members:
        assert member.stdin is not None
        member.stdin.close()
    for member in members:
        try:
            member.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:  # a stopped process
            member.kill()
            member.wait()


# --- members --------------------------------------------------------------------------------------------------------


@contextmanager
def join(device: torch.device) -> Iterator[Team]:
    """The team as a member sees it. Its failure is reported to rank 0; if that ends, so does this process."""
    place, folder = Place.of_environment(), os.environ.get(_OWN_STORE)
    team = Team(place, device, folder=None if folder is None else Path(folder))
    if threading.current_thread() is threading.main_thread():
        _leave_signals(to_rank_0=folder is not None)
    watch = threading.Thread(target=_end_with_pipe, args=(folder,), name="cellwright rank 0", daemon=True)
    if folder is not None:
        watch.start()
    try:
        _meet(team)
        if folder is None and threading.current_thread() is threading.main_thread():
            _leave_signals(to_rank_0=True)
        yield team
    except Disconnected:
        if folder is not None:
            watch.join(_PIPE_S)  # if rank 0 was killed, it removes the folder and ends this process
        sys.exit(1)  # rank 0 says why
    except Exception as error:  # noqa: BLE001 - rank 0 raises it
        team.report(error)
        sys.exit(1)


def _leave_signals(*, to_rank_0: bool) -> None:
    """Signals reach all ranks; rank 0 ends the others itself, after a checkpoint. Until they meet, they end at once."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if to_rank_0 else signal.SIG_DFL)
    if to_rank_0 and hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))


def _end_with_pipe(folder: str) -> None:
    with suppress(OSError, ValueError):
        while os.read(0, 1):
            pass
    shutil.rmtree(folder, ignore_errors=True)  # where rank 0 was killed
    os._exit(1)


# --- both -----------------------------------------------------------------------------------------------------------


def _meet(team: Team) -> None:
    """Wait for all ranks, and connect them."""
    rank, n, limit = team.place.rank, team.place.n, timedelta(seconds=_START_S)
    if team.device.type == "cuda":
        torch.cuda.set_device(team.device)
    if team.folder is not None:
        team.store = FileStore(str(team.folder / "store"), n)
    elif distributed.is_initialized():  # a second training of the same processes
        team.store = _get_default_store()
    else:
        team.store, rank, n = next(rendezvous("env://", timeout=limit))
    try:
        with _loopback(team.folder is not None):
            if not distributed.is_initialized():
                team.store = PrefixStore("cellwright", team.store)
                team.store.set(f"here/{rank}", "1")
                _wait_for_all(team, [f"here/{other}" for other in range(n)])
                backend, limit = "cpu:gloo,cuda:nccl" if team.device.type == "cuda" else "gloo", PATIENCE_S
                distributed.init_process_group(
                    backend, store=team.store, rank=rank, world_size=n, timeout=timedelta(seconds=limit)
                )
            team.control = distributed.new_group(backend="gloo", timeout=_IDLE)
    except RuntimeError as error:
        raise Disconnected(str(error)) from error


def _wait_for_all(team: Team, keys: list[str]) -> None:
    """Until all ranks have set their keys. Raises the error of a member that failed."""
    deadline = time.monotonic() + _START_S
    while not team.store.check(keys):
        if (failure := team.failure()) is not None:
            raise failure
        if time.monotonic() > deadline:
            missing = [key.rpartition("/")[2] for key in keys if not team.store.check([key])]
            got = f"no rank {', '.join(missing)} after {_START_S / 60:g} min"
            raise InputError("the training processes do not meet", got=got, remedy=AGAIN)
        time.sleep(_POLL_S)


def _leave() -> None:
    """Close the connections of this process."""
    if distributed.is_initialized():
        with suppress(RuntimeError):
            distributed.destroy_process_group()


@contextmanager
def _loopback(is_local: bool) -> Iterator[None]:
    """While the block runs, connections are made inside this machine, if all ranks are here."""
    name, interface = "GLOO_SOCKET_IFNAME", _LOOPBACK.get(sys.platform)
    if not is_local or interface is None or name in os.environ:
        yield
        return
    os.environ[name] = interface
    try:
        yield
    finally:
        del os.environ[name]


def check_share(batch_size: int, n: int, *, compiles: bool) -> None:
    """Raise `RecipeError` if ``n`` ranks cannot share the batches of a recipe."""
    if batch_size % n:
        raise RecipeError(
            f"{count(n, 'device')} cannot share this batch equally",
            where="train.batch_size, the images of all devices together",
            got=batch_size,
            expected=f"a multiple of {n}",
            remedy=f'use `set="train.batch_size={-(-batch_size // n) * n}"`, or another number of devices',
        )
    if compiles and n > 1:
        remedy = "set train.compile to false, or use one device"
        raise RecipeError("a compiled backbone is for one device only", where="train.compile", remedy=remedy)

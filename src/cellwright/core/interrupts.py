"""Signals that ask the program to stop: Ctrl-C (SIGINT), SIGTERM (job schedulers) and SIGHUP (a closed terminal).

Imports only the standard library, so that the command line can handle signals before it imports anything else.
"""

from __future__ import annotations

import _thread
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Windows has no SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_RETRY_S = 0.05
_SAME_S = 1.0  # shells, terminals and schedulers send several signals at once: within this time they count as one


class Interrupted(KeyboardInterrupt):
    """A signal has asked the program to stop. ``exit_code`` is 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class SignalHandler:
    """A signal handler that raises `Interrupted` where that does no harm.

    During an import it waits for the end, because many packages turn exceptions during imports into other errors.

    Attributes:
        received: the first signal, or None.
        times: how often the program was asked to stop.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.times = 0
        self._at = -math.inf
        self._retrying = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._retrying:
            self._retrying = False
        elif time.monotonic() - self._at < _SAME_S:
            return
        else:
            self.received, self._at = self.received or number, time.monotonic()
            self.times += 1
        if self.may_raise(number):
            if _is_importing(frame):
                self.retry()
            else:
                raise Interrupted(self.received or number)

    def may_raise(self, number: int) -> bool:
        """Whether a signal raises `Interrupted` now; else it is only recorded."""
        return True

    def retry(self) -> None:
        """Handle the signal again in a moment."""

        main = threading.main_thread().ident or 0

        def again() -> None:
            time.sleep(_RETRY_S)
            self._retrying = True
            number = signal.Signals(self.received or signal.SIGINT)
            if hasattr(signal, "pthread_kill"):  # also ends waiting, for a file or a process
                signal.pthread_kill(main, number)
            else:
                _thread.interrupt_main(number)

        _thread.start_new_thread(again, ())  # threading.Thread would take locks, which the main thread may hold


class CommandSignals(SignalHandler):
    """The handler of the command line: at first it only records signals; a second request ends the process at once."""

    def __init__(self) -> None:
        super().__init__()
        self._started = False

    def may_raise(self, number: int) -> bool:
        """After `start`; does not return for the second request."""
        if self.times > 1:
            self.finish()
            signal.raise_signal(number)
        return self._started

    def start(self) -> None:
        """Raise the `Interrupted` of a signal that has arrived already, and of all later ones."""
        self._started = True
        if self.received is not None:
            raise Interrupted(self.received)

    def finish(self) -> None:
        """From now on, a signal ends the process at once: all that is left is to print a message and exit."""
        for number in SIGNALS:
            if signal.getsignal(number) is self:
                signal.signal(number, signal.SIG_DFL)

    def on_unraisable(self, info: Any) -> None:
        """Use as `sys.unraisablehook`: Python only prints what is raised in a destructor, so try again."""
        if isinstance(info.exc_value, Interrupted):
            self.retry()
        else:
            sys.__unraisablehook__(info)


@contextmanager
def handle_signals(handler: SignalHandler) -> Iterator[None]:
    """Call ``handler`` for `SIGNALS` while the block runs; outside the main thread, do nothing.

    A signal that is ignored stays ignored: nohup does this with SIGHUP, and shells with the SIGINT of background jobs.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        current = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: previous for number, previous in current.items() if previous is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, previous)


@contextmanager
def hold_signals() -> Iterator[None]:
    """Hold signals back while the block starts processes, which begin in the same way and call `accept_signals`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # the first process would start it, and accept signals again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def accept_signals() -> None:
    """Handle signals again in a process that was started by `hold_signals`, once its handlers are set."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
            return True
        frame = frame.f_back
    return False

"""Ctrl-C that tears nothing: asked for at any moment, taken only where everything is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether the user (SIGINT) or the machine (SIGTERM, as schedulers send before they kill) wants the run to end.

    Attributes:
        asked: a signal has come.
        hurried: a second one has come, and `KeyboardInterrupt` was raised wherever the program was.
    """

    def __init__(self) -> None:
        self.asked = False
        self.hurried = False
        self._allowed = False

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A block that may be left by `KeyboardInterrupt` at any point; one that was asked for before is raised now."""
        self._allowed = True
        try:
            if self.asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._allowed = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: ends an allowed block; else waits for one, unless asked twice."""
        self.hurried, self.asked = self.asked, True
        if self.hurried or self._allowed:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Take SIGINT and SIGTERM as an `Interruption` while the block runs; outside the main thread, nothing is taken."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, interruption.on_signal) for number in signals]
    try:
        yield interruption
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)

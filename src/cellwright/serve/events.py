"""Events for all open tabs: published from any thread, read by the event stream of each tab."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

_WAITING = 256
_PULSE_S = 15.0


class Events:
    """Hands each event to all subscribers. A tab that does not read is told to load everything again."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # `close` is called by the handler of a signal, too
        self._tabs: set[tuple[asyncio.AbstractEventLoop, asyncio.Queue[dict[str, Any] | None]]] = set()

    def publish(self, event: dict[str, Any]) -> None:
        """Send an event; safe for threads."""
        with self._lock:
            tabs = list(self._tabs)
        for loop, queue in tabs:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_put, queue, event)

    def close(self) -> None:
        """End all streams."""
        with self._lock:
            tabs = list(self._tabs)
        for loop, queue in tabs:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_put, queue, None)

    async def stream(self) -> AsyncIterator[bytes]:
        """The events of one tab as server-sent events."""
        tab = (asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None]())
        with self._lock:
            self._tabs.add(tab)
        try:
            yield b'data: {"kind": "hello"}\n\n'
            while True:
                try:
                    event = await asyncio.wait_for(tab[1].get(), _PULSE_S)
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                if event is None:
                    return
                yield b"data: " + json.dumps(event, allow_nan=False).encode() + b"\n\n"
        finally:
            with self._lock:
                self._tabs.discard(tab)


def _put(queue: asyncio.Queue[dict[str, Any] | None], event: dict[str, Any] | None) -> None:
    if event is not None and queue.qsize() >= _WAITING:
        while not queue.empty():
            queue.get_nowait()
        event = {"kind": "reload"}
    queue.put_nowait(event)

"""The process that does the jobs of the page: `python -m cellwright.serve.worker`, started by `serve.jobs`.

It stays warm: packages and compiled loops are loaded once. Messages are JSON, one a line. It reads ``{"job": order}``
and ``{"cancel": id}`` from standard input, and writes events to standard output:

    {"job": id, "event": "note" | "progress" | "step" | "evaluation", ...}
    {"job": id, "event": "done", "result": {...}}, "failed" with a message, or "cancelled"

Whatever libraries print goes to standard error. A job is cancelled as Ctrl-C cancels a command: by SIGINT, so that
training saves a checkpoint. When standard input ends, the server is gone: the job is cancelled, and the process ends.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Literal, TextIO, TypeVar

from cellwright.core.errors import CellwrightError
from cellwright.core.events import LOGGER, event_of, plain
from cellwright.core.files import place_error
from cellwright.core.interrupts import Interrupted, SignalHandler, handle_signals
from cellwright.core.memory import keep_freed_memory, memory_error
from cellwright.core.progress import Description
from cellwright.models import openvino_graph
from cellwright.serve.tasks import Order

T = TypeVar("T")
EVERY_S = 0.2  # seconds between two reports about the progress
GRACE_S = 30.0  # for a cancelled job to end, once the server is gone


class PipeReporter:
    """A `ProgressReporter` that writes to the server. What training reports comes through the log, see `_LogPipe`."""

    quiet = True
    log_format: Literal["text", "json"] = "text"

    def __init__(self, send: Any) -> None:
        self._send = send

    def note(self, text: str) -> None:
        """Send a line of information."""
        self._send("note", {"text": text})

    def track(self, items: Iterable[T], description: Description, total: int | None = None) -> Iterable[T]:
        """Send how many items are done, a few times per second."""
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        sent_at = -EVERY_S
        for done, item in enumerate(items):
            if time.monotonic() - sent_at >= EVERY_S:
                sent_at = time.monotonic()
                text = description if isinstance(description, str) else description()
                self._send("progress", {"text": text, "done": done, "total": total})
            yield item


class _LogPipe(logging.Handler):
    """Sends what the library logs: steps of a training a few times per second, evaluations, notes and warnings."""

    def __init__(self, send: Any) -> None:
        super().__init__(logging.DEBUG)
        self._send, self._sent_at = send, -EVERY_S

    def emit(self, record: logging.LogRecord) -> None:
        event, fields = event_of(record)
        if event == "step":
            last = fields.get("step") == fields.get("total_steps")
            if not last and time.monotonic() - self._sent_at < EVERY_S:
                return
            self._sent_at = time.monotonic()
        elif record.levelno < logging.INFO or event == "failure":  # failures are part of the result, in groups
            return
        self._send(event if event in ("step", "evaluation") else "note", fields)


class Worker:
    """Reads orders and does them, one at a time."""

    def __init__(self, answers: TextIO) -> None:
        self._answers, self._writing, self._lock = answers, threading.Lock(), threading.Lock()
        self._inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._current: str | None = None
        self._cancelled: set[str] = set()

    def run(self, lines: TextIO) -> None:
        """Do orders until ``lines`` end."""
        signal.signal(signal.SIGINT, lambda *_: None)  # between jobs, there is nothing to cancel
        threading.Thread(target=self._listen, args=(lines,), daemon=True).start()
        self._warm_up()
        while (order := self._inbox.get()) is not None:
            self._do(order)

    def _warm_up(self) -> None:
        """Import what takes seconds while nobody waits; a job that needs it fails with the reason if it cannot."""
        with suppress(ImportError):
            openvino_graph.warm_up()

    def _listen(self, lines: TextIO) -> None:
        for line in lines:
            message = json.loads(line)
            if "cancel" in message:
                self._cancel(message["cancel"])
            else:
                self._inbox.put(message["job"])
        self._inbox.put(None)
        self._cancel(self._current)
        time.sleep(GRACE_S)
        os._exit(1)

    def _cancel(self, job: str | None) -> None:
        with self._lock:
            if job is None or job != self._current:
                self._cancelled.add(job or "")
            elif hasattr(signal, "pthread_kill"):  # also ends waiting, for a file or a process
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            else:
                signal.raise_signal(signal.SIGINT)

    def _set_current(self, job: str | None) -> bool:
        """Returns whether the job was cancelled before it began."""
        with self._lock:
            self._current = job
            return job in self._cancelled

    def _do(self, values: Mapping[str, Any]) -> None:
        job, handler = str(values["id"]), SignalHandler()

        def send(event: str, fields: Mapping[str, object]) -> None:
            line = json.dumps({"job": job, "event": event, **plain(dict(fields))}, allow_nan=False)
            with self._writing:
                self._answers.write(line + "\n")
                self._answers.flush()

        pipe, level = _LogPipe(send), LOGGER.level
        with handle_signals(handler):
            try:
                if self._set_current(job):
                    raise Interrupted(signal.SIGINT)
                LOGGER.addHandler(pipe)
                LOGGER.setLevel(logging.DEBUG)
                ended = "done", {"result": Order.from_json(values).run(PipeReporter(send))}
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - what ends a job is shown on the page
                ended = _explain(error, handler)
            while True:
                with suppress(Interrupted):  # a job that is done is not cancelled any more
                    self._set_current(None)
                    break
        LOGGER.removeHandler(pipe)
        LOGGER.setLevel(level)
        send(*ended)


def _explain(error: BaseException, handler: SignalHandler) -> tuple[str, dict[str, object]]:
    """The last event of a job that did not end well. Libraries may turn an interruption into another error."""
    if isinstance(error, KeyboardInterrupt) or handler.received is not None:
        number = handler.received or signal.SIGINT
        if number == signal.SIGINT:
            return "cancelled", {}
        return "failed", {"message": f"the worker was stopped by {signal.Signals(number).name}", "details": ""}
    if isinstance(error, OSError):
        error = place_error(error) or error
    elif isinstance(error, MemoryError | RuntimeError):
        error = memory_error(error) or error
    if isinstance(error, CellwrightError):
        problem, *details = str(error).splitlines()
        return "failed", {"message": problem, "details": "\n".join(details), "kind": type(error).__name__}
    text = "".join(traceback.format_exception(error))
    return "failed", {"message": f"an error in cellwright: {error!r}", "details": text, "kind": "bug"}


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    with suppress(OSError, AttributeError):  # the page stays responsive; Windows has no nice
        os.nice(5)
    keep_freed_memory()
    Worker(answers).run(open(0, encoding="utf-8", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()

"""A process that has imported everything, and forks a child for each trial: a trial costs milliseconds, not seconds.

As a program, ``python warm_process.py``, it reads one request per line from standard input:

    {"function": "module:name", "arguments": {...}, "seconds": 20, "memory": bytes or null, "folder": working directory}

and calls the function in a child: in a process group of its own, with a limit on its memory, and with standard output
and error in files in the folder. The function's first argument, ``emit``, sends a JSON value back. If nothing was sent
for that many seconds, the child is killed. `Warm` is the other end.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 20
MEMORY_BYTES = 3 << 30
Emit = Callable[[object], None]


@dataclass(frozen=True)
class End:
    """How a child ended: its exit status (negative: the signal), whether it hung and was killed, and what it used."""

    status: int
    hung: bool
    peak_bytes: int
    cpu_seconds: float


class Warm:
    """Starts the process and sends requests. Call `close` at the end."""

    def __init__(self) -> None:
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        environment = os.environ | one_thread | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "120"}
        command = [sys.executable, "-W", "error", __file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
        )

    def stream(
        self,
        function: str,
        folder: Path,
        *,
        seconds: float = SECONDS,
        memory: int | None = MEMORY_BYTES,
        **arguments: object,
    ) -> Iterator[Any]:
        """Call ``function`` ("module:name") in a child; yields what it emits, and then an `End`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        folder.mkdir(parents=True, exist_ok=True)
        request = {"function": function, "arguments": arguments, "seconds": seconds, "memory": memory}
        print(json.dumps({**request, "folder": str(folder)}, default=str), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            kind, value = json.loads(line)
            if kind == "end":
                yield End(**value)
                return
            yield value
        raise AssertionError(f"the warm process ended with {self._process.wait()}")

    def call(self, function: str, folder: Path, **options: Any) -> tuple[list[Any], End]:
        """Like `stream`, all at once."""
        *values, end = self.stream(function, folder, **options)
        return values, end

    def prepare(self, function: str, *arguments: object) -> Any:
        """Call ``function`` in the process itself, so that what it imports and compiles is there for all children."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"prepare": function, "arguments": arguments}, default=str), file=self._process.stdin)
        answer = self._process.stdout.readline()
        assert answer, f"the warm process ended with {self._process.wait()}"
        return json.loads(answer)[1]

    def close(self) -> None:
        self._process.communicate()


def output_of(folder: Path) -> str:
    """What the last child in this folder printed."""
    return "".join((folder / name).read_text(errors="replace") for name in ("stdout.txt", "stderr.txt"))


# --- the process ----------------------------------------------------------------------------------------------------


def _function(name: str) -> Callable[..., object]:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _run_child(request: dict[str, Any], pipe: int) -> None:
    """In the child: never returns."""
    status = 70
    try:
        os.setsid()
        os.chdir(request["folder"])
        for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        if request["memory"] is not None:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + request["memory"], used + request["memory"]))
        function = _function(request["function"])

        def emit(value: object) -> None:
            os.write(pipe, json.dumps(["value", value]).encode() + b"\n")

        function(emit, **request["arguments"])
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def _serve(request: dict[str, Any]) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run_child(request, writer)
    os.close(writer)
    hung, rest = False, b""
    while True:
        ready, _, _ = select.select([reader], [], [], request["seconds"])
        if not ready:
            hung = True
            break
        data = os.read(reader, 1 << 20)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            print(line.decode(), flush=True)
    os.close(reader)
    if hung:
        os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    end = {"status": os.waitstatus_to_exitcode(status), "hung": hung, "peak_bytes": usage.ru_maxrss * 1024}
    end["cpu_seconds"] = usage.ru_utime + usage.ru_stime
    print(json.dumps(["end", end]), flush=True)


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "prepare" in request:
            print(json.dumps(["prepared", _function(request["prepare"])(*request["arguments"])]), flush=True)
            gc.collect()
            gc.freeze()  # or the collector of each child would write to, and so copy, all of the memory
        else:
            _serve(request)


if __name__ == "__main__":
    main()

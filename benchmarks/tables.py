"""What other benchmarks share: Markdown tables, the processor, memory, and where the time goes."""

from __future__ import annotations

import re
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Environment variables with which glibc keeps freed memory, as `cw.keep_freed_memory` does.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
Part = tuple[str, Any, str]
"""A phase, and a function that belongs to it: its module, class or object, and its name there."""


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table; all rows have the same columns in the same order."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows)])


def processor() -> str:
    """The processor's name and those of its instruction sets that matter here, on Linux."""
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    own = set() if flags is None else set(flags[1].split())
    return f"{name[1] if name else 'processor'} with {', '.join(flag for flag in _INSTRUCTIONS if flag in own)}"


def reset_peak() -> None:
    """Sets the peak memory of this process, ``VmHWM``, to what it has now, on Linux."""
    Path("/proc/self/clear_refs").write_text("5")


def status_mb(field: str) -> float:
    """Memory of this process, MB: ``VmRSS`` now, ``VmHWM`` at its peak; without Linux, the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_seconds(step: Callable[[], object], repeat: int) -> list[float]:
    """CPU seconds of each of several calls."""
    seconds = []
    for _ in range(repeat):
        before = time.process_time()
        step()
        seconds.append(time.process_time() - before)
    return seconds


def in_kernels(step: Callable[[], object], most: int = 12) -> str:
    """A Markdown table of the PyTorch operations that take most time of their own in one call of ``step``."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    rows = [
        {"operation": event.key, "share": f"{event.self_cpu_time_total / whole:.3f}", "calls": event.count}
        for event in events[:most]
    ]
    return markdown(rows) + f"\n\n{whole / 1e6:.2f} s in all, PyTorch {torch.__version__}\n"


@contextmanager
def timed(parts: Sequence[Part], clock: Callable[[], float] = time.process_time) -> Iterator[dict[str, float]]:
    """Fills a dictionary with the seconds of phases, of all else, and of the whole; by default CPU seconds.

    A phase does not include those in it. Their names are ``outer: inner``.
    """
    seconds: dict[str, float] = defaultdict(float)
    running: list[tuple[str, list[float]]] = []  # name, and seconds of the phases inside

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            own = f"{running[-1][0]}: {name}" if running else name
            running.append((own, []))
            before = clock()
            try:
                return function(*args, **kwargs)
            finally:
                spent = clock() - before
                seconds[own] += spent - sum(running.pop()[1])
                if running:
                    running[-1][1].append(spent)

        return call

    originals = [getattr(owner, attribute) for _, owner, attribute in parts]
    own = [attribute in vars(owner) for _, owner, attribute in parts]
    for (name, owner, attribute), function in zip(parts, originals, strict=True):
        setattr(owner, attribute, wrapped(name, function))
    before = clock()
    yield seconds
    whole = clock() - before
    seconds |= {"all else": whole - sum(seconds.values()), "whole": whole}
    for (_, owner, attribute), function, is_own in zip(parts, originals, own, strict=True):
        setattr(owner, attribute, function) if is_own else delattr(owner, attribute)


def matrix_rates() -> dict[str, float]:
    """GFLOP/s of 2048 x 2048 matrices in float32 and bf16, with one thread."""
    import torch

    torch.set_num_threads(1)
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        first, second = (torch.ones((2048, 2048), dtype=dtype) for _ in range(2))
        seconds = []
        for _ in range(4):
            before = time.process_time()
            torch.mm(first, second)
            seconds.append(time.process_time() - before)
        rates[str(dtype).removeprefix("torch.")] = 2 * 2048**3 / min(seconds) / 1e9
    return rates


def roofline(gflop: Mapping[str, float], seconds: Mapping[str, Mapping[str, float]], rate: float) -> str:
    """A Markdown table of phases: work, what it would take at the rate of matrix products, and what it takes.

    gflop: of the phases that are convolutions or matrix products. seconds: of all phases, by what computes them. rate:
    GFLOP/s.
    """
    rows = []
    for phase in next(iter(seconds.values())):
        work = gflop.get(phase)
        row = {"phase": phase, "GFLOP": "", "s at the rate": ""}
        if work is not None:
            row |= {"GFLOP": f"{work:.3g}", "s at the rate": f"{work / rate:.2f}"}
        for backend, own in seconds.items():
            speed = None if work is None else work / own[phase]
            row[f"{backend}, s"] = f"{own[phase]:.2f}"
            row[f"{backend}, GFLOP/s"] = "" if speed is None else f"{speed:.0f}"
            row[f"{backend}, of the rate"] = "" if speed is None else f"{speed / rate:.2f}"
        rows.append(row)
    return markdown(rows)

"""What other benchmarks share: Markdown tables, the processor, and where the time of PyTorch goes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# Environment variables with which glibc keeps freed memory, as `cw.keep_freed_memory` does.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


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

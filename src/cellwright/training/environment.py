"""The process and machine that a run trains in: versions, device, threads, deterministic algorithms, signals."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cellwright.core.interrupts import Interrupted, SignalHandler, handle_signals
from cellwright.core.versions import PACKAGES, version_of


def describe_environment(
    device: torch.device, threads: int | None, inputs: dict[str, str], precision: str = "float32", n_devices: int = 1
) -> dict[str, Any]:
    """The content of ``environment.json`` as plain JSON values, without any path of this machine.

    Args:
        device: the device that the run trains on.
        threads: the number of CPU threads; None records torch's default.
        inputs: fingerprints (such as hashes) of the data and the initial weights, by name.
        precision: the precision of the forward pass, as `precision_for` gives it.
        n_devices: how many devices share every batch; ``device`` is that of the first process.
    """
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "git": git_state(Path(__file__).parent),
        "device": str(device),
        "devices": n_devices,
        "gpu": gpu,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "precision": precision,
        "threads": threads if threads is not None else torch.get_num_threads(),
        "inputs": inputs,
    }


@functools.cache
def git_state(folder: Path) -> dict[str, Any] | None:
    """``{"commit": hash, "changed": bool}`` of the git checkout that contains ``folder``, or None without one."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or _git(folder, "ls-files", "--error-unmatch", "environment.py") is None:
        return None  # no checkout, or an installed package that happens to be inside another project's checkout
    return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def peak_memory_mb(device: torch.device) -> float | None:
    """Peak memory so far, MiB: of the GPU when training on CUDA, else of this process; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@contextmanager
def reproducible(threads: int, *, deterministic: bool) -> Iterator[None]:
    """Set torch's thread count and choice of algorithms for one run, and restore the caller's settings afterwards."""
    settings: Any = torch.utils.deterministic
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic or before[1])
    # Filling new memory with NaN helps to detect reads of uninitialised values, but slows down every allocation.
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        settings.fill_uninitialized_memory = before[2]


class Interruption(SignalHandler):
    """Whether the user or the system has asked the run to stop, by one of `SIGNALS`.

    A signal does not interrupt a training step: it takes effect at the next block marked by `allowed`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._allowed = False

    @property
    def hurried(self) -> bool:
        """Whether a second signal has arrived, and was raised immediately."""
        return self.times > 1

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A block that `Interrupted` may leave at any point; a pending request is raised at its start."""
        self._allowed = True
        try:
            if self.received is not None:
                raise Interrupted(self.received)
            yield
        finally:
            self._allowed = False

    def may_raise(self, number: int) -> bool:
        """Inside an allowed block, or at the second signal."""
        return self.hurried or self._allowed


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Handle `SIGNALS` with an `Interruption` while the block runs; outside the main thread, do nothing."""
    interruption = Interruption()
    with handle_signals(interruption):
        yield interruption

"""What a result is made with: versions, state of the source, device, threads, and the choice of algorithms."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("cellwright", "torch", "torchvision", "numpy", "scipy", "opencv-python-headless", "safetensors")


def describe_environment(device: torch.device, threads: int | None, inputs: dict[str, str]) -> dict[str, Any]:
    """Plain JSON values for ``environment.json``; holds no path of the machine.

    Args:
        device: that the run trains on.
        threads: CPU threads asked for; None: torch's choice, which is recorded.
        inputs: name to fingerprint (such as a hash) of data and initial weights.
    """
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "git": git_state(Path(__file__).parent),
        "device": str(device),
        "gpu": gpu,
        "threads": threads if threads is not None else torch.get_num_threads(),
        "inputs": inputs,
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """``{"commit": hash, "changed": bool}`` of the checkout around ``folder``; None where it is none."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or _git(folder, "ls-files", "--error-unmatch", "environment.py") is None:
        return None  # no checkout, or an installed package that happens to lie inside somebody else's
    return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def peak_memory_mb(device: torch.device) -> float | None:
    """Most memory used so far, MiB: of the GPU when training on CUDA, else of this process; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@contextmanager
def reproducible(threads: int, *, deterministic: bool) -> Iterator[None]:
    """Torch's thread count and choice of algorithms for one run; what the caller had is restored."""
    settings: Any = torch.utils.deterministic
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic or before[1])
    # Filling fresh memory with NaN helps to find reads of it, but costs time at every allocation.
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        settings.fill_uninitialized_memory = before[2]

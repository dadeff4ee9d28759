"""``doctor``: versions, bundled models, installed extras, and (on request) the device."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata

from cyclopts import Parameter

from cellwright import __version__
from cellwright.core.cache import cache_folder, code_folder
from cellwright.core.needs_torch import INSTALL, torch_is_installed
from cellwright.core.versions import version_of

PACKAGES = ("numpy", "scipy", "openvino", "torch", "torchvision", "scikit-image", "opencv-python-headless", "numba")
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+).*extra\s*==\s*['\"]([A-Za-z0-9._-]+)['\"]")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DoctorPlan:
    """Show versions, bundled models and installed extras; on request, the device."""

    device: bool = False
    """Load PyTorch, and show the device that it uses, or why it finds no GPU, and whether the processor has bf16 (takes
    a few seconds)."""


def facts(plan: DoctorPlan | None = None) -> list[tuple[str, str]]:
    """Pairs of a name and a value. Imports PyTorch only if ``plan.device`` is set."""
    from cellwright.api.models import NAMED_MODELS

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        ("cellwright", __version__),
        ("Python", platform.python_version()),
        ("system", platform.platform()),
        *((name, version_of(name) or "not installed") for name in PACKAGES),
        ("CPU cores", str(cores)),
        *_cache(),
        *(_device() if plan is not None and plan.device else ()),
        *((f"model {name}", description) for name, description in NAMED_MODELS.items()),
        *extras(),
    ]


def _cache() -> list[tuple[str, str]]:
    """Where cellwright keeps files outside of outputs."""
    code = code_folder()
    rows = [("cache", str(cache_folder() or "none: no folder for caches or temporary files can be written"))]
    if code is None:
        rows.append(("compiled code", "not kept: each command takes longer to start; set XDG_CACHE_HOME to a folder"))
    elif "NUMBA_CACHE_DIR" in os.environ:
        rows.append(("compiled code", str(code)))
    return rows


def extras() -> list[tuple[str, str]]:
    """The extras in the metadata of the installed package, and which of their packages are installed."""
    try:
        installed = metadata.metadata("cellwright")
    except metadata.PackageNotFoundError:
        return [("extras", "unknown: cellwright runs from its source and is not installed")]
    packages: dict[str, list[str]] = {name: [] for name in installed.get_all("Provides-Extra") or ()}
    for requirement in installed.get_all("Requires-Dist") or ():
        if (match := _REQUIREMENT.match(requirement)) and match[2] in packages:
            packages[match[2]].append(match[1])
    rows = []
    for extra, names in packages.items():
        missing = [name for name in names if version_of(name) is None]
        versions = ", ".join(f"{name} {version_of(name)}" for name in names)
        how = f'pip install "cellwright[{extra}]"'
        rows.append((f"extra {extra}", f"missing {', '.join(missing)}: {how}" if missing else f"installed: {versions}"))
    return rows


def _device() -> list[tuple[str, str]]:
    from cellwright.models import openvino_graph

    rows = []
    if openvino_graph.is_installed():
        has_bf16 = openvino_graph.has_bf16()
        rows.append(("bf16", "yes: the backend openvino-bf16 works" if has_bf16 else "no: not on this processor"))
    if not torch_is_installed():
        return [*rows, ("GPU", f"none: PyTorch is not installed ({INSTALL})")]
    import torch

    rows.append(("PyTorch threads", str(torch.get_num_threads())))
    if torch.cuda.is_available():
        gpu = ", ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
    elif torch.backends.mps.is_available():
        gpu = "Apple mps"
    elif torch.version.cuda is None and torch.version.hip is None:
        gpu = "none: this PyTorch is built for the CPU only"
    else:
        gpu = f"none: PyTorch is built for CUDA {torch.version.cuda}, but finds no driver or no GPU"
    return [*rows, ("GPU", gpu)]

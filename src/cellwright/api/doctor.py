"""What this machine has: versions, device, and why there is no GPU."""

from __future__ import annotations

import os
import platform
from importlib import metadata, util

from cellwright import __version__

SHOWN = ("numpy", "scipy", "torch", "torchvision", "scikit-image", "opencv-python-headless", "numba")
EXTRAS = ("tensorboard", "timm", "onnx", "openvino", "zarr", "openslide", "fastapi", "napari")


def facts() -> list[tuple[str, str]]:
    """Pairs (what, found)."""
    import torch

    rows = [("cellwright", __version__), ("Python", platform.python_version()), ("system", platform.platform())]
    rows += [(name, metadata.version(name)) for name in SHOWN]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows += [("CPU cores", str(cores)), ("torch threads", str(torch.get_num_threads()))]
    rows.append(("GPU", _gpu(torch)))
    rows += [(f"extra {name}", "installed" if util.find_spec(name) else "not installed") for name in EXTRAS]
    return rows


def _gpu(torch) -> str:
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        return "Apple mps"
    if torch.version.cuda is None and torch.version.hip is None:
        return "none: this torch is built for the CPU only"
    return f"none: torch is built for CUDA {torch.version.cuda}, but no driver or card answers"

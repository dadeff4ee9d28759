"""What `train.precision: auto` means on a device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch

from cellwright.config.model_dense import DenseConfig
from cellwright.config.recipe import Recipe

Precision = Literal["float32", "bf16", "fp16"]
_OF_AMPERE = 8, 0  # the compute capability from which CUDA devices compute in bf16


def precision_for(recipe: Recipe, device: torch.device) -> Precision:
    """The precision of a training on ``device``: that of the recipe, or for ``auto`` the fastest that is safe.

    That is bf16 for U-Nets where the device computes it fast. R-CNNs, whose published results are of float32, keep it.
    """
    precision = recipe.train.precision
    if precision != "auto":
        return precision
    return "bf16" if isinstance(recipe.model, DenseConfig) and is_bf16_fast(device) else "float32"


def is_bf16_fast(device: torch.device) -> bool:
    """Whether ``device`` has instructions for bf16; without them, bf16 is slower than float32, on a CPU many times."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _OF_AMPERE
    return device.type == "cpu" and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_processor_flags())


def _processor_flags() -> frozenset[str]:
    """The names of the processor's instruction sets; none where the system is not Linux."""
    try:
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset() if flags is None else frozenset(flags[1].split())

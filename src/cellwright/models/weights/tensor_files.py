"""Tensors into a safetensors file, for model folders and checkpoints alike."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` by name, not atomically. Raises `OSError`, also for what safetensors calls by another name."""
    # Copies, because safetensors refuses views and tensors that share memory.
    owned = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(owned, path)
    except SafetensorError as error:
        # It keeps the number in its text only ("os error 28").
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else 0
        raise OSError(code, os.strerror(code) if code else str(error)) from error
    path.chmod(mode)  # safetensors lets nobody but the owner read its files

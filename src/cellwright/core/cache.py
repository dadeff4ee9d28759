"""The only folder outside of outputs where cellwright writes: files that can be made or downloaded again.

It is `cellwright` in the user's folder for caches: ``$XDG_CACHE_HOME``, else ``~/.cache``, on macOS
``~/Library/Caches``, on Windows ``%LOCALAPPDATA%``. Where that cannot be written, it is a folder for temporary files.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Where other packages keep files, as environment variables that they read, and the names of our subfolders for them.
_OF_PACKAGES = {
    "MPLCONFIGDIR": "matplotlib",
    "TORCH_HOME": "torch",
    "HF_HUB_CACHE": "huggingface",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
}


def cache_folder() -> Path | None:
    """The folder, which exists after the call; None where none can be written.

    It contains compiled code, so a folder that other users own or can write is not taken.
    """
    return next((folder for folder in _candidates() if _is_usable(folder)), None)


def code_folder() -> Path | None:
    """Where compiled kernels are kept: numba's ``$NUMBA_CACHE_DIR`` if it is set, else in the cache folder."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(chosen)
    return None if (folder := cache_folder()) is None else folder / "numba"


def keep_in_cache_folder() -> None:
    """Have other packages keep their files in the cache folder too, unless the user has chosen a place for them.

    For a process of our own, before these packages are imported.
    """
    if (folder := cache_folder()) is not None:
        for variable, name in _OF_PACKAGES.items():
            os.environ.setdefault(variable, str(folder / name))


def _candidates() -> Iterator[Path]:
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home raises where there is none
    chosen = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    user = Path(chosen) if chosen else home / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    if user.is_absolute():
        yield user / "cellwright"
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError:
        return
    name = "cellwright" if sys.platform == "win32" else f"cellwright-{os.geteuid()}"
    if not (temporary / name).is_symlink():
        yield temporary / name


def _is_usable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return False
    if sys.platform != "win32" and (status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        return False
    return os.access(folder, os.W_OK | os.X_OK)

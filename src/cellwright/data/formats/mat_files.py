"""Arrays in MATLAB files: up to version 7 with SciPy, version 7.3, which is HDF5, with the extra ``h5py``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError, InputError
from cellwright.core.files import first_bytes, unreadable
from cellwright.core.memory import check_memory

_HDF5 = b"\x89HDF\r\n\x1a\n"
_HEADER_BYTES = 512  # of MATLAB 7.3, before the signature of HDF5
_MAX_RATIO = 20_000  # of decoded to stored bytes


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, as MATLAB 7.3 and h5py write it."""
    start = first_bytes(path, _HEADER_BYTES + len(_HDF5))
    return start.startswith(_HDF5) or start[_HEADER_BYTES:] == _HDF5


def mat_names(path: Path) -> list[str] | None:
    """The names of the variables in a file; empty if it is no MATLAB file, None if only h5py could tell.

    Never raises.
    """
    with suppress(Exception):  # a damaged file raises whatever its parser raises
        if is_hdf5(path):
            h5py = _h5py()
            if h5py is None:
                return None
            with h5py.File(path, "r") as file:
                return list(file)
        if b"MATLAB" in first_bytes(path, 128):
            from scipy.io import whosmat

            return [name for name, _, _ in whosmat(path)]
    return []


def read_mat(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """The variables ``names`` of a file, as far as it has them.

    Raises `FormatError` for a file that is damaged, and for MATLAB 7.3 without h5py.
    """
    try:
        return _read_hdf5(path, names) if is_hdf5(path) else _read_old(path, names)
    except InputError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:
        got = f"{type(error).__name__}: {error}"[:200]
        remedy = "get a fresh copy, or save it in MATLAB with save(..., '-v7')"
        raise FormatError("this MATLAB file cannot be read", where=path, got=got, remedy=remedy) from error


def _read_old(path: Path, names: Sequence[str]) -> dict[str, Any]:
    from scipy.io import loadmat

    return loadmat(path, variable_names=list(names))


def _read_hdf5(path: Path, names: Sequence[str]) -> dict[str, Any]:
    h5py = _h5py()
    if h5py is None:
        raise FormatError(
            "this is a file of MATLAB 7.3, which is read with h5py",
            where=path,
            got="h5py is not installed",
            remedy="pip install \"cellwright[h5py]\", or save the file in MATLAB with save(..., '-v7')",
        )
    content = {}
    with h5py.File(path, "r") as file:
        for name in names:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                continue  # absent, or in another file
            stored = file[name]
            if not isinstance(stored, h5py.Dataset) or stored.dtype.kind not in "biuf":
                continue
            if stored.is_virtual or stored.external:
                raise FormatError("a variable is stored in another file", where=f"{path}, {name}", expected="one file")
            n_bytes = math.prod(stored.shape) * stored.dtype.itemsize
            if n_bytes > _MAX_RATIO * path.stat().st_size:
                got = f"{n_bytes:.3g} bytes in a file of {path.stat().st_size}"
                remedy = "get a fresh copy, or save it in MATLAB with save(..., '-v7')"
                raise FormatError(
                    "a variable is too large for its file", where=f"{path}, {name}", got=got, remedy=remedy
                )
            check_memory(n_bytes, "this variable", where=f"{path}, {name}")
            # MATLAB stores the first axis as the last one; what h5py writes by itself has no class.
            values = np.asarray(stored[()])
            content[name] = values.T if "MATLAB_class" in stored.attrs else values
    return content


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        return None
    return h5py

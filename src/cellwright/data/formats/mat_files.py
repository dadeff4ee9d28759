"""Arrays in MATLAB files: up to version 7 with SciPy, version 7.3, which is HDF5, with the extra ``h5py``."""

from __future__ import annotations

import math
import struct
import zlib
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
# Of MATLAB files up to version 7: types of elements, bytes of a value by type, and the classes of arrays of numbers.
_MATRIX, _COMPRESSED = 14, 15
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
_NUMERIC = range(6, 16)
_HEAD_BYTES = 1 << 16


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

            _check_old(path, ())
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

    _check_old(path, names)
    return loadmat(path, variable_names=list(names))


def _check_old(path: Path, names: Sequence[str]) -> None:
    """Raise `ValueError` or `struct.error` for damage at which SciPy 1.17 crashes or asks for any amount of memory.

    Looked at are the sizes of all elements, the header of each variable, and the type and size of the values of the
    variables ``names``. (MathWorks, "MAT-File Format", level 5.)
    """
    data = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}[data[126:128]]
    at = 128
    while at + 8 <= len(data):
        kind, size = struct.unpack(order + "2I", data[at : at + 8])
        if size > len(data) - at - 8:
            raise ValueError(f"an element of {size} bytes, of which {len(data) - at - 8} are there")
        start = at + 8
        at = start + size
        if kind == _COMPRESSED:
            _check_variable(zlib.decompressobj().decompress(data[start:at], _HEAD_BYTES), order, names, path)
        elif kind == _MATRIX:
            _check_variable(data[start - 8 : min(at, start + _HEAD_BYTES)], order, names, path)


def _check_variable(head: bytes, order: str, names: Sequence[str], path: Path) -> None:
    """See `_check_old`. head: the beginning of a matrix element."""
    kind, _ = struct.unpack(order + "2I", head[:8])
    if kind != _MATRIX:
        raise ValueError(f"an element of type {kind} instead of an array")
    at, parts = 8, []
    for _ in range(3):
        kind, size, start, at = _element(head, at, order)
        parts.append((kind, head[start : start + size]))
    (_, flags), (_, sizes), (_, name) = parts
    if [kind for kind, _ in parts] != [6, 5, 1] or len(flags) != 8 or not 8 <= len(sizes) <= 256 or len(sizes) % 4:
        raise ValueError("an array without a valid header")
    if name.decode("latin-1") not in names:
        return
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    kind, size, _, _ = _element(head, at, order)
    is_numeric = struct.unpack(order + "I", flags[:4])[0] & 0xFF in _NUMERIC and kind in _VALUE_BYTES
    if not is_numeric or min(shape) < 0 or math.prod(shape) * _VALUE_BYTES[kind] != size:
        raise ValueError(f"{name.decode('latin-1')} is not an array of numbers of the size {shape}")
    check_memory(8 * math.prod(shape), "this variable", where=path)


def _element(data: bytes, at: int, order: str) -> tuple[int, int, int, int]:
    """Type and size of the element at ``at``, where its content begins, and where the next element does."""
    kind, size = struct.unpack(order + "2I", data[at : at + 8])
    if kind >> 16:  # up to 4 bytes, in the tag itself
        return kind & 0xFFFF, min(kind >> 16, 4), at + 4, at + 8
    return kind, size, at + 8, at + 8 + size + -size % 8


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

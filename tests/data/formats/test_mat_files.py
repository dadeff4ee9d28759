"""MATLAB files up to version 7: what SciPy cannot stand is found before it reads."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from cellwright.core.errors import FormatError
from cellwright.data.formats.mat_files import mat_names, read_mat

ARRAYS = {
    "inst_map": np.arange(12, dtype=np.int32).reshape(3, 4),
    "id": np.array([[1.5]]),
    "centroid": np.zeros((0, 2)),
    "flat": np.arange(5, dtype=np.uint8)[None],
    "word": np.array(["a", "bc"], dtype=object),
}


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_of_numbers_are_read(compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, ARRAYS, do_compression=compressed)
    assert mat_names(path) == list(ARRAYS)
    read = read_mat(path, ["inst_map", "id", "centroid", "flat", "absent"])
    for name in ("inst_map", "id", "centroid", "flat"):
        np.testing.assert_array_equal(read[name], ARRAYS[name])
    with pytest.raises(FormatError, match="word is not an array of numbers"):
        read_mat(path, ["word"])


_TAGS = [
    (56, (0x573, 0)),  # a type of values that does not exist: SciPy 1.17 ends the process
    (56, (5, 0x7FFFFFF0)),
    (24, (5, 1 << 20)),
]


@pytest.mark.parametrize(
    ("compressed", "at", "tag"),
    [*((False, *tag) for tag in _TAGS), *((True, *tag) for tag in _TAGS), (False, 0, (14, 0x7F00_0000))],
)
def test_damage_is_an_error(compressed: bool, at: int, tag: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"inst_map": ARRAYS["inst_map"]})
    data = path.read_bytes()
    head, element = data[:128], bytearray(data[128:])
    assert struct.unpack("<2I", element[56:64]) == (5, 48)
    element[at : at + 8] = struct.pack("<2I", *tag)
    packed = zlib.compress(bytes(element))
    path.write_bytes(head + (struct.pack("<2I", 15, len(packed)) + packed if compressed else bytes(element)))
    with pytest.raises(FormatError, match="this MATLAB file cannot be read"):
        read_mat(path, ["inst_map"])

"""The restricted unpickler: data is read as `pickle` reads it, and no code runs."""

from __future__ import annotations

import collections
import functools
import io
import os
import pickle

import numpy as np
import pytest

from cellwright.core.errors import FormatError, InputError
from cellwright.core.unpickle import read_npy_object, read_pickle

PLAIN = {
    "masks": np.arange(12, dtype=np.uint16).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i4"),
    "texts": np.array(["a", "bc"]),
    "bytes": np.array([b"a", b"bc"]),
    "empty": np.zeros((0, 3)),
    "zero axes": np.array(1.5),
    "scalar": np.float32(3.5),
    "flags": np.array([True, False]),
    "nested": [1, (2.5, None), {"ä": b"xy"}, {3, 4}, bytearray(b"ab")],
    "ordered": collections.OrderedDict(a=1),
    "long": 10**30,
}


def load(data: bytes):
    return read_pickle(io.BytesIO(data), where="a.pkl")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_is_read_as_by_pickle(protocol):
    data = pickle.dumps(PLAIN, protocol=protocol)
    ours, theirs = load(data), pickle.loads(data)
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        if isinstance(value, np.ndarray):
            assert ours[key].dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
            np.testing.assert_array_equal(ours[key], value)
        else:
            assert ours[key] == value, key


def test_object_arrays():
    array = np.array([[1, 2], None, {"x": np.arange(2)}], dtype=object)
    ours = load(pickle.dumps(array))
    assert ours.dtype == object
    assert ours[0] == [1, 2]
    assert ours[2]["x"].tolist() == [0, 1]


def test_python_2_strings_are_latin_1():
    # A protocol 2 pickle written by Python 2: {'w': array([1], dtype=int16)}, like the weights of Caffe2.
    data = (
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01\x85"
        b"cnumpy\ndtype\nU\x02i2K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x01\x00tbs."
    )
    assert load(data)["w"].tolist() == [1]


class Calls:
    """Pickles as a call of an arbitrary function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


MALICIOUS = {
    "os.system": Calls(os.system, "touch OWNED"),
    "eval": Calls(eval, "open('OWNED', 'w')"),
    "open": Calls(open, "OWNED", "w"),
    "getattr": Calls(getattr, "text", "upper"),
    "partial": functools.partial(print, "OWNED"),
    "a module's function": os.listdir,
    "a class": Calls,
    "an object": collections.Counter("abc"),
    "np.load": Calls(np.load, "OWNED.npy", None, True),
    "np.memmap": Calls(np.memmap, "OWNED", np.uint8, "w+", 0, (4,)),
}


@pytest.mark.parametrize("what", MALICIOUS)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_and_does_nothing(what, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for data in (MALICIOUS[what], {"masks": np.zeros((2, 2), int), "img": [MALICIOUS[what]]}):
        with pytest.raises(FormatError, match="more than data"):
            load(pickle.dumps(data, protocol=protocol))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy\nndarray\n(I1000000000000\ntR.",  # an array of a terabyte
        b"c__builtin__\nbytearray\n(I1000000000000\ntR.",
        b"cnumpy\ndtype\n(S'V8'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n.",  # the function itself
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR.",  # an array without content
        b"cnumpy\ndtype\n}S'x'\nI1\nsb.",  # a state for a function
        b"(lp0\ng0\na.",  # a list that contains itself
        b"(i__builtin__\nobject\n.",
        b"\x82\x01.",
        b"Pxx\n.",
        b"." * 3,
        b"",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"]" * 5000 + b"a" * 4999 + b".",
    ],
)
def test_damaged_bytes_raise_a_format_error(data):
    with pytest.raises(FormatError) as caught:
        load(data)
    assert "a.pkl" in str(caught.value)


def test_npy_files_of_objects_and_of_numbers(tmp_path):
    np.save(tmp_path / "a_seg.npy", PLAIN)
    np.save(tmp_path / "b.npy", np.arange(4))
    assert read_npy_object(tmp_path / "a_seg.npy")["long"] == 10**30
    assert read_npy_object(tmp_path / "b.npy").tolist() == [0, 1, 2, 3]


def test_damaged_npy_files(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(400))
    np.save(tmp_path / "o.npy", {"masks": np.arange(400)})
    for name in ("a.npy", "o.npy"):
        data = (tmp_path / name).read_bytes()
        for cut in (0, 5, 40, 140, len(data) - 3):
            (tmp_path / "cut.npy").write_bytes(data[:cut])
            with pytest.raises(FormatError, match="npy"):
                read_npy_object(tmp_path / "cut.npy")
    with pytest.raises(InputError, match="cannot read"):
        read_npy_object(tmp_path / "absent.npy")

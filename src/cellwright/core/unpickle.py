"""Restricted unpickler: reads the pickles of other tools (plain containers and numpy arrays) without running code.

A pickle is a program, and `pickle.load` may call any function. This module uses the pure-Python unpickler of the
standard library with three instructions replaced:

- a global name is looked up in the table `NAMES`, and refused if it is not there;
- a call is executed only if its target is one of the functions of that table;
- a state is set only on the stand-ins for numpy's ``dtype`` and ``ndarray``, which check it and build the array from
  bytes themselves, so that the C code of numpy never receives the state from a malicious file.

Time and memory are bounded: by the number of instructions, by the bytes that calls create in proportion to the file,
and by keys of dictionaries and sets being text, bytes or numbers, whose hashes cannot be made to collide or to take
forever.

The C unpickler is not used, because a few bytes make it allocate gigabytes (memo indices), and because it offers no way
to restrict calls.
"""

# The pure-Python unpickler is not in the type stubs.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import ast
import io
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from cellwright.core.errors import FormatError
from cellwright.core.files import unreadable

_MAX_DEPTH = 200
_MAX_HEADER = 10_000  # the limit of numpy itself
_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|c(?:8|16)|[SU]\d{1,6}|O8?|\?|[bBhHiIlLqQefdFD])")
_NPY_MAGIC = b"\x93NUMPY"
# What the unpickler of the standard library raises for bytes that are not a pickle.
BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error,
    OverflowError, MemoryError, AssertionError, RecursionError,
)  # fmt: skip


# Instructions of one pickle, each of which takes about 100 bytes and a microsecond; weights have some thousands.
_MAX_INSTRUCTIONS = 1_000_000
# Bytes that calls may create, per byte of the file, and in addition.
_MAX_CREATED, _SMALL = 4, 1 << 20
_MAX_KEY_BITS, _MAX_BITS = 60, 128


class Refused(Exception):
    """The pickle contains something other than data; the message says what."""


class _Dtype:
    """Stand-in for `numpy.dtype` while a pickle is read."""

    def __init__(self, spec: object) -> None:
        name = spec.decode("latin1") if isinstance(spec, bytes) else spec
        if not isinstance(name, str) or not _DTYPE.fullmatch(name):
            raise Refused(f"an array of type {str(name)[:40]!r}")
        self.dtype = np.dtype(name)

    def set_state(self, state: object) -> None:
        # (version, byte order, subarray, names, fields, itemsize, alignment, flags[, metadata])
        if not isinstance(state, tuple) or len(state) < 8 or any(item is not None for item in state[2:5]):
            raise Refused("a structured array type")
        order, itemsize = _as_text(state[1]), state[5]
        if order not in ("<", ">", "|", "="):
            raise Refused(f"an array type of byte order {order[:10]!r}")
        kind = self.dtype.kind
        if kind in "SU" and isinstance(itemsize, int) and itemsize > 0:
            self.dtype = np.dtype(f"{kind}{itemsize // (4 if kind == 'U' else 1)}")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stand-in for `numpy.ndarray` while a pickle is read; `value` is the array, or None until its state is set."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def set_state(self, state: object) -> None:
        # (version, shape, dtype, fortran order, raw bytes or list of objects)
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise Refused("an array state of an unknown version")
        shape, dtype, fortran, raw = state[-4:]
        self.value = _build_array(raw, dtype, shape, "F" if fortran else "C")


def _as_text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _build_array(raw: object, dtype: object, shape: object, order: str) -> np.ndarray:
    """The array of ``shape`` from its bytes, or from a list for an object array; the sizes must match exactly."""
    if not isinstance(dtype, _Dtype):
        raise Refused("an array without an array type")
    if isinstance(shape, int):
        shape = (shape,)
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise Refused("an array without a valid shape")
    count = 1
    for side in shape:
        count *= side
    if dtype.dtype.kind == "O":
        if not isinstance(raw, list) or len(raw) != count:
            raise Refused("an object array whose list does not match its shape")
        array = np.empty(count, dtype=object)
        array[:] = [None] * count
        for index, item in enumerate(raw):
            array[index] = item
        return array.reshape(shape, order="F" if order == "F" else "C")
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(data, bytes | bytearray) or len(data) != count * dtype.dtype.itemsize:
        raise Refused("an array whose bytes do not match its shape")
    flat = np.frombuffer(bytes(data), dtype=dtype.dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C").copy()


def _make_dtype(spec: object, *_align_copy: object) -> _Dtype:
    return _Dtype(spec)


def _reconstruct(kind: object, *_shape_and_type: object) -> _Array:
    if kind is not _ndarray:
        raise Refused("an array of a subclass")
    return _Array()


def _ndarray(*_arguments: object) -> _Array:
    raise Refused("an array created by calling ndarray")


def _frombuffer(raw: object, dtype: object, shape: object, order: object = "C") -> _Array:
    array = _Array()
    array.value = _build_array(raw, dtype, shape, _as_text(order))
    return array


def _scalar(dtype: object, raw: object) -> Any:
    return _build_array(raw if not isinstance(raw, _Array) else b"", dtype, (), "C")[()]


def _encode(text: object, encoding: object = "latin1") -> bytes:
    # Protocol 2 stores bytes as a call of `_codecs.encode(text, "latin1")`.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("a text encoder")
    return text.encode("latin1")


def check_keys(keys: Iterable[object]) -> None:
    """Raise `Refused` for keys of dictionaries and sets that are not plain.

    A tuple of tuples may take years to hash, and long integers may be made to have the same hash.
    """
    for key in keys:
        is_int = isinstance(key, int) and key.bit_length() <= _MAX_KEY_BITS
        if not is_int and not isinstance(key, str | bytes | float | None):
            raise Refused(f"a key of type {type(key).__name__} in a dictionary or set")


def _pairs(items: object) -> Iterable[tuple[Any, Any]]:
    pairs = list(items.items()) if isinstance(items, dict) else items
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise Refused("a dictionary created from something other than pairs")
    check_keys(key for key, _ in pairs)
    return pairs  # type: ignore[return-value]


def _ordered_dict(items: object = ()) -> OrderedDict[Any, Any]:
    return OrderedDict(_pairs(items or []))


def _set(items: object = ()) -> set[Any]:
    if not isinstance(items, list | tuple | set | frozenset):
        raise Refused("a set created from something other than a list")
    check_keys(items)
    return set(items)


def _bytes(*content: object) -> bytes:
    # A number would allocate that many bytes.
    if content and not isinstance(content[0], bytes | str):
        raise Refused("bytes created from something other than text or bytes")
    return _as_text(content[0]).encode("latin1") if content else b""


def _byte_array(*content: object) -> bytearray:
    return bytearray(_bytes(*content))


NAMES: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _make_dtype,
    ("numpy", "ndarray"): _ndarray,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _ordered_dict,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("builtins", "bytes"): _bytes,
    ("__builtin__", "bytes"): _bytes,
    ("builtins", "bytearray"): _byte_array,
    ("__builtin__", "bytearray"): _byte_array,
}


class DataUnpickler(pickle._Unpickler):
    """The pure-Python unpickler with restricted names, calls, states and costs, as the module docstring describes.

    data: a file in memory, so that it cannot claim more bytes than it has; several pickles may follow each other.
    file_bytes: the size of the file, if that is not ``data``.
    """

    dispatch: ClassVar[dict[int, Any]]  # set below
    names: Mapping[tuple[str, str], Any] = NAMES

    def __init__(self, data: io.BytesIO, file_bytes: int | None = None) -> None:
        super().__init__(data, encoding="latin1")
        n_bytes = data.getbuffer().nbytes if file_bytes is None else file_bytes
        self._instructions, self._creatable = _MAX_INSTRUCTIONS, _MAX_CREATED * n_bytes + _SMALL

    def count(self) -> None:
        """Count an instruction."""
        self._instructions -= 1
        if self._instructions < 0:
            raise Refused(f"more than {_MAX_INSTRUCTIONS} instructions")

    def create(self, value: Any) -> None:
        """Count the bytes of what a call created."""
        value = value.value if isinstance(value, _Array) else value
        size = getattr(value, "nbytes", None)
        self._creatable -= size if isinstance(size, int) else 8 * len(value) if hasattr(value, "__len__") else 0
        if self._creatable < 0:
            raise Refused("more data than the file has")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.names[module, name]
        except KeyError:
            raise Refused(f"the name {module}.{name}"[:120]) from None

    def get_extension(self, code: int) -> None:
        raise Refused(f"the extension code {code}")

    def persistent_load(self, pid: object) -> object:
        raise Refused("a persistent reference")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def _call(self, target: object, arguments: object) -> Any:
        is_known = callable(target) and any(target is function for function in self.names.values())
        if not is_known or not isinstance(arguments, tuple):
            raise Refused("a call of something that is not data")
        result = target(*arguments)
        self.create(result)
        return result

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise Refused(f"items for {type(target).__name__}")
        check_keys(items[::2])
        target.update(zip(items[::2], items[1::2], strict=True))

    def load_additems(self) -> None:
        items = self.pop_mark()
        check_keys(items)
        if not isinstance(self.stack[-1], set):
            raise Refused(f"items for {type(self.stack[-1]).__name__}")
        self.stack[-1].update(items)

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        check_keys(items)
        self.append(frozenset(items))

    def load_bytearray8(self) -> None:
        # The one of the standard library allocates what the file claims.
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def append_long(self, data: bytes) -> None:
        if len(data) > _MAX_BITS // 8:
            raise Refused(f"a number of {8 * len(data)} bits")
        self.append(pickle.decode_long(data))

    def load_long1(self) -> None:
        self.append_long(self.read(self.read(1)[0]))

    def load_long4(self) -> None:
        (length,) = struct.unpack("<i", self.read(4))
        if length < 0:
            raise Refused("a number of negative length")
        self.append_long(self.read(length))

    def load_refused(self) -> None:
        raise Refused("an instruction that creates objects of classes")

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, _Dtype | _Array):
            raise Refused(f"a state for {type(target).__name__}")
        target.set_state(state)
        self.create(target)


def _dispatch() -> dict[int, Any]:
    """What runs for each instruction; every one is counted first."""
    replaced = {
        pickle.REDUCE: "load_reduce",
        pickle.NEWOBJ: "load_newobj",
        pickle.BUILD: "load_build",
        pickle.SETITEM: "load_setitem",
        pickle.SETITEMS: "load_setitems",
        pickle.DICT: "load_dict",
        pickle.ADDITEMS: "load_additems",
        pickle.FROZENSET: "load_frozenset",
        pickle.BYTEARRAY8: "load_bytearray8",
        pickle.LONG1: "load_long1",
        pickle.LONG4: "load_long4",
        **dict.fromkeys(
            (pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER), "load_refused"
        ),
    }

    def counted(load: Callable[[Any], None]) -> Callable[[DataUnpickler], None]:
        def run(self: DataUnpickler) -> None:
            self.count()
            load(self)

        return run

    def named(name: str) -> Callable[[Any], None]:
        return lambda self: getattr(self, name)()

    handlers = pickle._Unpickler.dispatch | {code[0]: named(name) for code, name in replaced.items()}
    return {code: counted(load) for code, load in handlers.items()}


DataUnpickler.dispatch = _dispatch()


def read_pickle(file: BinaryIO, *, where: Path | str) -> Any:
    """The data in a pickle: None, bool, int, float, str, bytes, list, tuple, dict, set and numpy arrays, nested.

    Pickles of Python 2 are supported, with strings decoded as Latin-1. ``where`` is the file, for error messages.
    Raises `FormatError` if the pickle is damaged or contains anything other than data.
    """
    unpickler = DataUnpickler(io.BytesIO(file.read()))
    try:
        return unwrapped(unpickler.load())
    except Refused as refusal:
        raise FormatError(
            "this pickle contains more than data and was not loaded",
            where=where,
            got=str(refusal),
            expected="containers, numbers, strings and numpy arrays",
            remedy="save plain arrays with the tool that wrote it",
        ) from None
    except BROKEN as error:
        remedy = "get a fresh copy of the file"
        got = f"{type(error).__name__}: {error}"[:200]
        raise FormatError("this pickle is damaged", where=where, got=got, remedy=remedy) from error


def read_npy_object(path: Path | str) -> Any:
    """The object in a ``.npy`` file of dtype object, such as the dictionary in Cellpose's ``_seg.npy``.

    It is read like `read_pickle`. A numeric ``.npy`` file gives its array. Raises `FormatError` for any other content,
    and `InputError` if the file cannot be read.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    dtype, fortran, shape, start = _npy_header(data, path)
    if dtype.dtype.kind == "O":
        value = read_pickle(io.BytesIO(data[start:]), where=path)
        return value[()] if isinstance(value, np.ndarray) and value.shape == () else value
    try:
        return _build_array(data[start:], dtype, shape, "F" if fortran else "C")
    except Refused as refusal:
        raise FormatError(
            "this .npy file is damaged", where=path, got=str(refusal), remedy="save it again with numpy or Cellpose"
        ) from None


def _npy_header(data: bytes, path: Path) -> tuple[_Dtype, bool, object, int]:
    """Dtype, order and shape of the array, and the start of its data (NumPy enhancement proposal 1)."""
    width = 2 if data[6:7] == b"\x01" else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    text = data[8 + width : start]
    try:
        if (
            data[:6] != _NPY_MAGIC
            or data[6:7] not in (b"\x01", b"\x02", b"\x03")
            or start > min(len(data), _MAX_HEADER)
        ):
            raise Refused("no NPY signature followed by a complete header")
        header = ast.literal_eval(text.decode("latin1").strip())
        if not isinstance(header, dict):
            raise Refused("a header that is not a dictionary")
        return _Dtype(header.get("descr")), bool(header.get("fortran_order")), header.get("shape"), start
    except (Refused, *BROKEN, SyntaxError) as error:
        got = f"{type(error).__name__}: {error}"[:200]
        raise FormatError(
            "this .npy file has a damaged header", where=path, got=got, remedy="save it again with numpy or Cellpose"
        ) from error


def unwrapped(value: Any) -> Any:
    """What an unpickler returns, with each stand-in replaced by its array. Raises `Refused` for cycles."""
    return _unwrap(value, {}, 0)


def _unwrap(value: Any, done: dict[int, Any], depth: int) -> Any:
    """``value`` with each stand-in replaced by its array; shared parts stay shared, and cycles raise an error."""
    if depth > _MAX_DEPTH:
        raise Refused(f"containers nested deeper than {_MAX_DEPTH}")
    if isinstance(value, _Array):
        if value.value is None:
            raise Refused("an array without content")
        return _unwrap(value.value, done, depth + 1) if value.value.dtype.kind == "O" else value.value
    if isinstance(value, _Dtype):
        return value.dtype
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, dict):
        result: Any = type(value)((_unwrap(k, done, depth + 1), _unwrap(v, done, depth + 1)) for k, v in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        result = type(value)(_unwrap(item, done, depth + 1) for item in value)
    elif isinstance(value, np.ndarray) and value.dtype.kind == "O":
        result = np.empty(value.size, dtype=object)
        for index, item in enumerate(value.flat):
            result[index] = _unwrap(item, done, depth + 1)
        result = result.reshape(value.shape)
    elif callable(value):
        raise Refused("a function among the data")
    else:
        return value
    done[id(value)] = result
    return result

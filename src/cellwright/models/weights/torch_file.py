"""Read what ``torch.save`` wrote (``.pth``, ``.pt``), with the restricted unpickler of `core.unpickle`.

A file is a zip archive with the pickle ``data.pkl`` and one entry per storage, or, from before PyTorch 1.6, a stream of
pickles followed by the storages. A tensor is a view of a storage. All sizes are claims: the archive must be stored as
PyTorch stores it, without compression; storages must not be larger than the file, and tensors must lie in theirs.
"""

# The pure-Python unpickler is not in the type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cellwright.core.unpickle import NAMES, DataUnpickler, Refused, unwrapped

# The first pickle of the older format is this number.
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class _Kind:
    """A type of storage, and of its values."""

    dtype: torch.dtype


def read_torch_file(path: Path) -> Any:
    """The content of a file: plain containers, and tensors on the CPU.

    Raises `Refused` for anything but data and for claims that the file does not hold, `OSError`, and what a damaged
    pickle or archive raises (`core.unpickle.BROKEN`, `zipfile.BadZipFile`, and for an encrypted archive or one of
    another version `RuntimeError`, `NotImplementedError`).
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == _ZIP
    return _read_zip(path) if is_zip else _read_stream(path.read_bytes())


def _read_zip(path: Path) -> Any:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in entries:
            raise Refused("an archive without data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise Refused("a compressed archive, which torch.save never writes")
        if sum(info.file_size for info in archive.infolist()) > size:
            raise Refused("an archive whose entries are larger than the file")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise Refused("a file of a big-endian machine")
        storages: dict[str, Tensor] = {}

        def storage(key: str, kind: _Kind, n_values: int) -> Tensor:
            if key not in storages:
                content = archive.read(entries[f"data/{key}"])
                if len(content) != n_values * kind.dtype.itemsize:
                    raise Refused("a storage of another size than its data")
                storages[key] = _values(content, kind)
            return storages[key]

        return unwrapped(_TorchUnpickler(io.BytesIO(archive.read(entries["data.pkl"])), storage, size).load())


def _read_stream(content: bytes) -> Any:
    """The format before PyTorch 1.6: tensors are made before their storages are read."""
    data = io.BytesIO(content)
    contents: dict[str, tuple[bytearray, _Kind]] = {}
    storages: dict[str, Tensor] = {}

    def storage(key: str, kind: _Kind, n_values: int) -> Tensor:
        if key not in contents:
            claimed = sum(len(held) for held, _ in contents.values()) + n_values * kind.dtype.itemsize
            if claimed > len(content):
                raise Refused("storages that are larger than the file")
            contents[key] = bytearray(n_values * kind.dtype.itemsize), kind
            storages[key] = _values(contents[key][0], kind)
        return storages[key]

    if _TorchUnpickler(data, storage, len(content)).load() != _MAGIC_NUMBER:
        raise Refused("a pickle that torch.save did not write")
    for _ in ("protocol", "machine"):
        _TorchUnpickler(data, storage, len(content)).load()
    result = _TorchUnpickler(data, storage, len(content)).load()
    keys = _TorchUnpickler(data, storage, len(content)).load()
    for key in keys:
        held, kind = contents[key]
        n_values = int.from_bytes(data.read(8), "little")
        if n_values * kind.dtype.itemsize != len(held) or data.readinto(held) != len(held):
            raise EOFError("a storage is cut short")
    return unwrapped(result)


def _values(content: bytes | bytearray, kind: _Kind) -> Tensor:
    """The values of a storage; they share the memory of a bytearray."""
    held = content if isinstance(content, bytearray) else bytearray(content)
    return torch.frombuffer(held, dtype=kind.dtype) if held else torch.zeros(0, dtype=kind.dtype)


class _TorchUnpickler(DataUnpickler):
    """The restricted unpickler, which knows tensors too. storage: the values of a storage by its key."""

    def __init__(self, data: io.BytesIO, storage: Callable[[str, _Kind, int], Tensor], file_bytes: int) -> None:
        super().__init__(data, file_bytes)
        self._storage = storage
        self.names = _NAMES

    def persistent_load(self, pid: object) -> Tensor:
        # ("storage", type, key, device, number of values[, view])
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
            raise Refused("a reference to something other than a storage")
        _, kind, key, _, n_values = pid[:5]
        if not isinstance(kind, _Kind) or not isinstance(key, str) or type(n_values) is not int or n_values < 0:
            raise Refused("a malformed reference to a storage")
        return self._storage(key, kind, n_values)

    def load_build(self) -> None:
        # The state of an OrderedDict is the versions of the modules.
        if isinstance(self.stack[-2], dict):
            self.stack.pop()
        else:
            super().load_build()


def _tensor(storage: object, offset: object, size: object, stride: object, *_rest: object) -> Tensor:
    """A view of a storage, which must lie in it and be no larger than it."""
    numbers = [offset, *size, *stride] if isinstance(size, tuple) and isinstance(stride, tuple) else [None]
    if not isinstance(storage, Tensor) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise Refused("a malformed tensor")
    sizes, strides, start = list(size), list(stride), int(numbers[0] or 0)  # type: ignore[call-overload]
    count = 1
    for side in sizes:
        count *= side
    last = start + sum((side - 1) * step for side, step in zip(sizes, strides, strict=True))
    if count and (count > storage.numel() or last >= storage.numel()):
        raise Refused("a tensor that is larger than its storage")
    return storage.as_strided(sizes, strides, start) if count else storage.new_zeros(sizes)


def _parameter(data: object, *_rest: object) -> object:
    return data


def _size(sides: object = ()) -> tuple[Any, ...]:
    return tuple(sides) if isinstance(sides, list | tuple) else ()


def _counter(counts: object = None) -> dict[Any, Any]:
    return counts if isinstance(counts, dict) else {}


def _device(*_name: object) -> str:
    return "cpu"


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_NAMES: Mapping[tuple[str, str], Any] = {
    **NAMES,
    **{("torch", name): _Kind(dtype) for name, dtype in _STORAGES.items()},
    **{("torch", str(dtype).removeprefix("torch.")): str(dtype) for dtype in _STORAGES.values()},
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("collections", "Counter"): _counter,
}

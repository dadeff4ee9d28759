"""`njit`: numba's, with compiled code in the cache folder, for kernels.

numba itself keeps compiled code beside the source, and ends with an error where it can write nowhere or where a file of
its cache is damaged. Here such code is compiled again. It also imports all that a compilation may need before it loads
compiled code, which here is imported for a compilation only: .2 s less for a command on a small image. Methods such as
``array.max()`` or ``array.mean()`` in a kernel import part of that, and `scipy.linalg`, when it is loaded (.1 s).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.runtime.nrt import rtsys

from cellwright.core.cache import code_folder


def njit(*, cache: Literal[True], fused: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """A decorator as numba's ``njit(cache=True, nogil=True)``: other threads go on while a kernel runs.

    fused: a product may be added without being rounded, which is faster and differs between processors.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher: Any = numba.njit(nogil=True, fastmath={"contract"} if fused else False)(function)
        with suppress(RuntimeError):  # no place for a cache: compiled in each process
            dispatcher._cache = _Cache(function)
        return dispatcher

    return compiled


class _Locator(_CacheLocator):
    """The folder of a kernel's module, named after all kernels: compiled code contains that of kernels it calls."""

    def __init__(self, function: FunctionType, folder: Path) -> None:
        self._path = folder / _digest_of_kernels() / function.__module__
        self._line = function.__code__.co_firstlineno
        self._py_file = function.__code__.co_filename  # named in numba's warnings

    def get_cache_path(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] - numba has no types
        return str(self._path)

    def get_source_stamp(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _digest_of_kernels()

    def get_disambiguator(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return str(self._line)

    @classmethod
    def from_function(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, function: FunctionType, file: str
    ) -> _Locator | None:
        folder = code_folder()
        if folder is None:
            return None
        locator = cls(function, folder)
        try:
            locator.ensure_cache_path()
        except OSError:
            return None
        return locator


class _Implementation(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _Cache(FunctionCache):
    _impl_class = _Implementation

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # numba would first import its implementations of all functions, .2 s, which only a compilation needs.
        rtsys.initialize(target_context)
        try:
            with self._guard_against_spurious_io_errors():
                return self._load_overload(sig, target_context)
        except Exception:  # noqa: BLE001 - unpickling a damaged file raises anything
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:  # noqa: BLE001 - a damaged index, which is written again, or a full disk
            with suppress(OSError):
                self.flush()
                super().save_overload(sig, data)


@functools.cache
def _digest_of_kernels() -> str:
    digest = hashlib.sha256(f"{numba.__version__}, nogil".encode())
    for path in sorted(Path(__file__).parents[1].rglob("*_kernels.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

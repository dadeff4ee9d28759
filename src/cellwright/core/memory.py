"""Memory allocation: avoid the page faults of large temporary arrays."""

from __future__ import annotations

import ctypes
import platform

# From glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Make this process keep the memory of freed arrays for reuse instead of returning it to the system.

    By default glibc maps every array above 32 MiB separately, and each of its pages faults on first use. With this
    setting a U-Net predicts 1280 x 1280 px 2.2 times as fast, and a training step is 1.2 times as fast. In exchange,
    the process may use up to 50 % more memory at its peak.

    It changes ``malloc`` for the whole process until it ends, so the library never calls it; the command line does.
    Nothing happens where the C library is not glibc (macOS, Windows, Alpine Linux).

    >>> keep_freed_memory()
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

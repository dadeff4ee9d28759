"""Memory of freed arrays stays with the process: the next array of that size causes no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from cellwright.core.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    b"x" * int(sys.argv[2])  # not numpy, which requests huge pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_pages_of_freed_arrays_are_used_again() -> None:
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, how, str(64 << 20)], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("kept", "plain")
    ]
    # The pages of eight arrays, or of one that is reused.
    assert faults[0] < faults[1] / 4

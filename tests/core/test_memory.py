"""How much memory there is, and that memory of freed arrays stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from cellwright.core import memory
from cellwright.core.errors import InputError, UsageError

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


PIECES = """
from pathlib import Path
from cellwright.core.memory import keep_freed_memory, trim_memory
keep_freed_memory()
pieces = [b"x" * (4 << 20) for _ in range(60)]
del pieces[::2], pieces[1::2]
for limit in (1 << 40, 1 << 26):
    trim_memory(limit)
    print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_was_freed_in_pieces_is_returned_above_a_limit() -> None:
    done = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=True)
    kept, trimmed = map(int, done.stdout.split())
    assert kept - trimmed > 45 * (4 << 20) * 0.9


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from cellwright.core.memory import available_bytes
print(available_bytes())
"""


def test_the_limit_on_the_address_space_is_seen() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert 1 << 29 < int(done.stdout) < 3 << 30


@pytest.mark.parametrize(
    ("place", "files"),
    [
        ("0::/job/step", {"job/memory.max": "1000000", "job/memory.current": "400000"}),
        ("4:memory:/job", {"memory/memory.limit_in_bytes": "1000000", "memory/memory.usage_in_bytes": "400000"}),
    ],
)
def test_the_memory_of_a_container_is_seen(monkeypatch, tmp_path, place, files) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        (tmp_path / name).with_name("memory.stat").write_text("cache 9\ninactive_file 300\ntotal_inactive_file 300\n")
    own = tmp_path / "own"
    own.write_text(f"3:cpu:/x\n{place}\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUPS", own)
    assert memory.available_bytes() == 600_300


def test_the_memory_to_use_can_be_stated(monkeypatch) -> None:
    monkeypatch.setenv(memory.LIMIT_VARIABLE, "1.5")
    assert memory.available_bytes() == 3 << 29
    memory.check_memory(1 << 30, "this image")
    with pytest.raises(InputError, match=r"this image needs more memory than there is\n  where: a.png\n.*\n.*1.5 GiB"):
        memory.check_memory(1 << 31, "this image", where="a.png")
    monkeypatch.setenv(memory.LIMIT_VARIABLE, "lots")
    with pytest.raises(UsageError, match="lots"):
        memory.available_bytes()

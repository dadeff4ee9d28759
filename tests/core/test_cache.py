"""Where files outside of outputs are kept, and compiled code that is missing, damaged or cannot be written."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

import cellwright
from cellwright.core.cache import cache_folder, code_folder, keep_in_cache_folder
from cellwright.core.jit import njit


def plus_one(value: int) -> int:
    return value + 1


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The user's folder for caches, and that for temporary files."""
    user, temporary = tmp_path / "user", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(user))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    return user, temporary


def test_one_folder_then_a_temporary_one_then_none(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    user, temporary = places
    assert cache_folder() == user / "cellwright"
    assert code_folder() == user / "cellwright" / "numba"
    (user / "cellwright").rmdir()
    user.rmdir()
    user.write_text("not a folder")
    folder = cache_folder()
    assert folder is not None
    assert folder.parent == temporary
    folder.rmdir()
    folder.symlink_to(temporary, target_is_directory=True)  # by whom?
    assert (cache_folder(), code_folder()) == (None, None)
    assert njit(cache=True)(plus_one)(2) == 3


def test_without_a_home(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without an entry
    folder = cache_folder()
    assert folder is not None
    assert folder.parent == places[1]


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_a_folder_that_others_can_write_is_not_taken(places: tuple[Path, Path]) -> None:
    (places[0] / "cellwright").mkdir(parents=True)
    (places[0] / "cellwright").chmod(0o777)
    folder = cache_folder()
    assert folder is not None
    assert folder.parent == places[1]


def test_files_of_other_packages(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_HOME", "HF_HUB_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("MPLCONFIGDIR", "chosen")
    keep_in_cache_folder()
    assert os.environ["TORCH_HOME"] == str(places[0] / "cellwright" / "torch")
    assert os.environ["MPLCONFIGDIR"] == "chosen"


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"\0" * 99])
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_damaged_compiled_code_is_made_again(suffix: str, damage, places: tuple[Path, Path]) -> None:
    def call() -> int:
        """How often compiled code was found."""
        kernel = njit(cache=True)(plus_one)
        assert kernel(2) == 3
        return sum(kernel.stats.cache_hits.values())

    assert (call(), call()) == (0, 1)
    (file,) = places[0].rglob(f"*.{suffix}")
    file.write_bytes(damage(file.read_bytes()))
    assert (call(), call()) == (0, 1)


def test_compiled_code_that_cannot_be_kept(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.os.replace", full)
    assert njit(cache=True)(plus_one)(2) == 3


def test_all_kernels_use_it() -> None:
    package = Path(cellwright.__file__).parent
    users = [path for path in package.rglob("*.py") if re.search(r"^\s*(import|from) numba", path.read_text(), re.M)]
    assert users == [package / "core" / "jit.py"]

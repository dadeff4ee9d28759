"""Atomic writing, and errors of JSON files."""

from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path

import pytest

from cellwright.core import errors, files


def test_files_are_complete_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.json"
    files.write_json(target, {"x": 1})
    assert files.read_json(target) == {"x": 1}

    def write_half() -> None:
        with files.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(errors.OutputError, match="disk is full"):
        write_half()
    assert files.read_json(target) == {"x": 1}
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(target, float("nan"))


def test_contents_are_on_the_disk_before_files_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )
    with files.atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("a")
    assert flushed == [str(temporary)]
    with files.atomic_path(tmp_path / "folder") as temporary:
        (temporary / "b").mkdir(parents=True)
        (temporary / "b" / "c.txt").write_text("c")
    assert flushed[1:] == [str(temporary / "b" / "c.txt"), str(temporary / "b"), str(temporary)]

    def cannot(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "not on this file system")

    monkeypatch.setattr(os, "fsync", cannot)
    files.write_text(tmp_path / "d.txt", "d")


def test_long_names_and_what_killed_processes_left(tmp_path: Path) -> None:
    for name in ("x" * 250 + ".png", "\u00e9" * 125 + ".tif", "a." + "y" * 200):
        target, dead = tmp_path / name, "4194999"
        files.write_text(target, "1")
        left = files.temporary_path(target)
        left = left.with_name(left.name.replace(f"{os.getpid()}-", f"{dead}-"))
        (tmp_path / f".other.{dead}.partial.txt").write_text("half")
        for path in (left, files.temporary_path(target)):
            path.write_text("half")
        files.sweep(tmp_path, target)
        assert not left.exists()
        files.sweep(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([target, files.temporary_path(target)])
        target.unlink()
        files.temporary_path(target).unlink()


def test_json_errors_name_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1,\n  b}')
    with pytest.raises(errors.FormatError, match=r"a\.json, line 2, column 3"):
        files.read_json(path)
    with pytest.raises(errors.InputError, match="cannot read"):
        files.read_json(tmp_path / "absent.json")


def test_compressed_text_that_is_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b"[" + b"[]," * 25_000_000 + b"[]]"))
    with pytest.raises(errors.FormatError, match=r"this file is no text(.|\n)*100 times"):
        files.read_json(path)
    path.write_bytes(gzip.compress(b"[" + b"[]," * 10_000_000 + b"[]]"))
    monkeypatch.setenv("CELLWRIGHT_MEMORY_GB", "0.2")
    with pytest.raises(errors.InputError, match="needs more memory than there is"):
        files.read_json(path)
    monkeypatch.setenv("CELLWRIGHT_MEMORY_GB", "0.05")
    with pytest.raises(errors.FormatError, match="too large"):
        files.read_json(path)

"""Atomic writing, and errors of JSON files."""

from __future__ import annotations

import errno
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


def test_json_errors_name_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1,\n  b}')
    with pytest.raises(errors.FormatError, match=r"a\.json, line 2, column 3"):
        files.read_json(path)
    with pytest.raises(errors.InputError, match="cannot read"):
        files.read_json(tmp_path / "absent.json")

"""An output folder is never removed with what is not ours in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellwright.api.demo import DemoPlan, run
from cellwright.api.outputs import claim_folder
from cellwright.core.errors import OutputError


def test_overwriting_removes_an_old_output_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "report.md").write_text("ours")
    with pytest.raises(OutputError, match="overwrite=True"):
        claim_folder(old, "report.md", overwrite=False)
    monkeypatch.chdir(old)  # such as --out .
    with pytest.raises(OutputError, match="not removed"):
        claim_folder(Path(), "report.md", overwrite=True)
    monkeypatch.chdir(tmp_path)
    claim_folder(old, "report.md", overwrite=True)
    assert not old.exists()


def test_a_folder_with_somebodys_data_is_no_demo(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="not an output of this command"):
        run(DemoPlan(out=tmp_path, overwrite=True))
    assert (tmp_path / "data" / "mine.txt").read_text() == "precious"

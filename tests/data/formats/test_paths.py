"""The image files of a name in a folder."""

from __future__ import annotations

import os
from pathlib import Path

from cellwright.data.formats import paths
from cellwright.data.formats.paths import images_named


def test_names_in_a_folder_are_listed_once_until_it_changes(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    os.utime(tmp_path, (1e9, 1e9))
    paths._listed.cache_clear()
    assert [images_named(tmp_path, f"{k}") for k in range(50)] == [[]] * 50
    assert images_named(tmp_path, "a") == [tmp_path / "a.png"]
    assert paths._listed.cache_info().misses == 1
    (tmp_path / "b.OME.TIF").touch()
    (tmp_path / "c.tif").mkdir()
    assert images_named(tmp_path, "b") == [tmp_path / "b.OME.TIF"], "added just now"
    (tmp_path / "b.png").touch()
    assert images_named(tmp_path, "b") == [tmp_path / "b.png", tmp_path / "b.OME.TIF"], "perhaps at the same time"
    assert images_named(tmp_path, "c") == images_named(tmp_path / "missing", "a") == []
    assert paths._listed.cache_info().misses == 1

"""The code of docs/extending.md runs."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import cellwright as cw
from cellwright.testing.objects import draw_objects
from cellwright.testing.segmenters import draw_image

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders that the page assumes, as the current one: ``images``, and ``scans`` with Cellpose's outlines."""
    for name in ("images", "scans", "work"):
        (tmp_path / name).mkdir()
    for seed, name in enumerate("ab"):
        cv2.imwrite(str(tmp_path / f"images/{name}.png"), draw_image("grey", seed).data)
        masks = draw_objects(seed, overlaps=False, scored=False).masks
        outlines = [polygons[0][0] for polygons in masks.to_polygons()]
        lines = [",".join(str(int(value)) for value in outline.ravel()) for outline in outlines]
        (tmp_path / f"scans/{name}_cp_outlines.txt").write_text("\n".join(lines) + "\n")
        cv2.imwrite(str(tmp_path / f"scans/{name}.png"), np.zeros(masks.image_hw, np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(folder: Path, blocks: list[str]) -> dict[str, object]:
    """Run blocks as a module, since worker processes must be able to import what they define; returns its names."""
    (folder / "extending_page.py").write_text("\n\n".join(blocks))
    sys.modules.pop("extending_page", None)
    try:
        return vars(importlib.import_module("extending_page"))
    finally:
        sys.modules.pop("extending_page", None)


def test_the_page_runs(folder: Path) -> None:
    names = run(folder, BLOCKS)
    assert len(names["cells"]) >= 10  # type: ignore[arg-type]
    assert len(names["table"]) == len(names["cells"])  # type: ignore[arg-type]
    assert [sample.id for sample in names["dataset"]] == ["a", "b"]  # type: ignore[attr-defined]
    for predictions in (names["predictions"], cw.read_dataset("work/otsu")):
        assert [sample.id for sample in predictions] == ["a", "b"]  # type: ignore[attr-defined]
        assert all(len(sample.read_instances()) >= 10 for sample in predictions)  # type: ignore[attr-defined]
    assert (folder / "work" / "a.geojson").is_file()
    assert len(names["CHECKS"]) >= 7  # type: ignore[arg-type]


def test_the_examples_are_short() -> None:
    classes = [block for block in BLOCKS if re.search(r"^class ", block, re.MULTILINE)]
    for block in classes:
        code = [line for line in block.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
        assert len(code) <= 35, len(code)

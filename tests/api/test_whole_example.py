"""All of the design's Python example, with the model in the box."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_front_door import check, folder, lines_with

import cellwright as cw

__all__ = ["folder"]


@pytest.mark.usefixtures("folder")
def test_every_line(tmp_path: Path) -> None:
    names = {"cw": cw}
    exec(lines_with("max_minutes=5", "max_minutes=0.02"), names)
    check(names)
    run, both = names["run"], names["both"]
    assert (tmp_path / "runs/mine/model/weights.safetensors").is_file()
    assert run.metrics["accuracy@0.5"] > 0
    assert len(both) > 10
    assert both.scores is not None
    assert both.masks.image_hw == names["image"].image_hw

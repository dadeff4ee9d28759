"""``cellwright plan``: a file that `train` takes, and that is never replaced once it was edited."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn import run

from cellwright.config import recipe as recipes
from cellwright.data.formats import FORMATS, WriteOptions
from cellwright.data.synthetic import FieldLook, write_demo_dataset


def test_plan_and_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundled model finds drawn nuclei, so training starts from it."""
    drawn = write_demo_dataset(
        tmp_path / "drawn", splits=(("train", 2), ("val", 1)), image_hw=(96, 96), n_objects=9, look=FieldLook(overlap=0)
    )
    data, out = tmp_path / "data", tmp_path / "recipe.yaml"
    FORMATS["coco"].write(drawn, data, WriteOptions())
    assert run("plan", data, "--out", out) == 0
    printed = capsys.readouterr()
    assert "flow U-Net" in printed.out
    assert f"next: cellwright train {out} --data {data}" in printed.out
    assert "not known: how long a step takes here, without a time (--minutes)" in printed.err
    assert recipes.load(str(out)).model.init == "nuclei"
    assert run("train", out, "--data", data, "--out", tmp_path / "run", "--dry-run") == 0
    assert "initial weights: nuclei" in capsys.readouterr().err
    out.write_text(out.read_text().replace("lr: 0.0005", "lr: 0.001"))
    assert run("plan", data, "--out", out) == 2
    assert "with other content" in capsys.readouterr().err
    assert "lr: 0.001" in out.read_text()
    assert run("plan", data, "--init", "none", "--minutes", 0.5, "--out", out, "--overwrite") == 0
    recipe = recipes.load(str(out))
    assert recipe.model.init is None
    assert recipe.train.length.unit == "steps"
    assert "fits into 0.5 min" in out.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "drawn", "recipe.yaml"]

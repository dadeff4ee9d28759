"""What ``import cellwright`` offers is pinned: a change here is a change for every user."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cellwright

PUBLIC = [
    "CellwrightError",
    "Dataset",
    "Format",
    "FormatError",
    "Image",
    "InputError",
    "Instances",
    "MaskSet",
    "ModelError",
    "OutputError",
    "ReadOptions",
    "RecipeError",
    "Sample",
    "SoftMasks",
    "TrainingDiverged",
    "UsageError",
    "View",
    "WriteOptions",
    "evaluate",
    "fuse",
    "load_model",
    "measure",
    "read_dataset",
    "read_image",
    "read_instances",
    "save",
    "show",
    "train",
]


def test_the_public_names_are_these() -> None:
    assert cellwright.__all__ == PUBLIC
    assert all(getattr(cellwright, name).__doc__ for name in PUBLIC)
    assert set(PUBLIC) < set(dir(cellwright))
    with pytest.raises(AttributeError, match="no attribute 'predict_all'"):
        cellwright.predict_all  # noqa: B018


def test_the_command_line_loads_few_modules() -> None:
    """Counted, not timed: a timed test fails on a busy machine."""
    code = "import sys; import cellwright, cellwright.cli.app; print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 800


def test_functions_called_like_rooms_stay_functions() -> None:
    """Importing ``cellwright.training`` must not hide ``cellwright.train`` the function."""
    import cellwright.evaluation.report
    import cellwright.measurement.table
    import cellwright.training.logging

    assert callable(cellwright.train)
    assert callable(cellwright.evaluate)
    assert callable(cellwright.measure)
    assert cellwright.evaluate([], []).values["n_images"] == 0

"""A tile job that tests of several files read."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job, which no test changes; ``field.tif`` beside it."""
    from test_tile_jobs import predict, write_field

    root = tmp_path_factory.mktemp("tiles")
    assert predict(write_field(root / "field.tif"), root / "job") == 0
    return root / "job"

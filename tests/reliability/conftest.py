"""The warm process and the workshop, made once. These tests fork, and limit memory as Linux does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from warm_process import Warm


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    if not sys.platform.startswith("linux"):
        pytest.skip("these tests fork, and limit memory as Linux does")
    process = Warm()
    yield process
    process.close()


@pytest.fixture(scope="session")
def workshop(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `workshop`; it is the working directory of the warm process."""
    root = tmp_path_factory.mktemp("reliability") / "workshop"
    warm.prepare("command_trials:prepare", root)
    return root

"""The warm process of each test module. These tests fork, and limit memory as Linux does."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from warm_process import Warm


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    if not sys.platform.startswith("linux"):
        pytest.skip("these tests fork, and limit memory as Linux does")
    process = Warm()
    yield process
    process.close()

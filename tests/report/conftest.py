"""Tests of what pictures show."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def draws_charts(real_charts: None) -> None:
    """See `real_charts`."""

"""A training step of the three largest published networks at full size on a CPU; prints time and memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

# Parameters: all tensors of the model zoo's files (fixtures/zoo_keys), including norms, with 4 instead of 80 classes.
NETWORKS = [
    ("vrdl_nuclei/r101_c4", 54_051_364),
    ("cells4/cascade_x152_dconv_gn", 182_234_428),
    ("cells4/pointrend_x101", 118_955_452),
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "parameters"), NETWORKS, ids=[name for name, _ in NETWORKS])
def test_one_step_at_full_size(recipe: str, parameters: int) -> None:
    program = Path(__file__).with_name("full_size_step.py")
    done = subprocess.run([sys.executable, program, recipe], capture_output=True, text=True, check=True, timeout=3600)
    print(done.stdout)
    report = json.loads(done.stdout)
    assert report["parameters"] == parameters
    assert all(math.isfinite(value) and value > 0 for value in report["losses"].values())
    assert math.isfinite(report["gradient_norm"])
    assert report["no_gradient"] == []
    # One step of a deep head's norms can be smaller than the rounding of their initial value, 1.
    assert all(name.endswith(".norm.weight") for name in report["unchanged"])
    assert report["changed_though_frozen"] == []
    assert 0 < report["peak_memory_mb"] < 16_000

"""The three largest published networks at their own size take a training step on a CPU; time and memory are printed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

# Parameters: the tensors of the model zoo's files (fixtures/zoo_keys), norms and all, with 80 classes cut to 4.
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
    told = json.loads(done.stdout)
    assert told["parameters"] == parameters
    assert all(math.isfinite(value) and value > 0 for value in told["losses"].values())
    assert math.isfinite(told["gradient_norm"])
    assert told["no_gradient"] == []
    # One step of a deep head's norms can be less than the last digit of the 1 that they start from.
    assert all(name.endswith(".norm.weight") for name in told["unmoved"])
    assert told["moved_though_frozen"] == []
    assert 0 < told["peak_memory_mb"] < 16_000

"""The protocols of models: their example runs, and importing them costs little."""

from __future__ import annotations

import doctest
import subprocess
import sys

from cellwright.models import contract


def test_the_example_runs() -> None:
    assert doctest.testmod(contract).failed == 0


def test_importing_the_contract_loads_no_torch() -> None:
    code = "import sys, cellwright.models.contract; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

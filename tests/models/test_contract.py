"""Importing the protocols of models is cheap."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_contract_loads_no_torch() -> None:
    code = "import sys, cellwright.models.contract; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

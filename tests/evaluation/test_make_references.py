"""Computes the reference results of other tools again, in a separate environment (slow: it installs them)."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("make_references.py")
PACKAGES = ("stardist==0.9.1", "cellpose==3.1.1.2", "numpy<2", "setuptools<80")


@pytest.mark.slow
def test_the_stored_results_are_reproducible(tmp_path: Path) -> None:
    if sys.version_info >= (3, 13):
        pytest.skip("numpy below 2 has no wheel for this Python")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    installed = subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], capture_output=True, check=False)
    if installed.returncode:
        pytest.skip("the reference packages cannot be installed here")
    subprocess.run([python, SCRIPT, tmp_path / "results.json"], check=True)
    results, stored = (
        json.loads(p.read_text()) for p in (tmp_path / "results.json", SCRIPT.with_name("references.json"))
    )
    assert results["cases"] == stored["cases"]
